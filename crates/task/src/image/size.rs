//! [`image_size`]: width and height from an image's header, without decoding it.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, ErrorKind, Seek};

use image::metadata::Orientation;
use image::{ImageDecoder, ImageError as Broken, ImageReader};
use vgen_core::ImageRef;

use super::data_url::decode_data_url;
use super::decode::check_pixels;
use super::error::ImageError;
use super::fetch::{image_name, is_data_url};
use super::limits::ImageLimits;

/// Width and height of an image in pixels, turned upright, from its header. `None` for an image in the network, which
/// is not fetched for this.
///
/// # Errors
/// An image that doesn't exist, is empty, is of no known format, or is larger than the limits allow.
pub fn image_size(image: &ImageRef, limits: &ImageLimits) -> Result<Option<(u32, u32)>, ImageError> {
    let name = image_name(image);
    match image {
        ImageRef::Bytes { bytes, .. } => {
            check_bytes(bytes.len() as u64, &name, limits)?;
            of_reader(Cursor::new(bytes), &name, limits).map(Some)
        }
        ImageRef::Path(path) => match File::open(path) {
            Ok(file) => {
                check_bytes(file.metadata().map_or(0, |metadata| metadata.len()), &name, limits)?;
                of_reader(BufReader::new(file), &name, limits).map(Some)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Err(ImageError::NotFound { name }),
            Err(error) => Err(ImageError::Read { name, reason: error.to_string() }),
        },
        ImageRef::Url(url) if is_data_url(url) => {
            of_reader(Cursor::new(decode_data_url(url, limits.max_bytes)?), &name, limits).map(Some)
        }
        _ => Ok(None),
    }
}

fn check_bytes(bytes: u64, name: &str, limits: &ImageLimits) -> Result<(), ImageError> {
    match bytes > limits.max_bytes as u64 {
        true => Err(ImageError::TooLarge { name: name.to_owned(), limit: limits.max_bytes }),
        false => Ok(()),
    }
}

fn of_reader(reader: impl BufRead + Seek, name: &str, limits: &ImageLimits) -> Result<(u32, u32), ImageError> {
    let name = name.to_owned();
    let read = || {
        let mut decoder = ImageReader::new(reader).with_guessed_format()?.into_decoder()?;
        let (width, height) = decoder.dimensions();
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let turned = matches!(
            orientation,
            Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
        );
        Ok(if turned { (height, width) } else { (width, height) })
    };
    match read() {
        Ok(size) => check_pixels(size, &name, limits).map(|()| size),
        Err(Broken::IoError(error)) => Err(ImageError::Read { name, reason: error.to_string() }),
        Err(Broken::Unsupported(error)) => {
            Err(ImageError::UnsupportedFormat { name, what: format!("not supported: {error}") })
        }
        Err(error) => Err(ImageError::Decode { name, reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    // Fixtures and inputs of the tests are their own.
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::super::decode;
    use super::*;

    /// The header says what decoding gives, for every format and orientation of the fixtures.
    #[test]
    fn headers_and_pixels_agree() {
        let limits = ImageLimits::default();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images");
        let mut seen = 0;
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let Ok(pixels) = decode(&std::fs::read(&path).unwrap(), "x", &limits) else { continue };
            let size = image_size(&ImageRef::Path(path.clone()), &limits).unwrap();
            assert_eq!(size, Some(pixels.dimensions()), "{}", path.display());
            seen += 1;
        }
        assert!(seen > 30, "{seen}");
        let small = ImageLimits { max_pixels: 3, ..ImageLimits::default() };
        let pixel = || ImageRef::Url("data:image/gif;base64,R0lGODlhAgACAAAAACwAAAAAAgACAAA=".into());
        assert_eq!(image_size(&pixel(), &limits), Ok(Some((2, 2))));
        assert!(matches!(image_size(&pixel(), &small), Err(ImageError::TooManyPixels { .. })));
        let short = ImageLimits { max_bytes: 9, ..ImageLimits::default() };
        let bytes = ImageRef::Bytes { bytes: vec![0; 10].into(), name: None };
        assert!(matches!(image_size(&bytes, &short), Err(ImageError::TooLarge { .. })));
        let missing = image_size(&ImageRef::Path("nothing.png".into()), &limits);
        assert!(matches!(missing, Err(ImageError::NotFound { .. })));
        assert_eq!(image_size(&ImageRef::Url("https://example.com/a.png".into()), &limits), Ok(None));
        assert!(image_size(&ImageRef::Url("data:image/png;base64,AAAA".into()), &limits).is_err());
    }
}
