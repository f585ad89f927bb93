//! Any decoded pixels to 8-bit RGB, in Pillow's integer arithmetic.

use image::{DynamicImage, ImageBuffer, Pixel, RgbImage};

use super::error::ImageError;

/// 8-bit RGB pixels of `image` as Pillow makes them: grey is repeated, alpha is composited on white, 16-bit colours
/// keep their high byte, and 16-bit grey without alpha is clipped at 255.
///
/// # Errors
/// [`ImageError::UnsupportedFormat`] for floating-point pixels; `name` is for the message.
pub fn to_rgb(image: DynamicImage, name: &str) -> Result<RgbImage, ImageError> {
    Ok(match image {
        DynamicImage::ImageRgb8(pixels) => pixels,
        DynamicImage::ImageLuma8(pixels) => map(&pixels, |[grey]| [grey; 3]),
        DynamicImage::ImageLumaA8(pixels) => map(&pixels, |[grey, alpha]| [on_white(grey, alpha); 3]),
        DynamicImage::ImageRgba8(pixels) => map(&pixels, |[r, g, b, a]| [r, g, b].map(|colour| on_white(colour, a))),
        DynamicImage::ImageLuma16(pixels) => map(&pixels, |[grey]: [u16; 1]| [clip(grey); 3]),
        DynamicImage::ImageLumaA16(pixels) => {
            map(&pixels, |[grey, alpha]: [u16; 2]| [on_white(high(grey), high(alpha)); 3])
        }
        DynamicImage::ImageRgb16(pixels) => map(&pixels, |rgb: [u16; 3]| rgb.map(high)),
        DynamicImage::ImageRgba16(pixels) => {
            map(&pixels, |[r, g, b, a]: [u16; 4]| [r, g, b].map(|colour| on_white(high(colour), high(a))))
        }
        other => {
            let what = format!("of colour type {:?}, which is not read", other.color());
            return Err(ImageError::UnsupportedFormat { name: name.to_owned(), what });
        }
    })
}

fn map<P: Pixel, const N: usize>(
    pixels: &ImageBuffer<P, Vec<P::Subpixel>>,
    to_rgb: impl Fn([P::Subpixel; N]) -> [u8; 3],
) -> RgbImage {
    let mut rgb = RgbImage::new(pixels.width(), pixels.height());
    let (samples, _) = pixels.as_raw().as_chunks::<N>();
    let (out, _) = rgb.as_chunks_mut::<3>();
    for (pixel, &sample) in out.iter_mut().zip(samples) {
        *pixel = to_rgb(sample);
    }
    rgb
}

/// `round((colour * alpha + 255 * (255 - alpha)) / 255)`; the division has no ties as 255 is odd.
fn on_white(colour: u8, alpha: u8) -> u8 {
    let alpha = u32::from(alpha);
    ((u32::from(colour) * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

fn high(value: u16) -> u8 {
    (value >> 8) as u8
}

fn clip(value: u16) -> u8 {
    value.min(255) as u8
}

/// CMYK (0 is no ink) to RGB, by Pillow's conversion.
pub(super) fn cmyk_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let light = 255 - k;
    [c, m, y].map(|ink| light.saturating_sub(mul_div_255(ink, light)))
}

fn mul_div_255(a: u8, b: u8) -> u8 {
    let t = u32::from(a) * u32::from(b) + 128;
    (((t >> 8) + t) >> 8) as u8
}

#[cfg(test)]
mod tests {
    // Fixtures and inputs of the tests are their own.
    #![allow(clippy::unwrap_used)]

    use image::{Luma, LumaA, Rgb, Rgba};

    use super::*;

    fn one<P: Pixel>(pixel: P) -> ImageBuffer<P, Vec<P::Subpixel>> {
        ImageBuffer::from_pixel(1, 1, pixel)
    }

    #[test]
    fn every_colour_type() {
        let cases: [(DynamicImage, [u8; 3]); 9] = [
            (one(Luma([7u8])).into(), [7; 3]),
            (one(LumaA([0u8, 128])).into(), [127; 3]),
            (one(Rgb([1u8, 2, 3])).into(), [1, 2, 3]),
            (one(Rgba([10u8, 200, 30, 64])).into(), [194, 241, 199]),
            (one(Rgba([10u8, 200, 30, 0])).into(), [255; 3]),
            (one(Luma([300u16])).into(), [255; 3]),
            (one(Luma([200u16])).into(), [200; 3]),
            (one(Rgb([0x1234u16, 0xffff, 0x00ff])).into(), [0x12, 0xff, 0]),
            (one(Rgba([0x1234u16, 0xffff, 0x00ff, 0xffff])).into(), [0x12, 0xff, 0]),
        ];
        for (image, expected) in cases {
            let colour = image.color();
            assert_eq!(to_rgb(image, "x").unwrap().as_raw(), &expected, "{colour:?}");
        }
        let float = DynamicImage::ImageRgb32F(one(Rgb([0f32; 3])));
        assert!(matches!(to_rgb(float, "x"), Err(ImageError::UnsupportedFormat { .. })));
    }

    #[test]
    fn cmyk() {
        assert_eq!(cmyk_to_rgb([0, 0, 0, 0]), [255; 3]);
        assert_eq!(cmyk_to_rgb([0, 0, 0, 255]), [0; 3]);
        assert_eq!(cmyk_to_rgb([255, 127, 0, 55]), [0, 100, 200]);
    }
}
