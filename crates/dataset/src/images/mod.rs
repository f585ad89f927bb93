//! Folders of images: as rows, and with an answer in a text file beside each image.

mod folder;
mod sidecar;
mod stored;

pub use folder::{FolderOptions, ImageFolder};
pub use sidecar::{SidecarOptions, SidecarSink};
pub use stored::{FetchImage, ImageColumn, StoredImages};
