//! [`KeptImages`]: what was fetched from the network, for those who want the bytes again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes to keep unless told otherwise: many times what rows in flight have.
const MOST_BYTES: usize = 256 << 20;

/// The images that were fetched last, by URL, and the URLs that could not be fetched. Shared by all who fetch.
#[derive(Debug)]
pub struct KeptImages {
    most_bytes: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    images: HashMap<Arc<str>, Kept>,
    /// Those that are not on their way, in the order in which they came.
    order: VecDeque<Arc<str>>,
    bytes: usize,
}

#[derive(Clone, Debug)]
enum Kept {
    /// Somebody fetches it.
    Coming,
    /// Its bytes, or that there are none to be had.
    Here(Option<Arc<[u8]>>),
}

impl Default for KeptImages {
    fn default() -> Self {
        Self::of_bytes(MOST_BYTES)
    }
}

impl KeptImages {
    /// Keeps about so many bytes; the last image in any case.
    pub fn of_bytes(most_bytes: usize) -> Self {
        Self { most_bytes, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a URL now: its bytes, or that there are none to be had.
    pub fn get(&self, url: &str) -> Option<Option<Arc<[u8]>>> {
        match self.lock().images.get(url) {
            Some(Kept::Here(bytes)) => Some(bytes.clone()),
            Some(Kept::Coming) | None => None,
        }
    }

    /// As [`KeptImages::get`]; waits for an image that is on its way.
    pub fn wait(&self, url: &str) -> Option<Option<Arc<[u8]>>> {
        let mut state = self.lock();
        loop {
            match state.images.get(url) {
                Some(Kept::Here(bytes)) => return Some(bytes.clone()),
                None => return None,
                Some(Kept::Coming) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Says that the caller will fetch a URL, unless it is here or on its way already.
    pub fn claim(self: &Arc<Self>, url: &Arc<str>) -> Option<Claim> {
        let mut state = self.lock();
        if state.images.contains_key(url) {
            return None;
        }
        state.images.insert(Arc::clone(url), Kept::Coming);
        Some(Claim { kept: Arc::clone(self), url: Arc::clone(url) })
    }

    /// Keeps what came of fetching a URL.
    pub fn put(&self, url: &Arc<str>, bytes: Option<Arc<[u8]>>) {
        let mut state = self.lock();
        state.bytes += cost(url, bytes.as_deref());
        match state.images.insert(Arc::clone(url), Kept::Here(bytes)) {
            None | Some(Kept::Coming) => state.order.push_back(Arc::clone(url)),
            Some(Kept::Here(before)) => state.bytes -= cost(url, before.as_deref()),
        }
        while state.bytes > self.most_bytes && state.order.len() > 1 {
            let Some(oldest) = state.order.pop_front() else { break };
            if let Some(Kept::Here(image)) = state.images.remove(&oldest) {
                state.bytes -= cost(&oldest, image.as_deref());
            }
        }
        self.changed.notify_all();
    }
}

/// The promise to fetch a URL. Dropped without an image being put, it says that there is none, so that nobody waits.
#[derive(Debug)]
pub struct Claim {
    kept: Arc<KeptImages>,
    url: Arc<str>,
}

impl Claim {
    /// What is to be fetched.
    pub fn url(&self) -> &Arc<str> {
        &self.url
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let coming = matches!(self.kept.lock().images.get(&self.url), Some(Kept::Coming));
        if coming {
            self.kept.put(&self.url, None);
        }
    }
}

fn cost(url: &str, bytes: Option<&[u8]>) -> usize {
    url.len() + bytes.map_or(0, <[u8]>::len)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    fn url(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn the_last_images_are_kept_within_the_bound() {
        let kept = KeptImages::of_bytes(25);
        for name in ["a", "b", "c"] {
            kept.put(&url(name), Some(vec![0; 10].into()));
        }
        assert_eq!((kept.get("a"), kept.get("b").is_some(), kept.get("c").is_some()), (None, true, true));
        kept.put(&url("b"), None);
        assert_eq!(kept.get("b"), Some(None));
        kept.put(&url("large"), Some(vec![0; 100].into()));
        assert!(kept.get("large").is_some() && kept.get("c").is_none());
    }

    #[test]
    fn who_waits_gets_what_another_one_fetches_or_that_it_gave_up() {
        let kept = Arc::new(KeptImages::default());
        let (good, bad) = (kept.claim(&url("good")).unwrap(), kept.claim(&url("bad")).unwrap());
        assert!(kept.claim(&url("good")).is_none());
        assert_eq!((kept.get("good"), kept.wait("other")), (None, None));
        let waiting: Vec<_> = ["good", "bad"]
            .map(|name| {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || kept.wait(name))
            })
            .into();
        kept.put(good.url(), Some(vec![1].into()));
        drop((good, bad));
        let got: Vec<_> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(got, [Some(Some(vec![1].into())), Some(None)]);
    }
}
