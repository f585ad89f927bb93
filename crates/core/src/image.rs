//! [`ImageRef`]: where an image is; [`PixelTiles`]: what the vision tower sees of it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// An image of a row, not yet fetched or decoded. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageRef {
    /// An `http:`, `https:` or `data:` URL, as given.
    Url(Arc<str>),
    /// A file on this machine.
    Path(PathBuf),
    /// An encoded image file (PNG, JPEG, ...) in memory, with the name it came under.
    Bytes {
        /// The file's bytes.
        bytes: Arc<[u8]>,
        /// File name or path, for messages.
        name: Option<Arc<str>>,
    },
}

/// An image cut into the tiles of its canvas, normalised: what `MllamaImageProcessor` of transformers makes, live
/// tiles only.
#[derive(Clone, Debug, PartialEq)]
pub struct PixelTiles {
    /// Side of a tile in pixels.
    pub tile_size: usize,
    /// Tiles of the canvas from top to bottom.
    pub tiles_high: usize,
    /// Tiles of the canvas from left to right.
    pub tiles_wide: usize,
    /// One more than the index of (tiles_high, tiles_wide) in the supported aspect ratios.
    pub aspect_ratio_id: usize,
    /// `[tiles_high * tiles_wide, 3, tile_size, tile_size]`, row-major, tiles from the top left.
    pub values: Vec<f32>,
    /// BLAKE3 over what decides the values: the pixels and the processor's parameters.
    pub digest: [u8; 32],
}

/// Memory of values that were used, for the next image: four tiles are 15 MB, and touching fresh memory takes longer than
/// computing what is written there.
static USED: Mutex<Vec<f32>> = Mutex::new(Vec::new());

impl PixelTiles {
    /// Room for `len` values.
    pub fn room(len: usize) -> Vec<f32> {
        let used = std::mem::take(&mut *USED.lock().unwrap_or_else(PoisonError::into_inner));
        // Not much larger, since images that wait are counted by their values.
        if (len..=len + len / 8).contains(&used.capacity()) { used } else { Vec::with_capacity(len) }
    }

    /// How many tiles the canvas has.
    pub fn tiles(&self) -> usize {
        self.tiles_high * self.tiles_wide
    }
}

impl Drop for PixelTiles {
    fn drop(&mut self) {
        let mut values = std::mem::take(&mut self.values);
        values.clear();
        *USED.lock().unwrap_or_else(PoisonError::into_inner) = values;
    }
}
