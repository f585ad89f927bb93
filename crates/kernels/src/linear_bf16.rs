//! Products with weights held as bf16.
//!
//! Two ways to treat the activations, fixed for a matrix so that a row's bits don't depend on how many rows there are:
//!
//! * **rounded** to bf16 (to nearest, ties to even), as frameworks do that compute in bf16; products of pairs are
//!   summed in f32 by AVX512-BF16 or AMX where there is one. Their instructions treat subnormal numbers as zero.
//! * **kept** in f32, weights widened: bit-equal to [`crate::Format::F32`] with the same weights at the same level.
//!
//! Panels are `[k / 2][32][2]`, so that all ways read one 32-bit word per output and pair of k. AMX takes k in whole
//! steps: what is missing is zero.
#![allow(unsafe_code)] // tiles are written through pointers

use crate::cpu::Level;
use crate::linear_f32::{K_BLOCK, interleave, tile_portable};
use crate::multiversion::by_level;
use crate::panels::Panels;
use crate::product::{Kernel, PANEL};

/// k of one block of bf16 pairs: a panel's block is 32 KiB, as with f32.
const K_BLOCK_PAIRS: usize = 512;

/// k of one block where AMX multiplies: its steps take so little time that sums have to stay in registers for longer.
/// Sums go on from what is there, so it changes no bit.
const K_BLOCK_TILES: usize = 2560;

/// k of one step of AMX's tiles.
pub(crate) const TILE_K: usize = 32;

/// Rows of a tile, and its columns of 32 bits.
pub(crate) const TILE_ROWS: usize = 16;

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
        let step = if rounded && level >= Level::Amx { TILE_K } else { 2 };
        let len = size.1.next_multiple_of(step) * PANEL;
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

    fn way(&self) -> Way {
        match self.panels.level {
            _ if !self.rounded => Way::Floats,
            Level::Amx => Way::Tiles,
            Level::Avx512Bf16 => Way::Pairs,
            _ => Way::Floats,
        }
    }

    fn k_block(&self) -> usize {
        match self.way() {
            Way::Floats => K_BLOCK,
            Way::Pairs => K_BLOCK_PAIRS,
            Way::Tiles => K_BLOCK_TILES,
        }
    }
}

/// How rows are packed and multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// As f32.
    Floats,
    /// As bf16 `[k / 2][rows][2]`, pairs at a time.
    Pairs,
    /// As bf16 `[k / 32][rows][32]`, tiles at a time.
    Tiles,
}

impl Kernel for Bf16 {
    fn panels(&self) -> &Panels {
        &self.panels
    }

    fn max_rows(&self) -> usize {
        match self.way() {
            Way::Tiles => 2 * TILE_ROWS,
            _ if self.panels.level >= Level::Avx512 => 12,
            _ => 6,
        }
    }

    fn by_tiles(&self) -> bool {
        self.way() == Way::Tiles
    }

    fn k_blocks(&self) -> usize {
        self.panels.k_in.div_ceil(self.k_block())
    }

    fn block_at(&self, block: usize) -> usize {
        block * self.k_block() * PANEL * size_of::<u16>()
    }

    fn row_bytes(&self) -> usize {
        match self.way() {
            Way::Floats => self.pairs() * 8,
            Way::Pairs => self.pairs() * 4,
            Way::Tiles => self.panels.k_in.next_multiple_of(TILE_K) * 2,
        }
    }

    fn macs_per_ns(&self) -> usize {
        match self.way() {
            Way::Floats => 40,
            Way::Pairs => 80,
            Way::Tiles => 600,
        }
    }

    fn pack_rows(&self, x: &[f32], rows: usize, packed: &mut [u8]) {
        match self.way() {
            Way::Floats => {}
            Way::Pairs => return pack_pairs(self.panels.level, x, rows, self.panels.k_in, packed),
            Way::Tiles => return pack_tiles(self.panels.level, x, rows, self.panels.k_in, packed),
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
                if self.way() == Way::Tiles {
                    return by_tiles(packed, rows, (from, pairs), w, tile, stride, ahead);
                }
                if self.way() == Way::Pairs {
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

/// [`Kernel::tile`] for `(first pair, pairs)` of packed rows and a panel's block.
///
/// # Safety
/// As there, with [`crate::x86::amx::Tiles`] set up.
#[cfg(target_arch = "x86_64")]
unsafe fn by_tiles(
    packed: *const u8,
    rows: usize,
    (from, pairs): (usize, usize),
    w: *const u32,
    tile: *mut f32,
    stride: usize,
    ahead: *const u8,
) {
    use crate::x86::amx::{Operands, multiply};
    const ROW: usize = TILE_K * size_of::<u16>();
    let first = from == 0;
    // SAFETY: by the contract of this function; the packed rows and the panel are filled up to whole steps, and behind
    // the rows is as much as a tile may read too far.
    unsafe {
        let operands = Operands {
            a: packed.add(from / (TILE_K / 2) * rows * ROW),
            a_row: ROW,
            a_step: rows * ROW,
            b: w.cast(),
            b_row: PANEL * 4,
            b_step: PANEL * 4 * TILE_K / 2,
            steps: (2 * pairs).div_ceil(TILE_K),
        };
        if rows.is_multiple_of(TILE_ROWS) {
            return multiply(operands, (rows, PANEL), tile, stride * 4, first, ahead);
        }
        // Rows that are not there are computed as well, but not kept.
        let mut all = [0.0; 2 * TILE_ROWS * PANEL];
        if !first {
            for r in 0..rows {
                std::ptr::copy_nonoverlapping(tile.add(r * stride), all[r * PANEL..].as_mut_ptr(), PANEL);
            }
        }
        multiply(operands, (rows, PANEL), all.as_mut_ptr(), PANEL * 4, first, ahead);
        for r in 0..rows {
            std::ptr::copy_nonoverlapping(all[r * PANEL..].as_ptr(), tile.add(r * stride), PANEL);
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

by_level! {
    /// `[rows, k]` to bf16 `[k / 32][rows][32]`, filled up with zeros.
    fn pack_tiles(x: &[f32], rows: usize, k: usize, packed: &mut [u8]) = pack_tiles_body
}

#[inline(always)]
fn pack_tiles_body<const FUSED: bool>(x: &[f32], rows: usize, k: usize, packed: &mut [u8]) {
    const ROW: usize = TILE_K * size_of::<u16>();
    let put = |values: &[f32; TILE_K], to: &mut [u8]| {
        for (to, value) in to.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *to = (round(value.to_bits()) as u16).to_ne_bytes();
        }
    };
    for (i, row) in x.chunks_exact(k).enumerate() {
        let (whole, rest) = row.as_chunks::<TILE_K>();
        let mut places = packed[i * ROW..].chunks_mut(rows * ROW);
        for (values, to) in whole.iter().zip(&mut places) {
            put(values, &mut to[..ROW]);
        }
        if let (false, Some(to)) = (rest.is_empty(), places.next()) {
            let mut values = [0.0; TILE_K];
            values[..rest.len()].copy_from_slice(rest);
            put(&values, &mut to[..ROW]);
        }
    }
}
