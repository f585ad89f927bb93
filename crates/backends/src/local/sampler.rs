//! [`Sampler`]: from a row's logits to its next token.
//!
//! | order | step | source |
//! |---|---|---|
//! | 0 | log-probabilities of the model's own distribution, if asked for | vLLM, OpenAI |
//! | 1 | `logit_bias` | transformers `SequenceBiasLogitsProcessor` |
//! | 2 | `repetition_penalty` | transformers `RepetitionPenaltyLogitsProcessor` |
//! | 3 | `bad_words` | transformers `NoBadWordsLogitsProcessor` |
//! | 4 | `min_new_tokens` | transformers `MinNewTokensLengthLogitsProcessor` |
//! | 5 | `frequency_penalty`, `presence_penalty` | vLLM, OpenAI |
//! | 6 | `constraint` | llguidance |
//! | 7 | greedy: the highest logit, of equal ones the lowest id; the rest is for sampling only | |
//! | 8 | `temperature` | transformers `TemperatureLogitsWarper` |
//! | 9 | `top_k` | transformers `TopKLogitsWarper` |
//! | 10 | `top_p` | transformers `TopPLogitsWarper` |
//! | 11 | `min_p` | transformers `MinPLogitsWarper` |
//! | 12 | `typical_p` | transformers `TypicalLogitsWarper` |
//! | 13 | draw from the row's random stream | [`RandomStream`] |
//!
//! The order is that of transformers' `_get_logits_processor`; it takes the penalties and the constraint, which it does
//! not have, where it takes a caller's own processors. A row's result depends on its logits, its own history and its
//! place (row, sample) alone.

use std::cmp::Ordering;
use std::sync::Arc;

use vgen_core::Fault;

use super::constrain::{ConstraintError, ConstraintState};
use super::processors::{self, History};
use super::random::RandomStream;
use super::sampling::{ResolvedSampling, Warpers};
use super::shortlist::{Asked, Shortlist};
use super::warpers::{self, Candidates};

/// Why a row has no next token. The other rows are not concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The model gave something that is no number, or infinity.
    #[error("the model's logit of token {token} is {value} at new token {step}")]
    NotFinite {
        /// The first such token.
        token: u32,
        /// NaN or infinity.
        value: f32,
        /// How many tokens the answer had.
        step: usize,
    },
    /// Everything is forbidden.
    #[error("no token is allowed at new token {step}")]
    NoToken {
        /// How many tokens the answer had.
        step: usize,
    },
    /// The logits are not as many as the vocabulary has tokens.
    #[error("{given} logits for a vocabulary of {vocab_size}")]
    Length {
        /// How many there are.
        given: usize,
        /// How many there should be.
        vocab_size: usize,
    },
    /// The constraint can't go on.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
}

impl From<SampleError> for Fault {
    fn from(error: SampleError) -> Self {
        match error {
            SampleError::Constraint(error) => error.into(),
            SampleError::NotFinite { .. } => Fault::row("sample.nan", error.to_string())
                .with_hint("try float32, and check the checkpoint and the row's image"),
            SampleError::NoToken { .. } => Fault::row("sample.no_token", error.to_string())
                .with_hint("loosen bad_words, logit_bias, min_new_tokens or the constraint"),
            SampleError::Length { .. } => Fault::stop("sample.logits", error.to_string()),
        }
    }
}

/// A chosen token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability in the model's own distribution, before all processors, as vLLM and OpenAI
    /// give it. 0 unless asked for.
    pub logprob: f32,
    /// As many of the most probable tokens as were asked for, with the same logarithm; of equal ones the lowest id is
    /// first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sample of one row.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: Arc<ResolvedSampling>,
    history: History,
    stream: RandomStream,
    constraint: Option<ConstraintState>,
}

impl Sampler {
    /// A sampler at the start of the answer to `prompt_ids`. `row` is the row's number in its source, `sample` counts
    /// the answers to the row from 0.
    pub fn new(params: Arc<ResolvedSampling>, prompt_ids: &[u32], row: u64, sample: u32) -> Self {
        let stream = RandomStream::new(params.seed, row, sample);
        Self { params, history: History::new(prompt_ids), stream, constraint: None }
    }

    /// Holds the answer to a form.
    #[must_use]
    pub fn with_constraint(mut self, constraint: ConstraintState) -> Self {
        self.constraint = Some(constraint);
        self
    }

    /// The constraint's state, if there is one.
    pub fn constraint(&self) -> Option<&ConstraintState> {
        self.constraint.as_ref()
    }

    /// As [`Self::constraint`], to ask it what needs its caches.
    pub fn constraint_mut(&mut self) -> Option<&mut ConstraintState> {
        self.constraint.as_mut()
    }

    /// How many tokens were chosen.
    pub fn steps(&self) -> usize {
        self.history.generated()
    }

    /// How much of the model's own logits the next token needs.
    pub(crate) fn asked(&self) -> Asked {
        if self.constraint.is_none() { self.params.asked() } else { Asked::All }
    }

    /// [`Self::sample`] from what a first limit left of the model's own logits.
    pub(crate) fn sample_few(&mut self, few: &Shortlist, scratch: &mut Candidates) -> Result<Sampled, SampleError> {
        let step = self.history.generated();
        let place = self.draw(&mut few.logits.clone(), few.warpers, scratch, step);
        let token = place.and_then(|place| few.ids.get(place as usize).copied());
        let token = token.ok_or(SampleError::NoToken { step })?;
        self.history.push(token);
        Ok(Sampled { token, ..Sampled::default() })
    }

    /// Adds a token that was chosen elsewhere to the row's history.
    pub fn push(&mut self, token: u32) {
        self.history.push(token);
    }

    /// Chooses the next token from the row's `logits`, `[vocab_size]`, and adds it to the row's history. The logits are
    /// changed. `scratch` may be shared by rows that are sampled one after the other.
    ///
    /// # Errors
    /// The row has no next token; its history is unchanged.
    pub fn sample(&mut self, logits: &mut [f32], scratch: &mut Candidates) -> Result<Sampled, SampleError> {
        let params = Arc::clone(&self.params);
        let step = self.history.generated();
        if logits.len() != params.vocab_size {
            return Err(SampleError::Length { given: logits.len(), vocab_size: params.vocab_size });
        }
        check_finite(logits, step)?;
        let own = params.logprobs.then(|| Own::new(logits, params.top_logprobs));
        self.process(logits, step)?;
        let mut few = std::mem::take(scratch.few());
        few.clear();
        let allowed = match &mut self.constraint {
            Some(constraint) => constraint.allow(logits, &mut few),
            None => Ok(()),
        };
        let token = allowed.map(|()| match few.as_slice() {
            [] => self.choose(logits, scratch, step),
            // The same choice over a short list, whose places stand for the tokens.
            ids => {
                let mut short: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
                self.choose(&mut short, scratch, step).map(|place| ids[place as usize])
            }
        });
        *scratch.few() = few;
        let token = token?;
        let token = token.ok_or(SampleError::NoToken { step })?;
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token)?;
        }
        self.history.push(token);
        Ok(match own {
            Some(own) => Sampled { token, logprob: own.logprob(token), top: own.top },
            None => Sampled { token, ..Sampled::default() },
        })
    }

    /// Steps 7 to 13.
    fn choose(&self, logits: &mut [f32], scratch: &mut Candidates, step: usize) -> Option<u32> {
        match self.params.warpers {
            Some(warpers) => self.draw(logits, warpers, scratch, step),
            None => argmax(logits),
        }
    }

    /// Steps 8 to 13.
    fn draw(&self, logits: &mut [f32], warpers: Warpers, scratch: &mut Candidates, step: usize) -> Option<u32> {
        warpers::temperature(logits, warpers.temperature);
        scratch.start(logits, warpers.top_k);
        scratch.top_p(warpers.top_p);
        scratch.min_p(warpers.min_p);
        scratch.typical_p(warpers.typical_p);
        scratch.draw(self.stream.uniform(step as u64))
    }

    /// Steps 1 to 5.
    fn process(&mut self, logits: &mut [f32], step: usize) -> Result<(), SampleError> {
        let params = &self.params;
        processors::logit_bias(logits, &params.logit_bias);
        if params.repetition_penalty != 1.0 {
            processors::repetition_penalty(logits, &self.history, params.repetition_penalty);
        }
        processors::bad_words(logits, &self.history, &params.bad_words);
        // The least number of tokens does not count the end token, as in transformers.
        if step < params.min_new_tokens as usize {
            processors::forbid(logits, &params.end_ids);
        }
        if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
            let (frequency, presence) = (params.frequency_penalty, params.presence_penalty);
            processors::frequency_and_presence(logits, &self.history, frequency, presence);
        }
        Ok(())
    }
}

/// The model's own distribution.
struct Own {
    logits: Vec<f32>,
    /// Logarithm of the sum of the logits' exponentials.
    norm: f64,
    top: Vec<(u32, f32)>,
}

impl Own {
    fn new(logits: &[f32], top: usize) -> Self {
        let highest = warpers::highest(logits);
        let norm = f64::from(highest) + warpers::sum_exp(logits, highest).ln();
        let mut own = Self { logits: logits.to_vec(), norm, top: Vec::new() };
        own.top = most_probable(logits, top).into_iter().map(|id| (id, own.logprob(id))).collect();
        own
    }

    fn logprob(&self, id: u32) -> f32 {
        (f64::from(self.logits[id as usize]) - self.norm) as f32
    }
}

/// The `count` highest logits' ids, highest first, of equal ones the lowest id first.
fn most_probable(logits: &[f32], count: usize) -> Vec<u32> {
    if count == 0 {
        return Vec::new();
    }
    let order = |a: &u32, b: &u32| {
        let (one, other) = (logits[*a as usize], logits[*b as usize]);
        // Never NaN; unlike `total_cmp` this takes both zeros for the same.
        other.partial_cmp(&one).unwrap_or(Ordering::Equal).then(a.cmp(b))
    };
    // The best so far and newcomers, cut when full, so that the work per logit is constant on average. Most logits fail at
    // the first comparison: of equal ones the earlier stays.
    let full = (4 * count).max(512);
    let mut best: Vec<u32> = Vec::with_capacity(full.min(logits.len()));
    let mut least = None;
    for (id, &logit) in logits.iter().enumerate() {
        if least.is_some_and(|least| logit <= least) {
            continue;
        }
        best.push(id as u32);
        if best.len() == full {
            let (_, worst, _) = best.select_nth_unstable_by(count - 1, order);
            least = Some(logits[*worst as usize]);
            best.truncate(count);
        }
    }
    best.sort_unstable_by(order);
    best.truncate(count);
    best
}

/// The id of the highest logit, of equal ones the lowest; `None` if all are forbidden.
fn argmax(logits: &[f32]) -> Option<u32> {
    let highest = warpers::highest(logits);
    if highest == f32::NEG_INFINITY {
        return None;
    }
    logits.iter().position(|&logit| logit == highest).map(|id| id as u32)
}

fn check_finite(logits: &[f32], step: usize) -> Result<(), SampleError> {
    // Minus infinity is a model's way to forbid a token.
    let broken = |logit: f32| logit.is_nan() || logit == f32::INFINITY;
    if logits.iter().fold(false, |any, &logit| any | broken(logit))
        && let Some(token) = logits.iter().position(|&logit| broken(logit))
    {
        return Err(SampleError::NotFinite { token: token as u32, value: logits[token], step });
    }
    Ok(())
}
