//! [`SamplingParams`]: how tokens are chosen and when a generation ends.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// How tokens are chosen and when a generation ends. `None` means "not given": the model's own
/// `generation_config.json`, or the server's default, holds.
///
/// Names and definitions are those of transformers' `GenerationConfig` where it has the parameter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// At most this many new tokens.
    pub max_new_tokens: Option<u32>,
    /// No end of sequence before this many new tokens.
    pub min_new_tokens: Option<u32>,
    /// Divides the logits; 0 is greedy.
    pub temperature: Option<f64>,
    /// Keeps the most probable tokens that together reach this probability.
    pub top_p: Option<f64>,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keeps tokens at least this share as probable as the most probable one.
    pub min_p: Option<f64>,
    /// Locally typical sampling: keeps the tokens nearest the entropy that together reach this probability.
    pub typical_p: Option<f64>,
    /// Divides (or multiplies, if negative) the logits of tokens seen in prompt and answer.
    pub repetition_penalty: Option<f64>,
    /// Subtracted from a token's logit for each time that it was generated.
    pub frequency_penalty: Option<f64>,
    /// Subtracted once from the logit of each token that was generated.
    pub presence_penalty: Option<f64>,
    /// Added to the logits of single tokens.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Texts that must not be generated.
    pub bad_words: Vec<String>,
    /// Texts that end a generation and are cut from it; a single one may be written without a list.
    #[serde(deserialize_with = "one_or_many")]
    pub stop: Vec<String>,
    /// Keep the stop text in the answer.
    pub include_stop: bool,
    /// Tokens that end a generation, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Don't end at the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// The run's seed. A row's stream is derived from it, the row's number and the sample's.
    pub seed: Option<u64>,
    /// Return the log-probability of each generated token.
    pub logprobs: bool,
    /// With `logprobs`: also that many alternatives for each token.
    pub top_logprobs: u32,
    /// Put the prompt's text before the answer.
    pub echo: bool,
    /// A form that the answer must have.
    pub constraint: Option<Constraint>,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    })
}

/// A form that an answer must have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "value", rename_all = "snake_case")]
pub enum Constraint {
    /// JSON that this schema accepts.
    JsonSchema(Value),
    /// A text that this regular expression matches whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
}
