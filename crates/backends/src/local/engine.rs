//! The engine: one thread that owns the model and works on many rows at a time.
//!
//! Continuous batching: rows join as soon as there is room and leave when they are done. A step is one call of the
//! text layers on a flat list of tokens: one for each running answer, and pieces of the prompts of new rows up to a
//! token budget. Images are encoded when their row joins, a few at a time between steps, and each image once.

mod admission;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use admission::Joining;
use rayon::prelude::*;
use vgen_core::{Fault, FinishReason, catch_panic};
use vgen_mllama::{Highest, Model, SelfKv, Sequence, Tensor};

use super::image_cache::ImageCache;
use super::plan::FIXED_PIECE;
use super::queue::{Consumer, Taken};
use super::row::{ActiveRow, Job, Next, Sample, Tools, given_up_fault};
use super::shortlist::{self, Asked};
use super::stats::{EngineStats, add};
use super::{Candidates, LocalOptions, MemoryPlan, Sampled, Vocabulary};

/// What the engine thread owns.
pub(crate) struct Engine {
    pub(crate) model: Model,
    pub(crate) model_name: String,
    pub(crate) jobs: Consumer,
    pub(crate) batch_size: usize,
    pub(crate) step_tokens: usize,
    pub(crate) stats: Arc<EngineStats>,
    pub(crate) cache: ImageCache,
    pub(crate) tools: Tools,
    pub(crate) waiting: VecDeque<Job>,
    /// Rows whose images are being encoded.
    joining: Vec<Joining>,
    pub(crate) active: Vec<ActiveRow>,
    /// Beginning of the latest prompt up to its first image, with its keys and values.
    pub(crate) prefix: Option<(Vec<u32>, SelfKv)>,
    /// Whether tokens before an image are the same whatever the image, to the last bit.
    pub(crate) prefix_is_image_free: bool,
    /// Whether shapes must depend on each row alone: the libraries that compute for the portable path sum in another
    /// order for another shape, which the kernels don't.
    fixed_shapes: bool,
    plan: MemoryPlan,
    /// How often what is kept of earlier rows was to be dropped, and how often it was.
    forgetting: Arc<AtomicU64>,
    forgotten: u64,
    closed: bool,
    /// What comes of a step's logits: [`next_tokens`], in tests also what fails.
    choose: Choose,
}

type Choose = fn(&Model, &Tensor, &[Asked]) -> vgen_mllama::Result<Vec<Next>>;

/// Shorter common beginnings are not worth a copy.
const SHORTEST_PREFIX: usize = 8;

/// Room for new tokens that a sequence's store starts with; it grows as needed.
const FIRST_ROOM: usize = 128;

impl Engine {
    pub(crate) fn new(
        model: Model,
        vocabulary: Arc<Vocabulary>,
        jobs: Consumer,
        options: &LocalOptions,
        plan: MemoryPlan,
        stats: Arc<EngineStats>,
        forgetting: Arc<AtomicU64>,
    ) -> Self {
        let fixed_shapes = options.fixed_shapes && model.is_portable();
        Self {
            model,
            model_name: options.model.name().to_owned(),
            jobs,
            batch_size: options.batch_size.max(1),
            step_tokens: options.step_tokens.max(1),
            stats,
            cache: ImageCache::new(plan.image_cache),
            tools: Tools { vocabulary, candidates: Candidates::default() },
            waiting: VecDeque::new(),
            joining: Vec::new(),
            active: Vec::new(),
            prefix: None,
            // A prompt whose beginning is known has fewer tokens to compute.
            prefix_is_image_free: options.reference == vgen_mllama::Reference::Meta && !fixed_shapes,
            fixed_shapes,
            plan,
            forgotten: forgetting.load(Ordering::Acquire),
            forgetting,
            closed: false,
            choose: next_tokens,
        }
    }

    /// Works until the queue is closed and everything is answered.
    pub(crate) fn run(mut self) {
        loop {
            self.receive();
            self.forget();
            self.drop_given_up();
            self.admit();
            self.join();
            if self.active.is_empty() {
                if self.closed && self.waiting.is_empty() && self.joining.is_empty() {
                    return;
                }
                continue;
            }
            self.work();
            self.reply_done();
        }
    }

    /// A step of all rows together. If it fails, one of each row by itself, so that only those fail that are the cause.
    fn work(&mut self) {
        let Err(fault) = self.step(0..self.active.len()) else { return };
        if let [row] = self.active.as_mut_slice() {
            return row.fail(&fault);
        }
        for at in 0..self.active.len() {
            if self.active[at].is_done() {
                continue;
            }
            if let Err(fault) = self.step(at..at + 1) {
                self.active[at].fail(&fault);
            }
        }
    }

    /// Takes new rows; waits for one if there is nothing to do.
    fn receive(&mut self) {
        if self.active.is_empty() && self.waiting.is_empty() && self.joining.is_empty() && !self.closed {
            self.stats.begin_wait();
            match self.jobs.take(true) {
                Taken::Job(job) => self.waiting.push_back(*job),
                Taken::Nothing | Taken::Closed => self.closed = true,
            }
            self.stats.end_wait();
        }
        // Not more than soon needed: the queue's bound holds back those who prepare images.
        while !self.closed && self.waiting.len() < self.batch_size {
            match self.jobs.take(false) {
                Taken::Job(job) => self.waiting.push_back(*job),
                Taken::Nothing => break,
                Taken::Closed => self.closed = true,
            }
        }
    }

    /// Drops what is kept of earlier rows, if that was asked for.
    fn forget(&mut self) {
        let asked = self.forgetting.load(Ordering::Acquire);
        if asked != self.forgotten {
            self.forgotten = asked;
            self.prefix = None;
            self.cache.clear();
        }
    }

    fn drop_given_up(&mut self) {
        for job in std::mem::take(&mut self.waiting) {
            match job.given_up() {
                Some(reason) => job.reply.done(Err(given_up_fault(job.row, reason))),
                None => self.waiting.push_back(job),
            }
        }
        for row in self.joining.extract_if(.., |row| row.job.given_up().is_some()) {
            let reason = row.job.given_up().unwrap_or(FinishReason::Cancelled);
            row.job.reply.done(Err(given_up_fault(row.job.row, reason)));
        }
        for row in &mut self.active {
            if let Some(reason) = row.job.given_up() {
                attempt(row, &mut self.tools, |row, _| row.give_up(reason));
            }
        }
        self.reply_done();
    }

    fn reply_done(&mut self) {
        let (done, active) = std::mem::take(&mut self.active).into_iter().partition(ActiveRow::is_done);
        self.active = active;
        let done: Vec<ActiveRow> = done;
        add(&self.stats.rows, done.len() as u64);
        for row in done {
            row.reply(&self.model_name);
        }
        self.cache.trim();
    }

    /// How many tokens of the prompt are in the kept prefix. The last token is always read again, for its logits.
    fn shared_prefix(&self, job: &Job) -> usize {
        let Some((ids, _)) = &self.prefix else { return 0 };
        let own = &job.prompt.ids[..image_free(job).min(job.prompt.ids.len() - 1)];
        let common = ids.iter().zip(own).take_while(|(a, b)| a == b).count();
        if self.prefix_is_image_free && common >= SHORTEST_PREFIX { common } else { 0 }
    }

    /// One call of the text layers for some of the rows, and a token for every answer that has logits. An error leaves
    /// the rows as they were.
    fn step(&mut self, rows: Range<usize>) -> Result<(), Fault> {
        let longest = self.model.config().text.max_position_embeddings;
        let mut ids = Vec::new();
        let mut wanted = Vec::new();
        let mut sequences = Vec::new();
        // Rows by what they do in this step.
        let mut decoding: Vec<(usize, Vec<Sample>)> = Vec::new();
        let mut finishing = Vec::new();
        let mut reading = false;

        for (at, row) in self.active.iter_mut().enumerate().take(rows.end).skip(rows.start) {
            if row.prefill.is_none() {
                decoding.push((at, std::mem::take(&mut row.samples)));
            }
        }
        let answers: usize = decoding.iter().map(|(_, samples)| samples.len()).sum();
        let mut budget = self.step_tokens.saturating_sub(answers);
        if self.fixed_shapes {
            // Pieces are whole, so one must always fit.
            budget = budget.max(1);
        }
        // Moved out for the step, since a sequence borrows the row as well.
        let mut prompts: Vec<(usize, SelfKv)> = Vec::new();
        for (at, row) in self.active.iter_mut().enumerate().take(rows.end).skip(rows.start) {
            // Each takes a token at least.
            if prompts.len() < budget
                && let Some(kv) = row.prefill.take()
            {
                prompts.push((at, kv));
            }
        }
        let grown = decoding.iter_mut().try_for_each(|(at, samples)| {
            let most = most_tokens(&self.active[*at].job, longest);
            samples.iter_mut().try_for_each(|sample| sample.make_room(most))
        });
        if let Err(error) = grown {
            decoding.into_iter().for_each(|(at, samples)| self.active[at].samples = samples);
            prompts.into_iter().for_each(|(at, kv)| self.active[at].prefill = Some(kv));
            return Err(error.into());
        }
        // For each of the wanted tokens, how much of its logits is asked for.
        let mut asked = Vec::new();
        for (at, samples) in &mut decoding {
            let row = &self.active[*at];
            asked.extend(samples.iter().map(Sample::asked));
            for sample in samples {
                wanted.push(ids.len() as u32);
                ids.push(sample.next);
                let visible = &row.job.visible[row.job.visible.len() - 1..];
                sequences.push(Sequence { kv: &mut sample.kv, images: &row.images, visible });
            }
        }
        for (at, kv) in &mut prompts {
            let job = &self.active[*at].job;
            let most = if self.fixed_shapes && budget > 0 { FIXED_PIECE } else { budget };
            let len = most.min(job.prompt.ids.len() - kv.len());
            let part = kv.len()..kv.len() + len;
            if len == 0 {
                continue;
            }
            budget = budget.saturating_sub(len);
            reading = true;
            ids.extend_from_slice(&job.prompt.ids[part.clone()]);
            if part.end == job.prompt.ids.len() {
                wanted.push(ids.len() as u32 - 1);
                asked.push(self.active[*at].first_asked());
                finishing.push(*at);
            }
            let images = &self.active[*at].images;
            sequences.push(Sequence { kv, images, visible: &job.visible[part] });
        }

        let start = Instant::now();
        let model = &self.model;
        let (copies, to_device) = (model.counters().copies_to_host(), model.counters().copies_to_device());
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.kv.len()).collect();
        let next = guarded(|| (self.choose)(model, &model.forward(&ids, &mut sequences, &wanted)?, &asked));
        if next.is_err() {
            // What fails after the text layers has keys and values already: they would be there twice.
            sequences.iter_mut().zip(lengths).for_each(|(sequence, len)| sequence.kv.truncate(len));
        }
        drop(sequences);
        let spent = start.elapsed().as_nanos() as u64;
        add(if reading { &self.stats.prefill } else { &self.stats.decode }, spent);
        add(&self.stats.steps, 1);
        add(&self.stats.decode_steps, u64::from(!reading));
        add(&self.stats.copies_to_host, self.model.counters().copies_to_host() - copies);
        add(&self.stats.copies_to_device, self.model.counters().copies_to_device() - to_device);
        let mut next = match next {
            Ok(next) => next,
            Err(error) => {
                prompts.into_iter().for_each(|(at, kv)| self.active[at].prefill = Some(kv));
                decoding.into_iter().for_each(|(at, samples)| self.active[at].samples = samples);
                return Err(error);
            }
        };
        add(&self.stats.prompt_tokens, (ids.len() - answers) as u64);
        add(&self.stats.generated_tokens, next.len() as u64);
        for (at, kv) in prompts {
            self.keep_prefix(at, &kv);
            self.active[at].prefill = Some(kv);
        }

        let start = Instant::now();
        let tools = &mut self.tools;
        let first = next.split_off(answers.min(next.len()));
        let mut chosen = choose_each(&mut decoding, &mut next, &mut tools.candidates).into_iter();
        for (at, samples) in decoding {
            let chosen: Vec<_> = chosen.by_ref().take(samples.len()).collect();
            attempt(&mut self.active[at], tools, |row, tools| {
                samples.into_iter().zip(chosen).for_each(|(sample, sampled)| row.step(sample, sampled, tools));
                row.start_more(tools);
            });
        }
        for (at, next) in finishing.into_iter().zip(first) {
            attempt(&mut self.active[at], tools, |row, tools| {
                let room = longest.saturating_sub(row.job.prompt.ids.len()) as u32;
                row.start_samples(next, room, tools);
            });
        }
        add(&self.stats.sample, start.elapsed().as_nanos() as u64);
        Ok(())
    }

    /// Keeps the image-free beginning of a prompt that was just read, for the next prompts.
    fn keep_prefix(&mut self, at: usize, kv: &SelfKv) {
        let job = &self.active[at].job;
        let len = image_free(job).min(kv.len());
        if !self.prefix_is_image_free || len < SHORTEST_PREFIX {
            return;
        }
        let ids = &job.prompt.ids[..len];
        if self.prefix.as_ref().is_some_and(|(kept, _)| kept.starts_with(ids)) {
            return;
        }
        // A prefix that can't be kept costs time, not answers.
        if let Ok(copy) = kv.prefix(len, len) {
            self.prefix = Some((ids.to_vec(), copy));
        }
    }
}

/// What is needed of each row's logits. Where they are on a device, only those leave it that a choice can't do without.
fn next_tokens(model: &Model, logits: &Tensor, asked: &[Asked]) -> vgen_mllama::Result<Vec<Next>> {
    let vocab_size = model.config().text.vocab_size;
    let top = |asked: &Asked| matches!(asked, Asked::Top(_));
    let mut next: Vec<Option<Next>> = vec![None; asked.len()];
    if model.is_portable() && asked.iter().any(top) {
        let temperatures: Vec<f32> = asked.iter().map(|asked| asked.temperature()).collect();
        for ((next, asked), found) in next.iter_mut().zip(asked).zip(model.top(logits, &temperatures)?) {
            *next = found.and_then(|found| match asked {
                Asked::Highest => shortlist::highest(&found, vocab_size).map(Next::Token),
                Asked::Top(warpers) => shortlist::shortlist(&found, *warpers, vocab_size).map(Next::Few),
                Asked::All => None,
            });
        }
    } else if model.is_portable() && asked.contains(&Asked::Highest) {
        for ((next, asked), found) in next.iter_mut().zip(asked).zip(model.highest(logits)?) {
            if let (Asked::Highest, Highest::Token(token)) = (asked, found) {
                *next = Some(Next::Token(token));
            }
        }
    }
    let missing: Vec<u32> = (0..asked.len() as u32).filter(|&row| next[row as usize].is_none()).collect();
    for (row, logits) in missing.iter().zip(model.logits(logits, &missing)?) {
        next[*row as usize] = Some(Next::Logits(logits));
    }
    Ok(next.into_iter().flatten().collect())
}

/// Rows with whole logits from which they are shared between threads: one takes some hundred microseconds.
const SHARED_CHOICES: usize = 4;

/// Chooses each answer's next token; no choice depends on another. A panic fails the answer.
fn choose_each(
    decoding: &mut [(usize, Vec<Sample>)],
    next: &mut [Next],
    candidates: &mut Candidates,
) -> Vec<Result<Sampled, Fault>> {
    let whole = next.iter().filter(|next| matches!(next, Next::Logits(_))).count();
    let choose = |candidates: &mut Candidates, (sample, next): (&mut Sample, &mut Next)| {
        catch_panic(|| sample.choose(next, candidates)).unwrap_or_else(|said| {
            *candidates = Candidates::default();
            Err(panicked("choosing a token", &said))
        })
    };
    let choices = decoding.iter_mut().flat_map(|(_, samples)| samples).zip(next);
    if whole < SHARED_CHOICES {
        return choices.map(|choice| choose(candidates, choice)).collect();
    }
    let choices: Vec<_> = choices.collect();
    choices.into_par_iter().map_init(Candidates::default, choose).collect()
}

/// A call of the network, with a panic as an error: it must not end the run.
fn guarded<T>(call: impl FnOnce() -> vgen_mllama::Result<T>) -> Result<T, Fault> {
    match catch_panic(call) {
        Ok(result) => result.map_err(Fault::from),
        Err(said) => Err(panicked("the network", &said)),
    }
}

/// What is done with a row's tokens; a panic fails the row.
fn attempt(row: &mut ActiveRow, tools: &mut Tools, call: impl FnOnce(&mut ActiveRow, &mut Tools)) {
    if let Err(said) = catch_panic(|| call(row, tools)) {
        tools.candidates = Candidates::default();
        let fault = panicked(&format!("row {}: choosing its tokens", row.job.row), &said);
        row.fail(&fault);
    }
}

fn panicked(what: &str, said: &str) -> Fault {
    Fault::row("engine.panic", format!("{what} failed: {said}")).with_hint("report this with the row and the model")
}

/// Tokens that a sample of the row has at most, the prompt's included.
fn most_tokens(job: &Job, longest: usize) -> usize {
    match job.sampling.max_new_tokens {
        Some(new) => (job.prompt.ids.len() + new as usize).min(longest),
        None => longest,
    }
}

/// Tokens before the first that sees an image.
fn image_free(job: &Job) -> usize {
    job.visible.iter().take_while(|images| images.is_empty()).count()
}

#[cfg(test)]
mod tests;
