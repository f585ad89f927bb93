//! Activations to 8 bits in vectors: see [`crate::quantize_rows`].
#![allow(unsafe_code)] // vector instructions and pointers

use std::arch::x86_64::*;

use crate::quant::GROUP;
use crate::quantize_rows::{ROUND, ROW_GROUP, inverse, put};

/// # Safety
/// The machine has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn avx512(groups: &[[f32; GROUP]], place: (usize, usize), zero: i32, packed: &mut [u8]) {
    let nothing = _mm512_setzero_ps();
    let round = _mm512_set1_ps(ROUND);
    for (values, packed) in groups.iter().zip(packed.chunks_exact_mut(ROW_GROUP * place.1)) {
        // SAFETY: 32 floats.
        let values = unsafe { [_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16))] };
        // The second operand is taken where the first is NaN.
        let sizes = _mm512_max_ps(_mm512_abs_ps(values[0]), nothing);
        let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(values[1]), sizes));
        let times_zero = _mm512_add_ps(_mm512_mul_ps(values[0], nothing), _mm512_mul_ps(values[1], nothing));
        let finite = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(times_zero, times_zero) == 0;
        let scale = if finite { largest / 127.0 } else { f32::NAN };
        let inverse = _mm512_set1_ps(inverse(largest));
        let q = values.map(|v| {
            let moved = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(v, inverse), round));
            _mm512_sub_epi32(moved, _mm512_castps_si512(round))
        });
        let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(q[0], q[1]));
        let bytes = q.map(|q| _mm512_cvtepi32_epi8(q));
        // SAFETY: twice 16 bytes of any content.
        let bytes = unsafe { std::mem::transmute::<[__m128i; 2], [[u8; 4]; 8]>(bytes) };
        put(packed, place, &bytes, (scale, sum, zero));
    }
}

/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn avx2(groups: &[[f32; GROUP]], place: (usize, usize), zero: i32, packed: &mut [u8]) {
    let nothing = _mm256_setzero_ps();
    let round = _mm256_set1_ps(ROUND);
    let sign = _mm256_set1_ps(-0.0);
    let low_bytes = _mm256_set1_epi32(255);
    for (values, packed) in groups.iter().zip(packed.chunks_exact_mut(ROW_GROUP * place.1)) {
        // SAFETY: i < 4, 32 floats.
        let values: [__m256; 4] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(values.as_ptr().add(8 * i)) });
        let (mut sizes, mut times_zero) = (nothing, nothing);
        for v in values {
            // The second operand is taken where the first is NaN.
            sizes = _mm256_max_ps(_mm256_andnot_ps(sign, v), sizes);
            times_zero = _mm256_add_ps(times_zero, _mm256_mul_ps(v, nothing));
        }
        let half = _mm_max_ps(_mm256_castps256_ps128(sizes), _mm256_extractf128_ps::<1>(sizes));
        let quarter = _mm_max_ps(half, _mm_movehl_ps(half, half));
        let largest = _mm_cvtss_f32(_mm_max_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)));
        let finite = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(times_zero, times_zero)) == 0;
        let scale = if finite { largest / 127.0 } else { f32::NAN };
        let inverse = _mm256_set1_ps(inverse(largest));
        let q = values.map(|v| {
            let moved = _mm256_castps_si256(_mm256_add_ps(_mm256_mul_ps(v, inverse), round));
            _mm256_sub_epi32(moved, _mm256_castps_si256(round))
        });
        let sums = _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
        let half = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let quarter = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
        let sum = _mm_cvtsi128_si32(_mm_add_epi32(quarter, _mm_shuffle_epi32::<1>(quarter)));
        // The lowest bytes; packing works on halves of a vector, so that words come as 0 2 4 6 1 3 5 7.
        let q = q.map(|q| _mm256_and_si256(q, low_bytes));
        let bytes = _mm256_packus_epi16(_mm256_packus_epi32(q[0], q[1]), _mm256_packus_epi32(q[2], q[3]));
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        // SAFETY: 32 bytes of any content.
        let bytes = unsafe { std::mem::transmute::<__m256i, [[u8; 4]; 8]>(bytes) };
        put(packed, place, &bytes, (scale, sum, zero));
    }
}
