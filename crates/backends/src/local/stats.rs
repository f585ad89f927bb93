//! [`EngineStats`]: what an engine did and where its time went.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Where the engine's time went, and what it did. Counted while it works.
#[derive(Debug, Default)]
pub struct EngineStats {
    pub(crate) prepare: AtomicU64,
    pub(crate) encode: AtomicU64,
    pub(crate) prefill: AtomicU64,
    pub(crate) decode: AtomicU64,
    pub(crate) sample: AtomicU64,
    pub(crate) wait: Mutex<Wait>,
    pub(crate) rows: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) shared_prompt_tokens: AtomicU64,
    pub(crate) generated_tokens: AtomicU64,
    pub(crate) images_encoded: AtomicU64,
    pub(crate) tiles_encoded: AtomicU64,
    pub(crate) tiles_computed: AtomicU64,
    pub(crate) tile_pairs_computed: AtomicU64,
    pub(crate) images_reused: AtomicU64,
    pub(crate) cross_kv_bytes: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) decode_steps: AtomicU64,
    pub(crate) copies_to_host: AtomicU64,
    pub(crate) copies_to_device: AtomicU64,
}

/// The engine's time without anything to do.
#[derive(Debug, Default)]
pub(crate) struct Wait {
    past: Duration,
    /// When the wait began that goes on now.
    since: Option<Instant>,
}

/// [`EngineStats`] at a moment. All but preparation, which runs beside it, is time of the engine's one thread. On a GPU,
/// which works on while the thread goes on, a step that only reads pieces of prompts takes the time of launching it; the
/// thread waits for it in the next step that chooses a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineReport {
    /// Seconds of fetching, decoding and tiling images, rendering and tokenising; all preparation threads together.
    pub prepare_seconds: f64,
    /// Seconds in the vision tower.
    pub encode_seconds: f64,
    /// Seconds in steps that read prompts; answers that go on meanwhile are in them.
    pub prefill_seconds: f64,
    /// Seconds in steps that only continue answers.
    pub decode_seconds: f64,
    /// Seconds choosing tokens.
    pub sample_seconds: f64,
    /// Seconds without anything to do.
    pub wait_seconds: f64,
    /// Rows that were answered or failed in the engine.
    pub rows: u64,
    /// Prompt tokens that were read.
    pub prompt_tokens: u64,
    /// Prompt tokens that an earlier prompt had read already.
    pub shared_prompt_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Images that were encoded.
    pub images_encoded: u64,
    /// Their tiles.
    pub tiles_encoded: u64,
    /// The tiles that were computed for them: empty ones are all the same, so one stands for them.
    pub tiles_computed: u64,
    /// Pairs of the tiles that were computed for an image, which see each other; a tile with itself is one.
    pub tile_pairs_computed: u64,
    /// Images that were encoded for an earlier row.
    pub images_reused: u64,
    /// Bytes of keys and values that were made for images.
    pub cross_kv_bytes: u64,
    /// Calls of the text layers.
    pub steps: u64,
    /// Those of them that only continued answers.
    pub decode_steps: u64,
    /// Results that were copied from the device: one a step where no choice needs a row's whole logits.
    pub copies_to_host: u64,
    /// Ids, positions and places that steps copied to the device.
    pub copies_to_device: u64,
}

impl EngineStats {
    /// What was counted so far.
    pub fn report(&self) -> EngineReport {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = |counter: &AtomicU64| Duration::from_nanos(count(counter)).as_secs_f64();
        EngineReport {
            prepare_seconds: seconds(&self.prepare),
            encode_seconds: seconds(&self.encode),
            prefill_seconds: seconds(&self.prefill),
            decode_seconds: seconds(&self.decode),
            sample_seconds: seconds(&self.sample),
            wait_seconds: self.waited().as_secs_f64(),
            rows: count(&self.rows),
            prompt_tokens: count(&self.prompt_tokens),
            shared_prompt_tokens: count(&self.shared_prompt_tokens),
            generated_tokens: count(&self.generated_tokens),
            images_encoded: count(&self.images_encoded),
            tiles_encoded: count(&self.tiles_encoded),
            tiles_computed: count(&self.tiles_computed),
            tile_pairs_computed: count(&self.tile_pairs_computed),
            images_reused: count(&self.images_reused),
            cross_kv_bytes: count(&self.cross_kv_bytes),
            steps: count(&self.steps),
            decode_steps: count(&self.decode_steps),
            copies_to_host: count(&self.copies_to_host),
            copies_to_device: count(&self.copies_to_device),
        }
    }

    /// The engine has nothing to do from now on.
    pub(crate) fn begin_wait(&self) {
        self.wait_lock().since = Some(Instant::now());
    }

    /// It has something to do again.
    pub(crate) fn end_wait(&self) {
        let mut wait = self.wait_lock();
        let now = wait.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        wait.past += now;
    }

    /// All of it, what goes on now included.
    fn waited(&self) -> Duration {
        let wait = self.wait_lock();
        wait.past + wait.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn wait_lock(&self) -> MutexGuard<'_, Wait> {
        self.wait.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever looks twice sees the time between the two looks, and no earlier one.
    #[test]
    fn a_wait_counts_while_it_goes_on() {
        const LONG: Duration = Duration::from_millis(200);
        let stats = EngineStats::default();
        stats.begin_wait();
        std::thread::sleep(LONG);
        let before = stats.report().wait_seconds;
        assert!(before >= LONG.as_secs_f64());
        stats.end_wait();
        let gained = stats.report().wait_seconds - before;
        assert!(gained < LONG.as_secs_f64() / 2.0, "{gained}");
        assert_eq!(stats.report().wait_seconds, before + gained, "it is over");
    }
}
