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

/// How far scores may exceed the base before it follows them. Until then weights are up to 2^SLACK, which costs no
/// precision, and what was summed before stays as it is.
const SLACK: f32 = 8.0;

/// [`crate::attention::tile`]'s softmax step for blocks of `16 V` scores with the weights rounded to bf16; whether a
/// factor is not 1.
///
/// `2^x = 2^⌊x⌋ · p(x − ⌊x⌋)` with p of degree 4, relative error below 3e-6: far below what rounding to bf16 adds.
/// Totals are taken before the rounding.
///
/// # Safety
/// The machine has AVX512-BF16.
#[target_feature(enable = "avx512f,avx512dq,avx512bf16")]
pub(crate) fn softmax_step_bf16<const V: usize>(
    scores: &[f32],
    weights: &mut [u32],
    bases: &mut [f32],
    totals: &mut [f32],
    factors: &mut [f32],
) -> bool {
    let mut has_changed = false;
    let state = bases.iter_mut().zip(totals.as_chunks_mut::<16>().0).zip(factors);
    let rows = scores.chunks_exact(16 * V).zip(weights.chunks_exact_mut(8 * V)).zip(state);
    for ((scores, weights), ((base, total), factor)) in rows {
        // SAFETY: i < V.
        let scores: [__m512; V] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(scores.as_ptr().add(16 * i)) });
        let highest = scores.into_iter().fold(scores[0], |a, b| _mm512_max_ps(a, b));
        // SAFETY: 16 floats.
        let mut sum = unsafe { _mm512_loadu_ps(total.as_ptr()) };
        *factor = 1.0;
        if _mm512_cmp_ps_mask::<_CMP_GT_OQ>(highest, _mm512_set1_ps(*base + SLACK)) != 0 {
            let highest = _mm512_reduce_max_ps(highest);
            let change = exp2_avx512(_mm512_set1_ps(*base - highest));
            sum = _mm512_mul_ps(sum, change);
            (*base, *factor) = (highest, _mm512_cvtss_f32(change));
            has_changed = true;
        }
        let base = _mm512_set1_ps(*base);
        let powers = scores.map(|score| exp2_avx512(_mm512_sub_ps(score, base)));
        for (two, words) in powers.as_chunks::<2>().0.iter().zip(weights.chunks_exact_mut(16)) {
            sum = _mm512_add_ps(sum, _mm512_add_ps(two[0], two[1]));
            let rounded = _mm512_cvtne2ps_pbh(two[1], two[0]);
            // SAFETY: 64 bytes of any content to 16 words.
            unsafe {
                _mm512_storeu_si512(words.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(rounded))
            };
        }
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(total.as_mut_ptr(), sum) };
    }
    has_changed
}

const E1: f32 = 0.69304484;
const E2: f32 = 0.24128021;
const E3: f32 = 0.052242454;
const E4: f32 = 0.013426697;

/// 2^x for x below 128.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2_avx512(x: __m512) -> __m512 {
    // x − ⌊x⌋; 0 for −∞, for which the scaling below gives 0.
    let r = _mm512_reduce_ps::<1>(x);
    let p = _mm512_fmadd_ps(_mm512_set1_ps(E4), r, _mm512_set1_ps(E3));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(E2));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(E1));
    let p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0));
    _mm512_scalef_ps(p, x)
}
