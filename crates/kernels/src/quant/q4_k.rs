//! Q4_K: 256 weights in 8 groups of 32, `d·s_i·q − e·m_i`.
//!
//! Bytes: d (f16), e (f16), 12 bytes with eight 6-bit scales and eight 6-bit minima, 128 bytes of nibbles.

use half::f16;

use super::GROUP;
use super::write::{inverse, nearest, put_half};
use crate::quantize_rows::ROUND;

const GROUPS: usize = 8;

/// Bytes of a block.
const BYTES: usize = 144;

/// The 6-bit scale and minimum of group `i`.
///
/// Groups 0 to 3 have theirs in the lower 6 bits of bytes 0 to 3 and 4 to 7; groups 4 to 7 have the lower 4 bits in
/// bytes 8 to 11 and the upper 2 in the top of the bytes of groups 0 to 3.
pub(super) fn scale_and_min(block: &[u8], i: usize) -> (u8, u8) {
    let s = &block[4..16];
    if i < 4 {
        (s[i] & 63, s[i + 4] & 63)
    } else {
        ((s[i + 4] & 15) | (s[i - 4] >> 6) << 4, (s[i + 4] >> 4) | (s[i] >> 6) << 4)
    }
}

fn put_scale_and_min(block: &mut [u8], i: usize, scale: u8, min: u8) {
    let s = &mut block[4..16];
    if i < 4 {
        s[i] |= scale;
        s[i + 4] |= min;
    } else {
        s[i + 4] = (scale & 15) | (min & 15) << 4;
        s[i - 4] |= (scale >> 4) << 6;
        s[i] |= (min >> 4) << 6;
    }
}

/// Groups whose scales are searched together, one a lane: those of two blocks.
const LANES: usize = 2 * GROUPS;

/// A number for each of the groups.
type Lanes = [f32; LANES];

/// Steps of the search, and how many of the 15 steps of q the group's range takes in the first; each takes 0.2 more.
const STEPS: u8 = 13;
const FIRST: f32 = 14.0;

/// Quantises a row, two blocks at a time.
#[inline(always)]
pub(super) fn write_row(row: &[f32], blocks: &mut [u8]) {
    let mut filled;
    for (values, blocks) in row.chunks(LANES * GROUP).zip(blocks.chunks_mut(2 * BYTES)) {
        let values = if let Ok(values) = values.try_into() {
            values
        } else {
            filled = [0.0; LANES * GROUP];
            filled[..values.len()].copy_from_slice(values);
            &filled
        };
        let fits = fit(values);
        for (b, block) in blocks.chunks_exact_mut(BYTES).enumerate() {
            write_block(&values.as_chunks::<{ GROUPS * GROUP }>().0[b], &fits, b * GROUPS, block);
        }
    }
}

/// Writes a block whose groups have their fits from `first` on.
#[inline(always)]
fn write_block(values: &[f32; GROUPS * GROUP], fits: &Fits, first: usize, block: &mut [u8]) {
    let (scales, mins) = (&fits.scales[first..first + GROUPS], &fits.mins[first..first + GROUPS]);
    let largest = |values: &[f32]| values.iter().fold(0.0f32, |a, b| if *b > a { *b } else { a });
    let probe: f32 = fits.probes[first..first + GROUPS].iter().sum();
    let d = f16::from_f32(largest(scales) / 63.0 + probe);
    let e = f16::from_f32(largest(mins) / 63.0);
    block[..16].fill(0);
    put_half(block, 0, d);
    put_half(block, 2, e);
    let (d, e) = (d.to_f32(), e.to_f32());
    let (of_d, of_e) = (inverse(d), inverse(e));
    for (i, (scale, min)) in scales.iter().zip(mins).enumerate() {
        put_scale_and_min(block, i, nearest(scale * of_d, 63.0), nearest(min * of_e, 63.0));
    }
    let groups = values.as_chunks::<GROUP>().0;
    for (pair, two) in groups.as_chunks::<2>().0.iter().enumerate() {
        // Nearest with scale and minimum as they are stored.
        let [(low_factor, low_offset), (high_factor, high_offset)] = [2 * pair, 2 * pair + 1].map(|i| {
            let (scale, min) = scale_and_min(block, i);
            let factor = inverse(d * f32::from(scale));
            (factor, e * f32::from(min))
        });
        let nibbles = &mut block[16 + pair * GROUP..][..GROUP];
        for ((byte, low), high) in nibbles.iter_mut().zip(&two[0]).zip(&two[1]) {
            let low = nearest((low + low_offset) * low_factor, 15.0);
            *byte = low | nearest((high + high_offset) * high_factor, 15.0) << 4;
        }
    }
}

/// Of each group scale and minimum (both at least 0) for `value ≈ scale·q − min` with q in 0 ..= 15, and NaN where a
/// value is no finite number, else a zero.
struct Fits {
    scales: Lanes,
    mins: Lanes,
    probes: Lanes,
}

/// Starting from scales around that which spans a group's range, q is rounded and scale and minimum are fitted to it by
/// least squares; the fit with the least squared error (with that q) is kept. Larger weights count for more, since they
/// carry more of a product. After ggml's `make_qkx2_quants`.
#[inline(always)]
fn fit(values: &[f32; LANES * GROUP]) -> Fits {
    let mut v = [[0.0f32; LANES]; GROUP];
    for (lane, group) in values.as_chunks::<GROUP>().0.iter().enumerate() {
        for (v, value) in v.iter_mut().zip(group) {
            v[lane] = *value;
        }
    }
    let [mut low, mut high, mut squares, mut probes] = [[0.0f32; LANES]; 4];
    for v in &v {
        for l in 0..LANES {
            low[l] = if v[l] < low[l] { v[l] } else { low[l] };
            high[l] = if v[l] > high[l] { v[l] } else { high[l] };
            squares[l] += v[l] * v[l];
            probes[l] += v[l] * 0.0;
        }
    }
    let typical = squares.map(|square| (square / GROUP as f32).sqrt());
    // Sums over the group: weights w, w·v; and the weights themselves.
    let mut weights = [[0.0f32; LANES]; GROUP];
    let [mut w, mut x] = [[0.0f32; LANES]; 2];
    for (weight, v) in weights.iter_mut().zip(&v) {
        for l in 0..LANES {
            weight[l] = typical[l] + v[l].abs();
            w[l] += weight[l];
            x[l] += weight[l] * v[l];
        }
    }
    let mut best = Fits { scales: [0.0; LANES], mins: [0.0; LANES], probes };
    let mut spread = [0.0f32; LANES];
    for l in 0..LANES {
        let range = high[l] - low[l];
        spread[l] = inverse(range);
        best.scales[l] = range / 15.0;
        best.mins[l] = 0.0 - low[l];
    }
    let mut least = [f32::INFINITY; LANES];
    for step in 0..STEPS {
        let steps = FIRST + 0.2 * f32::from(step);
        let (mut factor, mut offset) = ([0.0f32; LANES], [0.0f32; LANES]);
        for l in 0..LANES {
            factor[l] = steps * spread[l];
            offset[l] = low[l] * factor[l];
        }
        // Sums of w·q, w·q², w·q·v.
        let [mut q1, mut q2, mut qx] = [[0.0f32; LANES]; 3];
        for (v, weight) in v.iter().zip(&weights) {
            for l in 0..LANES {
                let q = v[l] * factor[l] - offset[l];
                let q = if q < 15.0 { q } else { 15.0 };
                let q = (q + ROUND) - ROUND;
                let wq = weight[l] * q;
                q1[l] += wq;
                q2[l] += wq * q;
                qx[l] += wq * v[l];
            }
        }
        for l in 0..LANES {
            let of_determinant = inverse(w[l] * q2[l] - q1[l] * q1[l]);
            let scale = (w[l] * qx[l] - x[l] * q1[l]) * of_determinant;
            let min = (q1[l] * qx[l] - q2[l] * x[l]) * of_determinant;
            // The format can't raise a group: then the fit goes through zero.
            let raised = min < 0.0;
            let scale = if raised { qx[l] * inverse(q2[l]) } else { scale };
            let min = if raised { 0.0 } else { min };
            // The squared error less the sum of w·v², which all fits have.
            let error = scale * (scale * q2[l] - 2.0 * (min * q1[l] + qx[l])) + min * (min * w[l] + 2.0 * x[l]);
            // No comparison holds for what is no number.
            let better = error < least[l] && scale > 0.0 && of_determinant > 0.0;
            least[l] = if better { error } else { least[l] };
            best.scales[l] = if better { scale } else { best.scales[l] };
            best.mins[l] = if better { min } else { best.mins[l] };
        }
    }
    best
}
