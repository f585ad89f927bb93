//! JPEG, apart from the other formats: the decoder behind the `image` crate upsamples colour otherwise than libjpeg
//! (up to 9 levels off) and hides the inks of CMYK.
//!
//! The pixels of [`libjpeg_turbo_rs`] are libjpeg-turbo's, hence Pillow's, to the last bit; the common kind of file gets
//! the same ones in less time from [`baseline`]. It gets inks wrong that are sampled differently, and refuses colour that
//! is sampled finer than brightness; these rare files are for [`jpeg_decoder`], which stays within 3 levels.

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use libjpeg_turbo_rs::{DecodeLimits, Decoder, JpegError, PixelFormat};

use super::convert::cmyk_to_rgb;
use super::limits::ImageLimits;
use super::reuse;

mod baseline;
mod huffman;

/// A JPEG whose header has been read.
pub(super) struct Jpeg<'a> {
    bytes: &'a [u8],
    decoder: Decoder<'a>,
}

impl<'a> Jpeg<'a> {
    /// Reads the header.
    pub(super) fn new(bytes: &'a [u8], limits: &ImageLimits) -> Result<Self, JpegError> {
        let limits = DecodeLimits {
            max_pixels: limits.max_pixels,
            // Samples, coefficients of progressive scans and planes before upsampling.
            max_memory: Some(limits.max_pixels.saturating_mul(32)),
            ..DecodeLimits::default()
        };
        Ok(Self { bytes, decoder: Decoder::new_with_limits(bytes, limits)? })
    }

    /// Width and height in pixels.
    pub(super) fn dimensions(&self) -> (u32, u32) {
        let frame = self.decoder.header();
        (u32::from(frame.width), u32::from(frame.height))
    }

    /// The pixels, grey or RGB, and how to turn them upright.
    pub(super) fn decode(self) -> Result<(DynamicImage, Orientation), JpegError> {
        if !is_whole(self.bytes) {
            return Err(JpegError::CorruptData("the file is cut off".to_owned()));
        }
        let precision = self.decoder.header().precision;
        if precision != 8 {
            return Err(JpegError::Unsupported(format!("samples of {precision} bits")));
        }
        let (width, height) = self.dimensions();
        let orientation =
            self.decoder.exif_orientation().and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
        let image = if self.is_rare() { rare(self.bytes, width, height)? } else { self.usual(width, height)? };
        let image = image.ok_or_else(|| JpegError::CorruptData("the decoder gives too few pixels".to_owned()))?;
        Ok((image, orientation))
    }

    /// Whether it has inks, or a colour that is sampled finer than brightness, which comes first.
    fn is_rare(&self) -> bool {
        let components = &self.decoder.header().components;
        let finer = components.iter().any(|component| {
            component.horizontal_sampling > components[0].horizontal_sampling
                || component.vertical_sampling > components[0].vertical_sampling
        });
        components.len() == 4 || finer
    }

    fn usual(mut self, width: u32, height: u32) -> Result<Option<DynamicImage>, JpegError> {
        let is_grey = self.decoder.header().components.len() == 1;
        self.decoder.set_output_format(if is_grey { PixelFormat::Grayscale } else { PixelFormat::Rgb });
        let mut samples = reuse::take(self.decoder.output_buffer_size()?);
        if baseline::decode(self.bytes, &mut samples).is_none() {
            let written = self.decoder.decode_image_into(&mut samples)?.bytes_written;
            samples.truncate(written);
        }
        Ok(match is_grey {
            true => GrayImage::from_raw(width, height, samples).map(DynamicImage::from),
            false => RgbImage::from_raw(width, height, samples).map(DynamicImage::from),
        })
    }
}

fn rare(bytes: &[u8], width: u32, height: u32) -> Result<Option<DynamicImage>, JpegError> {
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    let corrupt = |error: jpeg_decoder::Error| match error {
        jpeg_decoder::Error::Unsupported(feature) => JpegError::Unsupported(format!("{feature:?}")),
        error => JpegError::CorruptData(error.to_string()),
    };
    let samples = decoder.decode().map_err(corrupt)?;
    let rgb = match decoder.info().map(|info| info.pixel_format) {
        Some(jpeg_decoder::PixelFormat::RGB24) => samples,
        Some(jpeg_decoder::PixelFormat::CMYK32) => {
            // Inks as Pillow has them: YCCK is converted, and Adobe's inversion is undone.
            let (samples, _) = samples.as_chunks::<4>();
            samples.iter().flat_map(|&inks| cmyk_to_rgb(inks)).collect()
        }
        other => return Err(JpegError::Unsupported(format!("{other:?}"))),
    };
    Ok(RgbImage::from_raw(width, height, rgb).map(DynamicImage::from))
}

/// Whether an end marker follows the first scan. The decoder fills what is missing with grey, Pillow refuses it.
fn is_whole(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let [0xff, marker, tail @ ..] = rest {
        rest = match (*marker, tail) {
            // Fill bytes, and markers without a length.
            (0xff, _) => &rest[1..],
            (0x01 | 0xd0..=0xd8, _) => tail,
            // In the scans' data 0xff is always followed by 0 or a restart marker.
            (START_OF_SCAN, _) => return tail.windows(2).rev().any(|pair| pair == END_OF_IMAGE),
            (_, [high, low, ..]) => tail.get(usize::from(u16::from_be_bytes([*high, *low]))..).unwrap_or_default(),
            _ => return false,
        };
    }
    false
}
