//! The command line of `vgen-remote`. [`RemoteFlags::add_to`] turns the flags of the remote backend into settings of
//! `[backend]`.

use std::path::PathBuf;

use clap::{Args, Parser};
use serde_json::{Map, Value, json};

use crate::args::{EXIT_CODES, Flags, MessageFlags, QuestionFlags};
use crate::settings::Settings;
use crate::{quantity, version};

/// Asks Hugging Face InferenceEndpoints, its router or any OpenAI-compatible server, over the rows of a file or for one
/// question.
#[derive(Debug, Parser)]
#[command(name = "vgen-remote", version, long_version = version::LONG, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct RemoteArgs {
    #[command(flatten)]
    pub(crate) remote: Box<RemoteCommand>,
    #[command(flatten)]
    pub(crate) messages: MessageFlags,
}

/// The arguments of `vgen remote`.
#[derive(Debug, Args)]
pub(crate) struct RemoteCommand {
    #[command(flatten)]
    pub(crate) question: QuestionFlags,
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    pub(crate) remote: RemoteFlags,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct RemoteFlags {
    /// The model's name on the server. Alone, it is asked of Hugging Face's router.
    #[arg(long, value_name = "NAME")]
    model_id: Option<String>,
    /// An inference endpoint's name; it is woken if it sleeps.
    #[arg(long, value_name = "NAME")]
    endpoint_name: Option<String>,
    /// Whose endpoint it is [default: the key's own account].
    #[arg(long, value_name = "NAME")]
    endpoint_namespace: Option<String>,
    /// The address of an OpenAI-compatible server: its root, its /v1, or its whole /v1/chat/completions.
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// The environment variable that holds the API key [default: HF_TOKEN, then the hub's token file].
    #[arg(long, value_name = "NAME", conflicts_with = "api_key_file")]
    api_key_env: Option<String>,
    /// The file that holds the API key.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// What the column model_name says [default: the endpoint's model, else the model's name, else the address].
    #[arg(long, value_name = "NAME")]
    model_display_name: Option<String>,
    /// The address of the endpoints service [default: https://api.endpoints.huggingface.cloud].
    #[arg(long, value_name = "URL")]
    endpoints_url: Option<String>,
    /// The address of the hub, which knows the key's account [default: HF_ENDPOINT, else https://huggingface.co].
    #[arg(long, value_name = "URL")]
    hub_url: Option<String>,
    /// Wake an endpoint that is paused or scaled to zero [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    resume_endpoint: Option<bool>,
    /// How long to wait for the endpoint, in seconds [default: 900].
    #[arg(long, value_name = "SECONDS")]
    endpoint_timeout: Option<f64>,
    /// How often to look at an endpoint that is waking, in seconds [default: 5].
    #[arg(long, value_name = "SECONDS")]
    endpoint_poll: Option<f64>,
    /// How questions are put: chat, or TGI's text-generation, which carries no images [default: chat].
    #[arg(long, value_name = "PROTOCOL", value_parser = ["chat", "text-generation"])]
    protocol: Option<String>,
    /// Whose parameters the server knows besides OpenAI's [default: what an endpoint says of itself, else openai].
    #[arg(long, value_name = "WHOSE", value_parser = ["openai", "tgi", "vllm", "transformers"])]
    dialect: Option<String>,
    /// The chat template for --protocol text-generation: a model's folder, its chat_template or tokenizer_config file.
    #[arg(long, value_name = "PATH")]
    chat_template: Option<PathBuf>,
    /// Version of HTTP: auto is 2 where the server offers it over TLS [default: auto].
    #[arg(long, value_name = "VERSION", value_parser = ["auto", "1.1", "2"])]
    http_version: Option<String>,
    /// A further header of every request, without secrets. Several times for several headers.
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// Further fields of every request's body, as a JSON object.
    #[arg(long, value_name = "JSON", value_parser = object)]
    extra_body: Option<Value>,
    #[command(flatten)]
    answers: AnswerFlags,
    #[command(flatten)]
    pace: PaceFlags,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Questions and answers")]
struct AnswerFlags {
    /// Ask for all answers of a row in one request, instead of one request each with seed, seed + 1, ...
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    native_n: Option<bool>,
    /// Have answers sent piece by piece [default: false; with --prompt: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    stream: Option<bool>,
    /// Fetch images that are given by URL and send their bytes, instead of passing the URL on [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    inline_images: Option<bool>,
    /// Shrink images that are sent as bytes to at most so many pixels [default: send the original bytes].
    #[arg(long, value_name = "PIXELS")]
    shrink_to_pixels: Option<u64>,
    /// The form of answers in the server's own words, as JSON: {"type": "json_object"}. For a schema: --json-schema.
    #[arg(long, value_name = "JSON", value_parser = object)]
    response_format: Option<Value>,
    /// A JSON file with the list of tools that the model may call; calls come in the column llm_<task>_tool_calls.
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,
    /// Which tool the model must call: auto, none, required, or a JSON object.
    #[arg(long, value_name = "CHOICE")]
    tool_choice: Option<String>,
    /// TGI's text before the tools.
    #[arg(long, value_name = "TEXT")]
    tool_prompt: Option<String>,
    /// Keep the model's reasoning, in the column llm_<task>_reasoning, if the server sends it apart [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    keep_reasoning: Option<bool>,
    /// Largest answer, after decompression [default: 64MiB].
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    max_response_bytes: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Pace, attempts, cost")]
struct PaceFlags {
    /// HTTP requests in flight, across the whole run [default: 32].
    #[arg(long, value_name = "N")]
    max_in_flight: Option<u32>,
    /// Fewer in flight while the server is overloaded [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    adaptive: Option<bool>,
    /// At most so many requests a minute, evenly spaced [default: no limit].
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<f64>,
    /// At most so many tokens of prompts and answers a minute [default: no limit].
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<f64>,
    /// How often one answer is tried [default: 8].
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// No attempt begins later than this after the first one, in seconds [default: 900].
    #[arg(long, value_name = "SECONDS")]
    max_elapsed: Option<f64>,
    /// The first pause between attempts is a random share of this; each further one doubles it [default: 0.5].
    #[arg(long, value_name = "SECONDS")]
    backoff_base: Option<f64>,
    /// Longest pause between attempts, unless the server asks for more, in seconds [default: 60].
    #[arg(long, value_name = "SECONDS")]
    backoff_max: Option<f64>,
    /// Longest time to connect, in seconds [default: 10].
    #[arg(long, value_name = "SECONDS")]
    connect_timeout: Option<f64>,
    /// Longest time to the first byte of an answer, in seconds [default: 300].
    #[arg(long, value_name = "SECONDS")]
    first_byte_timeout: Option<f64>,
    /// Longest silence within an answer, in seconds [default: 60].
    #[arg(long, value_name = "SECONDS")]
    idle_timeout: Option<f64>,
    /// Longest time for one attempt in all, in seconds [default: 600].
    #[arg(long, value_name = "SECONDS")]
    total_timeout: Option<f64>,
    /// End the run after so many HTTP requests, with exit code 7 [default: no limit].
    #[arg(long, value_name = "N")]
    spend_requests: Option<u64>,
    /// End the run after so many tokens of prompts and answers, with exit code 7 [default: no limit].
    #[arg(long, value_name = "N")]
    spend_tokens: Option<u64>,
}

impl RemoteFlags {
    /// Lays what was given over the settings.
    pub(crate) fn add_to(self, settings: &mut Settings) {
        let mut set = |name: &str, flag: &'static str, value: Option<Value>| {
            settings.flag(("backend", name), flag, value);
        };
        let file = |path: PathBuf| json!({"file": path});
        set("model_id", "--model-id", self.model_id.map(Value::from));
        set("endpoint_name", "--endpoint-name", self.endpoint_name.map(Value::from));
        set("endpoint_namespace", "--endpoint-namespace", self.endpoint_namespace.map(Value::from));
        set("base_url", "--base-url", self.base_url.map(Value::from));
        set("api_key", "--api-key-env", self.api_key_env.map(|name| json!({"env": name})));
        set("api_key", "--api-key-file", self.api_key_file.map(file));
        set("model_display_name", "--model-display-name", self.model_display_name.map(Value::from));
        set("endpoints_url", "--endpoints-url", self.endpoints_url.map(Value::from));
        set("hub_url", "--hub-url", self.hub_url.map(Value::from));
        set("resume_endpoint", "--resume-endpoint", self.resume_endpoint.map(Value::from));
        set("endpoint_timeout", "--endpoint-timeout", self.endpoint_timeout.map(Value::from));
        set("endpoint_poll", "--endpoint-poll", self.endpoint_poll.map(Value::from));
        set("protocol", "--protocol", self.protocol.map(Value::from));
        set("dialect", "--dialect", self.dialect.map(Value::from));
        set("chat_template", "--chat-template", self.chat_template.map(|path| json!(path)));
        set("http_version", "--http-version", self.http_version.map(Value::from));
        let headers: Map<_, _> = self.header.into_iter().map(|(name, value)| (name, value.into())).collect();
        set("headers", "--header", (!headers.is_empty()).then_some(Value::Object(headers)));
        set("extra_body", "--extra-body", self.extra_body);
        self.answers.add_to(settings);
        self.pace.add_to(settings);
    }
}

impl AnswerFlags {
    fn add_to(self, settings: &mut Settings) {
        let mut set = |name: &str, flag: &'static str, value: Option<Value>| {
            settings.flag(("backend", name), flag, value);
        };
        set("native_n", "--native-n", self.native_n.map(Value::from));
        set("stream", "--stream", self.stream.map(Value::from));
        set("inline_images", "--inline-images", self.inline_images.map(Value::from));
        set("shrink_to_pixels", "--shrink-to-pixels", self.shrink_to_pixels.map(Value::from));
        set("response_format", "--response-format", self.response_format);
        set("tools", "--tools", self.tools.map(|path| json!(path)));
        // What is no JSON is one of the protocol's words.
        let choice = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
        set("tool_choice", "--tool-choice", self.tool_choice.map(choice));
        set("tool_prompt", "--tool-prompt", self.tool_prompt.map(Value::from));
        set("keep_reasoning", "--keep-reasoning", self.keep_reasoning.map(Value::from));
        set("max_response_bytes", "--max-response-bytes", self.max_response_bytes.map(Value::from));
    }
}

impl PaceFlags {
    fn add_to(self, settings: &mut Settings) {
        let mut set = |name: &str, flag: &'static str, value: Option<Value>| {
            settings.flag(("backend", name), flag, value);
        };
        set("max_in_flight", "--max-in-flight", self.max_in_flight.map(Value::from));
        set("adaptive", "--adaptive", self.adaptive.map(Value::from));
        set("requests_per_minute", "--requests-per-minute", self.requests_per_minute.map(Value::from));
        set("tokens_per_minute", "--tokens-per-minute", self.tokens_per_minute.map(Value::from));
        set("max_attempts", "--max-attempts", self.max_attempts.map(Value::from));
        set("max_elapsed", "--max-elapsed", self.max_elapsed.map(Value::from));
        set("backoff_base", "--backoff-base", self.backoff_base.map(Value::from));
        set("backoff_max", "--backoff-max", self.backoff_max.map(Value::from));
        set("connect_timeout", "--connect-timeout", self.connect_timeout.map(Value::from));
        set("first_byte_timeout", "--first-byte-timeout", self.first_byte_timeout.map(Value::from));
        set("idle_timeout", "--idle-timeout", self.idle_timeout.map(Value::from));
        set("total_timeout", "--total-timeout", self.total_timeout.map(Value::from));
        set("spend_requests", "--spend-requests", self.spend_requests.map(Value::from));
        set("spend_tokens", "--spend-tokens", self.spend_tokens.map(Value::from));
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("expected a JSON object".to_owned()),
        Err(error) => Err(format!("no JSON: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::keys;

    #[test]
    fn the_command_line_is_consistent() {
        RemoteArgs::command().debug_assert();
    }

    #[test]
    fn every_flag_sets_a_key_and_every_key_has_a_flag() {
        let line = "--model-id m --endpoint-name e --endpoint-namespace n --base-url u --api-key-env K \
            --model-display-name d --endpoints-url u --hub-url u --resume-endpoint=false --endpoint-timeout 1 \
            --endpoint-poll 1 --protocol chat --dialect tgi --chat-template t --http-version 2 --header a=b \
            --extra-body {} --native-n --stream --inline-images --shrink-to-pixels 9 --response-format {} --tools t \
            --tool-choice auto --tool-prompt p --keep-reasoning --max-response-bytes 1MiB --max-in-flight 3 \
            --adaptive=false --requests-per-minute 1 --tokens-per-minute 1 --max-attempts 1 --max-elapsed 1 \
            --backoff-base 1 --backoff-max 1 --connect-timeout 1 --first-byte-timeout 1 --idle-timeout 1 \
            --total-timeout 1 --spend-requests 1 --spend-tokens 1";
        let words = line.split_whitespace();
        let Ok(args) = RemoteArgs::try_parse_from(std::iter::once("vgen-remote").chain(words.clone())) else {
            unreachable!("the line is valid")
        };
        let mut settings = Settings::default();
        args.remote.remote.add_to(&mut settings);
        for (table, name, _) in settings.iter() {
            let known = keys::backend("inference-endpoints").into_iter().flatten().any(|key| key.name == name);
            assert!(table == "backend" && known, "[{table}] {name}");
        }
        let given: Vec<_> = words.filter_map(|word| word.strip_prefix("--")).collect();
        assert_eq!(settings.iter().count(), given.len());
        for key in keys::backend("inference-endpoints").into_iter().flatten().filter(|key| key.name != "kind") {
            assert!(settings.get("backend", key.name).is_some(), "{} has no flag", key.name);
        }
        let Ok(args) = RemoteArgs::try_parse_from(["vgen-remote", "--api-key-file", "k"]) else { unreachable!() };
        let mut settings = Settings::default();
        args.remote.remote.add_to(&mut settings);
        assert!(settings.get("backend", "api_key").is_some());
    }
}
