//! [`KeptImages`]: what was fetched from the network, for those who want the bytes again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes to keep unless told otherwise: many times what rows in flight have.
const MOST_BYTES: usize = 256 << 20;

/// The images that were fetched last, by URL, and the URLs that could not be fetched. Shared by all who fetch.
#[derive(Debug)]
pub struct KeptImages {
    most_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    images: HashMap<Arc<str>, Option<Arc<[u8]>>>,
    /// In the order in which they came.
    order: VecDeque<Arc<str>>,
    bytes: usize,
}

impl Default for KeptImages {
    fn default() -> Self {
        Self::of_bytes(MOST_BYTES)
    }
}

impl KeptImages {
    /// Keeps about so many bytes; the last image in any case.
    pub fn of_bytes(most_bytes: usize) -> Self {
        Self { most_bytes, state: Mutex::default() }
    }

    /// What is known of a URL: its bytes, or that there are none to be had.
    pub fn get(&self, url: &str) -> Option<Option<Arc<[u8]>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).images.get(url).cloned()
    }

    /// Keeps what came of fetching a URL.
    pub fn put(&self, url: &Arc<str>, bytes: Option<Arc<[u8]>>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes += cost(url, bytes.as_deref());
        match state.images.insert(Arc::clone(url), bytes) {
            None => state.order.push_back(Arc::clone(url)),
            Some(before) => state.bytes -= cost(url, before.as_deref()),
        }
        while state.bytes > self.most_bytes && state.order.len() > 1 {
            let Some(oldest) = state.order.pop_front() else { break };
            if let Some(image) = state.images.remove(&oldest) {
                state.bytes -= cost(&oldest, image.as_deref());
            }
        }
    }
}

fn cost(url: &str, bytes: Option<&[u8]>) -> usize {
    url.len() + bytes.map_or(0, <[u8]>::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_images_are_kept_within_the_bound() {
        let kept = KeptImages::of_bytes(25);
        let url = |name: &str| -> Arc<str> { name.into() };
        for name in ["a", "b", "c"] {
            kept.put(&url(name), Some(vec![0; 10].into()));
        }
        assert_eq!((kept.get("a"), kept.get("b").is_some(), kept.get("c").is_some()), (None, true, true));
        kept.put(&url("b"), None);
        assert_eq!(kept.get("b"), Some(None));
        kept.put(&url("large"), Some(vec![0; 100].into()));
        assert!(kept.get("large").is_some() && kept.get("c").is_none());
    }
}
