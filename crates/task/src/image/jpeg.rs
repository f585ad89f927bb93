//! JPEG, apart from the other formats: this decoder computes what libjpeg-turbo does, hence what Pillow shows, to the
//! last bit; the one behind the `image` crate upsamples colour otherwise (up to 9 levels off) and hides the inks of
//! CMYK.

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use libjpeg_turbo_rs::{DecodeLimits, Decoder, JpegError, PixelFormat};

use super::convert::cmyk_to_rgb;
use super::limits::ImageLimits;

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
    pub(super) fn decode(mut self) -> Result<(DynamicImage, Orientation), JpegError> {
        if !is_whole(self.bytes) {
            return Err(JpegError::CorruptData("the file is cut off".to_owned()));
        }
        let frame = self.decoder.header();
        if frame.precision != 8 {
            return Err(JpegError::Unsupported(format!("samples of {} bits", frame.precision)));
        }
        let format = match frame.components.len() {
            1 => PixelFormat::Grayscale,
            4 => PixelFormat::Cmyk,
            _ => PixelFormat::Rgb,
        };
        self.decoder.set_output_format(format);
        let (width, height) = self.dimensions();
        let orientation =
            self.decoder.exif_orientation().and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
        let samples = self.decoder.decode_image()?.into_vec();
        let image = match format {
            PixelFormat::Grayscale => GrayImage::from_raw(width, height, samples).map(DynamicImage::from),
            PixelFormat::Cmyk => {
                // As Adobe's programs store them and Pillow always takes them: 255 is no ink.
                let (samples, _) = samples.as_chunks::<4>();
                let rgb = samples.iter().flat_map(|&paper| cmyk_to_rgb(paper.map(|white| 255 - white))).collect();
                RgbImage::from_raw(width, height, rgb).map(DynamicImage::from)
            }
            _ => RgbImage::from_raw(width, height, samples).map(DynamicImage::from),
        };
        let image = image.ok_or_else(|| JpegError::CorruptData("the decoder gives too few pixels".to_owned()))?;
        Ok((image, orientation))
    }
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
