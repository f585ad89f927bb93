//! [`GenerationDefaults`]: what a model's `generation_config.json` says about sampling.
//!
//! What it says in one of transformers' keys holds unless the run says otherwise. `sequence_bias` is honoured for single
//! tokens. Keys that would change answers and can't be honoured ([`UNSUPPORTED`]) are refused unless they are off; the
//! others are about something else than which tokens come (caches, outputs, ways to the same tokens), or have a setting of
//! the run's own (`max_length`, `num_return_sequences`).

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::sampling::SamplingError;

/// The part of a model's `generation_config.json` that concerns sampling.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationDefaults {
    /// Sample, or take the most probable token.
    pub do_sample: Option<bool>,
    /// See [`SamplingParams`](vgen_core::SamplingParams), as the next ones.
    pub temperature: Option<f64>,
    /// Keeps so many tokens.
    pub top_k: Option<u32>,
    /// Keeps the tokens that reach this probability.
    pub top_p: Option<f64>,
    /// Keeps tokens of this share of the highest probability.
    pub min_p: Option<f64>,
    /// Locally typical sampling.
    pub typical_p: Option<f64>,
    /// Divides logits of tokens seen; 1 is off.
    pub repetition_penalty: Option<f64>,
    /// No end before so many tokens.
    pub min_new_tokens: Option<u32>,
    /// The end at so many tokens.
    pub max_new_tokens: Option<u32>,
    /// The tokens that end a generation: one or several in the file.
    #[serde(deserialize_with = "one_or_many")]
    pub eos_token_id: Vec<u32>,
    /// Sequences of tokens that must not be generated; texts of the run's own replace them.
    #[serde(deserialize_with = "or_null")]
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Tokens that must not be generated.
    #[serde(deserialize_with = "or_null")]
    pub suppress_tokens: Vec<u32>,
    /// Added to the logits of tokens, as sequences of one; a `logit_bias` of the run's own replaces it.
    #[serde(deserialize_with = "or_null")]
    pub sequence_bias: Vec<(Vec<u32>, f32)>,
    /// Texts that end a generation, one or several in the file; those of the run's own replace them.
    #[serde(deserialize_with = "one_or_many")]
    pub stop_strings: Vec<String>,
    /// Keys that are on and can't be honoured, with their values.
    #[serde(skip)]
    pub unsupported: Vec<(Unsupported, Value)>,
}

/// A key that can't be honoured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unsupported {
    /// The key.
    pub name: &'static str,
    /// The number that leaves it off; null, false and an empty list do, too.
    pub off: f64,
    /// It is about sampling and does nothing to a greedy answer.
    pub sampled_only: bool,
}

const fn always(name: &'static str, off: f64) -> Unsupported {
    Unsupported { name, off, sampled_only: false }
}

const fn sampled(name: &'static str, off: f64) -> Unsupported {
    Unsupported { name, off, sampled_only: true }
}

/// The keys that change answers and that there is nothing for. `length_penalty` and `early_stopping` go with `num_beams`.
pub const UNSUPPORTED: [Unsupported; 22] = [
    always("begin_suppress_tokens", f64::NAN),
    always("constraints", f64::NAN),
    always("diversity_penalty", 0.0),
    always("dola_layers", f64::NAN),
    always("encoder_no_repeat_ngram_size", 0.0),
    always("encoder_repetition_penalty", 1.0),
    sampled("epsilon_cutoff", 0.0),
    sampled("eta_cutoff", 0.0),
    always("exponential_decay_length_penalty", f64::NAN),
    always("force_words_ids", f64::NAN),
    always("forced_bos_token_id", f64::NAN),
    always("forced_decoder_ids", f64::NAN),
    always("forced_eos_token_id", f64::NAN),
    always("guidance_scale", 1.0),
    always("max_time", f64::NAN),
    always("min_length", 0.0),
    always("no_repeat_ngram_size", 0.0),
    always("num_beams", 1.0),
    always("penalty_alpha", 0.0),
    always("token_healing", f64::NAN),
    sampled("top_h", f64::NAN),
    always("watermarking_config", f64::NAN),
];

impl Unsupported {
    fn is_off(&self, value: &Value) -> bool {
        match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_f64() == Some(self.off),
            Value::Array(list) => list.is_empty(),
            Value::Object(object) => object.is_empty(),
            Value::Bool(true) | Value::String(_) => false,
        }
    }
}

impl GenerationDefaults {
    /// Reads the text of a `generation_config.json`.
    ///
    /// # Errors
    /// [`SamplingError::GenerationConfig`] if it is no JSON, or a value is of another type.
    pub fn from_json(text: &str) -> Result<Self, SamplingError> {
        let mut defaults: Self = serde_json::from_str(text).map_err(SamplingError::GenerationConfig)?;
        let all: Value = serde_json::from_str(text).map_err(SamplingError::GenerationConfig)?;
        let on = UNSUPPORTED.iter().filter_map(|key| Some((*key, all.get(key.name)?.clone())));
        defaults.unsupported = on.filter(|(key, value)| !key.is_off(value)).collect();
        Ok(defaults)
    }

    /// Refuses what can't be honoured in an answer that is sampled or greedy.
    ///
    /// # Errors
    /// [`SamplingError::GenerationKey`]
    pub(super) fn check(&self, sampled: bool) -> Result<(), SamplingError> {
        match self.unsupported.iter().find(|(key, _)| sampled || !key.sampled_only) {
            Some((key, value)) => Err(SamplingError::GenerationKey { name: key.name, value: value.to_string() }),
            None => Ok(()),
        }
    }

    /// The biases of single tokens; the last one of a token counts.
    ///
    /// # Errors
    /// [`SamplingError::GenerationKey`] for a longer sequence.
    pub(super) fn token_bias(&self) -> Result<std::collections::BTreeMap<u32, f32>, SamplingError> {
        let one = |(ids, bias): &(Vec<u32>, f32)| match ids[..] {
            [id] => Ok((id, *bias)),
            _ => Err(SamplingError::GenerationKey { name: "sequence_bias", value: format!("[{ids:?}, {bias}]") }),
        };
        self.sequence_bias.iter().map(one).collect()
    }

    /// The sequences that must not be generated. As in transformers, a `bad_words_ids` of one end token is none.
    pub(super) fn forbidden(&self, eos_ids: &[u32], with_bad_words: bool) -> impl Iterator<Item = Vec<u32>> {
        let is_end = |sequence: &Vec<u32>| matches!(sequence[..], [id] if eos_ids.contains(&id));
        let bad_words = self.bad_words_ids.iter().filter(move |sequence| with_bad_words && !is_end(sequence));
        bad_words.cloned().chain(self.suppress_tokens.iter().map(|&id| vec![id]))
    }
}

fn or_null<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn one_or_many<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => Vec::new(),
        Some(OneOrMany::One(one)) => vec![one],
        Some(OneOrMany::Many(many)) => many,
    })
}
