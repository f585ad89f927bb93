//! Weighted sums of bytes with VNNI: see [`crate::resample`].
#![allow(unsafe_code)] // vector instructions and pointers

use std::arch::x86_64::*;

use crate::resample::{FRACTION_BITS, HALF, Taps};

/// Taps of one instruction.
const QUAD: usize = 4;
/// Bytes of a vector.
const VECTOR: usize = 64;

/// The lowest, middle and highest 8 bits of four weights, with their signs.
type Digits = [i32; 3];

/// Whether the weights have three signed digits.
fn have_digits(taps: &[Taps]) -> bool {
    const LARGEST: u32 = (i8::MAX as u32) << 16;
    taps.iter().flat_map(|taps| &taps.weights).all(|weight| weight.unsigned_abs() <= LARGEST)
}

/// The digits of four weights each: `before` of no weight come first, and as many last as fill the four.
fn digits(weights: &[i32], before: usize) -> impl Iterator<Item = Digits> {
    let count = (before + weights.len()).div_ceil(QUAD);
    (0..count).map(move |quad| {
        let mut digits = [[0u8; QUAD]; 3];
        for place in 0..QUAD {
            let index = (quad * QUAD + place).checked_sub(before);
            let mut rest = index.and_then(|index| weights.get(index)).copied().unwrap_or_default();
            for digit in &mut digits {
                digit[place] = rest as u8;
                rest = (rest - i32::from(rest as i8)) >> 8;
            }
        }
        digits.map(i32::from_le_bytes)
    })
}

/// Whether [`lines`] can work on such lines.
pub(crate) fn can_lines(stride: usize, taps: &[Taps]) -> bool {
    stride >= VECTOR && have_digits(taps)
}

/// Whether [`pixels`] can work with such taps.
pub(crate) fn can_pixels(taps: &[Taps]) -> bool {
    have_digits(taps)
}

/// [`crate::resample::lines`], where [`can_lines`].
pub(crate) fn lines(out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) {
    // SAFETY: levels with VNNI have all of this.
    unsafe { lines_vnni(out, data, stride, taps) }
}

/// [`crate::resample::pixels`], where [`can_pixels`].
pub(crate) fn pixels(out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) {
    // SAFETY: as above.
    unsafe { pixels_vnni(out, data, stride, taps) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn load(bytes: &[u8; VECTOR]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// A vector of `bytes` from `at`.
fn part(bytes: &[u8], at: usize) -> &[u8; VECTOR] {
    const NONE: [u8; VECTOR] = [0; VECTOR];
    bytes.get(at..).and_then(<[u8]>::first_chunk).unwrap_or(&NONE)
}

/// Adds pixels times weights, four products to a lane and digit.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn add(sums: &mut [__m512i; 3], bytes: __m512i, digits: &[__m512i; 3]) {
    for (sum, &digit) in sums.iter_mut().zip(digits) {
        *sum = _mm512_dpbusd_epi32(*sum, bytes, digit);
    }
}

/// Sums by digit before the first tap.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn begin() -> [__m512i; 3] {
    [_mm512_set1_epi32(HALF), _mm512_setzero_si512(), _mm512_setzero_si512()]
}

/// Sums by digit to whole numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn whole([low, middle, high]: [__m512i; 3]) -> __m512i {
    let upper = _mm512_add_epi32(_mm512_slli_epi32::<8>(middle), _mm512_slli_epi32::<16>(high));
    _mm512_srai_epi32::<FRACTION_BITS>(_mm512_add_epi32(low, upper))
}

/// Four vectors held to 8 bits. In each quarter, four bytes of one vector come after those of the one before.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn to_bytes(sums: [__m512i; QUAD]) -> __m512i {
    _mm512_packus_epi16(_mm512_packs_epi32(sums[0], sums[1]), _mm512_packs_epi32(sums[2], sums[3]))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn lines_vnni(out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) {
    let mut weights: Vec<[__m512i; 3]> = Vec::new();
    for (out, taps) in out.chunks_exact_mut(stride).zip(taps) {
        weights.clear();
        weights.extend(digits(&taps.weights, 0).map(|digits| digits.map(|digit| _mm512_set1_epi32(digit))));
        let lines = &data[taps.first * stride..][..taps.weights.len() * stride];
        // Behind the last one there may be none: any will do where nothing has weight.
        let last = taps.weights.len().saturating_sub(1);
        for begins in (0..stride).step_by(VECTOR) {
            // The last vector overlaps the one before.
            let at = begins.min(stride - VECTOR);
            let mut sums = [begin(); QUAD];
            for (quad, weights) in weights.iter().enumerate() {
                let [a, b, c, d] = [0, 1, 2, 3].map(|i| load(part(lines, (quad * QUAD + i).min(last) * stride + at)));
                let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
                let (low_2, high_2) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
                add(&mut sums[0], _mm512_unpacklo_epi16(low, low_2), weights);
                add(&mut sums[1], _mm512_unpackhi_epi16(low, low_2), weights);
                add(&mut sums[2], _mm512_unpacklo_epi16(high, high_2), weights);
                add(&mut sums[3], _mm512_unpackhi_epi16(high, high_2), weights);
            }
            if let Some(out) = out[at..].first_chunk_mut::<VECTOR>() {
                // SAFETY: 64 bytes.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), to_bytes(sums.map(|sums| whole(sums)))) };
            }
        }
    }
}

/// Rows of a vector: 12 bytes each, four pixels.
const ROWS: usize = 5;
/// Vectors of a block.
const VECTORS: usize = 3;
/// Rows of a block.
const BLOCK: usize = ROWS * VECTORS;

/// Four columns of a block: of each row, four bytes for each channel. The last four bytes of a vector are unused.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Columns([[u8; VECTOR]; VECTORS]);

impl Columns {
    const EMPTY: Self = Self([[0; VECTOR]; VECTORS]);

    /// The bytes of a row and four more, which are the next row's.
    fn row(&mut self, row: usize) -> Option<&mut [u8; 16]> {
        self.0[row / ROWS][row % ROWS * 12..].first_chunk_mut()
    }
}

/// The pixels of a result: those of one instruction's sums.
struct Plan {
    /// The four columns where its taps begin.
    columns: usize,
    /// Where its digits are, which are as many as the columns.
    digits: std::ops::Range<usize>,
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn pixels_vnni(out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) {
    let (width, to) = (stride / 3, 3 * taps.len());
    assert!(taps.iter().all(|taps| taps.first + taps.weights.len() <= width), "taps reach beyond the line");
    let mut all_digits = Vec::new();
    let plans: Vec<_> = taps
        .iter()
        .map(|taps| {
            let first = all_digits.len();
            all_digits.extend(digits(&taps.weights, taps.first % QUAD));
            Plan { columns: taps.first / QUAD, digits: first..all_digits.len() }
        })
        .collect();
    let mut columns = vec![Columns::EMPTY; width.div_ceil(QUAD)];
    for (block, out) in data.chunks(BLOCK * stride).zip(out.chunks_mut(BLOCK * to)) {
        for (row, line) in block.chunks_exact(stride).enumerate() {
            turn(line, row, &mut columns);
        }
        for (index, plans) in plans.chunks(QUAD).enumerate() {
            let mut sums = [[_mm512_setzero_si512(); QUAD]; VECTORS];
            for (place, plan) in plans.iter().enumerate() {
                let mut by_digit = [begin(); VECTORS];
                for (columns, digits) in columns[plan.columns..].iter().zip(&all_digits[plan.digits.clone()]) {
                    let digits = digits.map(|digit| _mm512_set1_epi32(digit));
                    for (sums, bytes) in by_digit.iter_mut().zip(&columns.0) {
                        add(sums, load(bytes), &digits);
                    }
                }
                for (sums, by_digit) in sums.iter_mut().zip(by_digit) {
                    sums[place] = whole(by_digit);
                }
            }
            let mut results = Columns::EMPTY;
            for (result, sums) in results.0.iter_mut().zip(sums) {
                // SAFETY: 64 bytes, aligned.
                unsafe { _mm512_store_si512(result.as_mut_ptr().cast(), by_lane(to_bytes(sums))) };
            }
            for (row, line) in out.chunks_exact_mut(to).enumerate() {
                if let Some(result) = results.row(row) {
                    put(&mut line[index * 3 * QUAD..], plans.len(), result);
                }
            }
        }
    }
}

/// Puts a row's pixels in fours, by channel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn turn(line: &[u8], row: usize, columns: &mut [Columns]) {
    let by_channel = _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1);
    for (pixels, columns) in line.chunks(3 * QUAD).zip(columns) {
        if let Some(place) = columns.row(row) {
            let present = (1 << pixels.len()) - 1;
            // SAFETY: only the present bytes are read, 12 of 16 bytes are written.
            unsafe {
                let pixels = _mm_maskz_loadu_epi8(present, pixels.as_ptr().cast());
                _mm_mask_storeu_epi32(place.as_mut_ptr().cast(), 0b0111, _mm_shuffle_epi8(pixels, by_channel));
            }
        }
    }
}

/// In each quarter, four bytes of each of four pixels become the four pixels' bytes of each lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn by_lane(bytes: __m512i) -> __m512i {
    let turned = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(turned))
}

/// Writes the first `count` of a row's four pixels.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn put(line: &mut [u8], count: usize, result: &[u8; 16]) {
    let line = &mut line[..3 * count];
    let by_pixel = _mm_setr_epi8(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11, -1, -1, -1, -1);
    let present = (1 << line.len()) - 1;
    // SAFETY: 16 bytes are read, and as many written as the line has.
    unsafe {
        let result = _mm_loadu_si128(result.as_ptr().cast());
        _mm_mask_storeu_epi8(line.as_mut_ptr().cast(), present, _mm_shuffle_epi8(result, by_pixel));
    }
}
