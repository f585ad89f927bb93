//! [`Backend`]: where answers come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::Value;

use crate::{Fault, Generation, Message, SamplingParams};

/// Most answers to a request: each takes memory until all are there.
pub const MAX_NUM_GENERATIONS: u32 = 4096;

/// A row's question to a backend.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number of the row in its source, from 0. With the seed it decides the random stream.
    pub row: u64,
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// How to answer.
    pub sampling: SamplingParams,
    /// How many answers, from 1 to [`MAX_NUM_GENERATIONS`].
    pub num_generations: u32,
    /// When to give up.
    pub deadline: Option<Instant>,
    /// Set by the caller to give the row up.
    pub cancel: CancelToken,
}

impl Request {
    /// A request for one answer.
    pub fn new(row: u64, messages: Vec<Message>, sampling: SamplingParams) -> Self {
        Self { row, messages, sampling, num_generations: 1, deadline: None, cancel: CancelToken::default() }
    }
}

/// A flag that tells a backend to stop working on a request; clones share it.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Gives the request up.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the request was given up.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The answers to a request, in order of sample. One sample may fail alone.
#[derive(Clone, Debug)]
pub struct Response {
    /// The `model_name` column.
    pub model_name: String,
    /// As many as were asked for.
    pub generations: Vec<Result<Generation, Fault>>,
}

/// Where a backend sends what it has. Called from the backend's threads: must not block for long.
pub trait Reply: Send {
    /// More text of a sample. Complete characters only.
    fn delta(&mut self, sample: u32, text: &str) {
        let _ = (sample, text);
    }

    /// The end of the request.
    fn done(self: Box<Self>, result: Result<Response, Fault>);
}

impl<F: FnOnce(Result<Response, Fault>) + Send> Reply for F {
    fn done(self: Box<Self>, result: Result<Response, Fault>) {
        self(result);
    }
}

/// Where answers come from: the local engine, a remote endpoint, a mock.
pub trait Backend: Send + Sync {
    /// The `model_name` column.
    fn model_name(&self) -> &str;

    /// Refuses parameters that this backend can't honour. Called before a run starts, so that nothing is ignored in
    /// silence.
    fn check(&self, sampling: &SamplingParams, num_generations: u32) -> Result<(), Fault>;

    /// Whether requests may have images.
    fn reads_images(&self) -> bool {
        true
    }

    /// What it did so far and where its time went, for those who measure; `None` if it keeps no account.
    fn statistics(&self) -> Option<Value> {
        None
    }

    /// How many requests should be in flight to keep it busy.
    fn window(&self) -> usize;

    /// Drops what is kept of earlier requests (encoded images, beginnings of prompts), so that the next ones are computed
    /// from nothing. Answers are the same. For callers that have no request in flight.
    fn forget(&self) {}

    /// Takes a request; returns at once. `reply.done` is called exactly once, in any order among requests.
    fn submit(&self, request: Request, reply: Box<dyn Reply>);

    /// Blocks for one answer. For callers with a single question.
    fn generate(&self, request: Request) -> Result<Response, Fault> {
        let (send, receive) = std::sync::mpsc::channel();
        self.submit(
            request,
            Box::new(move |result| {
                // The receiver only goes away with this call.
                let _ = send.send(result);
            }),
        );
        receive.recv().unwrap_or_else(|_| Err(Fault::stop("backend.lost", "the backend went away without an answer")))
    }
}
