//! One row: its generations, each with its attempts, until there is an answer, a cap or a deadline.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::OnceCell;
use tokio::time::sleep;
use vgen_core::{
    Content as MessageContent, Fault, FaultClass, FinishReason, Generation, ImageRef, Part, Reply, Request, Response,
    Role, Timings, Usage,
};

use super::RemoteError;
use super::answer::{Answer, Choice};
use super::body::Pieces;
use super::client::{RemoteEvent, Shared, response};
use super::config::{self, Protocol, RemoteConfig};
use super::form::Form;
use super::http::Read;
use super::images;
use super::limit::{Slot, lock};
use super::stream::Assembly;

/// How often a row looks whether it was given up.
const LOOK: Duration = Duration::from_millis(100);

/// What a token is taken for where the server counts none.
const BYTES_PER_TOKEN: u64 = 4;

/// What a request is taken for while nothing better is known.
const TYPICAL_TOKENS: f64 = 1000.0;

/// A reply that is always answered: if nothing else answers it, its end does.
pub(super) struct Outcome(Option<Box<dyn Reply>>);

impl Outcome {
    pub(super) fn new(reply: Box<dyn Reply>) -> Self {
        Self(Some(reply))
    }

    fn send(mut self, result: Result<Response, Fault>) {
        if let Some(reply) = self.0.take() {
            reply.done(result);
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            reply.done(Err(Fault::stop("remote.stopped", "the remote backend was shut down before the answer came")));
        }
    }
}

/// How many HTTP requests a row takes, repetitions aside.
pub(super) fn requests(config: &RemoteConfig, request: &Request) -> u32 {
    if config.native_n { 1 } else { request.num_generations.max(1) }
}

/// Answers a row. `paid` says whether the spend cap allows its requests.
pub(super) async fn answer(shared: Arc<Shared>, request: Request, paid: Result<(), RemoteError>, outcome: Outcome) {
    let row = Row {
        shared: &shared,
        request: Arc::new(request),
        submitted: Instant::now(),
        content: OnceCell::new(),
        told: Mutex::new(Told { outcome, texts: BTreeMap::new() }),
    };
    let result = match paid {
        Ok(()) => row.run().await,
        Err(error) => Err(row.fault(error, 0)),
    };
    let told = row.told.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    told.outcome.send(result);
}

struct Row<'a> {
    shared: &'a Arc<Shared>,
    request: Arc<Request>,
    submitted: Instant,
    /// What is asked, made when the row's first request may be sent, and how many seconds that took.
    content: OnceCell<(Content, f64)>,
    told: Mutex<Told>,
}

/// What came of one request.
struct Answered {
    answer: Answer,
    timings: Timings,
    attempts: u32,
}

/// What a row asks.
enum Content {
    /// The messages' JSON.
    Messages(Pieces),
    /// The prompt of the text-generation protocol.
    Prompt(String),
}

/// What the caller has heard of each sample, and how to tell it more.
struct Told {
    outcome: Outcome,
    texts: BTreeMap<u32, String>,
}

impl Row<'_> {
    async fn run(&self) -> Result<Response, Fault> {
        let n = self.request.num_generations.max(1);
        let requests = requests(&self.shared.config, &self.request);
        let form = match self.ended() {
            Some(end) => Err(end),
            None => self.shared.forms.of(&self.request.sampling),
        };
        let form = form.map_err(|error| {
            self.shared.limiter.spend.give_back(requests.into());
            self.fault(error, 0)
        })?;
        let form = form.as_deref();
        let answers = join_all((0..requests).map(|sample| self.sample(sample))).await;
        // A fault that stops the run is the row's: the row will be asked again when the run goes on.
        let ends_run = |fault: &Fault| matches!(fault.class, FaultClass::Drain | FaultClass::Stop);
        if let Some(Err(fault)) = answers.iter().find(|answer| answer.as_ref().is_err_and(ends_run)) {
            return Err(fault.clone());
        }
        let generations = if self.shared.config.native_n {
            self.split(answers.into_iter().next(), n, form)
        } else {
            answers
                .into_iter()
                .map(|answer| {
                    let mut answered = answer?;
                    let choice = answered.answer.choices.drain(..).next().unwrap_or_default();
                    self.generation(choice, answered.answer.usage, &answered, form)
                })
                .collect()
        };
        Ok(response(self.shared, generations))
    }

    /// The choices of one answer as the row's generations.
    fn split(
        &self,
        answered: Option<Result<Answered, Fault>>,
        n: u32,
        form: Option<&Form>,
    ) -> Vec<Result<Generation, Fault>> {
        let mut answered = match answered {
            Some(Ok(answered)) => answered,
            Some(Err(fault)) => return vec![Err(fault); n as usize],
            None => return Vec::new(),
        };
        let mut choices: BTreeMap<usize, Choice> =
            answered.answer.choices.drain(..).map(|choice| (choice.index, choice)).collect();
        (0..n as usize)
            .map(|index| match choices.remove(&index) {
                // One count for several generations belongs to none of them.
                Some(choice) => self.generation(choice, answered.answer.usage.filter(|_| n == 1), &answered, form),
                None => Err(Fault::row("remote.no_choices", format!("the server sent no choice number {index}"))
                    .with_hint("set native_n = false if the server knows no n")),
            })
            .collect()
    }

    /// A choice as the row's generation, if it has the form that was asked for.
    fn generation(
        &self,
        choice: Choice,
        usage: Option<Usage>,
        answered: &Answered,
        form: Option<&Form>,
    ) -> Result<Generation, Fault> {
        let config = &self.shared.config;
        // A call of a tool has a form of its own.
        let calls = choice.text.is_none() && choice.tool_calls.is_some() && !config.tools.is_empty();
        if let Some(form) = form.filter(|_| !calls)
            && let Some(reason) = form.violation(self.answer_of(choice.text.as_deref().unwrap_or_default()))
        {
            let ended = [FinishReason::Length, FinishReason::Deadline, FinishReason::Cancelled];
            let cut = choice.finish.is_some_and(|finish| ended.contains(&finish));
            return Err(self.fault(RemoteError::Form { reason, cut }, answered.attempts));
        }
        Ok(Generation {
            text: choice.text,
            finish_reason: choice.finish,
            usage,
            logprobs: choice.logprobs.filter(|_| self.request.sampling.logprobs),
            tool_calls: choice.tool_calls.filter(|_| !config.tools.is_empty()),
            reasoning: choice.reasoning.filter(|_| config.keep_reasoning),
            timings: answered.timings,
            ..Generation::default()
        })
    }

    /// A text without the prompt that `echo` puts before it.
    fn answer_of<'t>(&self, text: &'t str) -> &'t str {
        match self.content.get() {
            Some((Content::Prompt(prompt), _)) if self.request.sampling.echo => {
                text.strip_prefix(prompt.as_str()).unwrap_or(text)
            }
            _ => text,
        }
    }

    /// One HTTP request's worth of the row, tried until it is answered or may not be tried again.
    async fn sample(&self, sample: u32) -> Result<Answered, Fault> {
        let (shared, config) = (self.shared, &self.shared.config);
        let mut timings = Timings::default();
        let mut attempts = 0;
        let mut begun: Option<Instant> = None;
        loop {
            let slot = tokio::select! {
                slot = shared.limiter.acquire(self.expected_tokens()) => slot,
                end = self.end() => {
                    self.unsent(attempts);
                    return Err(self.fault(end, attempts));
                }
            };
            let first = *begun.get_or_insert_with(|| {
                timings.queue = self.submitted.elapsed().as_secs_f64();
                Instant::now()
            });
            let (content, prepare) = match self.content.get_or_try_init(|| self.prepare()).await {
                Ok(content) => content,
                Err(error) => {
                    self.unsent(attempts);
                    return Err(self.fault(error, 0));
                }
            };
            timings.prepare = *prepare;
            if attempts > 0 {
                shared.limiter.spend.take(1).map_err(|error| self.fault(error, attempts))?;
                shared.counters.retries.fetch_add(1, Ordering::Relaxed);
            }
            attempts += 1;
            let sent = self.submitted.elapsed().as_secs_f64();
            let error = match self.attempt(sample, content, slot).await {
                Ok(answer) => {
                    timings.first_token = answer.first_token.map(|after| sent + after);
                    timings.total = self.submitted.elapsed().as_secs_f64();
                    return Ok(Answered { answer, timings, attempts });
                }
                Err(error) => error,
            };
            let pause = shared.backoff.pause(attempts, error.retry_after(), fastrand::f64());
            let in_time = first.elapsed().saturating_add(pause) <= config::seconds(config.max_elapsed);
            if !error.is_passing() || attempts >= config.max_attempts || !in_time {
                return Err(self.fault(error, attempts));
            }
            if let Some(wait) = error.retry_after().filter(|_| error.is_overload()) {
                shared.limiter.pause(wait);
            }
            self.tell_retry(&error, attempts, pause);
            tokio::select! {
                () = sleep(pause) => {}
                end = self.end() => return Err(self.fault(end, attempts)),
            }
        }
    }

    async fn attempt(&self, sample: u32, content: &Content, slot: Slot) -> Result<Answer, RemoteError> {
        let (shared, sampling) = (self.shared, &self.request.sampling);
        let seed = sampling.seed.map(|seed| seed.wrapping_add(sample.into()));
        let native = shared.config.native_n;
        let mut watch = |assembly: &Assembly| self.tell(sample, native, assembly);
        let stop = if sampling.include_stop { &[][..] } else { &sampling.stop };
        let body = match content {
            Content::Messages(json) => shared.wire.chat(json, sampling, seed, self.request.num_generations),
            Content::Prompt(prompt) => shared.wire.text(prompt, sampling, seed),
        };
        let read = match (content, shared.config.stream) {
            (Content::Messages(_), false) => Read::Chat,
            (Content::Messages(_), true) => Read::Stream(Assembly::default(), &mut watch),
            (Content::Prompt(_), false) => Read::Text(stop),
            (Content::Prompt(_), true) => Read::Stream(Assembly::of_text(stop), &mut watch),
        };
        shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        let result = tokio::select! {
            result = shared.http.generate(&shared.url, &body, read) => result,
            end = self.end() => self.text_so_far(sample, end),
        };
        match &result {
            Ok(answer) => {
                let tokens = self.tokens(answer);
                shared.counters.answered.fetch_add(1, Ordering::Relaxed);
                shared.counters.had_success.store(true, Ordering::Relaxed);
                if let Some(usage) = answer.usage {
                    shared.counters.input_tokens.fetch_add(usage.input_tokens, Ordering::Relaxed);
                    shared.counters.output_tokens.fetch_add(usage.output_tokens, Ordering::Relaxed);
                }
                shared.limiter.spend.add_tokens(tokens);
                #[expect(clippy::cast_precision_loss, reason = "rates need no more than 52 bits")]
                slot.succeeded(Some(tokens as f64));
            }
            Err(error) => {
                if error.is_rate_limit() {
                    shared.counters.rate_limits.fetch_add(1, Ordering::Relaxed);
                }
                if error.is_overload() {
                    shared.counters.overloads.fetch_add(1, Ordering::Relaxed);
                }
                slot.failed(error.is_overload());
            }
        }
        result
    }

    /// What was streamed before the row ended, as its answer.
    fn text_so_far(&self, sample: u32, end: RemoteError) -> Result<Answer, RemoteError> {
        let finish = Some(match end {
            RemoteError::Deadline => FinishReason::Deadline,
            _ => FinishReason::Cancelled,
        });
        let told = lock(&self.told);
        let native = self.shared.config.native_n;
        let mine = told.texts.iter().filter(|(told_sample, _)| native || **told_sample == sample);
        let choices: Vec<_> = mine
            .map(|(told_sample, text)| Choice {
                index: *told_sample as usize,
                text: Some(text.clone()),
                finish,
                ..Choice::default()
            })
            .collect();
        if choices.is_empty() { Err(end) } else { Ok(Answer { choices, usage: None, first_token: None }) }
    }

    /// Makes the messages' JSON or the prompt; how long it took in seconds comes with it.
    async fn prepare(&self) -> Result<(Content, f64), RemoteError> {
        let started = Instant::now();
        let content = match self.shared.config.protocol {
            Protocol::Chat => Content::Messages(self.messages().await?),
            Protocol::TextGeneration => Content::Prompt(self.prompt()?),
        };
        Ok((content, started.elapsed().as_secs_f64()))
    }

    async fn messages(&self) -> Result<Pieces, RemoteError> {
        let json = self.messages_json().await?;
        // Several requests share one encoding; a single one needs none beside the one on its way.
        let single = self.request.num_generations <= 1 || self.shared.config.native_n;
        Ok(if single { json } else { json.encoded() })
    }

    async fn messages_json(&self) -> Result<Pieces, RemoteError> {
        let images = &self.shared.images;
        let blocks = |image: &ImageRef| match image {
            ImageRef::Path(_) => true,
            ImageRef::Url(_) => images.inline || images.max_pixels.is_some(),
            _ => images.max_pixels.is_some(),
        };
        if !self.request.messages.iter().flat_map(|message| message.images()).any(blocks) {
            return images::messages_json(&self.request.messages, images);
        }
        let (request, images) = (Arc::clone(&self.request), images.clone());
        let work = tokio::task::spawn_blocking(move || images::messages_json(&request.messages, &images));
        work.await.unwrap_or_else(|error| {
            Err(RemoteError::Row { code: "image_decode", reason: format!("the image broke its decoder: {error}") })
        })
    }

    fn prompt(&self) -> Result<String, RemoteError> {
        let row = |code, reason: String| RemoteError::Row { code, reason };
        let messages = &self.request.messages;
        if messages.iter().any(|message| message.images().next().is_some()) {
            return Err(row("image_in_text_protocol", "the text-generation protocol carries no images".to_owned()));
        }
        if let Some(render) = &self.shared.hooks.render {
            return render(messages).map_err(|fault| row("prompt", fault.to_string()));
        }
        match messages.as_slice() {
            [message] if message.role == Role::User => Ok(match &message.content {
                MessageContent::Text(text) => text.clone(),
                MessageContent::Parts(parts) => parts.iter().map(part_text).collect(),
            }),
            _ => Err(row("no_chat_template", "a conversation needs a chat template to become a prompt".to_owned())),
        }
    }

    /// Passes on what is new in the texts. After a failed attempt only what goes on from what was told already.
    fn tell(&self, sample: u32, native: bool, assembly: &Assembly) {
        let mut told = lock(&self.told);
        let told = &mut *told;
        for (index, text) in assembly.texts() {
            let sample = if native { u32::try_from(index).unwrap_or(u32::MAX) } else { sample };
            let known = told.texts.entry(sample).or_default();
            if let Some(new) = text.strip_prefix(known.as_str()).filter(|new| !new.is_empty()) {
                if let Some(reply) = &mut told.outcome.0 {
                    reply.delta(sample, new);
                }
                known.push_str(new);
            }
            if !native {
                break;
            }
        }
    }

    fn tell_retry(&self, error: &RemoteError, attempts: u32, pause: Duration) {
        if let Some(progress) = &self.shared.hooks.progress {
            progress(RemoteEvent::Retry {
                row: self.request.row,
                attempts,
                code: error.code().into_owned(),
                reason: error.to_string(),
                pause,
            });
        }
    }

    /// Gives back what was taken from the spend cap for a request that was never sent.
    fn unsent(&self, attempts: u32) {
        if attempts == 0 {
            self.shared.limiter.spend.give_back(1);
        }
    }

    fn fault(&self, error: RemoteError, attempts: u32) -> Fault {
        error.into_fault(self.shared.counters.had_success.load(Ordering::Relaxed), attempts)
    }

    /// Whether the row is to be given up.
    fn ended(&self) -> Option<RemoteError> {
        if self.request.cancel.is_cancelled() {
            Some(RemoteError::Cancelled)
        } else if self.request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            Some(RemoteError::Deadline)
        } else {
            None
        }
    }

    /// Waits until the row is to be given up.
    async fn end(&self) -> RemoteError {
        loop {
            if let Some(end) = self.ended() {
                return end;
            }
            let left = self.request.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            sleep(left.map_or(LOOK, |left| left.min(LOOK))).await;
        }
    }

    /// What an answer took: what the server counted, or a guess by length.
    fn tokens(&self, answer: &Answer) -> u64 {
        match answer.usage {
            Some(usage) => usage.input_tokens.saturating_add(usage.output_tokens),
            None => {
                let texts = answer.choices.iter().filter_map(|choice| choice.text.as_deref());
                (self.prompt_bytes() + texts.map(str::len).sum::<usize>() as u64) / BYTES_PER_TOKEN
            }
        }
    }

    /// What a request will probably take: the mean so far.
    #[expect(clippy::cast_precision_loss, reason = "rates need no more than 52 bits")]
    fn expected_tokens(&self) -> f64 {
        let counters = &self.shared.counters;
        let counted = counters.input_tokens.load(Ordering::Relaxed) + counters.output_tokens.load(Ordering::Relaxed);
        let answered = counters.answered.load(Ordering::Relaxed);
        if answered > 0 && counted > 0 { counted as f64 / answered as f64 } else { TYPICAL_TOKENS }
    }

    fn prompt_bytes(&self) -> u64 {
        let messages = self.request.messages.iter();
        let bytes = messages.map(|message| match &message.content {
            MessageContent::Text(text) => text.len(),
            MessageContent::Parts(parts) => parts.iter().map(|part| part_text(part).len()).sum(),
        });
        bytes.sum::<usize>() as u64
    }
}

fn part_text(part: &Part) -> Cow<'_, str> {
    match part {
        Part::Text(text) => Cow::Borrowed(text),
        Part::Image(_) => Cow::Borrowed(""),
    }
}
