//! Numbers to blocks. Written once for every level, over fixed lanes and without fused steps: the same bits on all.

use half::f16;

use super::{BlockFormat, GROUP, q4_k};
use crate::multiversion::by_level;
use crate::quantize_rows::ROUND;

by_level! {
    /// Quantises a row into blocks; the last is filled up with zeros. `blocks` has the length that the row needs.
    pub(super) fn write_row(format: BlockFormat, row: &[f32], blocks: &mut [u8]) = write_row_body
}

#[inline(always)]
fn write_row_body<const FUSED: bool>(format: BlockFormat, row: &[f32], blocks: &mut [u8]) {
    if format == BlockFormat::Q4K {
        return q4_k::write_row(row, blocks);
    }
    let (whole, rest) = row.as_chunks::<GROUP>();
    let mut last = [0.0; GROUP];
    last[..rest.len()].copy_from_slice(rest);
    for (values, block) in whole.iter().chain([&last]).zip(blocks.chunks_exact_mut(format.block_bytes())) {
        match format {
            BlockFormat::Q8_0 => q8_0(values, block),
            BlockFormat::Q4_0 => q4_0(values, block),
            _ => q4_1(values, block),
        }
    }
}

#[inline(always)]
pub(super) fn put_half(block: &mut [u8], at: usize, value: f16) {
    block[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// `1 / d`, or 0 where there is nothing to divide.
#[inline(always)]
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { d.recip() }
}

/// The whole number nearest to a number from 0 to `most`, to which others are moved; in the lowest byte.
#[inline(always)]
pub(super) fn nearest(x: f32, most: f32) -> u8 {
    let x = if x > 0.0 { x } else { 0.0 };
    let x = if x < most { x } else { most };
    (x + ROUND).to_bits() as u8
}

/// Lowest and highest number of a group, and NaN if one of them is none or infinite (else a zero).
#[inline(always)]
fn range(values: &[f32; GROUP]) -> (f32, f32, f32) {
    const LANES: usize = 16;
    let (mut low, mut high, mut probe) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0.0f32; LANES]);
    for chunk in values.as_chunks::<LANES>().0 {
        for i in 0..LANES {
            low[i] = if chunk[i] < low[i] { chunk[i] } else { low[i] };
            high[i] = if chunk[i] > high[i] { chunk[i] } else { high[i] };
            probe[i] += chunk[i] * 0.0;
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            low[i] = if low[i + half] < low[i] { low[i + half] } else { low[i] };
            high[i] = if high[i + half] > high[i] { high[i + half] } else { high[i] };
            probe[i] += probe[i + half];
        }
        half /= 2;
    }
    (low[0], high[0], probe[0])
}

#[inline(always)]
fn q8_0(values: &[f32; GROUP], block: &mut [u8]) {
    let (low, high, probe) = range(values);
    let largest = if -low > high { -low } else { high };
    // Quantised with the scale as it is stored, so that its rounding is not an error on top.
    let d = f16::from_f32(largest / 127.0 + probe);
    let inverse = inverse(d.to_f32());
    put_half(block, 0, d);
    for (byte, value) in block[2..].iter_mut().zip(values) {
        // 0 to 254 stand for −127 to 127.
        *byte = nearest(value * inverse + 127.0, 254.0).wrapping_sub(127);
    }
}

#[inline(always)]
fn q4_0(values: &[f32; GROUP], block: &mut [u8]) {
    let (low, high, probe) = range(values);
    // The value of largest magnitude, with its sign, gets q = 0, the only one that reaches −8.
    let d = f16::from_f32((if -low > high { low } else { high }) / -8.0 + probe);
    let inverse = inverse(d.to_f32());
    put_half(block, 0, d);
    put_nibbles(values, inverse, 8.0, &mut block[2..]);
}

#[inline(always)]
fn q4_1(values: &[f32; GROUP], block: &mut [u8]) {
    let (low, high, probe) = range(values);
    let (d, m) = (f16::from_f32((high - low) / 15.0 + probe), f16::from_f32(low));
    let inverse = inverse(d.to_f32());
    put_half(block, 0, d);
    put_half(block, 2, m);
    put_nibbles(values, inverse, -(m.to_f32() * inverse), &mut block[4..]);
}

/// `value·factor + offset`, rounded to 0 ..= 15: the first 16 in the lower halves of 16 bytes, the others in the upper.
#[inline(always)]
fn put_nibbles(values: &[f32; GROUP], factor: f32, offset: f32, bytes: &mut [u8]) {
    let (low, high) = values.split_at(GROUP / 2);
    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = nearest(low * factor + offset, 15.0) | nearest(high * factor + offset, 15.0) << 4;
    }
}
