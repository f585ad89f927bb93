//! Bytes of an image file to upright RGB pixels.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, Limits, RgbImage};
use libjpeg_turbo_rs::JpegError;
use vgen_core::catch_panic;

use super::convert::to_rgb;
use super::error::{ImageError, short_name};
use super::jpeg::Jpeg;
use super::limits::ImageLimits;

/// Upright 8-bit RGB pixels of the image file in `bytes`: PNG, JPEG, WebP, GIF, BMP or TIFF as its first bytes tell,
/// the first frame of an animation, EXIF orientation applied, alpha composited on white. `name` is for messages.
///
/// # Errors
/// [`ImageError::Empty`], [`ImageError::TooLarge`], [`ImageError::TooManyPixels`],
/// [`ImageError::UnsupportedFormat`], [`ImageError::Decode`].
pub fn decode(bytes: &[u8], name: &str, limits: &ImageLimits) -> Result<RgbImage, ImageError> {
    let name = short_name(name);
    if bytes.is_empty() {
        return Err(ImageError::Empty { name });
    }
    if bytes.len() > limits.max_bytes {
        return Err(ImageError::TooLarge { name, limit: limits.max_bytes });
    }
    let Ok(format) = image::guess_format(bytes) else {
        return Err(ImageError::UnsupportedFormat { what: what_it_is(bytes).to_owned(), name });
    };
    // The decoders are third-party code fed with foreign bytes: a panic in one must not end the run.
    let decoded = catch_panic(|| decode_as(format, bytes, &name, limits));
    decoded.unwrap_or_else(|said| Err(ImageError::Decode { reason: format!("the decoder failed: {said}"), name }))
}

fn decode_as(format: ImageFormat, bytes: &[u8], name: &str, limits: &ImageLimits) -> Result<RgbImage, ImageError> {
    let input = Cursor::new(bytes);
    let broken = |error| image_error(error, name);
    let (mut image, orientation) = match format {
        ImageFormat::Jpeg => {
            let jpeg = Jpeg::new(bytes, limits).map_err(|error| jpeg_error(error, name))?;
            check_pixels(jpeg.dimensions(), name, limits)?;
            jpeg.decode().map_err(|error| jpeg_error(error, name))?
        }
        ImageFormat::Png => read(PngDecoder::new(input).map_err(broken)?, name, limits)?,
        ImageFormat::WebP => read(WebPDecoder::new(input).map_err(broken)?, name, limits)?,
        ImageFormat::Gif => read(GifDecoder::new(input).map_err(broken)?, name, limits)?,
        ImageFormat::Bmp => read(BmpDecoder::new(input).map_err(broken)?, name, limits)?,
        ImageFormat::Tiff => read(TiffDecoder::new(input).map_err(broken)?, name, limits)?,
        other => {
            let what = format!("in {other:?} format, which is not read");
            return Err(ImageError::UnsupportedFormat { name: name.to_owned(), what });
        }
    };
    if orientation != Orientation::NoTransforms {
        image.apply_orientation(orientation);
    }
    to_rgb(image, name)
}

fn read(
    mut decoder: impl ImageDecoder,
    name: &str,
    limits: &ImageLimits,
) -> Result<(DynamicImage, Orientation), ImageError> {
    check_pixels(decoder.dimensions(), name, limits)?;
    // Room for four 16-bit channels and as much again for the decoder's own use.
    let mut memory = Limits::default();
    memory.max_alloc = Some(limits.max_pixels.saturating_mul(16));
    decoder.set_limits(memory).map_err(|error| image_error(error, name))?;
    // A damaged orientation is no reason to refuse the pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    // Pillow clips 16-bit grey also where the file names a transparent grey.
    let clipped_grey = decoder.original_color_type() == ExtendedColorType::L16;
    let image = DynamicImage::from_decoder(decoder).map_err(|error| image_error(error, name))?;
    Ok(match image {
        DynamicImage::ImageLumaA16(pixels) if clipped_grey => {
            (DynamicImage::ImageLuma16(DynamicImage::ImageLumaA16(pixels).into_luma16()), orientation)
        }
        image => (image, orientation),
    })
}

pub(super) fn check_pixels((width, height): (u32, u32), name: &str, limits: &ImageLimits) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::Empty { name: name.to_owned() });
    }
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(ImageError::TooManyPixels { name: name.to_owned(), width, height, limit: limits.max_pixels });
    }
    Ok(())
}

fn image_error(error: image::ImageError, name: &str) -> ImageError {
    let name = name.to_owned();
    match error {
        image::ImageError::Unsupported(error) => {
            ImageError::UnsupportedFormat { name, what: format!("not supported: {error}") }
        }
        error => ImageError::Decode { name, reason: error.to_string() },
    }
}

fn jpeg_error(error: JpegError, name: &str) -> ImageError {
    let name = name.to_owned();
    match error {
        JpegError::Unsupported(feature) => {
            ImageError::UnsupportedFormat { name, what: format!("a JPEG of a kind that is not read: {feature}") }
        }
        error => ImageError::Decode { name, reason: error.to_string() },
    }
}

/// What the bytes of no known image format seem to be.
fn what_it_is(bytes: &[u8]) -> &'static str {
    let head = &bytes[..bytes.len().min(512)];
    let text = head.trim_ascii_start().to_ascii_lowercase();
    if text.starts_with(b"<svg") || text.starts_with(b"<?xml") {
        "an SVG or XML file, which is not read"
    } else if text.starts_with(b"<!doctype html") || text.starts_with(b"<html") {
        "an HTML page, not an image"
    } else if text.starts_with(b"{") {
        "JSON, not an image"
    } else if std::str::from_utf8(head).is_ok_and(|text| !text.contains('\0')) {
        "a text, not an image"
    } else {
        "of no known image format"
    }
}

#[cfg(test)]
mod tests;
