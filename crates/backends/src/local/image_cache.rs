//! Keys and values of images by content, so that an image is encoded once for all its questions.

use std::collections::HashMap;
use std::sync::Arc;

use vgen_mllama::CrossKv;

/// Keeps what is in use, and of the rest the most recently used up to a number of bytes.
#[derive(Debug)]
pub(crate) struct ImageCache {
    budget: u64,
    bytes: u64,
    clock: u64,
    entries: HashMap<[u8; 32], Entry>,
}

#[derive(Debug)]
struct Entry {
    kv: Arc<CrossKv>,
    used: u64,
}

impl ImageCache {
    pub(crate) fn new(budget: u64) -> Self {
        Self { budget, bytes: 0, clock: 0, entries: HashMap::new() }
    }

    pub(crate) fn contains(&self, digest: &[u8; 32]) -> bool {
        self.entries.contains_key(digest)
    }

    pub(crate) fn get(&mut self, digest: &[u8; 32]) -> Option<Arc<CrossKv>> {
        self.clock += 1;
        let entry = self.entries.get_mut(digest)?;
        entry.used = self.clock;
        Some(Arc::clone(&entry.kv))
    }

    pub(crate) fn insert(&mut self, digest: [u8; 32], kv: CrossKv) -> Arc<CrossKv> {
        self.clock += 1;
        self.bytes += kv.bytes();
        let kv = Arc::new(kv);
        let entry = Entry { kv: Arc::clone(&kv), used: self.clock };
        if let Some(old) = self.entries.insert(digest, entry) {
            self.bytes -= old.kv.bytes();
        }
        kv
    }

    /// Forgets all images that nobody uses.
    pub(crate) fn clear(&mut self) {
        let budget = std::mem::take(&mut self.budget);
        self.trim();
        self.budget = budget;
    }

    /// Forgets images that nobody uses, the least recently used first, until the budget holds.
    pub(crate) fn trim(&mut self) {
        while self.bytes > self.budget {
            let idle = self.entries.iter().filter(|(_, entry)| Arc::strong_count(&entry.kv) == 1);
            let Some(oldest) = idle.min_by_key(|(_, entry)| entry.used).map(|(digest, _)| *digest) else { break };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.bytes -= entry.kv.bytes();
            }
        }
    }
}
