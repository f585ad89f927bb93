//! [`ResolvedSampling`]: sampling parameters with the model's defaults filled in and everything checked, so that
//! nothing can be wrong with them once a run has started.
//!
//! | parameter | if not given |
//! |---|---|
//! | `temperature`, `top_k`, `top_p`, `min_p`, `typical_p`, `repetition_penalty`, `min_new_tokens`, `max_new_tokens` | the value in `generation_config.json`; without one: off (temperature 1, no limit but the context) |
//! | `bad_words`, `logit_bias`, `stop` | `bad_words_ids`, `sequence_bias`, `stop_strings` there |
//! | `seed` | 0, so that two runs agree unless told otherwise |
//! | all others | off |
//!
//! Greedy or not: `temperature` 0 is greedy and a higher one samples; without it, giving `top_k`, `top_p`, `min_p` or
//! `typical_p` samples; without these, `do_sample` of `generation_config.json` decides, and where it says nothing the
//! answer is greedy, as in transformers. Unlike transformers, a missing `top_k` keeps all tokens and not 50: that is
//! what Meta's own code and vLLM do.

use std::collections::BTreeSet;

use tokenizers::Tokenizer;
use vgen_core::{Fault, SamplingParams};

use super::generation_config::GenerationDefaults;
use super::shortlist::Asked;

/// Why sampling parameters can't be honoured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A number outside its range.
    #[error("{name} is {value}, it must be {range}")]
    Range {
        /// The parameter.
        name: &'static str,
        /// What it is.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// A token that the model can't generate.
    #[error("{name} names token {id}, the model's vocabulary ends at {last}")]
    TokenId {
        /// The parameter.
        name: &'static str,
        /// The token.
        id: u32,
        /// The highest token.
        last: u32,
    },
    /// Parameters that exclude each other.
    #[error("{0}")]
    Conflict(&'static str),
    /// A text that is empty, is no token or ends generations.
    #[error("{name} has {text:?}: {why}")]
    Text {
        /// The parameter.
        name: &'static str,
        /// The text.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A `generation_config.json` that can't be read.
    #[error("generation_config.json: {0}")]
    GenerationConfig(#[source] serde_json::Error),
    /// A key of it that can't be honoured.
    #[error("the model's generation_config.json has {name} = {value}, which can't be honoured")]
    GenerationKey {
        /// The key.
        name: &'static str,
        /// Its value, as JSON.
        value: String,
    },
}

impl From<SamplingError> for Fault {
    fn from(error: SamplingError) -> Self {
        let (code, hint) = match &error {
            SamplingError::Range { .. } => ("sampling.range", "correct the value, or leave it out for the model's own"),
            SamplingError::TokenId { .. } => ("sampling.token_id", "look tokens up in the model's tokenizer.json"),
            SamplingError::Conflict(_) => ("sampling.conflict", "leave one of them out"),
            SamplingError::Text { .. } => ("sampling.text", "correct or remove the text"),
            SamplingError::GenerationConfig(_) => {
                ("sampling.generation_config", "correct the model's generation_config.json, or remove it")
            }
            SamplingError::GenerationKey { .. } => (
                "sampling.generation_config",
                "take the key out of that file, of a copy of the model's folder if it is one of the hub; answers are then \
                 without it",
            ),
        };
        Fault::stop(code, error.to_string()).with_hint(hint)
    }
}

/// The choice among the tokens that processors left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warpers {
    /// Divides the logits, above 0.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// 1 keeps all. In double precision because `1 - top_p` is rounded only once in transformers.
    pub top_p: f64,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 keeps all.
    pub typical_p: f32,
}

/// Sampling parameters, complete and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedSampling {
    /// Size of the model's output, in tokens.
    pub vocab_size: usize,
    /// `None` is greedy.
    pub warpers: Option<Warpers>,
    /// 1 is off.
    pub repetition_penalty: f32,
    /// 0 is off.
    pub frequency_penalty: f32,
    /// 0 is off.
    pub presence_penalty: f32,
    /// Token and what is added to its logit, by token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Token sequences whose last token is forbidden after the others.
    pub bad_words: Vec<Vec<u32>>,
    /// No end of the generation before this many tokens.
    pub min_new_tokens: u32,
    /// The generation ends at this many tokens at the latest; `None` leaves it to the context.
    pub max_new_tokens: Option<u32>,
    /// Tokens that end a generation: the model's own unless ignored, and those that were asked for. In order, no doubles.
    pub end_ids: Vec<u32>,
    /// Texts that end a generation.
    pub stop: Vec<String>,
    /// Keep the stop text, or the text of a stop token, in the answer.
    pub include_stop: bool,
    /// The run's seed.
    pub seed: u64,
    /// Return log-probabilities.
    pub logprobs: bool,
    /// That many alternatives for each token.
    pub top_logprobs: usize,
    /// Put the prompt before the answer.
    pub echo: bool,
}

impl ResolvedSampling {
    /// How much of the model's own logits each choice needs, without a constraint.
    pub(crate) fn asked(&self) -> Asked {
        let plain = !self.logprobs
            && self.min_new_tokens == 0
            && self.repetition_penalty == 1.0
            && self.frequency_penalty == 0.0
            && self.presence_penalty == 0.0
            && self.logit_bias.is_empty()
            && self.bad_words.is_empty();
        if plain { Asked::of(self.warpers, self.vocab_size) } else { Asked::All }
    }

    /// Fills `params` up with the model's `defaults` and checks them against the model: the tokens in `eos_ids` end
    /// its generations, `vocab_size` is the length of its logits, `tokenizer` splits bad words.
    ///
    /// # Errors
    /// What can't be honoured, as it would be found when the run is under way.
    pub fn resolve(
        params: &SamplingParams,
        defaults: &GenerationDefaults,
        eos_ids: &[u32],
        vocab_size: usize,
        tokenizer: &Tokenizer,
    ) -> Result<Self, SamplingError> {
        let known = |name, id: u32| {
            let last = vocab_size.saturating_sub(1) as u32;
            if (id as usize) < vocab_size { Ok(id) } else { Err(SamplingError::TokenId { name, id, last }) }
        };
        let repetition_penalty = params.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0);
        check("repetition_penalty", repetition_penalty, "above 0", repetition_penalty > 0.0)?;
        let symmetric = |name, value: Option<f64>| {
            let value = value.unwrap_or(0.0);
            check(name, value, "between -2 and 2", (-2.0..=2.0).contains(&value)).map(|()| value as f32)
        };
        let warpers = warpers(params, defaults)?;
        defaults.check(warpers.is_some())?;
        let (name, biases) = match params.logit_bias.is_empty() {
            true => ("sequence_bias", defaults.token_bias()?),
            false => ("logit_bias", params.logit_bias.clone()),
        };
        let mut logit_bias = Vec::with_capacity(biases.len());
        for (id, bias) in biases {
            check(name, bias.into(), "finite", true)?;
            logit_bias.push((known(name, id)?, bias));
        }
        let mut end_ids = BTreeSet::new();
        if !params.ignore_eos {
            for &id in eos_ids {
                end_ids.insert(known("eos_token_id", id)?);
            }
        }
        for &id in &params.stop_token_ids {
            end_ids.insert(known("stop_token_ids", id)?);
        }
        let (name, stop) =
            if params.stop.is_empty() { ("stop_strings", &defaults.stop_strings) } else { ("stop", &params.stop) };
        if stop.iter().any(String::is_empty) {
            return Err(SamplingError::Text { name, text: String::new(), why: "it is empty".to_owned() });
        }
        let mut forbidden = bad_words(&params.bad_words, eos_ids, vocab_size, tokenizer)?;
        // What ends with a token that has no logit is never generated.
        let last = |sequence: &Vec<u32>| sequence.last().is_some_and(|&id| (id as usize) < vocab_size);
        forbidden.extend(defaults.forbidden(eos_ids, params.bad_words.is_empty()).filter(last));
        let min_new_tokens = params.min_new_tokens.or(defaults.min_new_tokens).unwrap_or(0);
        let max_new_tokens = params.max_new_tokens.or(defaults.max_new_tokens);
        if max_new_tokens.is_some_and(|max| max < 1) {
            return Err(SamplingError::Range { name: "max_new_tokens", value: 0.0, range: "at least 1" });
        }
        if max_new_tokens.is_some_and(|max| max < min_new_tokens) {
            return Err(SamplingError::Conflict("min_new_tokens is above max_new_tokens"));
        }
        if params.constraint.is_some() && params.ignore_eos {
            return Err(SamplingError::Conflict("ignore_eos goes on where the constraint's form has ended"));
        }
        if params.constraint.is_some() && min_new_tokens > 0 {
            return Err(SamplingError::Conflict("min_new_tokens goes on where the constraint's form may have ended"));
        }
        if params.top_logprobs > 0 && !params.logprobs {
            return Err(SamplingError::Conflict("top_logprobs is given, but logprobs is not on"));
        }
        let top_logprobs = params.top_logprobs as usize;
        let too_many = SamplingError::Range {
            name: "top_logprobs",
            value: params.top_logprobs.into(),
            range: "no more than the vocabulary has tokens",
        };
        let top_logprobs = if top_logprobs <= vocab_size { Ok(top_logprobs) } else { Err(too_many) }?;
        Ok(Self {
            vocab_size,
            warpers,
            repetition_penalty: repetition_penalty as f32,
            frequency_penalty: symmetric("frequency_penalty", params.frequency_penalty)?,
            presence_penalty: symmetric("presence_penalty", params.presence_penalty)?,
            logit_bias,
            bad_words: forbidden.into_iter().collect(),
            min_new_tokens,
            max_new_tokens,
            end_ids: end_ids.into_iter().collect(),
            stop: stop.clone(),
            include_stop: params.include_stop,
            seed: params.seed.unwrap_or(0),
            logprobs: params.logprobs,
            top_logprobs,
            echo: params.echo,
        })
    }

    /// Whether the token ends a generation.
    pub fn ends(&self, id: u32) -> bool {
        self.end_ids.binary_search(&id).is_ok()
    }
}

fn check(name: &'static str, value: f64, range: &'static str, ok: bool) -> Result<(), SamplingError> {
    if ok && value.is_finite() { Ok(()) } else { Err(SamplingError::Range { name, value, range }) }
}

/// The warpers, or `None` for greedy; see the module's head for which.
fn warpers(params: &SamplingParams, defaults: &GenerationDefaults) -> Result<Option<Warpers>, SamplingError> {
    let temperature = params.temperature.or(defaults.temperature).unwrap_or(1.0);
    check("temperature", temperature, "0 or above", temperature >= 0.0)?;
    let share = |name, value: Option<f64>, default: Option<f64>, off: f64, lowest: f64| {
        let value = value.or(default).unwrap_or(off);
        let range = if lowest > 0.0 { "above 0 and at most 1" } else { "between 0 and 1" };
        check(name, value, range, lowest <= value && value <= 1.0).map(|()| value)
    };
    let top_p = share("top_p", params.top_p, defaults.top_p, 1.0, 0.0)?;
    let min_p = share("min_p", params.min_p, defaults.min_p, 0.0, 0.0)?;
    let typical_p = share("typical_p", params.typical_p, defaults.typical_p, 1.0, f64::MIN_POSITIVE)?;
    let top_k = params.top_k.or(defaults.top_k).unwrap_or(0) as usize;
    let truncated =
        params.top_p.is_some() || params.top_k.is_some() || params.min_p.is_some() || params.typical_p.is_some();
    let sample = match params.temperature {
        Some(temperature) => temperature > 0.0,
        None => temperature > 0.0 && (truncated || defaults.do_sample.unwrap_or(false)),
    };
    if !sample {
        // The most probable token is in every top-k, top-p and min-p set, but not in every typical one.
        if params.typical_p.is_some_and(|p| p < 1.0) {
            return Err(SamplingError::Conflict("typical_p needs a temperature above 0"));
        }
        return Ok(None);
    }
    // A temperature that single precision can't hold is as good as none.
    let temperature = (temperature as f32).max(f32::MIN_POSITIVE);
    Ok(Some(Warpers { temperature, top_k, top_p, min_p: min_p as f32, typical_p: typical_p as f32 }))
}

/// Each bad word as tokens, at the start of a text and after a space.
fn bad_words(
    words: &[String],
    eos_ids: &[u32],
    vocab_size: usize,
    tokenizer: &Tokenizer,
) -> Result<BTreeSet<Vec<u32>>, SamplingError> {
    let mut sequences = BTreeSet::new();
    for word in words {
        let wrong = |why: &str| SamplingError::Text { name: "bad_words", text: word.clone(), why: why.to_owned() };
        if word.trim().is_empty() {
            return Err(wrong("it is empty"));
        }
        for text in [word.clone(), format!(" {}", word.trim_start())] {
            let encoding = tokenizer.encode(text, false).map_err(|error| wrong(&error.to_string()))?;
            let ids = encoding.get_ids().to_vec();
            if ids.is_empty() || ids.iter().any(|&id| id as usize >= vocab_size) {
                return Err(wrong("the model has no tokens for it"));
            }
            if let [id] = ids[..]
                && eos_ids.contains(&id)
            {
                return Err(wrong("it ends generations; use ignore_eos or min_new_tokens"));
            }
            sequences.insert(ids);
        }
    }
    Ok(sequences)
}
