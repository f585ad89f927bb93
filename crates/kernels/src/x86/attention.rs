//! Sums of values weighted by a block of attention weights.
//!
//! Of each row and each vector of results: one chain of multiply-adds in the order of the keys, then
//! `before * factor + chain`.
#![allow(unsafe_code)] // vector instructions and pointers

use std::arch::x86_64::*;

use crate::attention::BLOCK;

/// A weighted sum for rows of 16 V columns in AVX-512, up to 5 V at a time: the same loops for numbers and for pairs.
macro_rules! weighted_sums {
    (
        $(#[$doc:meta])*
        $values:ident, $columns:ident, $tile:ident: $word:ty, $per_word:literal, $features:literal,
        $vector:ty = $load:ident, $all:ident, $multiply_add:ident
    ) => {
        $(#[$doc])*
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $values(
            p: *const $word,
            v: *const $word,
            keys: usize,
            factors: *const f32,
            out: *mut f32,
            width: usize,
            rows: usize,
        ) {
            let steps = keys.div_ceil($per_word);
            let vectors = width / 16;
            let parts = vectors.div_ceil(5);
            let mut at = 0;
            for part in 0..parts {
                let here = vectors / parts + usize::from(part < vectors % parts);
                // SAFETY: `here` vectors from `at` lie within the width.
                unsafe {
                    let (v, out) = (v.add(at * 16), out.add(at * 16));
                    match here {
                        5 => $columns::<5, 5>(p, v, steps, factors, out, width, rows),
                        4 => $columns::<6, 4>(p, v, steps, factors, out, width, rows),
                        3 => $columns::<8, 3>(p, v, steps, factors, out, width, rows),
                        2 => $columns::<12, 2>(p, v, steps, factors, out, width, rows),
                        _ => $columns::<12, 1>(p, v, steps, factors, out, width, rows),
                    }
                }
                at += here;
            }
        }

        /// V vectors of all rows, R rows at a time, the rest of them in ever smaller numbers.
        ///
        /// # Safety
        /// As the function that calls it.
        #[target_feature(enable = $features)]
        unsafe fn $columns<const R: usize, const V: usize>(
            p: *const $word,
            v: *const $word,
            steps: usize,
            factors: *const f32,
            out: *mut f32,
            width: usize,
            rows: usize,
        ) {
            const ROW: usize = BLOCK / $per_word;
            let mut r = 0;
            // SAFETY: rows r .. r + (tile's rows) are below `rows`.
            unsafe {
                while r + R <= rows {
                    $tile::<R, V>(p.add(r * ROW), v, steps, factors.add(r), out.add(r * width), width);
                    r += R;
                }
                while r + 4 <= rows {
                    $tile::<4, V>(p.add(r * ROW), v, steps, factors.add(r), out.add(r * width), width);
                    r += 4;
                }
                while r < rows {
                    $tile::<1, V>(p.add(r * ROW), v, steps, factors.add(r), out.add(r * width), width);
                    r += 1;
                }
            }
        }

        /// # Safety
        /// As the function that calls it, for R rows and 16 V columns.
        #[target_feature(enable = $features)]
        unsafe fn $tile<const R: usize, const V: usize>(
            p: *const $word,
            v: *const $word,
            steps: usize,
            factors: *const f32,
            out: *mut f32,
            width: usize,
        ) {
            let mut sums = [[_mm512_setzero_ps(); V]; R];
            for j in 0..steps {
                // SAFETY: j < steps; vector types are 64 bytes of any content.
                let v: [$vector; V] = std::array::from_fn(|i| unsafe { $load(v.add(j * width + 16 * i)) });
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: j is below the words of a row, r < R.
                    let weight: $vector = $all(unsafe { *p.add(r * (BLOCK / $per_word) + j) });
                    for i in 0..V {
                        sums[i] = $multiply_add(weight, v[i], sums[i]);
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
    };
}

weighted_sums! {
    /// See [`crate::attention::tile::TileValues`].
    ///
    /// # Safety
    /// `p` has `rows x BLOCK` floats, `v` `keys x width`, `factors` rows, `out` `rows x width`; width divides by 16; the
    /// machine has AVX-512F.
    values_avx512, columns_avx512, tile_avx512: f32, 1, "avx512f",
    __m512 = _mm512_loadu_ps, _mm512_set1_ps, _mm512_fmadd_ps
}

weighted_sums! {
    /// As [`values_avx512`] on bf16 pairs: `p` has `rows x BLOCK / 2` words, `v` `keys / 2 x width`, rounded up.
    ///
    /// # Safety
    /// As [`values_avx512`], with AVX512-BF16.
    values_bf16, columns_bf16, tile_bf16: u32, 2, "avx512f,avx512bf16",
    __m512bh = load_pairs, all_pairs, multiply_add_pairs
}

/// # Safety
/// `at` has 16 words; the machine has AVX512-BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn load_pairs(at: *const u32) -> __m512bh {
    // SAFETY: by the contract of this function; both types are 64 bytes of any content.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast())) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn all_pairs(pair: u32) -> __m512bh {
    // SAFETY: both types are 64 bytes of any content.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair.cast_signed())) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_add_pairs(a: __m512bh, b: __m512bh, sum: __m512) -> __m512 {
    _mm512_dpbf16_ps(sum, a, b)
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

/// Multiplies each row of sums by its factor.
///
/// # Safety
/// The machine has AVX-512F.
#[target_feature(enable = "avx512f")]
pub(crate) fn scale_rows(sums: &mut [f32], factors: &[f32]) {
    let width = sums.len() / factors.len().max(1);
    for (row, factor) in sums.chunks_exact_mut(width.max(1)).zip(factors) {
        // Once the maximum has been seen, factors are 1.
        if *factor != 1.0 {
            row.iter_mut().for_each(|sum| *sum *= factor);
        }
    }
}

/// [`crate::attention::tile`]'s softmax step with the weights rounded to bf16.
///
/// `2^x = 2^⌊x⌋ · p(x − ⌊x⌋)` with p of degree 5, relative error below 2e-7: far below what rounding to bf16 adds.
/// Totals are taken before the rounding.
///
/// # Safety
/// `scores` has `rows x BLOCK` floats, `weights` `rows x BLOCK / 2` words, the others `rows` floats; the machine has
/// AVX512-BF16.
#[target_feature(enable = "avx512f,avx512dq,avx512bf16")]
pub(crate) unsafe fn softmax_step_bf16(
    scores: *const f32,
    weights: *mut u32,
    maxima: *mut f32,
    totals: *mut f32,
    factors: *mut f32,
    rows: usize,
) {
    const V: usize = BLOCK / 16;
    for r in 0..rows {
        // SAFETY: r < rows.
        unsafe {
            let row: [__m512; V] = std::array::from_fn(|i| _mm512_loadu_ps(scores.add(r * BLOCK + 16 * i)));
            let highest = row.into_iter().reduce(|a, b| _mm512_max_ps(a, b)).unwrap_or(row[0]);
            let before = *maxima.add(r);
            let highest = _mm512_reduce_max_ps(highest);
            let highest = if highest > before { highest } else { before };
            // While nothing was seen, all weights are 2^(−inf − 0) = 0.
            let base = if highest == f32::NEG_INFINITY { 0.0 } else { highest };
            let base_all = _mm512_set1_ps(base);
            let row = row.map(|x| exp2_avx512(_mm512_sub_ps(x, base_all)));
            let sum = _mm512_reduce_add_ps(row.into_iter().reduce(|a, b| _mm512_add_ps(a, b)).unwrap_or(row[0]));
            for (i, two) in row.chunks_exact(2).enumerate() {
                let rounded = _mm512_cvtne2ps_pbh(two[1], two[0]);
                let rounded = std::mem::transmute::<__m512bh, __m512i>(rounded);
                _mm512_storeu_si512(weights.add((r * BLOCK + 32 * i) / 2).cast(), rounded);
            }
            // The maximum seldom changes.
            let factor = match highest == before {
                true => 1.0,
                false => _mm512_cvtss_f32(exp2_avx512(_mm512_set1_ps(before - base))),
            };
            *factors.add(r) = factor;
            *totals.add(r) = *totals.add(r) * factor + sum;
            *maxima.add(r) = highest;
        }
    }
}

const E1: f32 = 0.6931513;
const E2: f32 = 0.24016444;
const E3: f32 = 0.055799916;
const E4: f32 = 0.009017026;
const E5: f32 = 0.0018671316;

/// 2^x for x ≤ 0.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2_avx512(x: __m512) -> __m512 {
    // x − ⌊x⌋; 0 for −∞, for which the scaling below gives 0.
    let r = _mm512_reduce_ps::<1>(x);
    let p = _mm512_fmadd_ps(_mm512_set1_ps(E5), r, _mm512_set1_ps(E4));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(E3));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(E2));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(E1));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0));
    _mm512_scalef_ps(p, x)
}
