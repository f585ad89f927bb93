//! [`Generation`]: one answer, with how it ended and what it took.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-sequence or stop token, or a stop text.
    Stop,
    /// The limit of new tokens or of the context.
    Length,
    /// The model asked for a tool.
    ToolCalls,
    /// The server withheld the answer.
    ContentFilter,
    /// The row's deadline passed; the text so far is kept.
    Deadline,
    /// The caller gave the row up; the text so far is kept.
    Cancelled,
}

/// What an answer took, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Text tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens of the answer, the end-of-sequence token included.
    pub output_tokens: u64,
    /// Vision tokens of the prompt's images that text can attend to; unknown for remote backends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision_tokens: Option<u64>,
}

/// Where the time of an answer went, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Waiting for a place.
    pub queue: f64,
    /// Fetching, decoding and tiling images, rendering and tokenising text.
    pub prepare: f64,
    /// While images, its own and those of rows that joined with it, were in the vision tower; `None` where that is
    /// not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encode: Option<f64>,
    /// From submission to the first token.
    pub first_token: Option<f64>,
    /// From submission to the end.
    pub total: f64,
}

/// A token's log-probability and its alternatives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token as text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens at this place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the most probable tokens at a place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// The token as text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// The answer; `None` if the model gave none (a tool call, say).
    pub text: Option<String>,
    /// Why it ended; `None` if the server didn't say.
    pub finish_reason: Option<FinishReason>,
    /// What it took; `None` if the server didn't say.
    pub usage: Option<Usage>,
    /// Tiles of the prompt's images (local backend only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiles: Option<u64>,
    /// For each token of the answer, if asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Ids of the answer's tokens (local backend only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// The tools that the model called, in the form of OpenAI's chat protocol, if tools were given (remote only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Value>,
    /// What the model thought before it answered, if the server sends that apart and it was asked for (remote only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Where the time went.
    pub timings: Timings,
}
