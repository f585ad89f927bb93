//! Products with weights held as f32.
//!
//! Order of the sum of an output: within a block of 256 k one chain of multiply-adds in the order of k, blocks added
//! in their order. The vector levels use fused multiply-adds, the portable version a multiply and an add.
#![allow(unsafe_code)] // tiles are written through pointers

use crate::aligned::Aligned;
use crate::cpu::Level;
use crate::product::{Kernel, PANEL};
use crate::threads;

/// k of one block: a panel's block is 32 KiB.
pub(crate) const K_BLOCK: usize = 256;

/// Weights `[n_out, k_in]` as f32 in panels: `[n_out / 32][k_in][32]`.
pub(crate) struct F32 {
    panels: Aligned,
    n_out: usize,
    k_in: usize,
    level: Level,
}

/// Multiplies `rows` packed rows by `k` steps of a panel: `(packed rows, panel, k, tile, stride, set or add,
/// weights to ask for)`.
pub(crate) type TileF32 = unsafe fn(*const f32, *const f32, usize, *mut f32, usize, bool, *const u8);

impl F32 {
    pub(crate) fn pack(n_out: usize, k_in: usize, level: Level, row: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Self {
        let mut panels = Aligned::zeroed(n_out.div_ceil(PANEL) * k_in * PANEL * size_of::<f32>());
        let len = n_out.div_ceil(PANEL) * k_in * PANEL;
        threads::run_chunks(
            threads::for_work(n_out * k_in),
            &mut panels.as_mut_slice::<f32>()[..len],
            (k_in * PANEL).max(1),
            |p, panel| {
                let mut values = vec![0.0; k_in];
                for j in 0..PANEL.min(n_out - p * PANEL) {
                    row(p * PANEL + j, &mut values);
                    for (at, value) in panel[j..].iter_mut().step_by(PANEL).zip(&values) {
                        *at = *value;
                    }
                }
            },
        );
        Self { panels, n_out, k_in, level }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.panels.bytes()
    }
}

impl Kernel for F32 {
    fn max_rows(&self) -> usize {
        if self.level >= Level::Avx512 { 12 } else { 6 }
    }

    fn n_out(&self) -> usize {
        self.n_out
    }

    fn k_in(&self) -> usize {
        self.k_in
    }

    fn k_blocks(&self) -> usize {
        self.k_in.div_ceil(K_BLOCK).max(1)
    }

    fn row_bytes(&self) -> usize {
        self.k_in * size_of::<f32>()
    }

    fn panel_bytes(&self) -> usize {
        self.k_in * PANEL * size_of::<f32>()
    }

    fn macs_per_ns(&self) -> usize {
        40
    }

    fn pack_rows(&self, x: &[f32], rows: usize, packed: &mut [u8]) {
        interleave(x, rows, self.k_in, packed);
    }

    fn weights(&self, panel: usize, block: usize) -> *const u8 {
        let at = (panel * self.k_in + block * K_BLOCK) * PANEL;
        self.panels.as_slice::<f32>().as_ptr().wrapping_add(at).cast()
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
        let k = K_BLOCK.min(self.k_in - from);
        // SAFETY: panel and block are in range, and the packed rows are rows x k_in floats aligned to 4.
        unsafe {
            let a = packed.cast::<f32>().add(from * rows);
            let w = self.weights(panel, block).cast::<f32>();
            #[cfg(target_arch = "x86_64")]
            {
                if self.level >= Level::Avx512 {
                    return crate::x86::avx512::TILES_F32[rows - 1](a, w, k, tile, stride, block == 0, ahead);
                }
                if self.level >= Level::Avx2 {
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
