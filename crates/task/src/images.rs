//! From the value of an image column to [`ImageRef`]s: URLs, data URLs, paths, base64, `{"bytes", "path"}` objects,
//! and lists of these.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use vgen_core::ImageRef;

use crate::config::{ImageCheck, ImageType, PilFormat};
use crate::template::python_text;

/// Takes padded and unpadded text.
const RELAXED: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, RELAXED);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, RELAXED);

/// Why a value is no image: a stable code and a message.
pub(crate) struct NoImage {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) hint: Option<&'static str>,
}

fn no_image(code: &'static str, message: impl Into<String>) -> NoImage {
    NoImage { code, message: message.into(), hint: None }
}

/// An image of a row with the words that it was given in.
pub(crate) struct GivenImage {
    pub(crate) image: ImageRef,
    /// The URL or path as it stood in the row; `None` for images in memory.
    pub(crate) given: Option<Arc<str>>,
}

/// How image values are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImageRules {
    pub(crate) image_type: ImageType,
    pub(crate) check: ImageCheck,
    pub(crate) pil_format: PilFormat,
}

impl ImageRules {
    /// The images that a column's value stands for: a list gives several, null none.
    pub(crate) fn read(&self, raw: &RawValue, base_dir: Option<&Path>) -> Result<Vec<GivenImage>, NoImage> {
        let value: Value =
            serde_json::from_str(raw.get()).map_err(|error| no_image("image.invalid", error.to_string()))?;
        if self.check == ImageCheck::Passthrough
            && let Some(url) = self.pass_through(&value, raw)
        {
            return Ok(vec![GivenImage { image: ImageRef::Url(url.clone()), given: Some(url) }]);
        }
        match &value {
            Value::Null => Ok(Vec::new()),
            Value::Array(list) => {
                list.iter().filter(|item| !item.is_null()).map(|item| self.one(item, base_dir)).collect()
            }
            one => Ok(vec![self.one(one, base_dir)?]),
        }
    }

    fn pass_through(&self, value: &Value, raw: &RawValue) -> Option<Arc<str>> {
        match (self.image_type, value) {
            (ImageType::Url, Value::String(url)) => Some(url.as_str().into()),
            (ImageType::Base64, _) => Some(format!("data:image/jpeg;base64,{}", python_text(raw)).into()),
            _ => None,
        }
    }

    fn one(&self, value: &Value, base_dir: Option<&Path>) -> Result<GivenImage, NoImage> {
        match (self.image_type, value) {
            (_, Value::Object(object)) => self.object(object, base_dir),
            (ImageType::Url, Value::String(text)) => url_or_path(text, base_dir),
            (ImageType::Base64, Value::String(text)) => base64_text(text),
            (ImageType::Pil, _) => Err(NoImage {
                code: "image.not_pil",
                message: format!("expected an image, got {}", kind_of(value)),
                hint: Some("set image_type to \"url\" for URLs and paths or to \"base64\" for base64 text"),
            }),
            _ => Err(no_image("image.invalid", format!("expected a text or an object, got {}", kind_of(value)))),
        }
    }

    fn object(&self, object: &serde_json::Map<String, Value>, base_dir: Option<&Path>) -> Result<GivenImage, NoImage> {
        if self.image_type != ImageType::Pil
            && let Some(Value::String(url)) = object.get("url")
        {
            return url_or_path(url, base_dir);
        }
        let name = object.get("path").and_then(Value::as_str);
        let bytes = match object.get("bytes") {
            Some(Value::String(text)) => Some(decode_base64(text)?),
            Some(Value::Array(list)) => {
                let bytes: Option<Vec<u8>> =
                    list.iter().map(|b| b.as_u64().and_then(|b| u8::try_from(b).ok())).collect();
                Some(bytes.ok_or_else(|| no_image("image.invalid", "\"bytes\" is no list of integers from 0 to 255"))?)
            }
            _ => None,
        };
        match (bytes, name) {
            (Some(bytes), name) if self.image_type == ImageType::Pil && self.pil_format == PilFormat::Jpeg => {
                in_memory(jpeg(&bytes)?, name)
            }
            (Some(bytes), name) => in_memory(bytes, name),
            (None, Some(_)) if self.image_type == ImageType::Pil && self.pil_format == PilFormat::Jpeg => {
                Err(NoImage {
                    code: "image.not_pil",
                    message: "a path is no image in memory".to_owned(),
                    hint: Some("pil_format = \"original\" takes paths, too"),
                })
            }
            (None, Some(path)) => url_or_path(path, base_dir),
            (None, None) => {
                Err(no_image("image.invalid", "expected an object with \"bytes\", \"path\" or \"url\", found none"))
            }
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The scheme before `:` in lower case, of two letters at least so that `C:\` is none.
fn scheme(text: &str) -> Option<String> {
    let (scheme, _) = text.split_once(':')?;
    let mut bytes = scheme.bytes();
    let valid = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    (valid && scheme.len() > 1).then(|| scheme.to_ascii_lowercase())
}

pub(crate) fn url_or_path(text: &str, base_dir: Option<&Path>) -> Result<GivenImage, NoImage> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(no_image("image.empty", "the image is an empty text"));
    }
    let given: Arc<str> = text.into();
    let image = match scheme(trimmed).as_deref() {
        Some("http" | "https" | "data") => ImageRef::Url(given.clone()),
        Some("file") => {
            let path = url::Url::parse(trimmed).ok().and_then(|url| url.to_file_path().ok());
            ImageRef::Path(path.ok_or_else(|| no_image("image.url", format!("{trimmed:?} names no local file")))?)
        }
        Some(other) if trimmed[other.len()..].starts_with("://") => {
            return Err(NoImage {
                code: "image.url",
                message: format!("unknown URL scheme {other:?}"),
                hint: Some(
                    "only http, https, data and file URLs are fetched; image_check = \"passthrough\" leaves that to the server",
                ),
            });
        }
        _ => ImageRef::Path(match base_dir {
            Some(dir) => dir.join(text),
            None => PathBuf::from(text),
        }),
    };
    Ok(GivenImage { image, given: Some(given) })
}

fn base64_text(text: &str) -> Result<GivenImage, NoImage> {
    match scheme(text.trim_start()).as_deref() {
        Some("http" | "https" | "data") => {
            let url: Arc<str> = text.into();
            Ok(GivenImage { image: ImageRef::Url(url.clone()), given: Some(url) })
        }
        _ => in_memory(decode_base64(text)?, None),
    }
}

fn decode_base64(text: &str) -> Result<Vec<u8>, NoImage> {
    let clean: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    if clean.is_empty() {
        return Err(no_image("image.empty", "the image is an empty text"));
    }
    let engine = if clean.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    engine.decode(&clean).map_err(|error| NoImage {
        code: "image.base64",
        message: format!("no base64: {error}"),
        hint: Some("set image_type to \"url\" for URLs and paths"),
    })
}

fn in_memory(bytes: Vec<u8>, name: Option<&str>) -> Result<GivenImage, NoImage> {
    if image_mime(&bytes).is_none() {
        return Err(no_image("image.unknown_format", "the bytes are of no known image format"));
    }
    Ok(GivenImage { image: ImageRef::Bytes { bytes: bytes.into(), name: name.map(Into::into) }, given: None })
}

/// The image as Pillow saves it by default: quality 75, no EXIF, orientation not applied.
fn jpeg(bytes: &[u8]) -> Result<Vec<u8>, NoImage> {
    // Depth and colour type of a PNG, which decoding hides.
    let palette_or_deep = bytes.starts_with(b"\x89PNG") && bytes.get(24..26).is_some_and(|b| b[0] > 8 || b[1] == 3);
    let image = image::load_from_memory(bytes).map_err(|error| no_image("image.decode", error.to_string()))?;
    let plain = matches!(image.color(), image::ColorType::L8 | image::ColorType::Rgb8);
    if palette_or_deep || !plain {
        return Err(NoImage {
            code: "image.not_jpeg_encodable",
            message: "JPEG has no transparency, palettes or 16-bit samples".to_owned(),
            hint: Some("pil_format = \"original\" sends the file as it is"),
        });
    }
    let mut file = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, 75);
    image.write_with_encoder(encoder).map_err(|error| no_image("image.not_jpeg_encodable", error.to_string()))?;
    Ok(file)
}

/// The images that a value stands for, without any of them being opened: a list gives several, null none.
///
/// # Errors
/// `image.*`: it stands for no image.
pub fn image_refs(
    value: &RawValue,
    image_type: ImageType,
    base_dir: Option<&Path>,
) -> Result<Vec<ImageRef>, vgen_core::Fault> {
    let rules = ImageRules { image_type, check: ImageCheck::Strict, pil_format: PilFormat::Original };
    let images = rules.read(value, base_dir).map_err(|error| vgen_core::Fault::row(error.code, error.message))?;
    Ok(images.into_iter().map(|image| image.image).collect())
}

/// The media type of an image file, told by its first bytes.
pub fn image_mime(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"BM") && bytes.len() > 14 {
        return Some("image/bmp");
    }
    image::guess_format(bytes).ok().map(|format| format.to_mime_type())
}

/// The `data:` URL of an image file, with its true media type.
pub fn data_url(bytes: &[u8]) -> String {
    let mime = image_mime(bytes).unwrap_or("application/octet-stream");
    format!("data:{mime};base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes))
}

/// An image in memory as a lossless file, for callers that have pixels instead of files.
///
/// # Errors
/// What the `image` crate says of images without pixels or of pixel types that PNG does not have.
pub fn encode_image(image: &image::DynamicImage) -> Result<ImageRef, image::ImageError> {
    let mut file = std::io::Cursor::new(Vec::new());
    image.write_to(&mut file, image::ImageFormat::Png)?;
    Ok(ImageRef::Bytes { bytes: file.into_inner().into(), name: None })
}

/// The image as the metadata names it: URLs and paths as they were given, images in memory (data URLs, too) by the
/// digest of the file, or whole if `inline`.
pub(crate) fn raw_url(image: &GivenImage, inline: bool) -> String {
    let digest = |bytes: &[u8]| {
        let mut text = "sha256:".to_owned();
        for byte in Sha256::digest(bytes) {
            let _ = write!(text, "{byte:02x}");
        }
        text
    };
    match (&image.image, &image.given) {
        (ImageRef::Bytes { bytes, .. }, _) => {
            if inline {
                data_url(bytes)
            } else {
                digest(bytes)
            }
        }
        (ImageRef::Url(url), _)
            if !inline && url.len() > 512 && scheme(url.trim_start()).as_deref() == Some("data") =>
        {
            match url.split_once(";base64,").map(|(_, text)| decode_base64(text)) {
                Some(Ok(bytes)) => digest(&bytes),
                _ => digest(url.as_bytes()),
            }
        }
        (_, Some(given)) => given.to_string(),
        (ImageRef::Path(path), None) => path.to_string_lossy().into_owned(),
        (ImageRef::Url(url), None) => url.to_string(),
        (_, None) => String::new(),
    }
}
