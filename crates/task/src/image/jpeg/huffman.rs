//! The Huffman-coded data of a JPEG file: its bits, and the codes in them (ITU-T T.81, annex F).

use std::sync::Arc;

use libjpeg_turbo_rs::common::huffman_table::HuffmanTable;
use libjpeg_turbo_rs::common::quant_table::ZIGZAG_ORDER;

/// Zeros behind a segment: bits are read in words, up to two of them too far.
const SLACK: usize = 16;

/// The data without stuffed bytes, cut at restart markers.
pub(super) struct Segments {
    data: Vec<u8>,
    /// Where each starts and ends in `data`. At least [`SLACK`] zeros follow.
    places: Vec<(usize, usize)>,
}

impl Segments {
    /// `bytes` starts with the first coded byte. `None` unless restart markers are in order up to the end marker.
    pub(super) fn new(mut bytes: &[u8]) -> Option<Self> {
        const END_OF_IMAGE: u8 = 0xd9;
        let mut segments = Self { data: Vec::with_capacity(bytes.len() + SLACK), places: Vec::new() };
        let mut start = 0;
        loop {
            let at = memchr::memchr(0xff, bytes)?;
            let marker = *bytes.get(at + 1)?;
            let is_stuffed = marker == 0;
            segments.data.extend_from_slice(&bytes[..at + usize::from(is_stuffed)]);
            bytes = &bytes[at + 2..];
            if is_stuffed {
                continue;
            }
            let restart = 0xd0 + (segments.places.len() % 8) as u8;
            segments.places.push((start, segments.data.len()));
            segments.data.extend_from_slice(&[0; SLACK]);
            start = segments.data.len();
            match marker {
                END_OF_IMAGE => return Some(segments),
                _ if marker == restart => {}
                _ => return None,
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Bits<'_>> {
        self.places.iter().map(|&(start, end)| Bits { data: &self.data, at: start, end, next: 0, left: 0 })
    }
}

/// The bits of a segment, highest first, and zeros behind them.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a> {
    data: &'a [u8],
    /// The next byte to read.
    at: usize,
    /// Where the segment ends.
    end: usize,
    /// The next bits, from the top.
    next: u64,
    /// How many of them are known.
    left: u32,
}

impl Bits<'_> {
    /// Reads on until at least 56 bits are known; `None` far behind the end.
    #[inline(always)]
    fn fill(&mut self) -> Option<()> {
        let word = self.data.get(self.at..)?.first_chunk()?;
        self.next |= u64::from_be_bytes(*word) >> self.left;
        self.at += ((63 - self.left) >> 3) as usize;
        self.left |= 56;
        Some(())
    }

    #[inline(always)]
    fn skip(&mut self, bits: u32) {
        self.next <<= bits;
        self.left -= bits;
    }

    /// The next `size` bits (not 0) as a number, which is negative if the first of them is not set.
    #[inline(always)]
    fn number(&mut self, size: u32) -> i16 {
        let number = (self.next >> (64 - size)) as i32;
        let negative = !((self.next as i64) >> 63) as i32;
        self.skip(size);
        (number + (negative & (1 - (1 << size)))) as i16
    }

    /// The next code's symbol.
    #[inline(always)]
    fn symbol(&mut self, codes: &HuffmanTable) -> Option<u8> {
        let (symbol, length) = codes.lookup((self.next >> 48) as u16).ok()?;
        self.skip(u32::from(length));
        Some(symbol)
    }

    /// The difference to the level of the block before; `None` if the data isn't what an encoder writes.
    pub(super) fn difference(&mut self, codes: &HuffmanTable) -> Option<i16> {
        self.fill()?;
        match u32::from(self.symbol(codes)?) {
            0 => Some(0),
            size => (size <= LARGEST.0).then(|| self.number(size)),
        }
    }

    /// Whether all of the segment was read but what fills up its last byte.
    pub(super) fn is_at_end(&self) -> bool {
        let (read, all) = (8 * self.at - self.left as usize, 8 * self.end);
        read <= all && read + 8 > all
    }
}

/// Bits that [`Codes`] looks at together.
const LOOKUP_BITS: u32 = 11;

/// The most bits of the numbers that 8-bit samples lead to: differences of levels, and coefficients.
const LARGEST: (u32, u32) = (11, 10);

/// The codes of coefficients.
pub(super) struct Codes {
    /// By the next [`LOOKUP_BITS`] bits: a coefficient (16 bits), zeros before it (8 bits), and how many bits they take
    /// (8 bits, from the lowest). 0 if that's more bits, or no coefficient.
    short: [u32; 1 << LOOKUP_BITS],
    table: Arc<HuffmanTable>,
}

impl Codes {
    pub(super) fn new(table: Arc<HuffmanTable>) -> Self {
        let short = std::array::from_fn(|index| {
            let word = (index << (16 - LOOKUP_BITS)) as u16;
            let Ok((symbol, length)) = table.lookup(word) else { return 0 };
            let (zeros, size, length) = (u32::from(symbol >> 4), u32::from(symbol & 15), u32::from(length));
            if size == 0 || length + size > LOOKUP_BITS {
                return 0;
            }
            let mut bits = Bits { data: &[], at: 0, end: 0, next: u64::from(word) << 48, left: 16 };
            bits.skip(length);
            u32::from(bits.number(size) as u16) << 16 | zeros << 8 | (length + size)
        });
        Self { short, table }
    }

    /// All coefficients of a block but the first; `None` if the data isn't what an encoder writes.
    #[inline(never)] // or its state does not stay in registers
    pub(super) fn coefficients(&self, from: &mut Bits<'_>, coefficients: &mut [i16; 64]) -> Option<()> {
        const ZEROS_ONLY: u8 = 0xf0;
        let mut bits = *from;
        let mut at = 1;
        'block: loop {
            bits.fill()?;
            // What is known is enough for two codes with their numbers.
            for _ in 0..2 {
                let short = self.short[(bits.next >> (64 - LOOKUP_BITS)) as usize];
                let coefficient = if short != 0 {
                    bits.skip(short & 63);
                    at += (short >> 8 & 15) as usize;
                    (short >> 16) as i16
                } else {
                    match bits.symbol(&self.table)? {
                        0 => break 'block,
                        ZEROS_ONLY if at + 16 < 64 => {
                            at += 16;
                            continue;
                        }
                        symbol => {
                            let size = u32::from(symbol & 15);
                            if size == 0 || size > LARGEST.1 {
                                return None;
                            }
                            at += usize::from(symbol >> 4);
                            bits.number(size)
                        }
                    }
                };
                *coefficients.get_mut(*ZIGZAG_ORDER.get(at)?)? = coefficient;
                at += 1;
                if at == 64 {
                    break 'block;
                }
            }
        }
        *from = bits;
        Some(())
    }
}
