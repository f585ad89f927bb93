//! JPEG, apart from the other formats because CMYK needs the raw inks that the `image` crate doesn't give.

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::convert::inverted_cmyk_to_rgb;

/// A JPEG whose header has been read.
pub(super) struct Jpeg<'a> {
    bytes: &'a [u8],
    decoder: JpegDecoder<ZCursor<&'a [u8]>>,
}

impl<'a> Jpeg<'a> {
    /// Reads the header.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, DecodeErrors> {
        let options = DecoderOptions::default()
            .set_strict_mode(false)
            .set_max_width(usize::from(u16::MAX))
            .set_max_height(usize::from(u16::MAX));
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
        decoder.decode_headers()?;
        Ok(Self { bytes, decoder })
    }

    /// Width and height in pixels.
    pub(super) fn dimensions(&self) -> (u32, u32) {
        self.decoder.info().map_or((0, 0), |info| (u32::from(info.width), u32::from(info.height)))
    }

    /// How to turn the pixels upright.
    pub(super) fn orientation(&self) -> Orientation {
        self.decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif)).unwrap_or(Orientation::NoTransforms)
    }

    /// The pixels: grey or RGB.
    pub(super) fn decode(mut self) -> Result<DynamicImage, DecodeErrors> {
        if !is_whole(self.bytes) {
            return Err(DecodeErrors::FormatStatic("the file is cut off"));
        }
        let (width, height) = self.dimensions();
        let stored = self.decoder.input_colorspace().unwrap_or(ColorSpace::YCbCr);
        let wanted = match stored {
            // Libjpeg's YCCK to CMYK keeps K and inverts R, G, B: done below from the same RGB.
            ColorSpace::CMYK | ColorSpace::YCCK | ColorSpace::Luma => stored,
            _ => ColorSpace::RGB,
        };
        self.decoder.set_options(self.decoder.options().jpeg_set_out_colorspace(wanted));
        let samples = self.decoder.decode()?;
        let image = match wanted {
            ColorSpace::Luma => GrayImage::from_raw(width, height, samples).map(DynamicImage::from),
            ColorSpace::CMYK => rgb_of(width, height, &samples, inverted_cmyk_to_rgb),
            ColorSpace::YCCK => rgb_of(width, height, &samples, |[y, cb, cr, k]| {
                let [r, g, b] = ycc_to_rgb(y, cb, cr);
                inverted_cmyk_to_rgb([255 - r, 255 - g, 255 - b, k])
            }),
            _ => RgbImage::from_raw(width, height, samples).map(DynamicImage::from),
        };
        image.ok_or(DecodeErrors::FormatStatic("the decoder gives too few pixels"))
    }
}

fn rgb_of(width: u32, height: u32, samples: &[u8], to_rgb: impl Fn([u8; 4]) -> [u8; 3]) -> Option<DynamicImage> {
    let (samples, _) = samples.as_chunks::<4>();
    let rgb = samples.iter().flat_map(|&sample| to_rgb(sample)).collect();
    RgbImage::from_raw(width, height, rgb).map(DynamicImage::from)
}

/// The JFIF conversion with 16 fractional bits, as libjpeg has it.
fn ycc_to_rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    [red, green, blue].map(|colour| colour.clamp(0, 255) as u8)
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
            (START_OF_SCAN, _) => return tail.windows(2).any(|pair| pair == END_OF_IMAGE),
            (_, [high, low, ..]) => tail.get(usize::from(u16::from_be_bytes([*high, *low]))..).unwrap_or_default(),
            _ => return false,
        };
    }
    false
}
