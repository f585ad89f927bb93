//! An image as a URL that the server can read: passed on as it is, or its original bytes under their true type.

use std::io::Cursor;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use vgen_core::{Content, ImageRef, Message, Part};
use vgen_task::image_mime;

use super::RemoteError;
use super::body::Pieces;
use super::client::FetchImage;

/// Quality of a shrunk image that came as JPEG: past the point where vision towers notice.
const JPEG_QUALITY: u8 = 92;

/// The most that an image to be shrunk may take in memory, in bytes.
const DECODED: u64 = 512 << 20;

/// How images are to be sent.
#[derive(Clone)]
pub(super) struct Images {
    /// Fetches what is given by URL, and reads files.
    pub(super) fetch: Option<FetchImage>,
    /// Whether URLs are fetched instead of passed on.
    pub(super) inline: bool,
    pub(super) max_pixels: Option<u64>,
}

/// The messages as JSON. Blocks: reads files, fetches, shrinks.
pub(super) fn messages_json(messages: &[Message], images: &Images) -> Result<Pieces, RemoteError> {
    let mut json = Pieces::default();
    json.push_str("[");
    for (place, message) in messages.iter().enumerate() {
        separate(&mut json, place);
        json.push_str("{\"role\":");
        push_json(&mut json, &message.role)?;
        json.push_str(",\"content\":");
        match &message.content {
            Content::Text(text) => push_json(&mut json, text)?,
            Content::Parts(parts) => {
                json.push_str("[");
                for (place, part) in parts.iter().enumerate() {
                    separate(&mut json, place);
                    match part {
                        Part::Text(text) => {
                            json.push_str("{\"type\":\"text\",\"text\":");
                            push_json(&mut json, text)?;
                        }
                        Part::Image(image) => {
                            json.push_str("{\"type\":\"image_url\",\"image_url\":{\"url\":");
                            push_url(&mut json, image, images)?;
                            json.push_str("}");
                        }
                    }
                    json.push_str("}");
                }
                json.push_str("]");
            }
        }
        json.push_str("}");
    }
    json.push_str("]");
    Ok(json)
}

fn separate(json: &mut Pieces, place: usize) {
    if place > 0 {
        json.push_str(",");
    }
}

fn push_json<T: serde::Serialize + ?Sized>(json: &mut Pieces, value: &T) -> Result<(), RemoteError> {
    let text = serde_json::to_string(value)
        .map_err(|error| RemoteError::Row { code: "message", reason: error.to_string() })?;
    json.push_str(&text);
    Ok(())
}

fn push_url(json: &mut Pieces, image: &ImageRef, images: &Images) -> Result<(), RemoteError> {
    match image {
        ImageRef::Url(url) => match (data_url(url)?, images.fetch.as_ref().filter(|_| images.inline)) {
            (Some(data), _) => push_data_url(json, url, &data, images),
            (None, Some(fetch)) => push_bytes(json, fetch(image).map_err(RemoteError::Image)?, url, images),
            (None, None) => push_json(json, url.as_ref()),
        },
        ImageRef::Path(path) => {
            let name = path.display().to_string();
            let bytes = match &images.fetch {
                Some(fetch) => fetch(image).map_err(RemoteError::Image)?,
                None => std::fs::read(path).map(Arc::from).map_err(|error| RemoteError::Row {
                    code: "image_read",
                    reason: format!("image {name}: {error}"),
                })?,
            };
            push_bytes(json, bytes, &name, images)
        }
        ImageRef::Bytes { bytes, name } => {
            push_bytes(json, Arc::clone(bytes), name.as_deref().unwrap_or("in memory"), images)
        }
        _ => Err(RemoteError::Row { code: "image_kind", reason: "this kind of image can't be sent".to_owned() }),
    }
}

/// Bytes as a data URL of their true type.
fn push_bytes(json: &mut Pieces, bytes: Arc<[u8]>, name: &str, images: &Images) -> Result<(), RemoteError> {
    let mime = image_mime(&bytes).ok_or_else(|| RemoteError::Row {
        code: "image_type",
        reason: format!("image {} is in no known format", shown(name)),
    })?;
    let shrunk = images.max_pixels.map(|max| shrink(&bytes, max, name)).transpose()?.flatten();
    let (bytes, mime) = match shrunk {
        Some((bytes, mime)) => (bytes.into(), mime),
        None => (bytes, mime),
    };
    json.push_str("\"data:");
    json.push_str(mime);
    json.push_str(";base64,");
    json.push_base64(bytes);
    json.push_str("\"");
    Ok(())
}

/// A data URL in parts.
struct DataUrl<'a> {
    mime: &'a str,
    payload: &'a str,
}

/// Takes a base64 data URL apart; `None` for other URLs.
fn data_url(url: &str) -> Result<Option<DataUrl<'_>>, RemoteError> {
    let Some((scheme, rest)) = url.split_once(':').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("data")) else {
        return Ok(None);
    };
    debug_assert_eq!(scheme.len(), 4);
    let bad = |reason: &str| RemoteError::Row { code: "image_data_url", reason: format!("image data URL {reason}") };
    let (kind, payload) = rest.split_once(',').ok_or_else(|| bad("has no comma"))?;
    let (mime, encoding) = kind.rsplit_once(';').unwrap_or((kind, ""));
    if !encoding.eq_ignore_ascii_case("base64") {
        return Err(bad("is not in base64"));
    }
    Ok(Some(DataUrl { mime, payload }))
}

/// A data URL as given, but for a type that its bytes contradict.
fn push_data_url(json: &mut Pieces, url: &Arc<str>, data: &DataUrl<'_>, images: &Images) -> Result<(), RemoteError> {
    let payload = data.payload.trim();
    if images.max_pixels.is_some() {
        let bytes = STANDARD
            .decode(payload)
            .map_err(|error| RemoteError::Row { code: "image_data_url", reason: format!("image data URL: {error}") })?;
        return push_bytes(json, bytes.into(), "in a data URL", images);
    }
    // Enough for every signature.
    let start = payload.get(..64).unwrap_or(payload);
    let start = start.get(..start.len() / 4 * 4).unwrap_or_default();
    let mime = STANDARD.decode(start).ok().and_then(|start| image_mime(&start));
    let mime = mime.filter(|mime| !data.mime.eq_ignore_ascii_case(mime));
    if !payload.bytes().all(is_base64) {
        // What that means is the server's business; here it only must not break the JSON.
        return match mime {
            Some(mime) => push_json(json, &format!("data:{mime};base64,{payload}")),
            None => push_json(json, url.as_ref()),
        };
    }
    let place = payload.as_ptr() as usize - url.as_ptr() as usize;
    // The text is the row's own: it is neither copied nor searched for what JSON escapes.
    let payload = Bytes::from_owner(Shared(Arc::clone(url))).slice(place..place + payload.len());
    let start = serde_json::Value::from(format!("data:{};base64,", mime.unwrap_or(data.mime))).to_string();
    json.push_str(start.strip_suffix('"').unwrap_or(&start));
    json.push_shared(payload);
    json.push_str("\"");
    Ok(())
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

/// A text as the owner of bytes.
struct Shared(Arc<str>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A URL or name, short enough for a message.
fn shown(name: &str) -> String {
    match name.char_indices().nth(120) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    }
}

/// The image with at most so many pixels and its rotation applied; `None` if it is small enough as it is.
fn shrink(bytes: &[u8], max_pixels: u64, name: &str) -> Result<Option<(Vec<u8>, &'static str)>, RemoteError> {
    let bad = |error: image::ImageError| RemoteError::Row {
        code: "image_decode",
        reason: format!("image {}: {error}", shown(name)),
    };
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|error| bad(error.into()))?;
    let format = reader.format();
    let mut decoder = reader.into_decoder().map_err(bad)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels <= max_pixels {
        return Ok(None);
    }
    if decoder.total_bytes() > DECODED {
        let reason = format!("image {} would take more than {DECODED} bytes in memory", shown(name));
        return Err(RemoteError::Row { code: "image_decode", reason });
    }
    decoder.set_limits(image::Limits::default()).map_err(bad)?;
    let orientation = decoder.orientation().map_err(bad)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(bad)?;
    image.apply_orientation(orientation);
    let (width, height) = fitting(image.width(), image.height(), max_pixels);
    let image = image.resize_exact(width, height, image::imageops::FilterType::Lanczos3);
    let mut out = Cursor::new(Vec::new());
    if format == Some(ImageFormat::Jpeg) {
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, JPEG_QUALITY);
        image.to_rgb8().write_with_encoder(encoder).map_err(bad)?;
        return Ok(Some((out.into_inner(), "image/jpeg")));
    }
    image.write_to(&mut out, ImageFormat::Png).map_err(bad)?;
    Ok(Some((out.into_inner(), "image/png")))
}

/// The largest size of the same shape with at most so many pixels, and at least one on each side.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "smaller than the sides they come from")]
#[expect(clippy::cast_precision_loss, reason = "a limit above 2^53 pixels is none")]
fn fitting(width: u32, height: u32, max_pixels: u64) -> (u32, u32) {
    let scale = (max_pixels as f64 / (f64::from(width) * f64::from(height))).sqrt();
    let (w, h) = ((f64::from(width) * scale) as u32, (f64::from(height) * scale) as u32);
    let cap = u32::try_from(max_pixels).unwrap_or(u32::MAX);
    // A side of less than one pixel leaves its pixels to the other.
    match (w, h) {
        (0, _) => (1, h.min(cap)),
        (_, 0) => (w.min(cap), 1),
        sides => sides,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use serde_json::{Value, json};
    use vgen_core::{Fault, Role};

    use super::*;

    const AS_IT_IS: Images = Images { fetch: None, inline: false, max_pixels: None };

    fn encoded(format: ImageFormat, width: u32, height: u32) -> Vec<u8> {
        let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let mut out = Cursor::new(Vec::new());
        DynamicImage::from(image).write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    fn url_of(image: ImageRef, images: &Images) -> Result<String, RemoteError> {
        let parts = vec![Part::Text("a \"b\"".to_owned()), Part::Image(image)];
        let messages = [
            Message::text(Role::System, "be\nbrief"),
            Message { role: Role::User, content: Content::Parts(parts) },
            Message { role: Role::User, content: Content::Parts(Vec::new()) },
        ];
        let value: Value = serde_json::from_str(&messages_json(&messages, images)?.to_text()).unwrap();
        assert_eq!(value[0], json!({"role": "system", "content": "be\nbrief"}));
        assert_eq!(value[1]["content"][0], json!({"type": "text", "text": "a \"b\""}));
        assert_eq!(value[2], json!({"role": "user", "content": []}));
        Ok(value[1]["content"][1]["image_url"]["url"].as_str().unwrap().to_owned())
    }

    fn bytes_of(url: &str) -> (String, Vec<u8>) {
        let (kind, payload) = url.strip_prefix("data:").unwrap().split_once(";base64,").unwrap();
        (kind.to_owned(), STANDARD.decode(payload).unwrap())
    }

    #[test]
    fn bytes_and_files_leave_as_they_are_under_their_true_type() {
        let folder = tempfile::tempdir().unwrap();
        for (format, mime) in [
            (ImageFormat::Png, "image/png"),
            (ImageFormat::Jpeg, "image/jpeg"),
            (ImageFormat::WebP, "image/webp"),
            (ImageFormat::Gif, "image/gif"),
        ] {
            let bytes = encoded(format, 6, 4);
            let image = ImageRef::Bytes { bytes: bytes.clone().into(), name: None };
            assert_eq!(bytes_of(&url_of(image, &AS_IT_IS).unwrap()), (mime.to_owned(), bytes.clone()));
            // Under a name that lies.
            let path = folder.path().join("photo.tiff");
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(bytes_of(&url_of(ImageRef::Path(path), &AS_IT_IS).unwrap()), (mime.to_owned(), bytes));
        }
    }

    #[test]
    fn urls_are_passed_on_or_fetched() {
        let url = || ImageRef::Url("https://example.com/a?b=\"c\"".into());
        assert_eq!(url_of(url(), &AS_IT_IS).unwrap(), "https://example.com/a?b=\"c\"");
        let bytes = encoded(ImageFormat::Png, 3, 3);
        let answer = bytes.clone();
        let fetch: FetchImage = Arc::new(move |_| Ok(answer.clone().into()));
        let with = |fetch, inline| Images { fetch: Some(fetch), inline, max_pixels: None };
        assert_eq!(bytes_of(&url_of(url(), &with(Arc::clone(&fetch), true)).unwrap()), ("image/png".to_owned(), bytes));
        assert!(url_of(url(), &with(fetch, false)).unwrap().starts_with("https://"));
        let gone: FetchImage = Arc::new(|_| Err(Fault::row("image.fetch", "gone")));
        for image in [url(), ImageRef::Path("x.png".into())] {
            assert_eq!(url_of(image, &with(Arc::clone(&gone), true)).unwrap_err().code(), "image.fetch");
        }
    }

    #[test]
    fn a_data_url_keeps_its_bytes_and_gets_its_true_type() {
        let bytes = encoded(ImageFormat::Png, 6, 4);
        let payload = STANDARD.encode(&bytes);
        let send = |url: String| url_of(ImageRef::Url(url.into()), &AS_IT_IS);
        let right = format!("data:image/png;base64,{payload}");
        assert_eq!(send(right.clone()).unwrap(), right);
        assert_eq!(send(format!("data:image/jpeg;base64,{payload}")).unwrap(), right);
        // What is no base64 must not break the JSON around it.
        assert_eq!(send("data:image/png;base64,AA\"\\\nA".to_owned()).unwrap(), "data:image/png;base64,AA\"\\\nA");
        // What nobody knows is the server's business.
        assert_eq!(send("data:image/x;base64,AAAA".to_owned()).unwrap(), "data:image/x;base64,AAAA");
        for bad in ["data:image/png;base64", "data:image/png,AAAA"] {
            assert_eq!(send(bad.to_owned()).unwrap_err().code(), "remote.image_data_url", "{bad}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let image = ImageRef::Bytes { bytes: b"hello".as_slice().into(), name: Some("a.png".into()) };
        let error = url_of(image, &AS_IT_IS).unwrap_err();
        assert_eq!((error.code().as_ref(), error.to_string().contains("a.png")), ("remote.image_type", true));
        let error = url_of(ImageRef::Path("/no/such/file.png".into()), &AS_IT_IS).unwrap_err();
        assert_eq!((error.code().as_ref(), error.to_string().contains("file.png")), ("remote.image_read", true));
    }

    #[test]
    fn large_images_shrink_to_the_limit_and_small_ones_stay() {
        let at_most = |max| Images { max_pixels: Some(max), ..AS_IT_IS };
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let bytes = encoded(format, 200, 100);
            let image = ImageRef::Bytes { bytes: bytes.clone().into(), name: None };
            assert_eq!(bytes_of(&url_of(image.clone(), &at_most(20_000)).unwrap()).1, bytes);
            let (mime, small) = bytes_of(&url_of(image, &at_most(5_000)).unwrap());
            assert_eq!(mime, format.to_mime_type());
            let small = image::load_from_memory(&small).unwrap();
            assert_eq!((small.width(), small.height()), (100, 50));
        }
        for (width, height, max) in [(1, 100_000, 10), (100_000, 1, 10), (7, 3, 1), (5, 5, 24)] {
            let (w, h) = fitting(width, height, max);
            assert!(w >= 1 && h >= 1 && u64::from(w) * u64::from(h) <= max, "{width}x{height} -> {w}x{h}");
        }
    }
}
