//! The inner loops of resizing pictures: weighted sums of bytes in fixed point, of lines above each other or of pixels
//! beside each other.
//!
//! All is integer arithmetic, so that every level gives the same bytes. With VNNI, weights are cut into three digits of
//! 8 bits, and four taps are one instruction for each digit.

use crate::cpu::Level;
use crate::multiversion::by_level;

/// Fractional bits of a weight.
pub const FRACTION_BITS: u32 = 22;
/// One half: what sums begin with, so that they are rounded.
pub(crate) const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// Which input positions make one output position, and with which weights.
#[derive(Clone, Debug)]
pub struct Taps {
    /// The first input position.
    pub first: usize,
    /// The weights of it and of those behind it, times 2 to the power of [`FRACTION_BITS`].
    pub weights: Vec<i32>,
}

/// Sets each line of `out` to the weighted sum of lines of `data`, rounded and held to 8 bits. Lines of both have `stride`
/// bytes.
///
/// # Panics
/// If taps reach beyond `data`.
pub fn lines(out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) {
    lines_at(Level::current(), out, data, stride, taps);
}

/// Sets each pixel of `out`, a line of `taps.len()` RGB pixels for each line of `data`, to the weighted sum of pixels of
/// that line, rounded and held to 8 bits. Lines of `data` have `stride` bytes.
///
/// # Panics
/// If taps reach beyond a line.
pub fn pixels(out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) {
    pixels_at(Level::current(), out, data, stride, taps);
}

/// Sets `out` to a line at twice the resolution, from the line that is `near`est and the one on its other side: three
/// parts of the nearer sample, one of the farther, in both directions. Halves are rounded down and up in turns, as in
/// libjpeg (`jdsample.c`, `h2v2_fancy_upsample`).
///
/// # Panics
/// If `far` is shorter than `near`, or `out` than twice that.
pub fn double(near: &[u8], far: &[u8], out: &mut [u8]) {
    double_by_level(Level::current(), near, far, out);
}

fn lines_at(level: Level, out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512Vnni && crate::x86::resample::can_lines(stride, taps) {
        return crate::x86::resample::lines(out, data, stride, taps);
    }
    lines_by_level(level, out, data, stride, taps);
}

fn pixels_at(level: Level, out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512Vnni && crate::x86::resample::can_pixels(taps) {
        return crate::x86::resample::pixels(out, data, stride, taps);
    }
    pixels_by_level(level, out, data, stride, taps);
}

by_level! { fn lines_by_level(out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) = lines_body }
by_level! { fn pixels_by_level(out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) = pixels_body }
by_level! { fn double_by_level(near: &[u8], far: &[u8], out: &mut [u8]) = double_body }

#[inline(always)]
fn lines_body<const FUSED: bool>(out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) {
    for (line, taps) in out.chunks_exact_mut(stride).zip(taps) {
        weighted_lines(line, &data[taps.first * stride..], stride, &taps.weights);
    }
}

/// Rows that [`pixels_body`] takes at once.
const BLOCK: usize = 16;

/// Works on blocks of rows that are turned, so that it is the same sum of lines as [`lines_body`].
#[inline(always)]
fn pixels_body<const FUSED: bool>(out: &mut [u8], data: &[u8], stride: usize, taps: &[Taps]) {
    // A block's pixels by column: a line of the sum is one column of BLOCK rows.
    let mut columns = vec![0; BLOCK * stride];
    let mut resized = [0; 3 * BLOCK];
    let to = 3 * taps.len();
    for (block, out) in data.chunks(BLOCK * stride).zip(out.chunks_mut(BLOCK * to)) {
        turn(block, stride, &mut columns);
        for (x, taps) in taps.iter().enumerate() {
            weighted_lines(&mut resized, &columns[taps.first * 3 * BLOCK..], 3 * BLOCK, &taps.weights);
            for (line, pixel) in out.chunks_exact_mut(to).zip(resized.as_chunks::<3>().0) {
                line[3 * x..][..3].copy_from_slice(pixel);
            }
        }
    }
}

/// Columns that are turned together: what is read and written of them stays in the nearest cache.
const TURNED: usize = 64;

/// Puts a block's rows, of `stride` bytes each, into `columns`, the pixels of a column one behind the other.
#[inline(always)]
fn turn(block: &[u8], stride: usize, columns: &mut [u8]) {
    for (part, columns) in columns.chunks_mut(3 * BLOCK * TURNED).enumerate() {
        for (row, line) in block.chunks_exact(stride).enumerate() {
            let (pixels, _) = line[part * 3 * TURNED..].as_chunks::<3>();
            for (pixel, column) in pixels.iter().zip(columns.as_chunks_mut::<{ 3 * BLOCK }>().0) {
                column[3 * row..][..3].copy_from_slice(pixel);
            }
        }
    }
}

/// Sums that are kept at once: they stay in registers.
const LANES: usize = 48;

/// Sets `out` to the sum of the lines of `lines`, which begin every `stride` bytes, each times its weight.
#[inline(always)]
fn weighted_lines(out: &mut [u8], lines: &[u8], stride: usize, weights: &[i32]) {
    let (chunks, rest) = out.as_chunks_mut::<LANES>();
    let tail = chunks.len() * LANES;
    for (index, chunk) in chunks.iter_mut().enumerate() {
        let mut sums = [HALF; LANES];
        for (line, &weight) in lines[index * LANES..].chunks(stride).zip(weights) {
            if let Some(line) = line.first_chunk::<LANES>() {
                for (sum, &byte) in sums.iter_mut().zip(line) {
                    *sum += i32::from(byte) * weight;
                }
            }
        }
        for (byte, sum) in chunk.iter_mut().zip(sums) {
            *byte = to_byte(sum);
        }
    }
    for (index, byte) in rest.iter_mut().enumerate() {
        let bytes = lines[tail + index..].iter().step_by(stride);
        *byte = to_byte(bytes.zip(weights).fold(HALF, |sum, (&byte, &weight)| sum + i32::from(byte) * weight));
    }
}

#[inline(always)]
fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

#[inline(always)]
fn double_body<const FUSED: bool>(near: &[u8], far: &[u8], out: &mut [u8]) {
    let sum = |near: u8, far: u8| 3 * u16::from(near) + u16::from(far);
    let Some(last) = near.len().checked_sub(1) else { return };
    out[0] = ((4 * sum(near[0], far[0]) + 8) >> 4) as u8;
    out[2 * last + 1] = ((4 * sum(near[last], far[last]) + 7) >> 4) as u8;
    let between = out[1..].as_chunks_mut::<2>().0;
    for (out, (near, far)) in between.iter_mut().zip(near.windows(2).zip(far.windows(2))) {
        let (left, right) = (sum(near[0], far[0]), sum(near[1], far[1]));
        *out = [((3 * left + right + 7) >> 4) as u8, ((3 * right + left + 8) >> 4) as u8];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers below `below` without a pattern.
    fn noise(count: usize, below: u64, seed: u64) -> Vec<u64> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> 11
        };
        (0..count).map(|_| next() % below).collect()
    }

    fn bytes(count: usize, seed: u64) -> Vec<u8> {
        noise(count, 256, seed).into_iter().map(|value| value as u8).collect()
    }

    /// `to` positions of up to 11 taps among `from`, some weights negative, sums about one and beyond.
    fn taps(from: usize, to: usize, seed: u64) -> Vec<Taps> {
        let position = |index: usize| {
            let first = if to > 1 { index * (from - 1) / (to - 1) } else { 0 };
            let count = (1 + (index + seed as usize) % 11).min(from - first);
            let weights = noise(count, 1 << 22, seed + index as u64);
            let weights = weights.iter().map(|&weight| (weight as i32 - (1 << 20)) / (1 + count as i32 / 2)).collect();
            Taps { first, weights }
        };
        (0..to).map(position).collect()
    }

    /// Channel by channel, with sums of any size.
    fn plain(bytes: impl Fn(usize) -> u8, taps: &Taps) -> u8 {
        let weighted = taps.weights.iter().enumerate();
        let sum: i64 = weighted.map(|(i, &weight)| i64::from(bytes(taps.first + i)) * i64::from(weight)).sum();
        ((sum + i64::from(HALF)) >> FRACTION_BITS).clamp(0, 255) as u8
    }

    const SIZES: [(usize, usize, usize); 8] =
        [(1, 1, 1), (3, 5, 2), (21, 16, 40), (22, 15, 7), (43, 31, 23), (64, 61, 64), (130, 47, 33), (257, 90, 300)];

    #[test]
    fn every_level_sums_lines_exactly() {
        for (width, from, to) in SIZES {
            let (stride, taps) = (3 * width, taps(from, to, 3));
            let data = bytes(from * stride, 1);
            for level in Level::available() {
                let mut out = vec![7; to * stride];
                lines_at(level, &mut out, &data, stride, &taps);
                for (y, taps) in taps.iter().enumerate() {
                    for x in 0..stride {
                        let expected = plain(|line| data[line * stride + x], taps);
                        assert_eq!(out[y * stride + x], expected, "{level:?} {width} {from} {to}: {x} {y}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_level_sums_pixels_exactly() {
        for (height, from, to) in SIZES {
            let (stride, taps) = (3 * from, taps(from, to, 5));
            let data = bytes(height * stride, 2);
            for level in Level::available() {
                let mut out = vec![7; height * 3 * to];
                pixels_at(level, &mut out, &data, stride, &taps);
                for y in 0..height {
                    for (x, taps) in taps.iter().enumerate() {
                        for channel in 0..3 {
                            let expected = plain(|pixel| data[y * stride + 3 * pixel + channel], taps);
                            let found = out[(y * to + x) * 3 + channel];
                            assert_eq!(found, expected, "{level:?} {height} {from} {to}: {x} {y} {channel}");
                        }
                    }
                }
            }
        }
    }

    /// Weights that three digits don't hold are left to the plain sum.
    #[test]
    fn weights_of_any_size() {
        let taps = [Taps { first: 0, weights: vec![i32::from(i8::MAX) << 16, -(i32::from(i8::MAX) << 16)] }];
        let beyond = [Taps { first: 0, weights: vec![8_400_000, -8_400_000 + (1 << 22)] }];
        for taps in [&taps, &beyond] {
            let data = [vec![200; 66], vec![190; 66]].concat();
            for level in Level::available() {
                let mut out = vec![0; 66];
                lines_at(level, &mut out, &data, 66, taps);
                assert_eq!(out, vec![plain(|line| data[line * 66], &taps[0]); 66], "{level:?}");
                let mut out = [0; 3];
                pixels_at(level, &mut out, &[200, 1, 200, 190, 2, 190], 6, taps);
                let red = plain(|pixel| [200, 190][pixel], &taps[0]);
                assert_eq!((out[0], out[2]), (red, red), "{level:?}");
            }
        }
    }

    /// Halves are rounded up for samples that lie left of the near one, down for those right of it.
    #[test]
    fn every_level_doubles_exactly() {
        for width in [1, 2, 3, 15, 16, 17, 64, 131] {
            let (near, far) = (bytes(width, 3), bytes(width, 4));
            let at = |x: usize| 3 * u32::from(near[x]) + u32::from(far[x]);
            let left = |x: usize| ((3 * at(x) + at(x.saturating_sub(1)) + 8) >> 4) as u8;
            let right = |x: usize| ((3 * at(x) + at((x + 1).min(width - 1)) + 7) >> 4) as u8;
            let expected: Vec<u8> = (0..width).flat_map(|x| [left(x), right(x)]).collect();
            for level in Level::available() {
                let mut out = vec![7; 2 * width];
                double_by_level(level, &near, &far, &mut out);
                assert_eq!(out, expected, "{level:?} {width}");
            }
        }
    }
}
