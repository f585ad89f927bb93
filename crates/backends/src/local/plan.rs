//! [`MemoryPlan`]: what a model and its rows take, known from `config.json` alone.

use std::fmt;

use serde::Serialize;
use vgen_core::Fault;
use vgen_kernels::ROWS_AT_ONCE;
use vgen_mllama::{Config, CrossKv, Reference, SelfKv};

use super::{LocalOptions, Precision};

/// Images that go through the vision tower together.
pub(crate) const IMAGES_TOGETHER: usize = 2;

/// Tokens of a prompt that are read at a time where shapes must depend on the prompt alone.
pub(crate) const FIXED_PIECE: usize = 256;

/// Queries whose scores are held at a time, and keys that are gathered at a time, by the operations that every device
/// has.
const QUERY_BLOCK: u64 = 256;
pub(crate) const GATHERED: u64 = 1 << 18;

/// Tokens of a page of keys and values.
const PAGE: u64 = 32;

/// Batch sizes to choose from for a GPU.
const BATCHES: [usize; 14] = [256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 4, 2, 1];

/// What a model and its rows take, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// All weights in the types that they are held in.
    pub weights: u64,
    /// Keys and values of a text token, all self-attention layers together.
    pub kv_per_token: u64,
    /// Keys and values of a tile, all cross-attention layers together.
    pub cross_kv_per_tile: u64,
    /// Tiles of the largest image.
    pub max_tiles: u64,
    /// Intermediate results of the vision tower.
    pub vision_workspace: u64,
    /// Intermediate results of a step of the text layers.
    pub text_workspace: u64,
    /// Images kept for later rows.
    pub image_cache: u64,
    /// Pixels of a prepared tile.
    pub pixels_per_tile: u64,
    /// Prepared images that wait to be encoded, or are being prepared. In this machine's memory, also where rows are in a
    /// GPU's.
    pub prepared_images: u64,
    /// The limit, if one was given.
    pub memory: Option<u64>,
    /// Whether the memory is a GPU's.
    #[serde(skip)]
    on_gpu: bool,
    /// Whether an image has keys and values of all tiles, used or not.
    #[serde(skip)]
    keeps_unused_tiles: bool,
    /// What may be used where there is no limit.
    #[serde(skip)]
    usable: Option<u64>,
}

/// Most prepared images that wait.
const PREPARED: u64 = 2 << 30;

/// Text tokens of a row where nobody says how many it has.
const USUAL_TOKENS: u64 = 1024;

impl MemoryPlan {
    /// The plan for a configuration.
    pub fn new(config: &Config, precision: &Precision, options: &LocalOptions) -> Self {
        let size = precision.activations.size_in_bytes() as u64;
        let text = &config.text;
        let vision = config.vision.as_ref();
        let tokens = options.step_tokens as u64;
        let per_text_token = 6 * text.hidden_size + 3 * text.intermediate_size;
        let image_tokens = vision.map_or(0, |v| (v.max_num_tiles * (v.patches() + 1)) as u64);
        let vision_tokens = image_tokens * IMAGES_TOGETHER as u64;
        let vision_values = vision.map_or(0, |v| {
            let (h, inner, output) = (v.hidden_size as u64, v.intermediate_size as u64, v.output_size() as u64);
            // A layer's results beside the states that are kept; without fused operations more of them are there at a time.
            if precision.portable {
                vision_tokens * (8 * h + 2 * inner + 2 * output)
            } else if precision.in_place {
                vision_tokens * (5 * h + 2 * inner + output)
            } else {
                // Layers work on one image at a time, and on some rows of its feed-forward network.
                let of_image = 5 * h + output + text.hidden_size as u64;
                let rows = image_tokens.min(ROWS_AT_ONCE as u64);
                vision_tokens * (3 * h + output) + image_tokens * of_image + rows * (h + inner)
            }
        });
        let patches = vision.map_or(0, |v| v.patches() as u64);
        let max_tiles = vision.map_or(0, |v| v.max_num_tiles as u64);
        let pixels = vision.map_or(0, |v| v.num_channels * v.image_size * v.image_size * size_of::<f32>());
        let pixels_per_tile = pixels as u64;
        let (mut tokens, mut vision_scores, mut text_attention) = (tokens, 0, 0);
        if precision.portable {
            tokens += FIXED_PIECE as u64;
            // Scores, with something added, as weights, and in the half type.
            let scores = |heads: usize, keys: u64| heads as u64 * QUERY_BLOCK * keys * (3 * 4 + 2);
            vision_scores = vision.map_or(0, |v| scores(v.attention_heads, image_tokens));
            let keys = (max_tiles * patches).max(USUAL_TOKENS);
            let gathered = (options.batch_size as u64 * keys).min(GATHERED.max(keys));
            let heads = text.num_attention_heads as u64 * (3 * 4 + 2);
            let lookup = gathered * (2 * (text.num_key_value_heads * text.head_dim) as u64 * size + heads);
            text_attention = scores(text.num_attention_heads, keys).max(lookup);
        }
        Self {
            weights: precision.weight_bytes,
            kv_per_token: SelfKv::bytes_per_token(text, precision.kv),
            cross_kv_per_tile: patches * CrossKv::bytes_per_token(text, precision.kv),
            max_tiles,
            vision_workspace: vision_values * size + vision_scores,
            text_workspace: tokens * per_text_token as u64 * size
                + text_attention
                + (options.batch_size * text.vocab_size * size_of::<f32>()) as u64,
            // Under a limit it must leave room for the rest.
            image_cache: match (vision, options.memory) {
                (None, _) => 0,
                (Some(_), None) => options.image_cache_bytes,
                (Some(_), Some(memory)) => options.image_cache_bytes.min(memory / 8),
            },
            pixels_per_tile,
            prepared_images: Self::waiting_images(options, max_tiles * pixels_per_tile)
                + options.prepare_threads.max(1) as u64 * max_tiles * pixels_per_tile,
            memory: options.memory,
            on_gpu: precision.on_gpu,
            keeps_unused_tiles: options.reference != Reference::Meta,
            usable: None,
        }
    }

    /// Bytes of prepared images that may wait, for images of `image` bytes: one for each answer in the making, and one in
    /// any case.
    fn waiting_images(options: &LocalOptions, image: u64) -> u64 {
        let most = options.memory.map_or(PREPARED, |memory| PREPARED.min(memory / 16));
        (options.batch_size.max(2) as u64 * image).min(most).max(image)
    }

    /// Of [`MemoryPlan::prepared_images`] those that wait.
    pub(crate) fn waiting_images_of(&self, options: &LocalOptions) -> u64 {
        Self::waiting_images(options, self.max_tiles * self.pixels_per_tile)
    }

    /// Without a limit, holds rows and kept images to what is free, less what nobody can plan.
    pub(crate) fn within(mut self, free: Option<u64>) -> Self {
        if let (None, Some(free)) = (self.memory, free) {
            let usable = free - free / 20;
            self.image_cache = self.image_cache.min(usable.saturating_sub(self.least()) / 2);
            self.usable = Some(usable);
        }
        self
    }

    /// The largest batch size whose rows of moderate size, each with an image of its own of all tiles, fit in `memory`.
    pub fn batch_in(config: &Config, precision: &Precision, options: &LocalOptions, memory: u64) -> usize {
        let fits = |batch: usize| {
            let options = LocalOptions { batch_size: batch, memory: Some(memory), ..options.clone() };
            let plan = Self::new(config, precision, &options);
            plan.rows_in(memory, plan.row(USUAL_TOKENS, plan.max_tiles, 1)) >= Some(batch as u64)
        };
        BATCHES.into_iter().find(|batch| fits(*batch)).unwrap_or(1)
    }

    /// What is needed for one row of moderate size. Kept images don't count: they are a limit, not a need.
    pub fn least(&self) -> u64 {
        self.fixed() - self.image_cache + self.row(USUAL_TOKENS, self.max_tiles, 1)
    }

    /// What must fit for a run to begin: with a limit the kept images too, which have a share of it.
    pub(crate) fn needed(&self) -> u64 {
        self.least() + if self.memory.is_some() { self.image_cache } else { 0 }
    }

    /// What is needed before the first row.
    pub fn fixed(&self) -> u64 {
        let prepared = if self.on_gpu { 0 } else { self.prepared_images };
        self.weights + self.workspace() + self.image_cache + prepared
    }

    /// Intermediate results: vision tower and text layers take turns.
    pub fn workspace(&self) -> u64 {
        self.vision_workspace.max(self.text_workspace)
    }

    /// What weights and rows have room in: the limit, or what is free but for a twentieth; `None` if neither is known.
    pub fn room(&self) -> Option<u64> {
        self.memory.or(self.usable)
    }

    /// Bytes for keys and values of rows; `None` where neither a limit nor what is free is known.
    pub(crate) fn for_rows(&self) -> Option<u64> {
        let left = |most: u64| most.saturating_sub(self.fixed());
        match (self.memory, self.usable) {
            (Some(memory), _) => Some(left(memory)),
            // One row is tried in any case.
            (None, Some(usable)) => Some(left(usable).max(self.row(USUAL_TOKENS, self.max_tiles, 1))),
            (None, None) => None,
        }
    }

    /// How many rows of moderate size, each with an image of its own of all tiles, fit at a time; `None` if that is not
    /// known.
    pub fn usual_rows(&self) -> Option<u64> {
        self.for_rows().map(|bytes| bytes / self.row(USUAL_TOKENS, self.max_tiles, 1).max(1))
    }

    /// Most bytes of keys and values in pages, for `batch_size` answers: those of rows and kept images, and what the last
    /// pages of a text and an image are not full of. `None` without a limit.
    pub(crate) fn pages(&self, batch_size: usize) -> Option<u64> {
        let unfilled = 2 * (batch_size as u64 + 1) * PAGE * self.kv_per_token;
        self.for_rows().map(|rows| rows + self.image_cache + unfilled)
    }

    /// What a row takes at most: its text, and images that aren't shared.
    pub fn row(&self, tokens: u64, tiles: u64, samples: u64) -> u64 {
        self.text(tokens, samples).saturating_add(self.image(tiles))
    }

    /// What `samples` answers take, their prompts included.
    fn text(&self, tokens: u64, samples: u64) -> u64 {
        samples.saturating_mul(tokens).saturating_mul(self.kv_per_token)
    }

    /// How many of a row's answers are made at a time: up to `batch` of them, and no more than there is room for beside
    /// the row's images.
    pub fn answers_at_a_time(&self, tokens: u64, tiles: u64, answers: u64, batch: u64) -> u64 {
        let most = answers.min(batch.max(1));
        let Some(room) = self.for_rows() else { return most };
        let fits = |width: &u64| self.answers(tokens, answers, *width).saturating_add(self.image(tiles)) <= room;
        (1..=most).rev().find(fits).unwrap_or(1)
    }

    /// What a row's answers take if `width` are made at a time; those that wait have their prompt.
    pub fn answers(&self, tokens: u64, answers: u64, width: u64) -> u64 {
        self.text(tokens, width + u64::from(width < answers))
    }

    /// What an image takes for all rows that have it.
    pub(crate) fn image(&self, tiles: u64) -> u64 {
        self.kept_tiles(tiles).saturating_mul(self.cross_kv_per_tile)
    }

    /// Tiles of an image that have keys and values.
    pub(crate) fn kept_tiles(&self, tiles: u64) -> u64 {
        if self.keeps_unused_tiles && tiles > 0 { tiles.max(self.max_tiles) } else { tiles }
    }

    /// How many rows of `row_bytes` each fit in `memory` at a time; `None` if not even what comes before them does.
    pub fn rows_in(&self, memory: u64, row_bytes: u64) -> Option<u64> {
        memory.checked_sub(self.fixed()).map(|left| left / row_bytes.max(1))
    }

    /// Whether at least one row of moderate size fits the limit, or what is free where no limit was given.
    ///
    /// # Errors
    /// `plan.memory` with the numbers.
    pub fn check(&self, free: Option<u64>) -> Result<(), Fault> {
        let (most, what) = match (self.memory, free) {
            (Some(memory), _) => (memory, "allowed"),
            (None, Some(free)) => (free, "free"),
            (None, None) => return Ok(()),
        };
        let least = self.needed();
        if least <= most {
            return Ok(());
        }
        let message = format!("the model needs {} with one row, {} are {what}\n{self}", Bytes(least), Bytes(most));
        let hint = match self.memory {
            Some(_) => "allow more with --memory, or use a smaller model",
            None => "free some memory, use a smaller model, or say with --memory how much the run may take",
        };
        Err(Fault::stop("plan.memory", message).with_hint(hint))
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "weights                  {:>12}", Bytes(self.weights).to_string())?;
        writeln!(f, "vision workspace         {:>12}", Bytes(self.vision_workspace).to_string())?;
        writeln!(f, "text workspace           {:>12}", Bytes(self.text_workspace).to_string())?;
        writeln!(f, "images kept              {:>12}", Bytes(self.image_cache).to_string())?;
        writeln!(f, "prepared images          {:>12}", Bytes(self.prepared_images).to_string())?;
        writeln!(f, "keys, values per token   {:>12}", Bytes(self.kv_per_token).to_string())?;
        write!(f, "keys, values per tile    {:>12}", Bytes(self.cross_kv_per_tile).to_string())
    }
}

/// Bytes in the largest unit that leaves a number above 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let unit = (0..UNITS.len() - 1).find(|u| self.0 >> (10 * (u + 1)) == 0).unwrap_or(UNITS.len() - 1);
        write!(f, "{:.1} {}", self.0 as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;
    use crate::local::ModelSource;

    /// The shapes of 11B in f32 on the CPU.
    fn plan(change: impl Fn(&mut LocalOptions)) -> MemoryPlan {
        let config = Config::from_json(include_str!("../../docs/llama-3.2-11b-vision.json")).unwrap();
        let mut options = LocalOptions::new(ModelSource::Named("model".into()));
        change(&mut options);
        let device = super::super::DeviceChoice::Cpu.open().unwrap();
        let precision = Precision::choose(&options, &device, &config, &|_| config.stored, options.memory).unwrap();
        MemoryPlan::new(&config, &precision, &options)
    }

    #[test]
    fn rows_are_held_to_what_is_free() {
        let without = plan(|_| {});
        assert_eq!((without.for_rows(), without.room()), (None, None));
        let free = 2 * without.fixed();
        let held = without.clone().within(Some(free));
        let usable = free - free / 20;
        assert_eq!((held.image_cache, held.for_rows()), (without.image_cache, Some(usable - without.fixed())));
        // Where there is little, kept images leave room for a row.
        let free = (without.least() + (64 << 20)) / 19 * 20;
        let held = without.clone().within(Some(free));
        assert!(held.image_cache <= 32 << 20, "{held}");
        assert!(held.usual_rows() >= Some(1), "{held}");
        assert!(held.fixed() + held.for_rows().unwrap() <= free, "{held}");
        // What was said counts, not what is free.
        let limited = plan(|options| options.memory = Some(100 << 30));
        assert_eq!(limited.clone().within(Some(1 << 30)).for_rows(), limited.for_rows());
    }

    #[test]
    fn prepared_images_are_as_many_as_answers_within_bounds() {
        let tiles = 4 * 3 * 560 * 560 * 4;
        assert_eq!(plan(|_| {}).prepared_images, (8 + 2) * tiles);
        assert_eq!(plan(|options| options.batch_size = 1000).prepared_images, (2 << 30) + 2 * tiles);
        assert_eq!(plan(|options| options.memory = Some(1 << 20)).prepared_images, 3 * tiles);
    }

    #[test]
    fn references_that_see_unused_tiles_keep_them() {
        let (meta, other) = (plan(|_| {}), plan(|options| options.reference = Reference::Hf5));
        assert_eq!((meta.image(1), meta.image(4)), (meta.cross_kv_per_tile, 4 * meta.cross_kv_per_tile));
        assert_eq!((other.image(0), other.image(1), other.image(4)), (0, meta.image(4), meta.image(4)));
        assert_eq!(meta.row(10, 4, u64::MAX), u64::MAX);
    }
}
