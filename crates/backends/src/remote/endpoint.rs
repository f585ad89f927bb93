//! Finding an inference endpoint by name, and waking it.
//!
//! Each state has its own way: running goes on; paused and scaled to zero are resumed; pending, initializing and
//! updating are waited for; failed ones, and those nobody knows, are an error. Nothing else is ever asked instead.

use std::time::{Duration, Instant};

use reqwest::{Method, Url};
use serde_json::Value;

use super::RemoteError;
use super::client::{RemoteEvent, RemoteHooks};
use super::config::{self, Dialect, RemoteConfig};
use super::http::Http;

/// How long after a resume an endpoint may still look asleep before it is asked again.
const RESUME_AGAIN: Duration = Duration::from_secs(60);

/// A running endpoint.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) url: Url,
    /// The model's repository.
    pub(super) repository: Option<String>,
    /// What its server speaks, if it says so.
    pub(super) dialect: Option<Dialect>,
}

/// Looks an endpoint up, wakes it if need be, and waits until it runs.
pub(super) async fn find(
    http: &Http,
    config: &RemoteConfig,
    hooks: &RemoteHooks,
    name: &str,
    namespace: Option<&str>,
) -> Result<Found, RemoteError> {
    let search = Search { http, config, hooks, deadline: Instant::now() + config::seconds(config.endpoint_timeout) };
    let namespace = match namespace {
        Some(namespace) => namespace.to_owned(),
        None => search.own_name(name).await?,
    };
    search.wait(&format!("{namespace}/{name}")).await
}

struct Search<'a> {
    http: &'a Http,
    config: &'a RemoteConfig,
    hooks: &'a RemoteHooks,
    deadline: Instant,
}

impl Search<'_> {
    /// The name of the key's account.
    async fn own_name(&self, endpoint: &str) -> Result<String, RemoteError> {
        let url = join("hub_url", &self.config.hub_url, "api/whoami-v2")?;
        let who = self.ask(Method::GET, &url, endpoint).await?;
        let name = who.get("name").and_then(Value::as_str).filter(|name| !name.is_empty() && !name.contains('/'));
        name.map(str::to_owned).ok_or_else(|| RemoteError::Endpoint {
            code: "endpoint_namespace",
            name: endpoint.to_owned(),
            reason: "belongs to nobody that the API key names".to_owned(),
        })
    }

    async fn wait(&self, name: &str) -> Result<Found, RemoteError> {
        let url = join("endpoints_url", &self.config.endpoints_url, &format!("v2/endpoint/{name}"))?;
        let resume = join("endpoints_url", &self.config.endpoints_url, &format!("v2/endpoint/{name}/resume"))?;
        let begun = Instant::now();
        let mut resumed: Option<Instant> = None;
        loop {
            let endpoint = self.ask(Method::GET, &url, name).await?;
            let status = endpoint.get("status").unwrap_or(&Value::Null);
            let state = status.get("state").and_then(Value::as_str).unwrap_or_default().to_owned();
            let fail = |code, reason: String| RemoteError::Endpoint { code, name: name.to_owned(), reason };
            let message = status.get("message").and_then(Value::as_str).map(super::error::short).unwrap_or_default();
            match state.as_str() {
                "running" => return self.found(name, &endpoint),
                "paused" | "scaledToZero" if !self.config.resume_endpoint => {
                    return Err(fail("endpoint_paused", format!("is {state}")));
                }
                "paused" | "scaledToZero" => {
                    if resumed.is_none_or(|at| at.elapsed() > RESUME_AGAIN) {
                        self.ask(Method::POST, &resume, name).await?;
                        resumed = Some(Instant::now());
                    }
                }
                "pending" | "initializing" | "updating" => {}
                "failed" | "updateFailed" => {
                    return Err(fail("endpoint_failed", format!("is {state}{}{message}", colon(&message))));
                }
                _ => return Err(fail("endpoint_state", format!("is in the unknown state {state:?}"))),
            }
            let waited = begun.elapsed();
            if let Some(progress) = &self.hooks.progress {
                progress(RemoteEvent::Endpoint { name: name.to_owned(), state: state.clone(), waited });
            }
            let reason = || format!("is still {state} after {} s", waited.as_secs());
            self.pause().await.map_err(|()| fail("endpoint_timeout", reason()))?;
        }
    }

    fn found(&self, name: &str, endpoint: &Value) -> Result<Found, RemoteError> {
        let fail = |reason: String| RemoteError::Endpoint { code: "endpoint_url", name: name.to_owned(), reason };
        let url = endpoint.pointer("/status/url").and_then(Value::as_str);
        let url =
            config::parse_url("status.url", url.ok_or_else(|| fail("is running without an address".to_owned()))?)?;
        if url.scheme() != "https" && self.config.endpoints_url.starts_with("https") {
            return Err(fail(format!("has the unprotected address {url}")));
        }
        let repository = endpoint.pointer("/model/repository").and_then(Value::as_str).map(str::to_owned);
        let image = |kind: &str| endpoint.pointer("/model/image").is_some_and(|image| image.get(kind).is_some());
        let dialect = if image("tgi") {
            Some(Dialect::Tgi)
        } else if image("vllm") {
            Some(Dialect::Vllm)
        } else {
            None
        };
        Ok(Found { url, repository, dialect })
    }

    /// One exchange with a service, tried again until the deadline while it is only busy.
    async fn ask(&self, method: Method, url: &Url, name: &str) -> Result<Value, RemoteError> {
        loop {
            match self.http.json(method.clone(), url).await {
                Ok(value) => return Ok(value),
                Err(RemoteError::Status { status: 404, .. }) => {
                    return Err(RemoteError::Endpoint {
                        code: "endpoint_not_found",
                        name: name.to_owned(),
                        reason: format!("does not exist at {}", url.host_str().unwrap_or_default()),
                    });
                }
                Err(error) if !error.is_passing() => return Err(error),
                Err(error) => self.pause().await.map_err(|()| error)?,
            }
        }
    }

    /// Waits a little; an error if that would pass the deadline.
    async fn pause(&self) -> Result<(), ()> {
        let poll = config::seconds(self.config.endpoint_poll);
        if Instant::now() + poll > self.deadline {
            return Err(());
        }
        tokio::time::sleep(poll).await;
        Ok(())
    }
}

fn colon(message: &str) -> &'static str {
    if message.is_empty() { "" } else { ": " }
}

fn join(field: &str, base: &str, path: &str) -> Result<Url, RemoteError> {
    config::parse_url(field, &format!("{}/{path}", base.trim_end_matches('/')))
}
