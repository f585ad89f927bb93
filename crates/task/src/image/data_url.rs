//! Images that are written out in the row: data URLs and bare base64.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use super::error::{ImageError, short_name};

/// Both alphabets, padded or not: data sets hold every kind.
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);

/// The bytes of `text` in base64 of the standard or the URL-safe alphabet; white space and missing padding are fine.
///
/// # Errors
/// [`ImageError::Empty`], [`ImageError::TooLarge`] beyond `max_bytes`, [`ImageError::Base64`].
pub fn decode_base64(text: &str, max_bytes: usize) -> Result<Vec<u8>, ImageError> {
    let name = || short_name(text.trim().get(..32).unwrap_or(text.trim()));
    let compact: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if compact.is_empty() {
        return Err(ImageError::Empty { name: "of base64".to_owned() });
    }
    if compact.len() / 4 * 3 > max_bytes.saturating_add(3) {
        return Err(ImageError::TooLarge { name: name(), limit: max_bytes });
    }
    let url_safe = compact.iter().any(|byte| matches!(byte, b'-' | b'_'));
    let bytes = if url_safe { URL_SAFE.decode(&compact) } else { STANDARD.decode(&compact) }
        .map_err(|error| ImageError::Base64 { name: name(), reason: error.to_string() })?;
    if bytes.len() > max_bytes {
        return Err(ImageError::TooLarge { name: name(), limit: max_bytes });
    }
    Ok(bytes)
}

/// The bytes of a `data:` URL. The media type is not looked at: it is often wrong, the bytes tell the format.
///
/// # Errors
/// As [`decode_base64`], and [`ImageError::Url`] without a comma.
pub fn decode_data_url(url: &str, max_bytes: usize) -> Result<Vec<u8>, ImageError> {
    let name = || short_name(url);
    let Some((head, data)) = url.split_once(',') else {
        return Err(ImageError::Url { name: name(), reason: "a data URL needs a comma before its data".to_owned() });
    };
    let data = percent_decode(data);
    if head.to_ascii_lowercase().ends_with(";base64") {
        let text = String::from_utf8(data)
            .map_err(|_| ImageError::Base64 { name: name(), reason: "the data is not ASCII".to_owned() })?;
        return decode_base64(&text, max_bytes).map_err(|error| match error {
            ImageError::Base64 { reason, .. } => ImageError::Base64 { name: name(), reason },
            ImageError::TooLarge { limit, .. } => ImageError::TooLarge { name: name(), limit },
            _ => ImageError::Empty { name: name() },
        });
    }
    match data.len() {
        0 => Err(ImageError::Empty { name: name() }),
        len if len > max_bytes => Err(ImageError::TooLarge { name: name(), limit: max_bytes }),
        _ => Ok(data),
    }
}

fn percent_decode(text: &str) -> Vec<u8> {
    let mut rest = text.as_bytes();
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = match tail {
            [high, low, ..] if byte == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &tail[2..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    bytes
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: usize = 1 << 20;

    #[test]
    fn forms_of_base64() {
        for text in ["+/+/AA==", "-_-_AA", " +/+/\nAA= ", "+/+/AA"] {
            assert_eq!(decode_base64(text, ALL), Ok(vec![0xfb, 0xff, 0xbf, 0x00]), "{text}");
        }
        assert!(matches!(decode_base64("a b*", ALL), Err(ImageError::Base64 { .. })));
        assert!(matches!(decode_base64("grüße", ALL), Err(ImageError::Base64 { .. })));
        assert!(matches!(decode_base64(" \n", ALL), Err(ImageError::Empty { .. })));
        assert!(matches!(decode_base64("AAAAAAAAAAAA", 4), Err(ImageError::TooLarge { .. })));
    }

    #[test]
    fn forms_of_data_urls() {
        assert_eq!(decode_data_url("data:image/png;base64,AAEC", ALL), Ok(vec![0, 1, 2]));
        assert_eq!(decode_data_url("data:;BASE64,AAE%3D", ALL), Ok(vec![0, 1]));
        assert_eq!(decode_data_url("data:,a%20b%zz", ALL), Ok(b"a b%zz".to_vec()));
        assert!(matches!(decode_data_url("data:image/png;base64", ALL), Err(ImageError::Url { .. })));
        assert!(matches!(decode_data_url("data:image/png;base64,", ALL), Err(ImageError::Empty { .. })));
        assert!(matches!(decode_data_url("data:image/png;base64,?", ALL), Err(ImageError::Base64 { .. })));
    }
}
