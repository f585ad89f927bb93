//! The engine: one thread that owns the model and works on many rows at a time.
//!
//! Continuous batching: rows join as soon as there is room and leave when they are done. A step is one call of the
//! text layers on a flat list of tokens: one for each running answer, and pieces of the prompts of new rows up to a
//! token budget. Images are encoded when their row joins, a few at a time, and each image once.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vgen_core::{Fault, PixelTiles, catch_panic};
use vgen_mllama::{Highest, Model, SelfKv, Sequence, Tensor};

use super::image_cache::ImageCache;
use super::plan::{FIXED_PIECE, IMAGES_TOGETHER};
use super::queue::{Consumer, Taken};
use super::row::{ActiveRow, Job, Next, Sample, Tools, given_up_fault};
use super::stats::{EngineStats, add};
use super::{Candidates, LocalOptions, MemoryPlan, Vocabulary};

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
}

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
            tools: Tools { vocabulary, candidates: Candidates::default(), logits: Vec::new() },
            waiting: VecDeque::new(),
            active: Vec::new(),
            prefix: None,
            // A prompt whose beginning is known has fewer tokens to compute.
            prefix_is_image_free: options.reference == vgen_mllama::Reference::Meta && !fixed_shapes,
            fixed_shapes,
            plan,
            forgotten: forgetting.load(Ordering::Acquire),
            forgetting,
            closed: false,
        }
    }

    /// Works until the queue is closed and everything is answered.
    pub(crate) fn run(mut self) {
        loop {
            self.receive();
            self.forget();
            self.drop_given_up();
            self.admit();
            if self.active.is_empty() {
                if self.closed && self.waiting.is_empty() {
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
        if self.active.is_empty() && self.waiting.is_empty() && !self.closed {
            let start = Instant::now();
            match self.jobs.take(true) {
                Taken::Job(job) => self.waiting.push_back(*job),
                Taken::Nothing | Taken::Closed => self.closed = true,
            }
            add(&self.stats.wait, start.elapsed().as_nanos() as u64);
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
        for row in &mut self.active {
            if let Some(reason) = row.job.given_up() {
                row.give_up(reason);
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

    /// Lets waiting rows join while there is room.
    fn admit(&mut self) {
        let mut width: usize = self.active.iter().map(ActiveRow::width).sum();
        let mut reserved: u64 = self.active.iter().map(|row| self.reservation(&row.job)).sum();
        let mut joining = Vec::new();
        while let Some(at) = self.next_to_join() {
            let Some(next) = self.waiting.get(at) else { break };
            let wanted = next.num_generations as usize;
            let bytes = self.reservation(next);
            let fits = self.plan.for_rows().is_none_or(|budget| reserved + bytes <= budget);
            if width > 0 && (width + wanted > self.batch_size || !fits) {
                break;
            }
            if !fits {
                if let Some(job) = self.waiting.remove(at) {
                    let message = format!("row {} needs {bytes} bytes, more than --memory leaves for rows", job.row);
                    job.reply.done(Err(Fault::row("row.memory", message)
                        .with_hint("allow more memory, fewer new tokens or fewer generations")));
                }
                continue;
            }
            width += wanted;
            reserved += bytes;
            joining.extend(self.waiting.remove(at));
        }
        if joining.is_empty() {
            return;
        }
        let start = Instant::now();
        self.encode(&joining);
        let encode = start.elapsed().as_secs_f64();
        for job in joining {
            match self.activate(job, encode) {
                Ok(row) => self.active.push(row),
                Err(failed) => {
                    let (job, fault) = *failed;
                    job.reply.done(Err(fault));
                }
            }
        }
        self.cache.trim();
    }

    /// Bytes that a row takes at most.
    fn reservation(&self, job: &Job) -> u64 {
        let tokens = most_tokens(job, self.model.config().text.max_position_embeddings);
        let tiles = job.prompt.images.iter().map(|image| image.tiles() as u64).sum();
        self.plan.row(tokens as u64, tiles, u64::from(job.num_generations))
    }

    /// The oldest row, unless one whose images are all known already can join before it.
    fn next_to_join(&self) -> Option<usize> {
        let known = |job: &Job| {
            !job.prompt.images.is_empty() && job.prompt.images.iter().all(|image| self.cache.contains(&image.digest))
        };
        match self.waiting.iter().position(known) {
            Some(at) => Some(at),
            None => (!self.waiting.is_empty()).then_some(0),
        }
    }

    /// Encodes the images that are new, all in one call; an image that fails fails alone.
    fn encode(&mut self, jobs: &[Job]) {
        let mut new: Vec<&PixelTiles> = Vec::new();
        for image in jobs.iter().flat_map(|job| &job.prompt.images) {
            if self.cache.contains(&image.digest) || new.iter().any(|other| other.digest == image.digest) {
                add(&self.stats.images_reused, 1);
            } else {
                new.push(image);
            }
        }
        if new.is_empty() {
            return;
        }
        let start = Instant::now();
        for together in new.chunks(if self.fixed_shapes { 1 } else { IMAGES_TOGETHER }) {
            let model = &self.model;
            let encoded: Vec<_> = match guarded(|| model.encode(together)) {
                Ok(encoded) => together.iter().zip(encoded).collect(),
                Err(_) => together
                    .iter()
                    .filter_map(|image| Some((image, guarded(|| model.encode(&[image])).ok()?.pop()?)))
                    .collect(),
            };
            add(&self.stats.images_encoded, encoded.len() as u64);
            add(&self.stats.tiles_encoded, encoded.iter().map(|(image, _)| image.tiles() as u64).sum());
            add(&self.stats.cross_kv_bytes, encoded.iter().map(|(_, kv)| kv.bytes()).sum());
            for (image, kv) in encoded {
                self.cache.insert(image.digest, kv);
            }
        }
        add(&self.stats.encode, start.elapsed().as_nanos() as u64);
    }

    fn activate(&mut self, job: Job, encode: f64) -> Result<ActiveRow, Box<(Job, Fault)>> {
        let mut images = Vec::with_capacity(job.prompt.images.len());
        for image in &job.prompt.images {
            match self.cache.get(&image.digest) {
                Some(kv) => images.push(kv),
                // It failed before, so this says why.
                None => match guarded(|| self.model.encode(&[image])) {
                    Ok(mut kv) => images.extend(kv.pop().map(|kv| self.cache.insert(image.digest, kv))),
                    Err(fault) => return Err(Box::new((job, fault))),
                },
            }
        }
        let most = most_tokens(&job, self.model.config().text.max_position_embeddings);
        let capacity = (job.prompt.ids.len() + FIRST_ROOM).min(most);
        let shared = self.shared_prefix(&job);
        let kv = match (&self.prefix, shared) {
            (Some((_, prefix)), 1..) => prefix.prefix(shared, capacity),
            _ => self.model.self_kv(capacity),
        };
        add(&self.stats.shared_prompt_tokens, shared as u64);
        match kv {
            Ok(kv) => {
                // A row without images only waits meanwhile.
                let encode = if images.is_empty() { 0.0 } else { encode };
                Ok(ActiveRow::new(job, images, kv, encode))
            }
            Err(error) => Err(Box::new((job, error.into()))),
        }
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
        // For each of the wanted tokens, whether the highest logit is all that is asked for.
        let mut highest = Vec::new();
        for (at, samples) in &mut decoding {
            let row = &self.active[*at];
            highest.extend(samples.iter().map(Sample::takes_highest));
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
                highest.push(self.active[*at].starts_with_highest());
                finishing.push(*at);
            }
            let images = &self.active[*at].images;
            sequences.push(Sequence { kv, images, visible: &job.visible[part] });
        }

        let start = Instant::now();
        let model = &self.model;
        let copies = model.counters().copies_to_host();
        let next = guarded(|| next_tokens(model, &model.forward(&ids, &mut sequences, &wanted)?, &highest));
        drop(sequences);
        let spent = start.elapsed().as_nanos() as u64;
        add(if reading { &self.stats.prefill } else { &self.stats.decode }, spent);
        add(&self.stats.steps, 1);
        add(&self.stats.decode_steps, u64::from(!reading));
        add(&self.stats.copies_to_host, self.model.counters().copies_to_host() - copies);
        add(&self.stats.prompt_tokens, (ids.len() - answers) as u64);
        for (at, kv) in prompts {
            self.keep_prefix(at, &kv);
            self.active[at].prefill = Some(kv);
        }
        let next = match next {
            Ok(next) => next,
            Err(error) => {
                decoding.into_iter().for_each(|(at, samples)| self.active[at].samples = samples);
                return Err(error);
            }
        };

        let start = Instant::now();
        let mut rows = next.iter();
        for (at, samples) in decoding {
            for (sample, next) in samples.into_iter().zip(rows.by_ref()) {
                self.active[at].step(sample, next, &mut self.tools);
            }
        }
        for (at, next) in finishing.into_iter().zip(rows) {
            let row = &mut self.active[at];
            let room = longest.saturating_sub(row.job.prompt.ids.len()) as u32;
            row.start_samples(next, room, &mut self.tools);
        }
        add(&self.stats.generated_tokens, next.len() as u64);
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

/// What is needed of each row's logits. Where they are on a device, rows of which only the highest is wanted don't
/// leave it.
fn next_tokens(model: &Model, logits: &Tensor, highest: &[bool]) -> vgen_mllama::Result<Vec<Next>> {
    let all: Vec<u32> = (0..highest.len() as u32).collect();
    if !model.is_portable() || !highest.contains(&true) {
        return Ok(model.logits(logits, &all)?.into_iter().map(Next::Logits).collect());
    }
    let mut next: Vec<Option<Next>> = model
        .highest(logits)?
        .into_iter()
        .zip(highest)
        .map(|(found, &enough)| match found {
            Highest::Token(token) if enough => Some(Next::Token(token)),
            _ => None,
        })
        .collect();
    let missing: Vec<u32> = all.into_iter().filter(|&row| next[row as usize].is_none()).collect();
    for (row, logits) in missing.iter().zip(model.logits(logits, &missing)?) {
        next[*row as usize] = Some(Next::Logits(logits));
    }
    Ok(next.into_iter().flatten().collect())
}

/// A call of the network, with a panic as an error: it must not end the run.
fn guarded<T>(call: impl FnOnce() -> vgen_mllama::Result<T>) -> Result<T, Fault> {
    match catch_panic(call) {
        Ok(result) => result.map_err(Fault::from),
        Err(said) => {
            let what = format!("the network failed: {said}");
            Err(Fault::row("engine.panic", what).with_hint("report this with the row and the model"))
        }
    }
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
