//! Tiles in AVX2 and FMA: up to 6 rows by 32 outputs, the outputs in one pass or two as registers allow.
#![allow(unsafe_code)] // vector instructions and pointers

use std::arch::x86_64::*;

use crate::linear_bf16::TileWiden;
use crate::linear_f32::TileF32;
use crate::product::PANEL;

/// By number of rows, less one.
pub(crate) const TILES_F32: [TileF32; 6] =
    [tile_f32::<1, 4>, tile_f32::<2, 4>, tile_f32::<3, 4>, tile_f32::<4, 2>, tile_f32::<5, 2>, tile_f32::<6, 2>];

/// By number of rows, less one.
pub(crate) const TILES_WIDEN: [TileWiden; 6] = [
    tile_widen::<1, 4>,
    tile_widen::<2, 4>,
    tile_widen::<3, 2>,
    tile_widen::<4, 2>,
    tile_widen::<5, 2>,
    tile_widen::<6, 2>,
];

/// V vectors of 8 outputs a pass.
///
/// # Safety
/// `a` has `k x R` floats, `w` `k x PANEL` floats, `out` R rows of PANEL floats; the machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_f32<const R: usize, const V: usize>(
    a: *const f32,
    w: *const f32,
    k: usize,
    out: *mut f32,
    stride: usize,
    first: bool,
    _ahead: *const u8,
) {
    for pass in 0..PANEL / (8 * V) {
        // SAFETY: the pass's outputs lie within the panel and the tile.
        let (w, out) = unsafe { (w.add(pass * 8 * V), out.add(pass * 8 * V)) };
        let mut sums = [[_mm256_setzero_ps(); V]; R];
        for i in 0..k {
            // SAFETY: i < k.
            let w: [__m256; V] = std::array::from_fn(|v| unsafe { _mm256_loadu_ps(w.add(i * PANEL + 8 * v)) });
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: i < k and r < R.
                let x = _mm256_set1_ps(unsafe { *a.add(i * R + r) });
                for v in 0..V {
                    sums[v] = _mm256_fmadd_ps(x, w[v], sums[v]);
                }
            }
        }
        // SAFETY: the pass's part of the tile has R rows of V vectors.
        unsafe { store(sums, out, stride, first) };
    }
}

/// Sets V vectors of R rows to the sums or adds them.
///
/// # Safety
/// `out` has R rows of 8 V floats; the machine has AVX2.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn store<const R: usize, const V: usize>(sums: [[__m256; V]; R], out: *mut f32, stride: usize, first: bool) {
    for (r, sums) in sums.into_iter().enumerate() {
        for (v, mut sum) in sums.into_iter().enumerate() {
            // SAFETY: r < R and v < V.
            unsafe {
                let out = out.add(r * stride + 8 * v);
                if !first {
                    sum = _mm256_add_ps(_mm256_loadu_ps(out), sum);
                }
                _mm256_storeu_ps(out, sum);
            }
        }
    }
}

/// V vectors of 8 outputs a pass.
///
/// # Safety
/// `a` has `2 pairs x R` floats, `w` `pairs x PANEL` words, `out` R rows of PANEL floats; the machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_widen<const R: usize, const V: usize>(
    a: *const f32,
    w: *const u32,
    pairs: usize,
    out: *mut f32,
    stride: usize,
    first: bool,
    _ahead: *const u8,
) {
    let upper = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
    for pass in 0..PANEL / (8 * V) {
        // SAFETY: the pass's outputs lie within the panel and the tile.
        let (w, out) = unsafe { (w.add(pass * 8 * V), out.add(pass * 8 * V)) };
        let mut sums = [[_mm256_setzero_ps(); V]; R];
        for i in 0..pairs {
            // SAFETY: i < pairs.
            let words: [__m256i; V] =
                std::array::from_fn(|v| unsafe { _mm256_loadu_si256(w.add(i * PANEL + 8 * v).cast()) });
            let even = words.map(|w| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w)));
            let odd = words.map(|w| _mm256_castsi256_ps(_mm256_and_si256(w, upper)));
            for (half, w) in [even, odd].into_iter().enumerate() {
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: i < pairs and r < R.
                    let x = _mm256_set1_ps(unsafe { *a.add((2 * i + half) * R + r) });
                    for v in 0..V {
                        sums[v] = _mm256_fmadd_ps(x, w[v], sums[v]);
                    }
                }
            }
        }
        // SAFETY: the pass's part of the tile has R rows of V vectors.
        unsafe { store(sums, out, stride, first) };
    }
}
