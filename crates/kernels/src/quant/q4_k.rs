//! Q4_K: 256 weights in 8 groups of 32, `d·s_i·q − e·m_i`.
//!
//! Bytes: d (f16), e (f16), 12 bytes with eight 6-bit scales and eight 6-bit minima, 128 bytes of nibbles.

use half::f16;

use super::{GROUP, half_at, inverse, put_half};

const GROUPS: usize = 8;

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

pub(super) fn quantize(values: &[f32; 256], block: &mut [u8]) {
    let mut fits = [(0.0f32, 0.0f32); GROUPS];
    for (fit, values) in fits.iter_mut().zip(values.chunks_exact(GROUP)) {
        *fit = fit_group(values);
    }
    let d = f16::from_f32(fits.iter().fold(0.0f32, |a, f| a.max(f.0)) / 63.0);
    let e = f16::from_f32(fits.iter().fold(0.0f32, |a, f| a.max(f.1)) / 63.0);
    block.fill(0);
    put_half(block, 0, d);
    put_half(block, 2, e);
    let (of_d, of_e) = (inverse(d.to_f32()), inverse(e.to_f32()));
    for (i, (scale, min)) in fits.into_iter().enumerate() {
        let six = |x: f32| x.round().clamp(0.0, 63.0) as u8;
        put_scale_and_min(block, i, six(scale * of_d), six(min * of_e));
    }
    for (i, values) in values.chunks_exact(GROUP).enumerate() {
        // Nearest with scale and minimum as they are stored.
        let (scale, min) = scale_and_min(block, i);
        let of_scale = inverse(d.to_f32() * f32::from(scale));
        let offset = half_at(block, 2).to_f32() * f32::from(min);
        let nibbles = &mut block[16 + i / 2 * GROUP..][..GROUP];
        for (byte, value) in nibbles.iter_mut().zip(values) {
            let q = ((value + offset) * of_scale).round().clamp(0.0, 15.0) as u8;
            *byte |= if i.is_multiple_of(2) { q } else { q << 4 };
        }
    }
}

/// Scale and minimum (both at least 0) for `value ≈ scale·q − min` with q in 0 ..= 15.
///
/// Starting from scales around that which spans the group's range, q is rounded and scale and minimum are fitted to
/// it by least squares; the fit with the least squared error is kept. Larger weights count for more, since they carry
/// more of a product.
fn fit_group(values: &[f32]) -> (f32, f32) {
    let low = values.iter().copied().fold(0.0, f32::min);
    let high = values.iter().copied().fold(0.0, f32::max);
    if high <= low {
        return (0.0, 0.0);
    }
    let mean_square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
    let typical = mean_square.sqrt();
    let weight = |v: f32| typical + v.abs();
    let error = |scale: f32, min: f32| -> f32 {
        let of_scale = scale.recip();
        let term = |v: &f32| {
            let q = ((v + min) * of_scale).round_ties_even().clamp(0.0, 15.0);
            let off = scale * q - min - v;
            weight(*v) * off * off
        };
        values.iter().map(term).sum()
    };
    let mut best = ((high - low) / 15.0, -low);
    let mut least = error(best.0, best.1);
    for step in 0..=12u8 {
        let of_scale = (14.0 + 0.2 * f32::from(step)) / (high - low);
        let [mut w, mut x, mut q1, mut q2, mut qx] = [0.0f32; 5];
        for v in values {
            let q = ((v - low) * of_scale).round_ties_even().clamp(0.0, 15.0);
            let weight = weight(*v);
            w += weight;
            x += weight * v;
            q1 += weight * q;
            q2 += weight * q * q;
            qx += weight * q * v;
        }
        let determinant = w * q2 - q1 * q1;
        if determinant <= 0.0 {
            continue;
        }
        let (mut scale, mut min) = ((w * qx - x * q1) / determinant, -(q2 * x - q1 * qx) / determinant);
        if min < 0.0 {
            // The format can't raise a group: fit through zero.
            (scale, min) = (qx / q2, 0.0);
        }
        if scale > 0.0 {
            let now = error(scale, min);
            if now < least {
                (best, least) = ((scale, min), now);
            }
        }
    }
    best
}
