//! [`MemoryPlan`]: what a model and its rows take, known from `config.json` alone.

use std::fmt;

use serde::Serialize;
use vgen_core::Fault;
use vgen_mllama::{Config, CrossKv, SelfKv};

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
    /// The limit, if one was given.
    pub memory: Option<u64>,
}

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
        let per_vision_token = vision.map_or(0, |v| 8 * v.hidden_size + 2 * v.intermediate_size + 2 * v.output_size());
        let vision_tokens = vision.map_or(0, |v| (v.max_num_tiles * (v.patches() + 1) * IMAGES_TOGETHER) as u64);
        let patches = vision.map_or(0, |v| v.patches() as u64);
        let max_tiles = vision.map_or(0, |v| v.max_num_tiles as u64);
        let (mut tokens, mut vision_scores, mut text_attention) = (tokens, 0, 0);
        if precision.portable {
            tokens += FIXED_PIECE as u64;
            // Scores, with something added, as weights, and in the half type.
            let scores = |heads: usize, keys: u64| heads as u64 * QUERY_BLOCK * keys * (3 * 4 + 2);
            vision_scores = vision.map_or(0, |v| scores(v.attention_heads, vision_tokens / IMAGES_TOGETHER as u64));
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
            vision_workspace: vision_tokens * per_vision_token as u64 * size + vision_scores,
            text_workspace: tokens * per_text_token as u64 * size
                + text_attention
                + (options.batch_size * text.vocab_size * size_of::<f32>()) as u64,
            // Under a limit it must leave room for the rest.
            image_cache: match (vision, options.memory) {
                (None, _) => 0,
                (Some(_), None) => options.image_cache_bytes,
                (Some(_), Some(memory)) => options.image_cache_bytes.min(memory / 8),
            },
            memory: options.memory,
        }
    }

    /// The largest batch size whose rows of moderate size, each with an image of its own of all tiles, fit in `memory`.
    pub fn batch_in(config: &Config, precision: &Precision, options: &LocalOptions, memory: u64) -> usize {
        let fits = |batch: usize| {
            let options = LocalOptions { batch_size: batch, memory: Some(memory), ..options.clone() };
            let plan = Self::new(config, precision, &options);
            plan.fixed() + batch as u64 * plan.row(USUAL_TOKENS, plan.max_tiles, 1) <= memory
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
        self.weights + self.workspace() + self.image_cache
    }

    /// Intermediate results: vision tower and text layers take turns.
    pub fn workspace(&self) -> u64 {
        self.vision_workspace.max(self.text_workspace)
    }

    /// Bytes for keys and values of rows; `None` without a limit.
    pub(crate) fn for_rows(&self) -> Option<u64> {
        self.memory.map(|memory| memory.saturating_sub(self.fixed()))
    }

    /// Most bytes of keys and values in pages, for `batch_size` answers: those of rows and kept images, and what the last
    /// pages of a text and an image are not full of. `None` without a limit.
    pub(crate) fn pages(&self, batch_size: usize) -> Option<u64> {
        let unfilled = 2 * (batch_size as u64 + 1) * PAGE * self.kv_per_token;
        self.for_rows().map(|rows| rows + self.image_cache + unfilled)
    }

    /// What a row takes at most: its text, and images that aren't shared.
    pub fn row(&self, tokens: u64, tiles: u64, samples: u64) -> u64 {
        samples * tokens * self.kv_per_token + tiles * self.cross_kv_per_tile
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
