//! JPEG, apart from the other formats: the decoder behind the `image` crate upsamples colour otherwise than libjpeg
//! (up to 9 levels off) and hides the inks of CMYK. This one stays within 3 levels.

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use jpeg_decoder::{Decoder, Error, ImageInfo, PixelFormat, UnsupportedFeature};

use super::convert::cmyk_to_rgb;

/// A JPEG whose header has been read.
pub(super) struct Jpeg<'a> {
    bytes: &'a [u8],
    decoder: Decoder<&'a [u8]>,
    info: ImageInfo,
}

impl<'a> Jpeg<'a> {
    /// Reads the header.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut decoder = Decoder::new(bytes);
        decoder.read_info()?;
        let info = decoder.info().ok_or_else(|| Error::Format("no frame header".to_owned()))?;
        Ok(Self { bytes, decoder, info })
    }

    /// Width and height in pixels.
    pub(super) fn dimensions(&self) -> (u32, u32) {
        (u32::from(self.info.width), u32::from(self.info.height))
    }

    /// The pixels, grey or RGB, and how to turn them upright.
    pub(super) fn decode(mut self) -> Result<(DynamicImage, Orientation), Error> {
        if !is_whole(self.bytes) {
            return Err(Error::Format("the file is cut off".to_owned()));
        }
        let (width, height) = self.dimensions();
        let samples = self.decoder.decode()?;
        let orientation =
            self.decoder.exif_data().and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms);
        let image = match self.info.pixel_format {
            PixelFormat::L8 => GrayImage::from_raw(width, height, samples).map(DynamicImage::from),
            PixelFormat::RGB24 => RgbImage::from_raw(width, height, samples).map(DynamicImage::from),
            PixelFormat::CMYK32 => {
                // Inks as Pillow has them: YCCK is converted, and Adobe's inversion is undone.
                let (samples, _) = samples.as_chunks::<4>();
                let rgb = samples.iter().flat_map(|&inks| cmyk_to_rgb(inks)).collect();
                RgbImage::from_raw(width, height, rgb).map(DynamicImage::from)
            }
            PixelFormat::L16 => return Err(Error::Unsupported(UnsupportedFeature::SamplePrecision(16))),
        };
        let image = image.ok_or_else(|| Error::Format("the decoder gives too few pixels".to_owned()))?;
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
