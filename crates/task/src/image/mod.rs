//! Images: from a reference in a row to the normalised tiles that the vision tower takes.
//!
//! [`ImageFetcher`] gets the bytes (file, URL, data URL), [`decode`] turns them into upright 8-bit RGB pixels the way
//! Pillow does, and [`MllamaImageProcessor`] chooses a canvas, resizes, pads, normalises and cuts tiles the way
//! `MllamaImageProcessor` of transformers does. Everything that depends on outside data is bounded by
//! [`ImageLimits`], and every refusal is an [`ImageError`] of one row.

mod address;
mod canvas;
mod convert;
mod data_url;
mod decode;
mod error;
mod fetch;
mod jpeg;
mod kept;
mod limits;
mod processor;
mod resize;
mod reuse;
mod size;

pub use address::is_private_address;
pub use canvas::{Geometry, fit_to_canvas};
pub use convert::to_rgb;
pub use data_url::{decode_base64, decode_data_url};
pub use decode::decode;
pub use error::ImageError;
pub use fetch::ImageFetcher;
pub(crate) use fetch::image_name;
pub use kept::{Claim, KeptImages};
pub use limits::ImageLimits;
pub use processor::{MllamaImageProcessor, ProcessorError};
pub use resize::{Filter, resize};
pub use size::image_size;
