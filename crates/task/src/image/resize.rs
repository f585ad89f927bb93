//! Pillow's 8-bit resampling with antialiasing, bit for bit.
//!
//! Each axis is a pass of weighted sums in fixed point with 22 fractional bits, rounded to 8 bits in between. The
//! horizontal pass works on blocks of rows turned so that both passes are the same vectorisable kernel: lines of
//! bytes times one weight each. It is compiled for several sets of vector instructions, of which the processor's best is
//! taken.

use std::borrow::Cow;
use std::f64::consts::PI;

use image::RgbImage;
use pulp::{Arch, NullaryFnOnce};

/// The resampling filters that Pillow evaluates this way, with its numbers in `preprocessor_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// 1
    Lanczos,
    /// 2
    Bilinear,
    /// 3
    Bicubic,
    /// 4
    Box,
    /// 5
    Hamming,
}

impl Filter {
    /// The filter of Pillow's number `resample`; `None` for 0 (nearest) and unknown ones.
    pub fn from_pillow(resample: u64) -> Option<Self> {
        match resample {
            1 => Some(Self::Lanczos),
            2 => Some(Self::Bilinear),
            3 => Some(Self::Bicubic),
            4 => Some(Self::Box),
            5 => Some(Self::Hamming),
            _ => None,
        }
    }

    /// Half the filter's width, in source pixels where nothing shrinks.
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bicubic => 2.0,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Box => 0.5,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Hamming => match x.abs() {
                0.0 => 1.0,
                x if x >= 1.0 => 0.0,
                x => (x * PI).sin() / (x * PI) * (f64::from(0.54f32) + f64::from(0.46f32) * (x * PI).cos()),
            },
            Self::Bicubic => {
                const A: f64 = -0.5;
                match x.abs() {
                    x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                    x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                    _ => 0.0,
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}

const FRACTION_BITS: u32 = 22;
const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// Which input positions make one output position, and with which weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    (0..to)
        .map(|position| {
            let centre = (position as f64 + 0.5) * scale;
            // Casts saturate at 0 where Pillow clips.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let exact: Vec<f64> = (first..end).map(|x| filter.weight((x as f64 - centre + 0.5) * inverse)).collect();
            let sum: f64 = exact.iter().sum();
            let weights = exact.iter().map(|&weight| {
                let share = if sum == 0.0 { weight } else { weight / sum };
                (share * f64::from(1 << FRACTION_BITS) + 0.5f64.copysign(share)) as i32
            });
            Taps { first, weights: weights.collect() }
        })
        .collect()
}

/// `image` in `width` x `height` pixels (neither 0), as Pillow's `resize` makes it.
///
/// The passes run as in Pillow 13: the vertical one first where it shrinks the height by more than twice as many
/// pixels as the width shrinks (signed), else the horizontal one. A pass without change of size is left out.
pub fn resize(image: &RgbImage, width: usize, height: usize, filter: Filter) -> RgbImage {
    let (from_width, from_height) = (image.width() as usize, image.height() as usize);
    let shrunk = |from: usize, to: usize| from as i64 - to as i64;
    let lost_height = shrunk(from_height, height);
    let vertical_first = lost_height > 0 && lost_height > 2 * shrunk(from_width, width);

    let mut pixels = Pixels { width: from_width, height: from_height, data: Cow::Borrowed(image.as_raw().as_slice()) };
    if vertical_first {
        pixels = pixels.resize_height(height, filter).resize_width(width, filter);
    } else {
        pixels = pixels.resize_width(width, filter).resize_height(height, filter);
    }
    // The buffer has exactly the size that the dimensions ask for.
    RgbImage::from_raw(width as u32, height as u32, pixels.data.into_owned()).unwrap_or_default()
}

/// Interleaved RGB.
struct Pixels<'a> {
    width: usize,
    height: usize,
    data: Cow<'a, [u8]>,
}

/// Rows that the horizontal pass takes at once.
const BLOCK: usize = 16;
/// Accumulators of the kernel: they stay in registers.
const LANES: usize = 48;

impl Pixels<'_> {
    fn resize_height(self, height: usize, filter: Filter) -> Self {
        let (width, taps) = (self.width, || taps(self.height, height, filter));
        if height == self.height { self } else { self.pass(Axis::Vertical, &taps(), width, height) }
    }

    fn resize_width(self, width: usize, filter: Filter) -> Self {
        let (height, taps) = (self.height, || taps(self.width, width, filter));
        if width == self.width { self } else { self.pass(Axis::Horizontal, &taps(), width, height) }
    }

    fn pass(&self, axis: Axis, taps: &[Taps], width: usize, height: usize) -> Self {
        let mut out = vec![0; 3 * width * height];
        Arch::new().dispatch(Pass { axis, out: &mut out, data: &self.data, stride: 3 * self.width, taps });
        Self { width, height, data: Cow::Owned(out) }
    }
}

/// One axis of `data`, whose rows have `stride` bytes, resized into `out`.
struct Pass<'a> {
    axis: Axis,
    out: &'a mut [u8],
    data: &'a [u8],
    stride: usize,
    taps: &'a [Taps],
}

enum Axis {
    Vertical,
    Horizontal,
}

impl NullaryFnOnce for Pass<'_> {
    type Output = ();

    // Inlined, as all below, since only what stands in the dispatched function is compiled for its instructions.
    #[inline(always)]
    fn call(self) {
        match self.axis {
            Axis::Vertical => self.rows(),
            Axis::Horizontal => self.columns(),
        }
    }
}

impl Pass<'_> {
    #[inline(always)]
    fn rows(self) {
        for (line, taps) in self.out.chunks_exact_mut(self.stride).zip(self.taps) {
            weighted_lines(line, &self.data[taps.first * self.stride..], self.stride, &taps.weights);
        }
    }

    #[inline(always)]
    fn columns(self) {
        // A block's pixels by column: a line of the kernel is one column of BLOCK rows.
        let mut columns = vec![0; BLOCK * self.stride];
        let mut resized = [0; 3 * BLOCK];
        let to = 3 * self.taps.len();
        for (block, out) in self.data.chunks(BLOCK * self.stride).zip(self.out.chunks_mut(BLOCK * to)) {
            turn(block, self.stride, &mut columns);
            for (x, taps) in self.taps.iter().enumerate() {
                weighted_lines(&mut resized, &columns[taps.first * 3 * BLOCK..], 3 * BLOCK, &taps.weights);
                for (line, pixel) in out.chunks_exact_mut(to).zip(resized.as_chunks::<3>().0) {
                    line[3 * x..][..3].copy_from_slice(pixel);
                }
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

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const FILTERS: [Filter; 5] = [Filter::Lanczos, Filter::Bilinear, Filter::Bicubic, Filter::Box, Filter::Hamming];

    #[test]
    fn constant_stays_constant() {
        let image = RgbImage::from_pixel(37, 53, Rgb([0, 200, 255]));
        for filter in FILTERS {
            for (width, height) in [(1, 1), (37, 53), (36, 54), (100, 7), (3, 200), (17, 53), (37, 1)] {
                let resized = resize(&image, width, height, filter);
                assert_eq!((resized.width() as usize, resized.height() as usize), (width, height));
                assert!(resized.pixels().all(|pixel| pixel.0 == [0, 200, 255]), "{filter:?} {width}x{height}");
            }
        }
    }

    #[test]
    fn lanes_do_not_matter() {
        // Every width crosses the kernel's lanes elsewhere; a column of the result must not depend on it.
        let image = |width| RgbImage::from_fn(width, 40, |x, y| Rgb([(x * 7 + y * 3) as u8, (x * y) as u8, y as u8]));
        let wide = resize(&image(64), 64, 23, Filter::Bilinear);
        for width in 1..64 {
            let narrow = resize(&image(width), width as usize, 23, Filter::Bilinear);
            assert!(narrow.enumerate_pixels().all(|(x, y, pixel)| wide.get_pixel(x, y) == pixel), "{width}");
        }
    }

    #[test]
    fn numbers_of_pillow() {
        assert_eq!([1, 2, 3, 4, 5].map(Filter::from_pillow), FILTERS.map(Some));
        assert_eq!([0, 6].map(Filter::from_pillow), [None, None]);
    }
}
