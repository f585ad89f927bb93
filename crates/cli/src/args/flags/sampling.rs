//! How answers are chosen.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value};

use super::given;
use crate::settings::Settings;

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling (what is not given is the model's own default)")]
pub(crate) struct SamplingFlags {
    /// At most this many new tokens.
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<u32>,
    /// No end of sequence before this many new tokens.
    #[arg(long, value_name = "N")]
    min_new_tokens: Option<u32>,
    /// Divides the logits; 0 is greedy.
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Keep the most probable tokens that together reach this probability, 0 to 1.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Keep this many of the most probable tokens; 0 keeps all.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Keep tokens at least this share as probable as the most probable one, 0 to 1.
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Locally typical sampling: the probability to reach, 0 to 1.
    #[arg(long, value_name = "P")]
    typical_p: Option<f64>,
    /// Divides the logits of tokens seen in prompt and answer; 1 is off.
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// Subtracted from a token's logit for each time that it was generated; 0 is off.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f64>,
    /// Subtracted once from the logit of each token that was generated; 0 is off.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f64>,
    /// Added to a token's logit: 128009=-5. Several times for several tokens.
    #[arg(long, value_name = "ID=BIAS", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// A text that must not be generated; several times for several texts.
    #[arg(long, value_name = "TEXT")]
    bad_words: Vec<String>,
    /// A text that ends an answer and is cut from it; several times for several texts.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Keep the stop text in the answer.
    #[arg(long)]
    include_stop: bool,
    /// A token that ends an answer, besides the model's own; separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    stop_token_ids: Vec<u32>,
    /// Don't end at the model's end-of-sequence tokens.
    #[arg(long)]
    ignore_eos: bool,
    /// The run's seed; each row and sample has a random stream of its own, derived from it.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Return the log-probability of each token, in the column llm_<task>_logprobs.
    #[arg(long)]
    logprobs: bool,
    /// With --logprobs: also this many alternatives for each token.
    #[arg(long, value_name = "N", requires = "logprobs")]
    top_logprobs: Option<u32>,
    /// Put the prompt's text before the answer.
    #[arg(long)]
    echo: bool,
    /// The answer must be JSON that the schema in this file accepts.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["regex", "choice"])]
    json_schema: Option<PathBuf>,
    /// The answer must match this regular expression as a whole.
    #[arg(long, value_name = "REGEX", conflicts_with = "choice")]
    regex: Option<String>,
    /// The answer must be one of these; given once for each.
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
}

impl SamplingFlags {
    pub(super) fn add_to(self, settings: &mut Settings) {
        let mut set = |name: &str, flag: &'static str, value: Option<Value>| {
            settings.flag(("sampling", name), flag, value);
        };
        set("max_new_tokens", "--max-new-tokens", self.max_new_tokens.map(Value::from));
        set("min_new_tokens", "--min-new-tokens", self.min_new_tokens.map(Value::from));
        set("temperature", "--temperature", self.temperature.map(Value::from));
        set("top_p", "--top-p", self.top_p.map(Value::from));
        set("top_k", "--top-k", self.top_k.map(Value::from));
        set("min_p", "--min-p", self.min_p.map(Value::from));
        set("typical_p", "--typical-p", self.typical_p.map(Value::from));
        set("repetition_penalty", "--repetition-penalty", self.repetition_penalty.map(Value::from));
        set("frequency_penalty", "--frequency-penalty", self.frequency_penalty.map(Value::from));
        set("presence_penalty", "--presence-penalty", self.presence_penalty.map(Value::from));
        if !self.logit_bias.is_empty() {
            let map: Map<String, Value> =
                self.logit_bias.iter().map(|(token, bias)| (token.to_string(), Value::from(*bias))).collect();
            set("logit_bias", "--logit-bias", Some(Value::Object(map)));
        }
        set("include_stop", "--include-stop", given(self.include_stop).map(Value::from));
        set("ignore_eos", "--ignore-eos", given(self.ignore_eos).map(Value::from));
        set("seed", "--seed", self.seed.map(Value::from));
        set("logprobs", "--logprobs", given(self.logprobs).map(Value::from));
        set("top_logprobs", "--top-logprobs", self.top_logprobs.map(Value::from));
        set("echo", "--echo", given(self.echo).map(Value::from));
        set("regex", "--regex", self.regex.map(Value::from));
        settings.flag(("sampling", "json_schema"), "--json-schema", self.json_schema);
        settings.flags(("sampling", "bad_words"), "--bad-words", self.bad_words);
        settings.flags(("sampling", "stop"), "--stop", self.stop);
        settings.flags(("sampling", "stop_token_ids"), "--stop-token-ids", self.stop_token_ids);
        settings.flags(("sampling", "choice"), "--choice", self.choice);
    }
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let (token, bias) = text.split_once('=').ok_or("expected ID=BIAS")?;
    let token = token.trim().parse().map_err(|_| format!("{token:?} is no token's number"))?;
    match bias.trim().parse::<f32>() {
        Ok(bias) if bias.is_finite() => Ok((token, bias)),
        _ => Err(format!("{bias:?} is no number")),
    }
}
