//! Products with weights held as f32.
//!
//! Order of the sum of an output: within a block of 256 k one chain of multiply-adds in the order of k, blocks added
//! in their order. The vector levels use fused multiply-adds, the portable version a multiply and an add.
#![allow(unsafe_code)] // tiles are written through pointers

use crate::cpu::Level;
use crate::panels::Panels;
use crate::product::{Kernel, PANEL};

/// k of one block: a panel's block is 32 KiB.
pub(crate) const K_BLOCK: usize = 256;

/// Weights `[n_out, k_in]` as f32 in panels: `[n_out / 32][k_in][32]`.
pub(crate) struct F32(Panels);

/// Multiplies `rows` packed rows by `k` steps of a panel: `(packed rows, panel, k, tile, stride, set or add,
/// weights to ask for)`.
#[cfg(target_arch = "x86_64")]
pub(crate) type TileF32 = unsafe fn(*const f32, *const f32, usize, *mut f32, usize, bool, *const u8);

impl F32 {
    pub(crate) fn pack(size: (usize, usize), level: Level, row: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Self {
        Self(Panels::pack(size, level, size.1 * PANEL, row, |values, j, panel: &mut [f32]| {
            for (at, value) in panel[j..].iter_mut().step_by(PANEL).zip(values) {
                *at = *value;
            }
        }))
    }
}

impl Kernel for F32 {
    fn panels(&self) -> &Panels {
        &self.0
    }

    fn max_rows(&self) -> usize {
        if self.0.level >= Level::Avx512 { 12 } else { 6 }
    }

    fn k_blocks(&self) -> usize {
        self.0.k_in.div_ceil(K_BLOCK)
    }

    fn block_at(&self, block: usize) -> usize {
        block * K_BLOCK * PANEL * size_of::<f32>()
    }

    fn row_bytes(&self) -> usize {
        self.0.k_in * size_of::<f32>()
    }

    fn macs_per_ns(&self) -> usize {
        40
    }

    fn pack_rows(&self, x: &[f32], rows: usize, packed: &mut [u8]) {
        interleave(x, rows, self.0.k_in, packed);
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
        let from = block * K_BLOCK;
        let k = K_BLOCK.min(self.0.k_in - from);
        // SAFETY: panel and block are in range, and the packed rows are rows x k_in floats aligned to 4.
        unsafe {
            let a = packed.cast::<f32>().add(from * rows);
            let w = self.weights(panel, block).cast::<f32>();
            #[cfg(target_arch = "x86_64")]
            {
                if self.0.level >= Level::Avx512 {
                    return crate::x86::avx512::TILES_F32[rows - 1](a, w, k, tile, stride, block == 0, ahead);
                }
                if self.0.level >= Level::Avx2 {
                    return crate::x86::avx2::TILES_F32[rows - 1](a, w, k, tile, stride, block == 0, ahead);
                }
            }
            let _ = ahead;
            tile_portable(a, w, rows, k, tile, stride, block == 0);
        }
    }
}

/// `[rows, k]` to `[k][rows]`.
pub(crate) fn interleave(x: &[f32], rows: usize, k: usize, packed: &mut [u8]) {
    for (i, row) in x.chunks_exact(k.max(1)).enumerate() {
        let dst = packed[i * 4..].chunks_mut(rows * 4);
        for (at, value) in dst.zip(row) {
            at[..4].copy_from_slice(&value.to_ne_bytes());
        }
    }
}

/// # Safety
/// As for [`Kernel::tile`].
pub(crate) unsafe fn tile_portable(
    a: *const f32,
    w: *const f32,
    rows: usize,
    k: usize,
    tile: *mut f32,
    stride: usize,
    first: bool,
) {
    // SAFETY: `a` has k x rows floats and `w` k x PANEL.
    let (a, w) = unsafe { (std::slice::from_raw_parts(a, k * rows), std::slice::from_raw_parts(w, k * PANEL)) };
    for r in 0..rows {
        let mut sums = [0.0f32; PANEL];
        for (x, w) in a[r..].iter().step_by(rows).zip(w.chunks_exact(PANEL)) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum += x * w;
            }
        }
        // SAFETY: the tile has `rows` rows of PANEL floats.
        let out = unsafe { std::slice::from_raw_parts_mut(tile.add(r * stride), PANEL) };
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if first { sum } else { *out + sum };
        }
    }
}
