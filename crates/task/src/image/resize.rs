//! Pillow's 8-bit resampling with antialiasing, bit for bit.
//!
//! Each axis is a pass of weighted sums in fixed point with 22 fractional bits ([`vgen_kernels::resample`]), rounded to 8
//! bits in between.

use std::borrow::Cow;
use std::f64::consts::PI;

use image::RgbImage;
use vgen_kernels::resample::{self, FRACTION_BITS, Taps};

use super::reuse;

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

/// The weights of each position along an axis of `to` pixels.
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
    RgbImage::from_raw(width as u32, height as u32, pixels.into_reused()).unwrap_or_default()
}

/// Interleaved RGB.
struct Pixels<'a> {
    width: usize,
    height: usize,
    data: Cow<'a, [u8]>,
}

impl Pixels<'_> {
    fn resize_height(self, height: usize, filter: Filter) -> Self {
        if height == self.height {
            return self;
        }
        let mut out = reuse::take(3 * self.width * height);
        resample::lines(&mut out, &self.data, 3 * self.width, &taps(self.height, height, filter));
        let width = self.width;
        self.replaced(width, height, out)
    }

    /// The bytes, in memory from [`reuse`].
    fn into_reused(self) -> Vec<u8> {
        match self.data {
            Cow::Owned(data) => data,
            Cow::Borrowed(data) => {
                let mut copy = reuse::take(data.len());
                copy.copy_from_slice(data);
                copy
            }
        }
    }

    fn replaced(self, width: usize, height: usize, data: Vec<u8>) -> Self {
        if let Cow::Owned(before) = self.data {
            reuse::give_back(before);
        }
        Self { width, height, data: Cow::Owned(data) }
    }

    fn resize_width(self, width: usize, filter: Filter) -> Self {
        if width == self.width {
            return self;
        }
        let mut out = reuse::take(3 * width * self.height);
        resample::pixels(&mut out, &self.data, 3 * self.width, &taps(self.width, width, filter));
        let height = self.height;
        self.replaced(width, height, out)
    }
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
