//! Block formats of quantised weights as GGUF files hold them, and how rows of numbers become blocks.
//!
//! | format | weights a block | bytes | value |
//! |---|---|---|---|
//! | Q8_0 | 32 | 34 | `d·q`, q in −127 ..= 127 |
//! | Q4_0 | 32 | 18 | `d·(q − 8)`, q in 0 ..= 15 |
//! | Q4_1 | 32 | 20 | `d·q + m`, q in 0 ..= 15 |
//! | Q4_K | 256 | 144 | `d·s_i·q − e·m_i`, s_i and m_i of 6 bits for each 32 weights, q in 0 ..= 15 |
//!
//! d, e and m are f16. A row whose length is no multiple of the block ends in zeros here; files don't have such rows.

mod q4_k;

use half::f16;

use crate::error::{Result, check_len};

/// A block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockFormat {
    /// 8 bits, one scale for 32 weights.
    Q8_0,
    /// 4 bits, one scale for 32 weights.
    Q4_0,
    /// 4 bits, a scale and an offset for 32 weights.
    Q4_1,
    /// 4 bits, scales and offsets of 6 bits for 32 weights, two f16 for 256.
    Q4K,
}

/// Weights that share a scale, in every format.
pub(crate) const GROUP: usize = 32;

/// One group of 32 weights, in the terms that all formats have in common: `value = scale·q + offset`, q as stored.
pub(crate) struct Group {
    /// −127 ..= 127 for Q8_0, else 0 ..= 15.
    pub(crate) q: [i8; GROUP],
}

impl BlockFormat {
    /// Weights of one block.
    #[must_use]
    pub fn block_len(self) -> usize {
        if self == Self::Q4K { 256 } else { GROUP }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q4K => 144,
        }
    }

    /// Bytes of a row of `len` weights.
    #[must_use]
    pub fn row_bytes(self, len: usize) -> usize {
        len.div_ceil(self.block_len()) * self.block_bytes()
    }

    /// Quantises one row into blocks as they stand in a GGUF file.
    ///
    /// # Errors
    /// If `blocks` is not [`Self::row_bytes`] long.
    pub fn quantize_row(self, row: &[f32], blocks: &mut [u8]) -> Result<()> {
        check_len("quantised row", blocks.len(), self.row_bytes(row.len()))?;
        for (values, block) in row.chunks(self.block_len()).zip(blocks.chunks_exact_mut(self.block_bytes())) {
            match self {
                Self::Q8_0 => q8_0(&filled(values), block),
                Self::Q4_0 => q4_0(&filled(values), block),
                Self::Q4_1 => q4_1(&filled(values), block),
                Self::Q4K => q4_k::quantize(&filled(values), block),
            }
        }
        Ok(())
    }

    /// The numbers that a row of blocks stands for.
    ///
    /// # Errors
    /// If `blocks` is not as long as [`Self::row_bytes`] says for `row`.
    pub fn dequantize_row(self, blocks: &[u8], row: &mut [f32]) -> Result<()> {
        check_len("quantised row", blocks.len(), self.row_bytes(row.len()))?;
        for (values, block) in row.chunks_mut(self.block_len()).zip(blocks.chunks_exact(self.block_bytes())) {
            for (i, values) in values.chunks_mut(GROUP).enumerate() {
                let (scale, offset) = self.scale(block, i);
                for (value, q) in values.iter_mut().zip(self.group(block, i).q) {
                    *value = scale * f32::from(q) + offset;
                }
            }
        }
        Ok(())
    }

    /// The weights of group `i` of a block.
    pub(crate) fn group(self, block: &[u8], i: usize) -> Group {
        let mut q = [0i8; GROUP];
        match self {
            Self::Q8_0 => {
                for (q, byte) in q.iter_mut().zip(&block[2..34]) {
                    *q = byte.cast_signed();
                }
            }
            Self::Q4_0 | Self::Q4_1 => {
                let nibbles = &block[if self == Self::Q4_0 { 2 } else { 4 }..];
                let (low, high) = q.split_at_mut(GROUP / 2);
                for ((low, high), byte) in low.iter_mut().zip(high).zip(nibbles) {
                    *low = (byte & 15).cast_signed();
                    *high = (byte >> 4).cast_signed();
                }
            }
            Self::Q4K => {
                // Two groups share 32 bytes: the first has the lower halves.
                let bytes = &block[16 + i / 2 * GROUP..][..GROUP];
                for (q, byte) in q.iter_mut().zip(bytes) {
                    *q = (if i.is_multiple_of(2) { byte & 15 } else { byte >> 4 }).cast_signed();
                }
            }
        }
        Group { q }
    }

    /// `(scale, offset)` of group `i` of a block: `value = scale·q + offset`.
    pub(crate) fn scale(self, block: &[u8], i: usize) -> (f32, f32) {
        let d = half_at(block, 0).to_f32();
        match self {
            Self::Q8_0 => (d, 0.0),
            Self::Q4_0 => (d, -8.0 * d),
            Self::Q4_1 => (d, half_at(block, 2).to_f32()),
            Self::Q4K => {
                let (scale, min) = q4_k::scale_and_min(block, i);
                (d * f32::from(scale), -(half_at(block, 2).to_f32() * f32::from(min)))
            }
        }
    }

    /// The 6-bit scale and minimum of group `i` of a Q4_K block.
    pub(crate) fn small_scales(block: &[u8], i: usize) -> (u8, u8) {
        q4_k::scale_and_min(block, i)
    }
}

/// The f16 at byte `at`.
pub(crate) fn half_at(block: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([block[at], block[at + 1]])
}

/// Values filled up to a whole block with zeros.
fn filled<const N: usize>(values: &[f32]) -> [f32; N] {
    let mut block = [0.0; N];
    block[..values.len()].copy_from_slice(values);
    block
}

fn put_half(block: &mut [u8], at: usize, value: f16) {
    block[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// `1 / d`, or 0 where there is nothing to divide.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { d.recip() }
}

fn q8_0(values: &[f32; GROUP], block: &mut [u8]) {
    let largest = values.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    // Quantised with the scale as it is stored, so that its rounding is not an error on top.
    let d = f16::from_f32(largest / 127.0);
    let inverse = inverse(d.to_f32());
    put_half(block, 0, d);
    for (byte, value) in block[2..].iter_mut().zip(values) {
        *byte = ((value * inverse).round().clamp(-127.0, 127.0) as i8).cast_unsigned();
    }
}

fn q4_0(values: &[f32; GROUP], block: &mut [u8]) {
    // The value of largest magnitude, with its sign, gets q = 0, the only one that reaches −8.
    let largest = values.iter().fold(0.0f32, |a, b| if b.abs() > a.abs() { *b } else { a });
    let d = f16::from_f32(largest / -8.0);
    let inverse = inverse(d.to_f32());
    put_half(block, 0, d);
    put_nibbles(&mut block[2..], |i| values[i] * inverse + 8.0);
}

fn q4_1(values: &[f32; GROUP], block: &mut [u8]) {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (d, m) = (f16::from_f32((max - min) / 15.0), f16::from_f32(min));
    let inverse = inverse(d.to_f32());
    put_half(block, 0, d);
    put_half(block, 2, m);
    put_nibbles(&mut block[4..], |i| (values[i] - m.to_f32()) * inverse);
}

/// 32 values rounded to 0 ..= 15: the first 16 in the lower halves of 16 bytes, the others in the upper.
fn put_nibbles(bytes: &mut [u8], value: impl Fn(usize) -> f32) {
    let nibble = |i: usize| value(i).round().clamp(0.0, 15.0) as u8;
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = nibble(i) | nibble(i + GROUP / 2) << 4;
    }
}

#[cfg(test)]
mod tests;
