//! Tiles in AVX-512: up to 12 rows by 32 outputs, 24 sums in registers.
#![allow(unsafe_code)] // vector instructions and pointers

use std::arch::x86_64::*;

use crate::linear_f32::TileF32;
use crate::product::PANEL;

/// By number of rows, less one.
pub(crate) const TILES_F32: [TileF32; 12] = [
    tile_f32::<1>,
    tile_f32::<2>,
    tile_f32::<3>,
    tile_f32::<4>,
    tile_f32::<5>,
    tile_f32::<6>,
    tile_f32::<7>,
    tile_f32::<8>,
    tile_f32::<9>,
    tile_f32::<10>,
    tile_f32::<11>,
    tile_f32::<12>,
];

/// Bytes ahead of the running position at which weights are asked for from memory, in tiles of few rows.
const AHEAD: usize = 4096;

/// # Safety
/// `a` has `k x R` floats, `w` `k x PANEL` floats aligned to 64, `out` R rows of PANEL floats; the machine has AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn tile_f32<const R: usize>(a: *const f32, w: *const f32, k: usize, out: *mut f32, stride: usize, first: bool) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for i in 0..k {
        // SAFETY: i < k; prefetching never faults.
        let (w0, w1) = unsafe {
            if R <= 4 {
                let ahead = w.wrapping_add(i * PANEL).cast::<i8>().wrapping_add(AHEAD);
                _mm_prefetch::<_MM_HINT_T0>(ahead);
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
            }
            (_mm512_load_ps(w.add(i * PANEL)), _mm512_load_ps(w.add(i * PANEL + 16)))
        };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: i < k and r < R.
            let x = _mm512_set1_ps(unsafe { *a.add(i * R + r) });
            sums[0] = _mm512_fmadd_ps(x, w0, sums[0]);
            sums[1] = _mm512_fmadd_ps(x, w1, sums[1]);
        }
    }
    for (r, [mut s0, mut s1]) in sums.into_iter().enumerate() {
        // SAFETY: the tile has R rows of PANEL floats.
        unsafe {
            let out = out.add(r * stride);
            if !first {
                s0 = _mm512_add_ps(_mm512_loadu_ps(out), s0);
                s1 = _mm512_add_ps(_mm512_loadu_ps(out.add(16)), s1);
            }
            _mm512_storeu_ps(out, s0);
            _mm512_storeu_ps(out.add(16), s1);
        }
    }
}
