//! [`RemoteConfig`]: what can be set about a remote backend, and what is refused before anything is sent.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::RemoteError;
use super::wire;

/// Where `model_id` alone is looked for: Hugging Face's router.
pub const ROUTER: &str = "https://router.huggingface.co/v1";

/// Where `endpoint_name` is looked up.
const ENDPOINTS: &str = "https://api.endpoints.huggingface.cloud";

/// Where the account behind a key is looked up.
const HUB: &str = "https://huggingface.co";

/// Where an API key comes from, in a config file: `{ env = "NAME" }` or `{ file = "path" }`. The key itself is never
/// part of the config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiKeySource {
    /// The environment variable of this name.
    Env(String),
    /// The file at this path, white space around its text ignored.
    File(PathBuf),
}

/// How a question is put to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// `/v1/chat/completions`: messages with images.
    #[default]
    Chat,
    /// TGI's own protocol: one prompt, no images.
    TextGeneration,
}

/// Which parameters beyond OpenAI's the chat server understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// OpenAI's parameters and no other.
    Openai,
    /// Text-generation-inference: `response_format` carries its grammar, JSON schema or regular expression.
    Tgi,
    /// vLLM: `top_k`, `min_p`, `repetition_penalty`, `structured_outputs` and more.
    Vllm,
    /// transformers serve: refuses what it does not do, log-probabilities and `stream_options` among it.
    Transformers,
}

/// Which version of HTTP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HttpVersion {
    /// HTTP/2 where the server offers it over TLS, else HTTP/1.1.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// HTTP/1.1: one request at a time on each connection.
    #[serde(rename = "1.1")]
    Http1,
    /// HTTP/2 without asking: all requests on one connection, also without TLS.
    #[serde(rename = "2")]
    Http2,
}

/// What can be set about a remote backend: the `[backend]` table with `kind = "inference-endpoints"`. Times are in
/// seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RemoteConfig {
    /// The model's name: what the request asks for. Alone, it is asked of Hugging Face's router.
    pub model_id: Option<String>,
    /// An inference endpoint's name.
    pub endpoint_name: Option<String>,
    /// Whose endpoint it is; without it, the key's own account.
    pub endpoint_namespace: Option<String>,
    /// The server's address: its root, its `/v1`, or its whole `/v1/chat/completions`.
    pub base_url: Option<String>,
    /// Where the key comes from; without it `HF_TOKEN`, then the hub's token file.
    pub api_key: Option<ApiKeySource>,
    /// The `model_name` column, instead of the name that follows from the rest.
    pub model_display_name: Option<String>,
    /// The endpoints service's address.
    pub endpoints_url: String,
    /// The hub's address, for looking up whose key it is.
    pub hub_url: String,
    /// Wake the endpoint if it is paused or scaled to zero.
    pub resume_endpoint: bool,
    /// How long to wait for the endpoint.
    pub endpoint_timeout: f64,
    /// How often to look while waiting for it.
    pub endpoint_poll: f64,
    /// How a question is put.
    pub protocol: Protocol,
    /// Which further parameters the server understands; without it, what the endpoint says of itself, else OpenAI's.
    pub dialect: Option<Dialect>,
    /// Ask for all generations of a row in one request, instead of one request each with seed, seed + 1, ...
    pub native_n: bool,
    /// Have answers sent piece by piece: gives the time to the first token.
    pub stream: bool,
    /// Fetch images that are given by URL and send their bytes, instead of passing the URL on.
    pub inline_images: bool,
    /// Shrink images that are sent as bytes to at most so many pixels.
    pub shrink_to_pixels: Option<u64>,
    /// Tools that the model may call, as in OpenAI's protocol. Calls are kept.
    pub tools: Vec<Value>,
    /// Which tool the model must call, as in OpenAI's protocol.
    pub tool_choice: Option<Value>,
    /// TGI's text before the tools.
    pub tool_prompt: Option<String>,
    /// Keep the model's reasoning if the server sends it apart from the answer.
    pub keep_reasoning: bool,
    /// The form of answers in the server's own words, instead of a constraint: `{ type = "json_object" }`, say.
    pub response_format: Option<Value>,
    /// Further fields of the request's body, for what only this server knows.
    pub extra_body: Map<String, Value>,
    /// Further headers. They become part of the run record: no secrets here.
    pub headers: BTreeMap<String, String>,
    /// Which version of HTTP is spoken.
    pub http_version: HttpVersion,
    /// How many HTTP requests may be in flight.
    pub max_in_flight: usize,
    /// Fewer of them while the server is overloaded.
    pub adaptive: bool,
    /// At most so many requests a minute, evenly spaced.
    pub requests_per_minute: Option<f64>,
    /// At most so many tokens of prompts and answers a minute.
    pub tokens_per_minute: Option<f64>,
    /// How often one generation is tried.
    pub max_attempts: u32,
    /// How long one generation is tried: no attempt begins later than this after its first one began.
    pub max_elapsed: f64,
    /// The first pause between attempts is a random share of this; each further one doubles it.
    pub backoff_base: f64,
    /// No pause is longer, unless the server asks for it.
    pub backoff_max: f64,
    /// Time to connect.
    pub connect_timeout: f64,
    /// Time to the first byte of the answer; without streaming that is the whole generation.
    pub first_byte_timeout: f64,
    /// The longest silence within an answer.
    pub idle_timeout: f64,
    /// Time for one attempt in all.
    pub total_timeout: f64,
    /// The largest answer, in bytes after decompression.
    pub max_response_bytes: usize,
    /// Stop the run after so many HTTP requests.
    pub spend_requests: Option<u64>,
    /// Stop the run after so many tokens of prompts and answers. Where the server counts none, four bytes of text count
    /// as one token.
    pub spend_tokens: Option<u64>,
}

impl Default for RemoteConfig {
    fn default() -> Self {
        Self {
            model_id: None,
            endpoint_name: None,
            endpoint_namespace: None,
            base_url: None,
            api_key: None,
            model_display_name: None,
            endpoints_url: ENDPOINTS.to_owned(),
            hub_url: HUB.to_owned(),
            resume_endpoint: true,
            endpoint_timeout: 900.0,
            endpoint_poll: 5.0,
            protocol: Protocol::Chat,
            dialect: None,
            native_n: false,
            stream: false,
            inline_images: false,
            shrink_to_pixels: None,
            tools: Vec::new(),
            tool_choice: None,
            tool_prompt: None,
            keep_reasoning: false,
            response_format: None,
            extra_body: Map::new(),
            headers: BTreeMap::new(),
            http_version: HttpVersion::Auto,
            max_in_flight: 32,
            adaptive: true,
            requests_per_minute: None,
            tokens_per_minute: None,
            max_attempts: 8,
            max_elapsed: 900.0,
            backoff_base: 0.5,
            backoff_max: 60.0,
            connect_timeout: 10.0,
            first_byte_timeout: 300.0,
            idle_timeout: 60.0,
            total_timeout: 600.0,
            max_response_bytes: 64 << 20,
            spend_requests: None,
            spend_tokens: None,
        }
    }
}

/// Which server a config means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// This address.
    Url(Url),
    /// The endpoint of this name.
    Endpoint { name: String, namespace: Option<String> },
}

impl RemoteConfig {
    /// Whether the key that everybody has (`HF_TOKEN`, the hub's token file) may be used if the config names none: not
    /// where it would cross a network in the clear.
    pub fn wants_default_key(&self) -> bool {
        match self.target() {
            Ok(Target::Url(url)) => url.scheme() == "https" || is_loopback(&url),
            Ok(Target::Endpoint { .. }) => true,
            Err(_) => false,
        }
    }

    /// Checks everything that can be checked without the network. [`super::RemoteBackend::connect`] does it too.
    ///
    /// # Errors
    /// [`RemoteError::Config`] names the field.
    pub fn validate(&self) -> Result<(), RemoteError> {
        self.target()?;
        for (field, url) in [("endpoints_url", &self.endpoints_url), ("hub_url", &self.hub_url)] {
            parse_url(field, url)?;
        }
        self.header_map()?;
        self.check_numbers()?;
        self.check_protocol()?;
        match self.extra_body.keys().find(|key| wire::OWN_FIELDS.contains(&key.as_str())) {
            Some(key) => Err(bad("extra_body", format!("has {key:?}, which vgen sets itself"))),
            None => Ok(()),
        }
    }

    fn check_numbers(&self) -> Result<(), RemoteError> {
        let seconds = [
            ("endpoint_timeout", self.endpoint_timeout),
            ("endpoint_poll", self.endpoint_poll),
            ("max_elapsed", self.max_elapsed),
            ("backoff_base", self.backoff_base),
            ("backoff_max", self.backoff_max),
            ("connect_timeout", self.connect_timeout),
            ("first_byte_timeout", self.first_byte_timeout),
            ("idle_timeout", self.idle_timeout),
            ("total_timeout", self.total_timeout),
        ];
        // A century: what any clock can count.
        if let Some((field, value)) = seconds.into_iter().find(|(_, value)| !(*value > 0.0 && *value <= 3.2e9)) {
            return Err(bad(field, format!("is {value}, and has to be above 0 seconds")));
        }
        let rates = [("requests_per_minute", self.requests_per_minute), ("tokens_per_minute", self.tokens_per_minute)];
        for (field, value) in rates.into_iter().filter_map(|(field, value)| Some((field, value?))) {
            if !(value.is_finite() && value > 1e-6) {
                return Err(bad(field, format!("is {value}, and has to be above 0")));
            }
        }
        let counts = [
            ("max_in_flight", self.max_in_flight as u64),
            ("max_attempts", self.max_attempts.into()),
            ("max_response_bytes", self.max_response_bytes as u64),
            ("shrink_to_pixels", self.shrink_to_pixels.unwrap_or(1)),
        ];
        match counts.into_iter().find(|(_, value)| *value == 0) {
            Some((field, _)) => Err(bad(field, "is 0".to_owned())),
            None if self.max_in_flight > 65_536 => Err(bad("max_in_flight", "is above 65536".to_owned())),
            None => Ok(()),
        }
    }

    fn check_protocol(&self) -> Result<(), RemoteError> {
        if self.dialect == Some(Dialect::Transformers) {
            let refused = [
                ("native_n", self.native_n),
                ("tool_choice", self.tool_choice.is_some()),
                ("response_format", self.response_format.is_some()),
            ];
            if let Some((field, _)) = refused.into_iter().find(|(_, set)| *set) {
                return Err(bad(field, "is not known to dialect = \"transformers\"".to_owned()));
            }
        }
        if self.protocol == Protocol::Chat {
            if self.tool_prompt.is_some() && self.dialect != Some(Dialect::Tgi) {
                return Err(bad("tool_prompt", "is only known to dialect = \"tgi\"".to_owned()));
            }
            return Ok(());
        }
        let chat_only = [
            ("native_n", self.native_n),
            ("dialect", self.dialect.is_some()),
            ("inline_images", self.inline_images),
            ("tools", !self.tools.is_empty()),
            ("tool_choice", self.tool_choice.is_some()),
            ("tool_prompt", self.tool_prompt.is_some()),
            ("keep_reasoning", self.keep_reasoning),
            ("response_format", self.response_format.is_some()),
        ];
        match chat_only.into_iter().find(|(_, set)| *set) {
            Some((field, _)) => Err(bad(field, "needs protocol = \"chat\"".to_owned())),
            None => Ok(()),
        }
    }

    /// Which server is meant.
    pub(super) fn target(&self) -> Result<Target, RemoteError> {
        if self.model_id.as_deref().is_some_and(|id| id.trim().is_empty()) {
            return Err(bad("model_id", "is empty".to_owned()));
        }
        match (&self.endpoint_name, &self.base_url, &self.model_id) {
            (Some(_), Some(_), _) => Err(bad("base_url", "can't be given together with endpoint_name".to_owned())),
            (Some(_), _, Some(_)) => Err(bad("model_id", "can't be given together with endpoint_name".to_owned())),
            (Some(name), None, None) => {
                for (field, part) in
                    [("endpoint_name", Some(name)), ("endpoint_namespace", self.endpoint_namespace.as_ref())]
                {
                    if part.is_some_and(|part| !is_plain(part)) {
                        return Err(bad(field, "has characters besides letters, digits, '-', '_' and '.'".to_owned()));
                    }
                }
                Ok(Target::Endpoint { name: name.clone(), namespace: self.endpoint_namespace.clone() })
            }
            (None, ..) if self.endpoint_namespace.is_some() => {
                Err(bad("endpoint_namespace", "is given without endpoint_name".to_owned()))
            }
            (None, Some(url), _) => Ok(Target::Url(parse_url("base_url", url)?)),
            (None, None, Some(_)) => Ok(Target::Url(parse_url("base_url", ROUTER)?)),
            (None, None, None) => Err(bad("backend", "names neither model_id, endpoint_name nor base_url".to_owned())),
        }
    }

    /// The further headers.
    pub(super) fn header_map(&self) -> Result<HeaderMap, RemoteError> {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            let field = || format!("headers.{name}");
            let name =
                HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad(field(), "is no header's name".to_owned()))?;
            if name == AUTHORIZATION {
                return Err(bad(field(), "has to come from api_key".to_owned()));
            }
            let value = HeaderValue::from_str(value)
                .map_err(|_| bad(field(), "has characters no header can have".to_owned()))?;
            map.insert(name, value);
        }
        Ok(map)
    }
}

/// Seconds as a duration; the config's numbers were checked to be in range.
pub(super) fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)
}

fn bad(field: impl Into<String>, reason: String) -> RemoteError {
    RemoteError::Config { field: field.into(), reason }
}

/// Whether a name can be part of a path as it is.
fn is_plain(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain)
}

/// Parses an address that came from a config or a server.
pub(super) fn parse_url(field: &str, text: &str) -> Result<Url, RemoteError> {
    let url = Url::parse(text.trim()).map_err(|error| bad(field, format!("is no URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(bad(field, "has to begin with http:// or https://".to_owned()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad(field, "has a user name or password in it; use api_key".to_owned()));
    }
    Ok(url)
}

/// Whether an address is on this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => {
            host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use super::*;

    fn refused(json: Value) -> String {
        let config: RemoteConfig = serde_json::from_value(json).unwrap();
        match config.validate() {
            Err(RemoteError::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn targets() {
        let target = |json: Value| serde_json::from_value::<RemoteConfig>(json).unwrap().target().unwrap();
        let json = serde_json::json!({"model_id": "a/b"});
        assert_eq!(target(json), Target::Url(Url::parse(ROUTER).unwrap()));
        let json = serde_json::json!({"model_id": "a/b", "base_url": "http://h:1/x"});
        assert_eq!(target(json), Target::Url(Url::parse("http://h:1/x").unwrap()));
        let json = serde_json::json!({"endpoint_name": "e"});
        assert_eq!(target(json), Target::Endpoint { name: "e".to_owned(), namespace: None });
    }

    #[test]
    fn what_can_not_be_meant_is_refused_by_name() {
        let url = "http://localhost:1";
        let cases = [
            (serde_json::json!({}), "backend"),
            (serde_json::json!({"endpoint_name": "a", "base_url": url}), "base_url"),
            (serde_json::json!({"endpoint_name": "a", "model_id": "b"}), "model_id"),
            (serde_json::json!({"endpoint_namespace": "a", "model_id": "b"}), "endpoint_namespace"),
            (serde_json::json!({"endpoint_name": "../x"}), "endpoint_name"),
            (serde_json::json!({"base_url": "ftp://x"}), "base_url"),
            (serde_json::json!({"base_url": "http://me:pw@x"}), "base_url"),
            (serde_json::json!({"base_url": url, "max_in_flight": 0}), "max_in_flight"),
            (serde_json::json!({"base_url": url, "total_timeout": 0.0}), "total_timeout"),
            (serde_json::json!({"base_url": url, "total_timeout": 1e300}), "total_timeout"),
            (serde_json::json!({"base_url": url, "requests_per_minute": -1}), "requests_per_minute"),
            (serde_json::json!({"base_url": url, "headers": {"Authorization": "x"}}), "headers.Authorization"),
            (serde_json::json!({"base_url": url, "extra_body": {"messages": []}}), "extra_body"),
            (serde_json::json!({"base_url": url, "protocol": "text-generation", "native_n": true}), "native_n"),
            (serde_json::json!({"base_url": url, "tool_prompt": "x"}), "tool_prompt"),
            (serde_json::json!({"base_url": url, "dialect": "transformers", "native_n": true}), "native_n"),
        ];
        for (json, field) in cases {
            assert_eq!(refused(json.clone()), field, "{json}");
        }
        assert!(serde_json::from_value::<RemoteConfig>(serde_json::json!({"base_ulr": "x"})).is_err());
    }

    #[test]
    fn the_default_key_stays_off_open_networks() {
        let wants = |json: Value| serde_json::from_value::<RemoteConfig>(json).unwrap().wants_default_key();
        assert!(wants(serde_json::json!({"model_id": "a/b"})));
        assert!(wants(serde_json::json!({"base_url": "http://127.0.0.1:8080"})));
        assert!(wants(serde_json::json!({"base_url": "http://[::1]:8080"})));
        assert!(!wants(serde_json::json!({"base_url": "http://10.0.0.7:8080"})));
    }

    #[test]
    fn keys_are_named_not_given() {
        let config: RemoteConfig = serde_json::from_str(r#"{"base_url":"http://x","api_key":{"env":"KEY"}}"#).unwrap();
        assert_eq!(config.api_key, Some(ApiKeySource::Env("KEY".to_owned())));
        assert!(serde_json::from_str::<RemoteConfig>(r#"{"api_key":"hf_abc"}"#).is_err());
    }
}
