//! Tiles of quantised weights: whole-number dot products of 4 bytes a step, floats once for 32 k.
//!
//! Every level takes the floats in the same steps (see [`crate::linear_quant`]): no fused multiply-adds here.
#![allow(unsafe_code)] // vector instructions and pointers

use std::arch::x86_64::*;

use super::avx512::prefetch_tile;
use crate::linear_quant::{
    Q4_0, Q4_1, Q4_K, Q8_0, TILE_ROWS, TileQuant, group_at, group_bytes, shared_scales, weight_bytes,
};
use crate::product::PANEL;
use crate::quant::GROUP;
use crate::quantize_rows::ROW_GROUP;

macro_rules! by_kind_and_rows {
    ($tile:ident) => {
        [by_rows!($tile, Q8_0), by_rows!($tile, Q4_0), by_rows!($tile, Q4_1), by_rows!($tile, Q4_K)]
    };
}

macro_rules! by_rows {
    ($tile:ident, $kind:ident) => {
        [
            $tile::<$kind, 1>,
            $tile::<$kind, 2>,
            $tile::<$kind, 3>,
            $tile::<$kind, 4>,
            $tile::<$kind, 5>,
            $tile::<$kind, 6>,
        ]
    };
}

/// By format, then by number of rows, less one.
pub(crate) const TILES_VNNI: [[TileQuant; TILE_ROWS]; 4] = by_kind_and_rows!(tile_vnni);

/// By format, then by number of rows, less one.
pub(crate) const TILES_AVX2: [[TileQuant; TILE_ROWS]; 4] = by_kind_and_rows!(tile_avx2);

/// # Safety
/// `a` has `groups` groups of R packed rows, `w` as many of a panel of the format K, `out` R rows of PANEL floats; the
/// machine has AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn tile_vnni<const K: u8, const R: usize>(
    a: *const u8,
    w: *const u8,
    groups: usize,
    out: *mut f32,
    stride: usize,
    first: bool,
    ahead: *const u8,
) {
    let low = _mm512_set1_epi8(15);
    prefetch_tile::<R>(out, stride);
    let mut totals = [[_mm512_setzero_ps(); 2]; R];
    for g in 0..groups {
        // SAFETY: g < groups.
        let (a, at) = unsafe { (a.add(g * ROW_GROUP * R), w.add(group_at(K, g))) };
        let ahead = ahead.wrapping_add(group_at(K, g)).cast::<i8>();
        for line in 0..group_bytes(K) / 64 {
            _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64 * line));
        }
        // SAFETY: rows' words, scales, starts and sums lie within the packed group.
        let word = |i: usize, r: usize| unsafe { *a.cast::<i32>().add(i * R + r) };
        let float = |i: usize, r: usize| unsafe { *a.cast::<f32>().add(i * R + r) };
        let mut dots = [[_mm512_setzero_si512(); 2]; R];
        if K == Q8_0 || K == Q4_0 {
            for (r, dots) in dots.iter_mut().enumerate() {
                *dots = [_mm512_set1_epi32(word(GROUP / 4 + 1, r)); 2];
            }
        }
        for i in 0..weight_bytes(K) / (4 * PANEL) {
            // SAFETY: i-th run of 32 words of the group.
            let words = unsafe {
                let at = at.add(4 * PANEL * i);
                [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(64).cast())]
            };
            if K == Q8_0 {
                for (r, dots) in dots.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(word(i, r));
                    dots[0] = _mm512_dpbusd_epi32(dots[0], words[0], x);
                    dots[1] = _mm512_dpbusd_epi32(dots[1], words[1], x);
                }
            } else {
                let lower = words.map(|w| _mm512_and_si512(w, low));
                let upper = words.map(|w| _mm512_and_si512(_mm512_srli_epi16::<4>(w), low));
                for (r, dots) in dots.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(word(i, r));
                    dots[0] = _mm512_dpbusd_epi32(dots[0], lower[0], x);
                    dots[1] = _mm512_dpbusd_epi32(dots[1], lower[1], x);
                    let x = _mm512_set1_epi32(word(i + 4, r));
                    dots[0] = _mm512_dpbusd_epi32(dots[0], upper[0], x);
                    dots[1] = _mm512_dpbusd_epi32(dots[1], upper[1], x);
                }
            }
        }
        for v in 0..2 {
            // SAFETY: the scales of 16 outputs in this group and, for Q4_K, after its eight.
            let (d, m) = unsafe { scales_avx512::<K>(w, g, v) };
            for r in 0..R {
                let scale = _mm512_mul_ps(d, _mm512_set1_ps(float(GROUP / 4, r)));
                let gain = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dots[r][v]));
                totals[r][v] = _mm512_add_ps(totals[r][v], gain);
                if K == Q4_1 || K == Q4_K {
                    let gain = _mm512_mul_ps(m, _mm512_set1_ps(float(GROUP / 4 + 2, r)));
                    totals[r][v] = _mm512_add_ps(totals[r][v], gain);
                }
            }
        }
    }
    for (r, totals) in totals.into_iter().enumerate() {
        for (v, mut total) in totals.into_iter().enumerate() {
            // SAFETY: the tile has R rows of PANEL floats.
            unsafe {
                let out = out.add(r * stride + 16 * v);
                if !first {
                    total = _mm512_add_ps(_mm512_loadu_ps(out), total);
                }
                _mm512_storeu_ps(out, total);
            }
        }
    }
}

/// Scales and offsets of outputs `16 v ..` in group `g`.
///
/// # Safety
/// `w` is a panel of the format K with that group; the machine has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn scales_avx512<const K: u8>(w: *const u8, g: usize, v: usize) -> (__m512, __m512) {
    // SAFETY: by the contract of this function.
    unsafe {
        let at = w.add(group_at(K, g) + weight_bytes(K));
        let half = |at: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()));
        let small = |at: *const u8| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())));
        match K {
            Q4_1 => (half(at.add(32 * v)), half(at.add(2 * PANEL + 32 * v))),
            Q4_K => {
                let (every, bytes) = shared_scales(K);
                let shared = w.add(group_at(K, (g / every + 1) * every) - bytes);
                let min = _mm512_mul_ps(half(shared.add(2 * PANEL + 32 * v)), small(at.add(PANEL + 16 * v)));
                (
                    _mm512_mul_ps(half(shared.add(32 * v)), small(at.add(16 * v))),
                    _mm512_xor_ps(min, _mm512_set1_ps(-0.0)),
                )
            }
            _ => (half(at.add(32 * v)), _mm512_setzero_ps()),
        }
    }
}

/// As [`tile_vnni`], 8 outputs at a time.
///
/// # Safety
/// As [`tile_vnni`], with AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
unsafe fn tile_avx2<const K: u8, const R: usize>(
    a: *const u8,
    w: *const u8,
    groups: usize,
    out: *mut f32,
    stride: usize,
    first: bool,
    _ahead: *const u8,
) {
    let (low, flip, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi8(-128), _mm256_set1_epi16(1));
    for v in 0..PANEL / 8 {
        let mut totals = [_mm256_setzero_ps(); R];
        for g in 0..groups {
            // SAFETY: g < groups.
            let (a, at) = unsafe { (a.add(g * ROW_GROUP * R), w.add(group_at(K, g))) };
            // SAFETY: rows' words, scales, starts and sums lie within the packed group.
            let word = |i: usize, r: usize| unsafe { *a.cast::<i32>().add(i * R + r) };
            let float = |i: usize, r: usize| unsafe { *a.cast::<f32>().add(i * R + r) };
            let mut dots = [_mm256_setzero_si256(); R];
            if K == Q4_0 {
                for (r, dot) in dots.iter_mut().enumerate() {
                    *dot = _mm256_set1_epi32(word(GROUP / 4 + 1, r));
                }
            }
            for i in 0..weight_bytes(K) / (4 * PANEL) {
                // SAFETY: 8 words of the i-th run of the group.
                let words = unsafe { _mm256_loadu_si256(at.add(4 * PANEL * i + 32 * v).cast()) };
                // Sums of two products fit 16 bits: 2·128·127 for 8-bit weights, 2·15·127 for nibbles.
                if K == Q8_0 {
                    // Signed by signed: magnitudes by numbers that take the weights' signs.
                    let signed = _mm256_xor_si256(words, flip);
                    let size = _mm256_abs_epi8(signed);
                    for (r, dot) in dots.iter_mut().enumerate() {
                        let x = _mm256_sign_epi8(_mm256_set1_epi32(word(i, r)), signed);
                        let pairs = _mm256_maddubs_epi16(size, x);
                        *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, ones));
                    }
                } else {
                    let lower = _mm256_and_si256(words, low);
                    let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(words), low);
                    for (r, dot) in dots.iter_mut().enumerate() {
                        let x0 = _mm256_maddubs_epi16(lower, _mm256_set1_epi32(word(i, r)));
                        let x1 = _mm256_maddubs_epi16(upper, _mm256_set1_epi32(word(i + 4, r)));
                        *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(_mm256_add_epi16(x0, x1), ones));
                    }
                }
            }
            // SAFETY: the scales of 8 outputs in this group and, for Q4_K, after its eight.
            let (d, m) = unsafe { scales_avx2::<K>(w, g, v) };
            for r in 0..R {
                let scale = _mm256_mul_ps(d, _mm256_set1_ps(float(GROUP / 4, r)));
                totals[r] = _mm256_add_ps(totals[r], _mm256_mul_ps(scale, _mm256_cvtepi32_ps(dots[r])));
                if K == Q4_1 || K == Q4_K {
                    let gain = _mm256_mul_ps(m, _mm256_set1_ps(float(GROUP / 4 + 2, r)));
                    totals[r] = _mm256_add_ps(totals[r], gain);
                }
            }
        }
        for (r, mut total) in totals.into_iter().enumerate() {
            // SAFETY: the tile has R rows of PANEL floats.
            unsafe {
                let out = out.add(r * stride + 8 * v);
                if !first {
                    total = _mm256_add_ps(_mm256_loadu_ps(out), total);
                }
                _mm256_storeu_ps(out, total);
            }
        }
    }
}

/// Scales and offsets of outputs `8 v ..` in group `g`.
///
/// # Safety
/// `w` is a panel of the format K with that group; the machine has AVX2 and F16C.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn scales_avx2<const K: u8>(w: *const u8, g: usize, v: usize) -> (__m256, __m256) {
    // SAFETY: by the contract of this function.
    unsafe {
        let at = w.add(group_at(K, g) + weight_bytes(K));
        let half = |at: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
        let small = |at: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())));
        match K {
            Q4_1 => (half(at.add(16 * v)), half(at.add(2 * PANEL + 16 * v))),
            Q4_K => {
                let (every, bytes) = shared_scales(K);
                let shared = w.add(group_at(K, (g / every + 1) * every) - bytes);
                let min = _mm256_mul_ps(half(shared.add(2 * PANEL + 16 * v)), small(at.add(PANEL + 8 * v)));
                (
                    _mm256_mul_ps(half(shared.add(16 * v)), small(at.add(8 * v))),
                    _mm256_xor_ps(min, _mm256_set1_ps(-0.0)),
                )
            }
            _ => (half(at.add(16 * v)), _mm256_setzero_ps()),
        }
    }
}
