//! [`ImageError`]: why an image can't be used.

use std::time::Duration;

use thiserror::Error;
use vgen_core::Fault;

/// Why an image can't be used. Each concerns one row.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageError {
    /// No bytes at all, or no pixels.
    #[error("image {name} is empty")]
    Empty {
        /// Where the image is from.
        name: String,
    },
    /// The file doesn't exist.
    #[error("image {name} does not exist")]
    NotFound {
        /// The path.
        name: String,
    },
    /// The file can't be read.
    #[error("image {name} can't be read: {reason}")]
    Read {
        /// The path.
        name: String,
        /// What the system says.
        reason: String,
    },
    /// More encoded bytes than allowed.
    #[error("image {name} has more than {limit} bytes")]
    TooLarge {
        /// Where the image is from.
        name: String,
        /// The bound in bytes.
        limit: usize,
    },
    /// More pixels than allowed.
    #[error("image {name} has {width}x{height} pixels, more than {limit}")]
    TooManyPixels {
        /// Where the image is from.
        name: String,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The bound on width times height.
        limit: u64,
    },
    /// Not an image, or of a kind that isn't read.
    #[error("image {name} is {what}")]
    UnsupportedFormat {
        /// Where the image is from.
        name: String,
        /// What it is instead.
        what: String,
    },
    /// The format is known but the content is broken.
    #[error("image {name} can't be decoded: {reason}")]
    Decode {
        /// Where the image is from.
        name: String,
        /// What the decoder says.
        reason: String,
    },
    /// Broken base64 or a broken data URL.
    #[error("image {name} is not valid base64: {reason}")]
    Base64 {
        /// The beginning of the text.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Not a URL that images are fetched from.
    #[error("image {name} has no usable URL: {reason}")]
    Url {
        /// The URL.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The URL leads to an address that isn't public.
    #[error("image {name} leads to the private address {address}")]
    PrivateAddress {
        /// The URL.
        name: String,
        /// The address.
        address: String,
    },
    /// More redirects than allowed.
    #[error("image {name} redirects more than {limit} times")]
    Redirects {
        /// The URL.
        name: String,
        /// The bound.
        limit: usize,
    },
    /// The server answered with an error.
    #[error("image {name} can't be fetched: the server answers {status}")]
    HttpStatus {
        /// The URL.
        name: String,
        /// The HTTP status.
        status: u16,
        /// How often it was tried.
        attempts: u32,
    },
    /// The server can't be reached or breaks off.
    #[error("image {name} can't be fetched: {reason}")]
    Fetch {
        /// The URL.
        name: String,
        /// What went wrong.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The download takes too long.
    #[error("image {name} can't be fetched within {} s", limit.as_secs_f64())]
    Timeout {
        /// The URL.
        name: String,
        /// The bound.
        limit: Duration,
    },
    /// The row was given up before its image was there.
    #[error("image {name} was given up with its row")]
    GivenUp {
        /// Where the image is from.
        name: String,
    },
}

impl ImageError {
    /// The stable code of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty { .. } => "image.empty",
            Self::NotFound { .. } => "image.not_found",
            Self::Read { .. } => "image.read",
            Self::TooLarge { .. } => "image.too_large",
            Self::TooManyPixels { .. } => "image.too_many_pixels",
            Self::UnsupportedFormat { .. } => "image.unsupported_format",
            Self::Decode { .. } => "image.decode",
            Self::Base64 { .. } => "image.base64",
            Self::Url { .. } => "image.url",
            Self::PrivateAddress { .. } => "image.private_address",
            Self::Redirects { .. } => "image.redirects",
            Self::HttpStatus { .. } => "image.http_status",
            Self::Fetch { .. } => "image.fetch",
            Self::Timeout { .. } => "image.timeout",
            Self::GivenUp { .. } => "row.cancelled",
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Empty { .. } => "put an image file in its place",
            Self::NotFound { .. } => "paths are relative to the input file's folder",
            Self::Read { .. } => "check the file's type and permissions",
            Self::TooLarge { .. } => "shrink the file or raise the limit on image bytes",
            Self::TooManyPixels { .. } => "shrink the image or raise the limit on image pixels",
            Self::UnsupportedFormat { .. } => "use PNG, JPEG, WebP, GIF, BMP or TIFF",
            Self::Decode { .. } => "the file is damaged or cut off; save it again from its source",
            Self::Base64 { .. } => "give the file's bytes in base64, with or without a data: prefix",
            Self::Url { .. } => "give an http, https or data URL",
            Self::PrivateAddress { .. } => "allow private addresses if the input is trusted",
            Self::Redirects { .. } => "give the final URL or raise the limit on redirects",
            Self::HttpStatus { status: 401 | 403, .. } => "the server wants a login; download the image first",
            Self::HttpStatus { status: 404 | 410, .. } => "the image is gone; check the URL",
            Self::HttpStatus { .. } | Self::Fetch { .. } => "try again later or download the image first",
            Self::Timeout { .. } => "try again later or raise the limit on time",
            Self::GivenUp { .. } => "run again",
        }
    }
}

impl From<ImageError> for Fault {
    fn from(error: ImageError) -> Self {
        let attempts = match error {
            ImageError::HttpStatus { attempts, .. } | ImageError::Fetch { attempts, .. } => attempts,
            _ => 1,
        };
        Fault::row(error.code(), error.to_string()).with_hint(error.hint()).with_attempts(attempts)
    }
}

/// A name for messages: at most the first 120 characters, without what follows the comma of a data URL.
pub(crate) fn short_name(name: &str) -> String {
    const LONGEST: usize = 120;
    let name = match name.split_once(',') {
        Some((head, _)) if name.starts_with("data:") => format!("{head},..."),
        _ => name.to_owned(),
    };
    match name.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}...", &name[..cut]),
        None => name,
    }
}
