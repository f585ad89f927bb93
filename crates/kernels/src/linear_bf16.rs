//! Products with weights held as bf16.
//!
//! Two ways to treat the activations, fixed for a matrix so that a row's bits don't depend on how many rows there are:
//!
//! * **rounded** to bf16 (to nearest, ties to even), as frameworks do that compute in bf16; products of pairs are
//!   summed in f32 by AVX512-BF16 where there is one. That instruction treats subnormal numbers as zero.
//! * **kept** in f32, weights widened: bit-equal to [`crate::Format::F32`] with the same weights at the same level.
//!
//! Panels are `[k / 2][32][2]`, so that both ways read one 32-bit word per output and pair of k.
#![allow(unsafe_code)] // tiles are written through pointers

use crate::cpu::Level;
use crate::linear_f32::{K_BLOCK, interleave, tile_portable};
use crate::multiversion::by_level;
use crate::panels::Panels;
use crate::product::{Kernel, PANEL};

/// k of one block of bf16 pairs: a panel's block is 32 KiB, as with f32.
const K_BLOCK_PAIRS: usize = 512;

/// Multiplies packed rows by `pairs` pairs of a panel: `(packed rows, panel, pairs, tile, stride, set or
/// add, weights to ask for)`.
#[cfg(target_arch = "x86_64")]
pub(crate) type TileBf16 = unsafe fn(*const u32, *const u32, usize, *mut f32, usize, bool, *const u8);

/// As [`TileBf16`] with packed rows in f32, two for each pair.
#[cfg(target_arch = "x86_64")]
pub(crate) type TileWiden = unsafe fn(*const f32, *const u32, usize, *mut f32, usize, bool, *const u8);

/// Weights `[n_out, k_in]` as bf16 in panels.
pub(crate) struct Bf16 {
    panels: Panels,
    rounded: bool,
}

impl Bf16 {
    pub(crate) fn pack(
        size: (usize, usize),
        rounded: bool,
        level: Level,
        row: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Self {
        let len = size.1.div_ceil(2) * PANEL * 2;
        let panels = Panels::pack(size, level, len, row, |values, j, panel: &mut [u16]| {
            for (at, pair) in panel[2 * j..].chunks_mut(PANEL * 2).zip(values.chunks(2)) {
                for (at, value) in at.iter_mut().zip(pair) {
                    *at = round(value.to_bits()) as u16;
                }
            }
        });
        Self { panels, rounded }
    }

    fn pairs(&self) -> usize {
        self.panels.k_in.div_ceil(2)
    }

    /// Whether rows are packed as bf16 pairs for the instruction that takes them.
    fn by_pairs(&self) -> bool {
        self.rounded && self.panels.level >= Level::Avx512Bf16
    }

    fn k_block(&self) -> usize {
        if self.by_pairs() { K_BLOCK_PAIRS } else { K_BLOCK }
    }
}

impl Kernel for Bf16 {
    fn panels(&self) -> &Panels {
        &self.panels
    }

    fn max_rows(&self) -> usize {
        if self.panels.level >= Level::Avx512 { 12 } else { 6 }
    }

    fn k_blocks(&self) -> usize {
        self.panels.k_in.div_ceil(self.k_block())
    }

    fn block_at(&self, block: usize) -> usize {
        block * self.k_block() * PANEL * size_of::<u16>()
    }

    fn row_bytes(&self) -> usize {
        self.pairs() * if self.by_pairs() { 4 } else { 8 }
    }

    fn macs_per_ns(&self) -> usize {
        if self.by_pairs() { 80 } else { 40 }
    }

    fn pack_rows(&self, x: &[f32], rows: usize, packed: &mut [u8]) {
        if self.by_pairs() {
            return pack_pairs(self.panels.level, x, rows, self.panels.k_in, packed);
        }
        let tail = rows * self.panels.k_in * 4;
        interleave(x, rows, self.panels.k_in, packed);
        packed[tail..].fill(0);
        if self.rounded {
            for value in packed.chunks_exact_mut(4) {
                let bits = u32::from_ne_bytes([value[0], value[1], value[2], value[3]]);
                value.copy_from_slice(&(round(bits) << 16).to_ne_bytes());
            }
        }
    }

    unsafe fn tile(
        &self,
        packed: *const u8,
        rows: usize,
        (panel, block): (usize, usize),
        ahead: *const u8,
        tile: *mut f32,
        stride: usize,
    ) {
        let from = block * self.k_block() / 2;
        let pairs = (self.k_block() / 2).min(self.pairs() - from);
        // SAFETY: panel and block are in range, and the packed rows are as `pack_rows` leaves them.
        unsafe {
            let w = self.weights(panel, block).cast::<u32>();
            #[cfg(target_arch = "x86_64")]
            {
                if self.by_pairs() {
                    let a = packed.cast::<u32>().add(from * rows);
                    return crate::x86::avx512::TILES_BF16[rows - 1](a, w, pairs, tile, stride, block == 0, ahead);
                }
                let a = packed.cast::<f32>().add(2 * from * rows);
                if self.panels.level >= Level::Avx512 {
                    return crate::x86::avx512::TILES_WIDEN[rows - 1](a, w, pairs, tile, stride, block == 0, ahead);
                }
                if self.panels.level >= Level::Avx2 {
                    return crate::x86::avx2::TILES_WIDEN[rows - 1](a, w, pairs, tile, stride, block == 0, ahead);
                }
            }
            let a = packed.cast::<f32>().add(2 * from * rows);
            let _ = ahead;
            let w = std::slice::from_raw_parts(w, pairs * PANEL);
            let mut wide = vec![0.0f32; 2 * pairs * PANEL];
            for (wide, w) in wide.chunks_exact_mut(2 * PANEL).zip(w.chunks_exact(PANEL)) {
                let (even, odd) = wide.split_at_mut(PANEL);
                for ((even, odd), w) in even.iter_mut().zip(odd).zip(w) {
                    let (first, second) = halves(*w);
                    *even = f32::from_bits(u32::from(first) << 16);
                    *odd = f32::from_bits(u32::from(second) << 16);
                }
            }
            tile_portable(a, wide.as_ptr(), rows, 2 * pairs, tile, stride, block == 0);
        }
    }
}

/// The two bf16 of a word, in the order of memory.
fn halves(word: u32) -> (u16, u16) {
    let b = word.to_ne_bytes();
    (u16::from_ne_bytes([b[0], b[1]]), u16::from_ne_bytes([b[2], b[3]]))
}

/// The upper half of a float, rounded to nearest, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn round(bits: u32) -> u32 {
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    if bits & 0x7FFF_FFFF > 0x7F80_0000 { (bits >> 16) | 0x40 } else { rounded }
}

by_level! {
    /// `[rows, k]` to bf16 pairs `[k / 2][rows]`.
    fn pack_pairs(x: &[f32], rows: usize, k: usize, packed: &mut [u8]) = pack_pairs_body
}

#[inline(always)]
fn pack_pairs_body<const FUSED: bool>(x: &[f32], rows: usize, k: usize, packed: &mut [u8]) {
    // Rounded in runs that the compiler can vectorise, then spread.
    const RUN: usize = 64;
    for (i, row) in x.chunks_exact(k).enumerate() {
        for (j, run) in row.chunks(RUN).enumerate() {
            let mut bits = [0u32; RUN];
            for (bits, value) in bits.iter_mut().zip(run) {
                *bits = round(value.to_bits());
            }
            let dst = packed[(j * RUN / 2 * rows + i) * 4..].chunks_mut(rows * 4);
            for (at, pair) in dst.zip(bits.chunks_exact(2)).take(run.len().div_ceil(2)) {
                at[..4].copy_from_slice(&(pair[0] | pair[1] << 16).to_ne_bytes());
            }
        }
    }
}
