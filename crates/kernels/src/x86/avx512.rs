//! Tiles in AVX-512: up to 12 rows by 32 outputs, 24 sums in registers.
#![allow(unsafe_code)] // vector instructions and pointers

use std::arch::x86_64::*;

use crate::linear_bf16::{TileBf16, TileWiden};
use crate::linear_f32::TileF32;
use crate::product::PANEL;

/// A table of a tile by number of rows, less one.
macro_rules! by_rows {
    ($tile:ident) => {
        [
            $tile::<1>,
            $tile::<2>,
            $tile::<3>,
            $tile::<4>,
            $tile::<5>,
            $tile::<6>,
            $tile::<7>,
            $tile::<8>,
            $tile::<9>,
            $tile::<10>,
            $tile::<11>,
            $tile::<12>,
        ]
    };
}

pub(crate) const TILES_F32: [TileF32; 12] = by_rows!(tile_f32);
pub(crate) const TILES_BF16: [TileBf16; 12] = by_rows!(tile_bf16);
pub(crate) const TILES_WIDEN: [TileWiden; 12] = by_rows!(tile_widen);

/// Asks for 128 bytes of weights, step `i` of the address to ask at; into the second-level cache, since the first has
/// what is being used.
#[inline(always)]
fn prefetch(ahead: *const u8, i: usize) {
    let at = ahead.wrapping_add(128 * i).cast::<i8>();
    // SAFETY: prefetching never faults, at any address.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(at);
        _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(64));
    }
}

/// Asks for the lines of a tile that will be added to once its sums are there.
#[inline(always)]
pub(super) fn prefetch_tile<const R: usize>(out: *const f32, stride: usize) {
    for r in 0..R {
        let row = out.wrapping_add(r * stride).cast::<i8>();
        // SAFETY: prefetching never faults, at any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_ET0>(row);
            _mm_prefetch::<_MM_HINT_ET0>(row.wrapping_add(64));
        }
    }
}

/// # Safety
/// `a` has `k x R` floats, `w` `k x PANEL` floats aligned to 64, `out` R rows of PANEL floats; the machine has AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn tile_f32<const R: usize>(
    a: *const f32,
    w: *const f32,
    k: usize,
    out: *mut f32,
    stride: usize,
    first: bool,
    ahead: *const u8,
) {
    prefetch_tile::<R>(out, stride);
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for i in 0..k {
        // SAFETY: i < k.
        let (w0, w1) = unsafe {
            prefetch(ahead, i);
            (_mm512_load_ps(w.add(i * PANEL)), _mm512_load_ps(w.add(i * PANEL + 16)))
        };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: i < k and r < R.
            let x = _mm512_set1_ps(unsafe { *a.add(i * R + r) });
            sums[0] = _mm512_fmadd_ps(x, w0, sums[0]);
            sums[1] = _mm512_fmadd_ps(x, w1, sums[1]);
        }
    }
    // SAFETY: the tile has R rows of PANEL floats.
    unsafe { store(sums, out, stride, first) };
}

/// Sets the tile to the sums or adds them to it.
///
/// # Safety
/// `out` has R rows of PANEL floats; the machine has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const R: usize>(sums: [[__m512; 2]; R], out: *mut f32, stride: usize, first: bool) {
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

/// # Safety
/// `a` has `pairs x R` words, `w` `pairs x PANEL` words aligned to 64, `out` R rows of PANEL floats; the machine has
/// AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile_bf16<const R: usize>(
    a: *const u32,
    w: *const u32,
    pairs: usize,
    out: *mut f32,
    stride: usize,
    first: bool,
    ahead: *const u8,
) {
    prefetch_tile::<R>(out, stride);
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for i in 0..pairs {
        // SAFETY: i < pairs; both vector types are 64 bytes of any content.
        let (w0, w1) = unsafe {
            prefetch(ahead, i);
            (
                std::mem::transmute::<__m512i, __m512bh>(_mm512_load_si512(w.add(i * PANEL).cast())),
                std::mem::transmute::<__m512i, __m512bh>(_mm512_load_si512(w.add(i * PANEL + 16).cast())),
            )
        };
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: i < pairs and r < R; as above.
            let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*a.add(i * R + r) as i32)) };
            sums[0] = _mm512_dpbf16_ps(sums[0], x, w0);
            sums[1] = _mm512_dpbf16_ps(sums[1], x, w1);
        }
    }
    // SAFETY: the tile has R rows of PANEL floats.
    unsafe { store(sums, out, stride, first) };
}

/// # Safety
/// `a` has `2 pairs x R` floats, `w` `pairs x PANEL` words aligned to 64, `out` R rows of PANEL floats; the machine has
/// AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn tile_widen<const R: usize>(
    a: *const f32,
    w: *const u32,
    pairs: usize,
    out: *mut f32,
    stride: usize,
    first: bool,
    ahead: *const u8,
) {
    let upper = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
    prefetch_tile::<R>(out, stride);
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for i in 0..pairs {
        // SAFETY: i < pairs.
        let words = unsafe {
            prefetch(ahead, i);
            [_mm512_load_si512(w.add(i * PANEL).cast()), _mm512_load_si512(w.add(i * PANEL + 16).cast())]
        };
        let even = words.map(|w| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(w)));
        let odd = words.map(|w| _mm512_castsi512_ps(_mm512_and_si512(w, upper)));
        for (half, w) in [even, odd].into_iter().enumerate() {
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: i < pairs and r < R.
                let x = _mm512_set1_ps(unsafe { *a.add((2 * i + half) * R + r) });
                sums[0] = _mm512_fmadd_ps(x, w[0], sums[0]);
                sums[1] = _mm512_fmadd_ps(x, w[1], sums[1]);
            }
        }
    }
    // SAFETY: the tile has R rows of PANEL floats.
    unsafe { store(sums, out, stride, first) };
}
