//! One attempt: a request out, an answer in, within the limits of time and size.

use std::error::Error;
use std::future::Future;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, Url, redirect};
use vgen_core::Secret;

use super::RemoteError;
use super::answer::{self, Answer};
use super::body::Pieces;
use super::config::{self, HttpVersion, RemoteConfig};
use super::retry;
use super::stream::{Assembly, Events};

/// How much of a refusal's body is read.
const REFUSAL: usize = 64 << 10;

/// How often a redirection is followed.
const REDIRECTS: usize = 5;

/// A connection pool with its limits and key.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: reqwest::Client,
    key: Option<Secret>,
    connect: Duration,
    first_byte: Duration,
    idle: Duration,
    total: Duration,
    max_bytes: usize,
}

/// What a success is read as.
pub(super) enum Read<'a> {
    Chat,
    /// Stop texts to cut off.
    Text(&'a [String]),
    /// Takes the pieces, and hears of the texts so far.
    Stream(Assembly, &'a mut (dyn FnMut(&Assembly) + Send)),
}

impl Http {
    pub(super) fn new(config: &RemoteConfig, key: Option<Secret>, local: bool) -> Result<Self, RemoteError> {
        let connect = config::seconds(config.connect_timeout);
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("vgen/", env!("CARGO_PKG_VERSION")))
            .default_headers(config.header_map()?)
            .connect_timeout(connect)
            .pool_max_idle_per_host(config.max_in_flight)
            .redirect(redirect::Policy::none());
        builder = match config.http_version {
            HttpVersion::Auto => builder,
            HttpVersion::Http1 => builder.http1_only(),
            HttpVersion::Http2 => builder.http2_prior_knowledge(),
        };
        if local {
            // A proxy can't reach this machine's own loopback.
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| RemoteError::Setup { reason: innermost(&error) })?;
        Ok(Self {
            client,
            key,
            connect,
            first_byte: config::seconds(config.first_byte_timeout),
            idle: config::seconds(config.idle_timeout),
            total: config::seconds(config.total_timeout),
            max_bytes: config.max_response_bytes,
        })
    }

    /// Asks for a generation.
    pub(super) async fn generate(&self, url: &Url, body: &Pieces, read: Read<'_>) -> Result<Answer, RemoteError> {
        self.within_total(async {
            let started = Instant::now();
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if matches!(read, Read::Stream(..)) {
                headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
            }
            let response = self.send(Method::POST, url, &headers, Some(body)).await?;
            match read {
                Read::Chat => answer::chat(&self.collect(response).await?),
                Read::Text(stop) => answer::text(&self.collect(response).await?, stop),
                // A server that does not know streaming sends one whole answer.
                Read::Stream(assembly, _) if !is_stream(&response) => assembly.whole(&self.collect(response).await?),
                Read::Stream(assembly, watch) => self.stream(response, started, assembly, watch).await,
            }
        })
        .await
    }

    /// A small JSON exchange with a service: the status may be anything but a failure.
    pub(super) async fn json(&self, method: Method, url: &Url) -> Result<serde_json::Value, RemoteError> {
        self.within_total(async {
            let response = self.send(method, url, &HeaderMap::new(), None).await?;
            let body = self.collect(response).await?;
            serde_json::from_slice(&body).map_err(|error| RemoteError::BadAnswer { reason: error.to_string() })
        })
        .await
    }

    async fn within_total<T>(&self, work: impl Future<Output = Result<T, RemoteError>>) -> Result<T, RemoteError> {
        let result = tokio::time::timeout(self.total, work).await;
        let result = result.unwrap_or(Err(RemoteError::Timeout { phase: "the whole attempt", limit: self.total }));
        // A server may quote the key that it refuses.
        result.map_err(|error| match (error, &self.key) {
            (RemoteError::Status { status, message, retry_after }, Some(key)) => {
                RemoteError::Status { status, message: key.redact(&message), retry_after }
            }
            (RemoteError::ErrorObject { message, overloaded }, Some(key)) => {
                RemoteError::ErrorObject { message: key.redact(&message), overloaded }
            }
            (RemoteError::BadAnswer { reason }, Some(key)) => RemoteError::BadAnswer { reason: key.redact(&reason) },
            (RemoteError::Redirect { location }, Some(key)) => {
                RemoteError::Redirect { location: key.redact(&location) }
            }
            (error, _) => error,
        })
    }

    /// Sends a request; only successes come back.
    async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        body: Option<&Pieces>,
    ) -> Result<Response, RemoteError> {
        let timeout = |_| RemoteError::Timeout { phase: "the first byte of the answer", limit: self.first_byte };
        let sent = tokio::time::timeout(self.first_byte, self.follow(method, url, headers, body)).await;
        let response = sent.map_err(timeout)??;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status.is_redirection() {
            let location = location(&response).unwrap_or("nowhere").split('?').next().unwrap_or_default();
            return Err(RemoteError::Redirect { location: super::error::short(location) });
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|value| retry::retry_after(value, SystemTime::now()));
        let mut body = self.start_of(response).await;
        if let Some(key) = &self.key {
            // Before anything is cut off: half a key is too much, too.
            body = key.redact(&String::from_utf8_lossy(&body)).into_bytes();
        }
        Err(RemoteError::Status { status: status.as_u16(), message: answer::refusal(&body), retry_after })
    }

    /// Sends a request wherever the same host redirects it to. Follows only what keeps a POST a POST: the key and the
    /// data go nowhere else.
    async fn follow(
        &self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
        body: Option<&Pieces>,
    ) -> Result<Response, RemoteError> {
        let mut at = url.clone();
        let mut redirects = 0;
        loop {
            let mut request = self.client.request(method.clone(), at.clone()).headers(headers.clone());
            if let Some(key) = &self.key {
                request = request.bearer_auth(key.expose());
            }
            if let Some(body) = body {
                request = request.body(body.to_body());
            }
            let response = request.send().await.map_err(|error| self.explain(&error))?;
            let next = location(&response).and_then(|location| at.join(location).ok());
            match next.filter(|next| next.origin() == url.origin()) {
                Some(next) if matches!(response.status().as_u16(), 307 | 308) && redirects < REDIRECTS => at = next,
                _ => return Ok(response),
            }
            redirects += 1;
        }
    }

    /// The start of a refusal's body, whatever happens to the rest.
    async fn start_of(&self, mut response: Response) -> Vec<u8> {
        let mut body = Vec::new();
        while body.len() < REFUSAL {
            match tokio::time::timeout(self.idle.min(Duration::from_secs(5)), response.chunk()).await {
                Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
                _ => break,
            }
        }
        body.truncate(REFUSAL);
        body
    }

    async fn chunk(&self, response: &mut Response) -> Result<Option<Bytes>, RemoteError> {
        let chunk = tokio::time::timeout(self.idle, response.chunk()).await;
        let timeout = |_| RemoteError::Timeout { phase: "the next piece of the answer", limit: self.idle };
        chunk.map_err(timeout)?.map_err(|error| self.explain(&error))
    }

    /// The whole body.
    async fn collect(&self, mut response: Response) -> Result<Vec<u8>, RemoteError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            if body.len() + chunk.len() > self.max_bytes {
                return Err(RemoteError::TooLarge { limit: self.max_bytes });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    async fn stream(
        &self,
        mut response: Response,
        started: Instant,
        mut assembly: Assembly,
        watch: &mut (dyn FnMut(&Assembly) + Send),
    ) -> Result<Answer, RemoteError> {
        let mut events = Events::default();
        let (mut received, mut first_token) = (0, None);
        while let Some(chunk) = self.chunk(&mut response).await? {
            received += chunk.len();
            if received > self.max_bytes {
                return Err(RemoteError::TooLarge { limit: self.max_bytes });
            }
            for event in events.feed(&chunk) {
                assembly.event(&event)?;
            }
            if assembly.begun && first_token.is_none() {
                first_token = Some(started.elapsed().as_secs_f64());
            }
            watch(&assembly);
        }
        for event in events.finish() {
            assembly.event(&event)?;
        }
        watch(&assembly);
        assembly.finish(first_token)
    }

    /// Names a failure of the transport. Only innermost causes are shown: outer ones print URLs.
    fn explain(&self, error: &reqwest::Error) -> RemoteError {
        let reason = innermost(error);
        if error.is_connect() && error.is_timeout() {
            RemoteError::Timeout { phase: "connecting", limit: self.connect }
        } else if error.is_connect() && is_tls(error) {
            RemoteError::Tls { reason }
        } else if error.is_connect() {
            RemoteError::Connect { reason }
        } else if error.is_redirect() {
            RemoteError::Redirect { location: reason }
        } else {
            RemoteError::Broken { reason }
        }
    }
}

fn is_stream(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().starts_with("text/event-stream"))
}

fn location(response: &Response) -> Option<&str> {
    response.headers().get(LOCATION)?.to_str().ok()
}

/// What an error comes from. The source of an I/O error that wraps another one skips the wrapped one.
fn source<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = source(error) {
        error = source;
    }
    super::error::short(&error.to_string())
}

/// The TLS library reports itself as invalid data on the connection.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::InvalidData) {
            return true;
        }
        next = source(error);
    }
    false
}
