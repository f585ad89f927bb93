//! [`RemoteBackend`]: rows to requests, attempts to answers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Url;
use serde::Serialize;
use serde_json::Value;
use tokio::runtime::{Handle, Runtime};
use vgen_core::{Backend, Fault, ImageRef, Message, Reply, Request, Response, SamplingParams, Secret};

use super::RemoteError;
use super::config::{self, Dialect, Protocol, RemoteConfig, Target};
use super::endpoint;
use super::form::Forms;
use super::http::Http;
use super::images::Images;
use super::limit::Limiter;
use super::retry::Backoff;
use super::sample::{Outcome, answer, requests};
use super::wire::Wire;

/// The model's name where none is known: what TGI calls the one that it serves.
const UNNAMED: &str = "tgi";

/// More threads than this only fight over the same sockets.
const THREADS: usize = 4;

/// Gets the bytes of an image given by URL or path. Called on a thread that may block, several at a time.
pub type FetchImage = Arc<dyn Fn(&ImageRef) -> Result<Arc<[u8]>, Fault> + Send + Sync>;

/// Renders a conversation with the model's chat template, for the text-generation protocol.
pub type RenderPrompt = Arc<dyn Fn(&[Message]) -> Result<String, Fault> + Send + Sync>;

/// What must not be in the config.
#[derive(Clone, Debug, Default)]
pub struct RemoteSecrets {
    /// The API key, if there is one.
    pub api_key: Option<Secret>,
}

/// What other parts of the program do for the backend.
#[derive(Clone, Default)]
pub struct RemoteHooks {
    /// Fetches images; needed for `inline_images`. Files are read through it, too, so that its limits hold for them;
    /// without it they are read whole.
    pub fetch: Option<FetchImage>,
    /// Renders prompts; needed for the text-generation protocol, unless each conversation is one text of the user's.
    pub render: Option<RenderPrompt>,
    /// Hears how far things are.
    pub progress: Option<Arc<dyn Fn(RemoteEvent) + Send + Sync>>,
}

impl fmt::Debug for RemoteHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteHooks")
            .field("fetch", &self.fetch.is_some())
            .field("render", &self.render.is_some())
            .field("progress", &self.progress.is_some())
            .finish()
    }
}

/// What the backend is doing besides answering.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RemoteEvent {
    /// It waits for an endpoint.
    Endpoint {
        /// `namespace/name`.
        name: String,
        /// The endpoint's state, in the service's words.
        state: String,
        /// For how long already.
        waited: Duration,
    },
    /// An attempt failed and another one will be made.
    Retry {
        /// The row's number.
        row: u64,
        /// How many attempts were made.
        attempts: u32,
        /// The code of what went wrong.
        code: String,
        /// What went wrong.
        reason: String,
        /// How long it waits.
        pause: Duration,
    },
}

/// What a backend has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RemoteStats {
    /// HTTP requests sent.
    pub requests: u64,
    /// Those of them that were answered well.
    pub answered: u64,
    /// Those of them that repeated a failed one.
    pub retries: u64,
    /// Those of them that were answered 429: the server limits the rate.
    pub rate_limits: u64,
    /// Those of them that the server was too busy for: 429, 503 and the like.
    pub overloads: u64,
    /// Tokens of prompts, where the server counted.
    pub input_tokens: u64,
    /// Tokens of answers, where the server counted.
    pub output_tokens: u64,
    /// How many requests may be in flight now.
    pub in_flight_limit: usize,
}

/// Counters behind [`RemoteStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) answered: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) rate_limits: AtomicU64,
    pub(super) overloads: AtomicU64,
    pub(super) input_tokens: AtomicU64,
    pub(super) output_tokens: AtomicU64,
    pub(super) had_success: AtomicBool,
}

/// Everything that rows share.
pub(super) struct Shared {
    pub(super) config: RemoteConfig,
    pub(super) hooks: RemoteHooks,
    pub(super) http: Http,
    pub(super) url: Url,
    pub(super) wire: Wire,
    pub(super) forms: Forms,
    pub(super) images: Images,
    pub(super) limiter: Arc<Limiter>,
    pub(super) backoff: Backoff,
    pub(super) counters: Counters,
    pub(super) model_name: String,
}

/// A server's answers as a [`Backend`]. Has threads of its own; dropping it answers what is unfinished with a fault.
pub struct RemoteBackend {
    shared: Arc<Shared>,
    /// Always there until dropped.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl fmt::Debug for RemoteBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBackend").field("url", &self.shared.url.as_str()).finish_non_exhaustive()
    }
}

impl RemoteBackend {
    /// Sets the client up. Talks to nobody but the endpoints service, and that only for `endpoint_name`: then it blocks
    /// until the endpoint runs.
    ///
    /// # Errors
    /// Codes `remote.config`, `remote.endpoint_*`, `remote.setup`, and those of any HTTP exchange; all stop a run.
    pub fn connect(config: RemoteConfig, secrets: RemoteSecrets, hooks: RemoteHooks) -> Result<Self, Fault> {
        config.validate()?;
        if config.inline_images && hooks.fetch.is_none() {
            let reason = "is set, but this program can't fetch images".to_owned();
            return Err(RemoteError::Config { field: "inline_images".to_owned(), reason }.into());
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("remote")
            .enable_all()
            .build()
            .map_err(|error| RemoteError::Setup { reason: error.to_string() })?;
        let handle = runtime.handle().clone();
        let mut backend_runtime = Some(runtime);
        match wait_for(&handle, prepare(config, secrets, hooks)) {
            Ok(shared) => Ok(Self { shared: Arc::new(shared), runtime: backend_runtime, handle }),
            Err(error) => {
                if let Some(runtime) = backend_runtime.take() {
                    runtime.shutdown_background();
                }
                Err(error.into())
            }
        }
    }

    /// What it has done so far.
    pub fn stats(&self) -> RemoteStats {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RemoteStats {
            requests: read(&counters.requests),
            answered: read(&counters.answered),
            retries: read(&counters.retries),
            rate_limits: read(&counters.rate_limits),
            overloads: read(&counters.overloads),
            input_tokens: read(&counters.input_tokens),
            output_tokens: read(&counters.output_tokens),
            in_flight_limit: self.shared.limiter.in_flight_limit(),
        }
    }

    /// The address that requests go to.
    pub fn url(&self) -> &str {
        self.shared.url.as_str()
    }
}

impl Drop for RemoteBackend {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Drops the tasks, and with each its row's answer is sent.
            runtime.shutdown_background();
        }
    }
}

impl Backend for RemoteBackend {
    fn model_name(&self) -> &str {
        &self.shared.model_name
    }

    fn check(&self, sampling: &SamplingParams, _num_generations: u32) -> Result<(), Fault> {
        let wire = &self.shared.wire;
        let parameters = wire.unsupported(sampling);
        if !parameters.is_empty() {
            return Err(RemoteError::Unsupported { parameters, protocol: wire.name() }.into());
        }
        let config = |field: String, reason: &str| RemoteError::Config { field, reason: reason.to_owned() };
        if sampling.constraint.is_some() && self.shared.config.response_format.is_some() {
            return Err(config("response_format".to_owned(), "and a constraint exclude each other").into());
        }
        self.shared.forms.of(sampling)?;
        if let Some(key) = wire.conflict(sampling) {
            return Err(config(format!("extra_body.{key}"), "is also set by a parameter").into());
        }
        let numbers = [
            ("temperature", sampling.temperature),
            ("top_p", sampling.top_p),
            ("min_p", sampling.min_p),
            ("typical_p", sampling.typical_p),
            ("repetition_penalty", sampling.repetition_penalty),
            ("frequency_penalty", sampling.frequency_penalty),
            ("presence_penalty", sampling.presence_penalty),
        ];
        match numbers.into_iter().find(|(_, value)| value.is_some_and(|value| !value.is_finite())) {
            Some((name, _)) => Err(config(name.to_owned(), "is not a finite number").into()),
            None => Ok(()),
        }
    }

    fn statistics(&self) -> Option<Value> {
        serde_json::to_value(self.stats()).ok()
    }

    fn window(&self) -> usize {
        self.shared.config.max_in_flight
    }

    fn submit(&self, request: Request, reply: Box<dyn Reply>) {
        // Even a task that never runs answers: its outcome does so when dropped.
        let outcome = Outcome::new(reply);
        // Here and not in the task: which rows the cap still allows is decided in their order.
        let paid = self.shared.limiter.spend.take(requests(&self.shared.config, &request).into());
        self.handle.spawn(answer(Arc::clone(&self.shared), request, paid, outcome));
    }
}

/// Runs a future on the runtime from a thread that may or may not belong to another one.
fn wait_for<T: Send + 'static>(
    handle: &Handle,
    future: impl Future<Output = Result<T, RemoteError>> + Send + 'static,
) -> Result<T, RemoteError> {
    let (send, receive) = std::sync::mpsc::channel();
    handle.spawn(async move {
        // The receiver waits below.
        let _ = send.send(future.await);
    });
    receive.recv().unwrap_or_else(|_| Err(RemoteError::Setup { reason: "its threads ended".to_owned() }))
}

async fn prepare(config: RemoteConfig, secrets: RemoteSecrets, hooks: RemoteHooks) -> Result<Shared, RemoteError> {
    let (base, repository, said) = match config.target()? {
        Target::Url(url) => (url, None, None),
        Target::Endpoint { name, namespace } => {
            let service = config::parse_url("endpoints_url", &config.endpoints_url)?;
            let http = Http::new(&config, secrets.api_key.clone(), config::is_loopback(&service))?;
            let found = endpoint::find(&http, &config, &hooks, &name, namespace.as_deref()).await?;
            (found.url, found.repository, found.dialect)
        }
    };
    let dialect = config.dialect.or(said).unwrap_or(Dialect::Openai);
    let asked_for = config.model_id.clone().or_else(|| repository.clone()).unwrap_or_else(|| UNNAMED.to_owned());
    let names = [&config.model_display_name, &repository, &config.model_id, &config.endpoint_name, &config.base_url];
    let model_name = names.into_iter().flatten().next().cloned().unwrap_or_default();
    Ok(Shared {
        http: Http::new(&config, secrets.api_key, config::is_loopback(&base))?,
        url: match config.protocol {
            Protocol::Chat => chat_url(base),
            Protocol::TextGeneration => base,
        },
        wire: Wire::new(&config, asked_for, dialect),
        forms: Forms::new(config.response_format.as_ref())?,
        images: Images {
            fetch: hooks.fetch.clone(),
            inline: config.inline_images,
            max_pixels: config.shrink_to_pixels,
        },
        limiter: Arc::new(Limiter::new(&config)),
        backoff: Backoff { base: config::seconds(config.backoff_base), max: config::seconds(config.backoff_max) },
        counters: Counters::default(),
        model_name,
        config,
        hooks,
    })
}

/// Where chat completions are, given a server's root, its `/v1`, or the place itself. A query stays a query.
fn chat_url(mut base: Url) -> Url {
    let path = base.path().trim_end_matches('/').to_owned();
    let path = if path.ends_with("/chat/completions") {
        path
    } else if path.ends_with("/v1") {
        path + "/chat/completions"
    } else {
        path + "/v1/chat/completions"
    };
    base.set_path(&path);
    base
}

/// The response of a row whose generations are known.
pub(super) fn response(shared: &Shared, generations: Vec<Result<vgen_core::Generation, Fault>>) -> Response {
    Response { model_name: shared.model_name.clone(), generations }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use super::*;

    #[test]
    fn chat_addresses() {
        for (base, expected) in [
            ("http://h:1", "http://h:1/v1/chat/completions"),
            ("http://h:1/", "http://h:1/v1/chat/completions"),
            ("http://h:1/v1/", "http://h:1/v1/chat/completions"),
            ("http://h:1/v1?x=1", "http://h:1/v1/chat/completions?x=1"),
            ("http://h:1/api/tgi", "http://h:1/api/tgi/v1/chat/completions"),
            ("http://h:1/chat/completions/", "http://h:1/chat/completions"),
        ] {
            assert_eq!(chat_url(Url::parse(base).unwrap()).as_str(), expected);
        }
    }
}
