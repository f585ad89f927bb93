//! Folders of images: as rows, and with an answer in a text file beside each image.

mod folder;
mod sidecar;

pub use folder::{FolderOptions, ImageFolder};
pub use sidecar::{SidecarOptions, SidecarSink};
