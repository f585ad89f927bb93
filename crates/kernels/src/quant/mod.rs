//! Block formats of quantised weights as GGUF files hold them, and how rows of numbers become blocks.
//!
//! | format | weights a block | bytes | value |
//! |---|---|---|---|
//! | Q8_0 | 32 | 34 | `d·q`, q in −127 ..= 127 |
//! | Q4_0 | 32 | 18 | `d·(q − 8)`, q in 0 ..= 15 |
//! | Q4_1 | 32 | 20 | `d·q + m`, q in 0 ..= 15 |
//! | Q4_K | 256 | 144 | `d·s_i·q − e·m_i`, s_i and m_i of 6 bits for each 32 weights, q in 0 ..= 15 |
//!
//! d, e and m are f16. Numbers with a NaN or an infinity among them get NaN as d, so that it does not pass unseen. A row whose length is no multiple of the block ends in zeros here; files don't have such rows.

mod q4_k;
mod write;

use half::f16;

use crate::cpu::Level;
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
        write::write_row(Level::current(), self, row, blocks);
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

#[cfg(test)]
mod tests;
