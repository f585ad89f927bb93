//! Sums of values weighted by a block of attention weights.
//!
//! Of each row and each vector of results: one chain of multiply-adds in the order of the keys, then
//! `before * factor + chain`.
#![allow(unsafe_code)] // vector instructions and pointers

use std::arch::x86_64::*;

use crate::attention::BLOCK;

/// See [`crate::attention::tile::TileValues`].
///
/// # Safety
/// `p` has `rows x BLOCK` floats, `v` `keys x width`, `factors` rows, `out` `rows x width`; width divides by 16; the
/// machine has AVX-512F.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn values_avx512(
    p: *const f32,
    v: *const f32,
    keys: usize,
    factors: *const f32,
    out: *mut f32,
    width: usize,
    rows: usize,
) {
    let vectors = width / 16;
    let parts = vectors.div_ceil(5);
    let mut at = 0;
    for part in 0..parts {
        let here = vectors / parts + usize::from(part < vectors % parts);
        // SAFETY: `here` vectors from `at` lie within the width.
        unsafe {
            let (v, out) = (v.add(at * 16), out.add(at * 16));
            match here {
                5 => columns_avx512::<5, 5>(p, v, keys, factors, out, width, rows),
                4 => columns_avx512::<6, 4>(p, v, keys, factors, out, width, rows),
                3 => columns_avx512::<8, 3>(p, v, keys, factors, out, width, rows),
                2 => columns_avx512::<12, 2>(p, v, keys, factors, out, width, rows),
                _ => columns_avx512::<12, 1>(p, v, keys, factors, out, width, rows),
            }
        }
        at += here;
    }
}

/// V vectors of all rows, R rows at a time, the rest of them in ever smaller numbers.
///
/// # Safety
/// As [`values_avx512`].
#[target_feature(enable = "avx512f")]
unsafe fn columns_avx512<const R: usize, const V: usize>(
    p: *const f32,
    v: *const f32,
    keys: usize,
    factors: *const f32,
    out: *mut f32,
    width: usize,
    rows: usize,
) {
    let mut r = 0;
    // SAFETY: rows r .. r + (tile's rows) are below `rows`.
    unsafe {
        while r + R <= rows {
            tile_avx512::<R, V>(p.add(r * BLOCK), v, keys, factors.add(r), out.add(r * width), width);
            r += R;
        }
        while r + 4 <= rows {
            tile_avx512::<4, V>(p.add(r * BLOCK), v, keys, factors.add(r), out.add(r * width), width);
            r += 4;
        }
        while r < rows {
            tile_avx512::<1, V>(p.add(r * BLOCK), v, keys, factors.add(r), out.add(r * width), width);
            r += 1;
        }
    }
}

/// # Safety
/// As [`values_avx512`], for R rows and 16 V columns.
#[target_feature(enable = "avx512f")]
unsafe fn tile_avx512<const R: usize, const V: usize>(
    p: *const f32,
    v: *const f32,
    keys: usize,
    factors: *const f32,
    out: *mut f32,
    width: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    for j in 0..keys {
        // SAFETY: j < keys.
        let v: [__m512; V] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(v.add(j * width + 16 * i)) });
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: j < BLOCK, r < R.
            let weight = _mm512_set1_ps(unsafe { *p.add(r * BLOCK + j) });
            for i in 0..V {
                sums[i] = _mm512_fmadd_ps(weight, v[i], sums[i]);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        // SAFETY: r < R and i < V.
        unsafe {
            let factor = _mm512_set1_ps(*factors.add(r));
            for (i, sum) in sums.into_iter().enumerate() {
                let out = out.add(r * width + 16 * i);
                _mm512_storeu_ps(out, _mm512_fmadd_ps(_mm512_loadu_ps(out), factor, sum));
            }
        }
    }
}

/// See [`crate::attention::tile::TileValues`].
///
/// # Safety
/// As [`values_avx512`], with AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn values_avx2(
    p: *const f32,
    v: *const f32,
    keys: usize,
    factors: *const f32,
    out: *mut f32,
    width: usize,
    rows: usize,
) {
    for column in (0..width).step_by(16) {
        let mut r = 0;
        // SAFETY: 16 columns from `column` lie within the width, and the rows below `rows`.
        unsafe {
            let (v, out) = (v.add(column), out.add(column));
            while r + 6 <= rows {
                tile_avx2::<6>(p.add(r * BLOCK), v, keys, factors.add(r), out.add(r * width), width);
                r += 6;
            }
            while r < rows {
                tile_avx2::<1>(p.add(r * BLOCK), v, keys, factors.add(r), out.add(r * width), width);
                r += 1;
            }
        }
    }
}

/// # Safety
/// As [`values_avx2`], for R rows and 16 columns.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2<const R: usize>(
    p: *const f32,
    v: *const f32,
    keys: usize,
    factors: *const f32,
    out: *mut f32,
    width: usize,
) {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for j in 0..keys {
        // SAFETY: j < keys.
        let v: [__m256; 2] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(v.add(j * width + 8 * i)) });
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: j < BLOCK, r < R.
            let weight = _mm256_set1_ps(unsafe { *p.add(r * BLOCK + j) });
            sums[0] = _mm256_fmadd_ps(weight, v[0], sums[0]);
            sums[1] = _mm256_fmadd_ps(weight, v[1], sums[1]);
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        // SAFETY: r < R.
        unsafe {
            let factor = _mm256_set1_ps(*factors.add(r));
            for (i, sum) in sums.into_iter().enumerate() {
                let out = out.add(r * width + 8 * i);
                _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_loadu_ps(out), factor, sum));
            }
        }
    }
}
