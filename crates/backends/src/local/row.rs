//! A row in the engine: its prompt being read, then its samples being written.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use vgen_core::{
    CancelToken, Fault, FinishReason, Generation, Reply, Response, Timings, TokenLogprob, TopLogprob, Usage,
};
use vgen_mllama::{CrossKv, SelfKv};
use vgen_task::prepare::EncodedPrompt;

use super::prepared::PreparedImage;
use super::shortlist::{Asked, Shortlist};
use super::{Answer, Candidates, ConstraintError, ConstraintState, ResolvedSampling, Sampled, Sampler, Vocabulary};

/// A row that is ready for the engine.
pub(crate) struct Job {
    pub(crate) row: u64,
    pub(crate) num_generations: u32,
    pub(crate) prompt: EncodedPrompt,
    /// In order of their tokens.
    pub(crate) images: Vec<RowImage>,
    /// For each token of the prompt the images that it sees.
    pub(crate) visible: Vec<Range<usize>>,
    pub(crate) sampling: Arc<ResolvedSampling>,
    pub(crate) constraint: Option<ConstraintState>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) cancel: CancelToken,
    pub(crate) submitted: Instant,
    /// Seconds that fetching, decoding, tiling and tokenising took.
    pub(crate) prepare: f64,
    /// How often a younger row joined before it while it was the oldest.
    pub(crate) overtaken: usize,
    pub(crate) reply: Box<dyn Reply>,
}

/// An image of a row.
#[derive(Clone, Debug)]
pub(crate) struct RowImage {
    pub(crate) digest: [u8; 32],
    pub(crate) tiles: u64,
    /// Its pixels, until its keys and values are known.
    pub(crate) prepared: Option<Arc<PreparedImage>>,
}

impl From<Arc<PreparedImage>> for RowImage {
    fn from(prepared: Arc<PreparedImage>) -> Self {
        let tiles = prepared.tiles();
        Self { digest: tiles.digest, tiles: tiles.tiles() as u64, prepared: Some(prepared) }
    }
}

impl Job {
    /// Why the row must not go on, if so.
    pub(crate) fn given_up(&self) -> Option<FinishReason> {
        given_up(&self.cancel, self.deadline)
    }
}

pub(crate) fn given_up(cancel: &CancelToken, deadline: Option<Instant>) -> Option<FinishReason> {
    if cancel.is_cancelled() {
        Some(FinishReason::Cancelled)
    } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
        Some(FinishReason::Deadline)
    } else {
        None
    }
}

/// A row that the engine works on.
pub(crate) struct ActiveRow {
    pub(crate) job: Job,
    pub(crate) images: Vec<Arc<CrossKv>>,
    /// The prompt's keys and values while it is read; the samples' own after that.
    pub(crate) prefill: Option<SelfKv>,
    pub(crate) samples: Vec<Sample>,
    /// Where the other answers begin, when there is room for them.
    unstarted: Option<Unstarted>,
    pub(crate) reserved: Reserved,
    results: Vec<Option<Result<Generation, Fault>>>,
    admitted: Instant,
    /// Seconds that images were encoded before it was admitted.
    encode: f64,
    first_token: Option<f64>,
}

/// What is kept for a row while it is worked on. An image counts for all rows that have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    /// Answers in the making at a time.
    pub(crate) width: usize,
    /// Bytes of their keys and values.
    pub(crate) text_bytes: u64,
}

/// The prompt of answers that begin when others are done.
struct Unstarted {
    kv: SelfKv,
    /// What every answer begins with.
    next: Next,
    /// The next answer's number.
    index: u32,
    /// Tokens that an answer may have.
    room: u32,
}

/// What a step says of an answer's next token.
#[derive(Clone, Debug)]
pub(crate) enum Next {
    /// It was chosen on the device.
    Token(u32),
    /// The few that it is chosen from.
    Few(Shortlist),
    /// The logits to choose from, `[vocabulary]`.
    Logits(Vec<f32>),
}

/// One answer in the making.
pub(crate) struct Sample {
    index: u32,
    pub(crate) kv: SelfKv,
    /// The latest token, not yet read.
    pub(crate) next: u32,
    sampler: Sampler,
    answer: Answer,
    logprobs: Vec<TokenLogprob>,
}

impl Sample {
    /// Room for the next token, up to as many as the sample may have.
    pub(crate) fn make_room(&mut self, most: usize) -> vgen_mllama::Result<()> {
        if self.kv.len() == self.kv.capacity() {
            self.kv.grow((2 * self.kv.capacity()).min(most))?;
        }
        Ok(())
    }

    /// How much of the logits its next token needs.
    pub(crate) fn asked(&self) -> Asked {
        self.sampler.asked()
    }

    /// Chooses the next token. Logits are changed.
    pub(crate) fn choose(&mut self, next: &mut Next, candidates: &mut Candidates) -> Result<Sampled, Fault> {
        let sampled = match next {
            Next::Token(token) => {
                self.sampler.push(*token);
                Ok(Sampled { token: *token, ..Sampled::default() })
            }
            Next::Few(few) => self.sampler.sample_few(few, candidates),
            Next::Logits(logits) => self.sampler.sample(logits, candidates),
        };
        sampled.map_err(Fault::from)
    }
}

impl ActiveRow {
    pub(crate) fn new(job: Job, images: Vec<Arc<CrossKv>>, kv: SelfKv, encode: f64, reserved: Reserved) -> Self {
        let results = (0..job.num_generations).map(|_| None).collect();
        Self {
            job,
            images,
            prefill: Some(kv),
            samples: Vec::new(),
            unstarted: None,
            reserved,
            results,
            admitted: Instant::now(),
            encode,
            first_token: None,
        }
    }

    /// How many answers are, or will be, in the making at a time.
    pub(crate) fn width(&self) -> usize {
        let waits = self.prefill.is_some() || self.unstarted.is_some();
        if waits { self.reserved.width } else { self.samples.len() }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.prefill.is_none() && self.unstarted.is_none() && self.samples.is_empty()
    }

    /// How much of the logits every sample's first token needs.
    pub(crate) fn first_asked(&self) -> Asked {
        if self.job.constraint.is_none() { self.job.sampling.asked() } else { Asked::All }
    }

    /// The prompt is read: its last logits give every sample's first token.
    pub(crate) fn start_samples(&mut self, next: Next, room: u32, tools: &mut Tools) {
        let Some(kv) = self.prefill.take() else { return };
        self.first_token = Some(self.job.submitted.elapsed().as_secs_f64());
        self.unstarted = Some(Unstarted { kv, next, index: 0, room });
        self.start_more(tools);
    }

    /// Starts samples while there are some and they have room.
    pub(crate) fn start_more(&mut self, tools: &mut Tools) {
        while self.samples.len() < self.reserved.width.max(1)
            && let Some(mut unstarted) = self.unstarted.take()
        {
            let Unstarted { index, room, .. } = unstarted;
            let (kv, next) = if index + 1 == self.job.num_generations {
                (unstarted.kv, unstarted.next)
            } else {
                let (fork, next) = (unstarted.kv.fork(), unstarted.next.clone());
                unstarted.index += 1;
                self.unstarted = Some(unstarted);
                match fork {
                    Ok(fork) => (fork, next),
                    Err(error) => {
                        self.results[index as usize] = Some(Err(error.into()));
                        continue;
                    }
                }
            };
            self.start_sample(index, kv, &next, room, tools);
        }
    }

    fn start_sample(&mut self, index: u32, kv: SelfKv, next: &Next, room: u32, tools: &mut Tools) {
        let sampling = &self.job.sampling;
        let mut sampler = Sampler::new(Arc::clone(sampling), &self.job.prompt.ids, self.job.row, index);
        if let Some(constraint) = &self.job.constraint {
            sampler = sampler.with_constraint(constraint.clone());
        }
        let answer = Answer::new(Arc::clone(sampling), Arc::clone(&tools.vocabulary), room, &self.job.prompt.text);
        if sampling.echo {
            self.job.reply.delta(index, &self.job.prompt.text);
        }
        let mut sample = Sample { index, kv, next: 0, sampler, answer, logprobs: Vec::new() };
        let sampled = sample.choose(&mut next.clone(), &mut tools.candidates);
        if self.advance(&mut sample, sampled, tools) {
            self.samples.push(sample);
        }
    }

    /// A sample's next token, which was chosen; it is kept if it goes on.
    pub(crate) fn step(&mut self, mut sample: Sample, sampled: Result<Sampled, Fault>, tools: &Tools) {
        if self.advance(&mut sample, sampled, tools) {
            self.samples.push(sample);
        }
    }

    /// Takes the chosen token; false if the answer ended with it.
    fn advance(&mut self, sample: &mut Sample, sampled: Result<Sampled, Fault>, tools: &Tools) -> bool {
        let sampled = match sampled {
            Ok(sampled) => sampled,
            Err(mut fault) => {
                fault.message = format!("row {}: {}", self.job.row, fault.message);
                self.results[sample.index as usize] = Some(Err(fault));
                return false;
            }
        };
        if self.job.sampling.logprobs {
            let text = |id| tools.vocabulary.text(id);
            let top = sampled.top.iter().map(|(id, logprob)| TopLogprob { token: text(*id), logprob: *logprob });
            let token = text(sampled.token);
            sample.logprobs.push(TokenLogprob { token, logprob: sampled.logprob, top_logprobs: top.collect() });
        }
        let complete = sample.sampler.constraint().is_some_and(ConstraintState::is_finished);
        let step = sample.answer.push(sampled.token, complete);
        if !step.text.is_empty() {
            self.job.reply.delta(sample.index, &step.text);
        }
        sample.next = sampled.token;
        if let Some(reason) = step.finish {
            self.finish(sample, reason);
        }
        step.finish.is_none()
    }

    fn finish(&mut self, sample: &mut Sample, reason: FinishReason) {
        let text = sample.answer.own_text();
        let is_form = sample.sampler.constraint_mut().is_none_or(|constraint| constraint.is_form_of(text));
        let result = match is_form {
            false => Err(no_form_fault(self.job.row, reason, sample.answer.tokens().len())),
            true => Ok(Generation {
                text: Some(sample.answer.text().to_owned()),
                finish_reason: Some(reason),
                usage: Some(Usage {
                    input_tokens: self.job.prompt.ids.len() as u64,
                    output_tokens: sample.answer.tokens().len() as u64,
                    vision_tokens: Some(self.images.iter().map(|image| image.live_tokens() as u64).sum()),
                }),
                logprobs: self.job.sampling.logprobs.then(|| std::mem::take(&mut sample.logprobs)),
                token_ids: Some(sample.answer.tokens().to_vec()),
                tiles: Some(self.job.images.iter().map(|image| image.tiles).sum()),
                timings: Timings {
                    queue: (self.admitted.duration_since(self.job.submitted).as_secs_f64()
                        - self.job.prepare
                        - self.encode)
                        .max(0.0),
                    prepare: self.job.prepare,
                    encode: Some(self.encode),
                    first_token: self.first_token,
                    total: self.job.submitted.elapsed().as_secs_f64(),
                },
                ..Generation::default()
            }),
        };
        self.results[sample.index as usize] = Some(result);
    }

    /// Gives the row up; what was written so far is kept.
    pub(crate) fn give_up(&mut self, reason: FinishReason) {
        (self.prefill, self.unstarted) = (None, None);
        for mut sample in std::mem::take(&mut self.samples) {
            let rest = sample.answer.cut();
            if !rest.is_empty() {
                self.job.reply.delta(sample.index, &rest);
            }
            self.finish(&mut sample, reason);
        }
        let fault = given_up_fault(self.job.row, reason);
        self.results.iter_mut().filter(|result| result.is_none()).for_each(|r| *r = Some(Err(fault.clone())));
    }

    /// Fails whatever of the row is not finished.
    pub(crate) fn fail(&mut self, fault: &Fault) {
        (self.prefill, self.unstarted) = (None, None);
        self.samples.clear();
        self.results.iter_mut().filter(|result| result.is_none()).for_each(|r| *r = Some(Err(fault.clone())));
    }

    /// Hands the row's answers over.
    pub(crate) fn reply(self, model_name: &str) {
        let lost = || Err(Fault::row("engine.lost", "the sample was lost"));
        let generations = self.results.into_iter().map(|result| result.unwrap_or_else(lost)).collect();
        self.job.reply.done(Ok(Response { model_name: model_name.to_owned(), generations }));
    }
}

pub(crate) fn given_up_fault(row: u64, reason: FinishReason) -> Fault {
    match reason {
        FinishReason::Deadline => {
            Fault::row("row.deadline", format!("row {row}: its deadline passed before an answer"))
                .with_hint("allow more time for a row")
        }
        _ => Fault::row("row.cancelled", format!("row {row} was cancelled")),
    }
}

/// Why an answer that ended so, with that many tokens, has not the form that its constraint asks for.
fn no_form_fault(row: u64, reason: FinishReason, tokens: usize) -> Fault {
    match reason {
        FinishReason::Deadline => {
            let message = format!(
                "row {row}: its deadline passed after {tokens} tokens, before the form of its answer was complete"
            );
            Fault { message, ..given_up_fault(row, reason) }
        }
        FinishReason::Cancelled => given_up_fault(row, reason),
        FinishReason::Stop => ConstraintError::Cut { tokens }.into(),
        _ => ConstraintError::Incomplete { tokens }.into(),
    }
}

/// What sampling needs besides the row.
pub(crate) struct Tools {
    pub(crate) vocabulary: Arc<Vocabulary>,
    pub(crate) candidates: Candidates,
}
