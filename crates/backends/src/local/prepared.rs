//! [`PreparedImages`]: the pixels of images that wait to be encoded, within a number of bytes, each image once.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use vgen_core::PixelTiles;

/// An image that waits to be encoded. Its bytes are free again when nobody holds it.
#[derive(Debug)]
pub(crate) struct PreparedImage {
    tiles: Arc<PixelTiles>,
    all: Arc<PreparedImages>,
}

/// All images that wait.
#[derive(Debug)]
pub(crate) struct PreparedImages {
    most_bytes: u64,
    state: Mutex<State>,
    /// Bytes were given back.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    known: HashMap<[u8; 32], Weak<PreparedImage>>,
}

impl PreparedImage {
    pub(crate) fn tiles(&self) -> &PixelTiles {
        &self.tiles
    }
}

impl Drop for PreparedImage {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        state.bytes -= bytes(&self.tiles);
        // Another one of the same content may have come meanwhile.
        if !state.knows(&self.tiles.digest) {
            state.known.remove(&self.tiles.digest);
        }
        drop(state);
        self.all.room.notify_all();
    }
}

impl PreparedImages {
    /// Room for so many bytes; what one row has is let in by itself whatever its size.
    pub(crate) fn new(most_bytes: u64) -> Arc<Self> {
        Arc::new(Self { most_bytes, state: Mutex::default(), room: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the images of a row in, and waits until there is room for those that aren't there yet.
    pub(crate) fn keep(self: &Arc<Self>, images: Vec<Arc<PixelTiles>>) -> Vec<Arc<PreparedImage>> {
        let mut state = self.lock();
        loop {
            let new: u64 = images.iter().filter(|image| !state.knows(&image.digest)).map(|image| bytes(image)).sum();
            if new == 0 || state.bytes == 0 || state.bytes + new <= self.most_bytes {
                return images.into_iter().map(|image| state.insert(image, self)).collect();
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn knows(&self, digest: &[u8; 32]) -> bool {
        self.known.get(digest).is_some_and(|known| known.strong_count() > 0)
    }

    fn insert(&mut self, tiles: Arc<PixelTiles>, all: &Arc<PreparedImages>) -> Arc<PreparedImage> {
        if let Some(known) = self.known.get(&tiles.digest).and_then(Weak::upgrade) {
            return known;
        }
        self.bytes += bytes(&tiles);
        let digest = tiles.digest;
        let image = Arc::new(PreparedImage { tiles, all: Arc::clone(all) });
        self.known.insert(digest, Arc::downgrade(&image));
        image
    }
}

fn bytes(tiles: &PixelTiles) -> u64 {
    size_of_val(&tiles.values[..]) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn image(name: u8, values: usize) -> Arc<PixelTiles> {
        let values = vec![0.0; values];
        Arc::new(PixelTiles {
            tile_size: 1,
            tiles_high: 1,
            tiles_wide: 1,
            aspect_ratio_id: 1,
            values,
            digest: [name; 32],
        })
    }

    /// Bytes and images.
    fn held(images: &PreparedImages) -> (u64, usize) {
        let state = images.lock();
        (state.bytes, state.known.len())
    }

    #[test]
    fn an_image_of_several_rows_is_there_once_until_the_last_has_it_no_more() {
        let images = PreparedImages::new(100);
        let first = images.keep(vec![image(1, 10), image(1, 10), image(2, 10)]);
        let second = images.keep(vec![image(1, 10)]);
        assert!(Arc::ptr_eq(&first[0], &first[1]) && Arc::ptr_eq(&first[0], &second[0]));
        assert_eq!(held(&images), (80, 2));
        drop(first);
        assert_eq!(held(&images), (40, 1));
        drop(second);
        assert_eq!(held(&images), (0, 0));
    }

    #[test]
    fn a_row_waits_for_room_and_a_large_one_is_let_in_alone() {
        let images = PreparedImages::new(100);
        let first = images.keep(vec![image(1, 20)]);
        let (send, receive) = mpsc::channel();
        let waiting = std::thread::spawn({
            let images = Arc::clone(&images);
            move || {
                let large = images.keep(vec![image(2, 1000), image(1, 20)]);
                send.send(()).unwrap();
                drop(large);
            }
        });
        assert!(receive.recv_timeout(Duration::from_millis(50)).is_err(), "it did not wait");
        drop(first);
        receive.recv().unwrap();
        waiting.join().unwrap();
        assert_eq!(held(&images), (0, 0));
    }
}
