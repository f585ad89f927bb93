//! Request bodies, and which parameter each protocol can carry.
//!
//! Sources: OpenAI's chat completions; text-generation-inference 3.3 (`router/src/lib.rs`: `ChatRequest`,
//! `GenerateParameters`); vLLM 0.12 and later (`ChatCompletionRequest`); transformers 5.23
//! (`cli/serving/chat_completion.py`).

use serde_json::{Map, Value, json};
use vgen_core::{Constraint, SamplingParams};

use super::body::Pieces;
use super::config::{Dialect, Protocol, RemoteConfig};

/// Fields of the body that vgen sets itself, so that `extra_body` must not.
pub(super) const OWN_FIELDS: [&str; 24] = [
    "model",
    "messages",
    "inputs",
    "parameters",
    "stream",
    "stream_options",
    "n",
    "seed",
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "stop",
    "stop_token_ids",
    "logprobs",
    "top_logprobs",
    "response_format",
    "structured_outputs",
    "tools",
    "tool_choice",
    "tool_prompt",
];

/// Makes bodies for one server.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    protocol: Protocol,
    dialect: Dialect,
    model: String,
    stream: bool,
    native_n: bool,
    tools: Vec<Value>,
    tool_choice: Option<Value>,
    tool_prompt: Option<String>,
    response_format: Option<Value>,
    extra: Map<String, Value>,
}

impl Wire {
    pub(super) fn new(config: &RemoteConfig, model: String, dialect: Dialect) -> Self {
        Self {
            protocol: config.protocol,
            dialect,
            model,
            stream: config.stream,
            native_n: config.native_n,
            tools: config.tools.clone(),
            tool_choice: config.tool_choice.clone(),
            tool_prompt: config.tool_prompt.clone(),
            response_format: config.response_format.clone(),
            extra: config.extra_body.clone(),
        }
    }

    /// What this protocol is called in messages.
    pub(super) fn name(&self) -> &'static str {
        match (self.protocol, self.dialect) {
            (Protocol::TextGeneration, _) => "over the text-generation protocol",
            (_, Dialect::Openai) => "over OpenAI's chat protocol",
            (_, Dialect::Tgi) => "over TGI's chat protocol",
            (_, Dialect::Vllm) => "over vLLM's chat protocol",
            (_, Dialect::Transformers) => "to transformers serve",
        }
    }

    /// The parameters that are given and can't be sent.
    pub(super) fn unsupported(&self, sampling: &SamplingParams) -> Vec<&'static str> {
        let chat = self.protocol == Protocol::Chat;
        let is = |dialect| chat && self.dialect == dialect;
        let (tgi, vllm, transformers) = (is(Dialect::Tgi), is(Dialect::Vllm), is(Dialect::Transformers));
        // (name, given, can be sent)
        let table = [
            ("min_new_tokens", sampling.min_new_tokens.is_some_and(|n| n > 0), vllm),
            ("top_k", sampling.top_k.is_some_and(|k| k > 0), vllm || !chat),
            ("min_p", sampling.min_p.is_some_and(|p| p > 0.0), vllm),
            ("typical_p", sampling.typical_p.is_some(), !chat),
            ("repetition_penalty", sampling.repetition_penalty.is_some(), vllm || !chat),
            // transformers serve makes a penalty of another kind of the frequency penalty.
            ("frequency_penalty", sampling.frequency_penalty.is_some(), !transformers),
            ("presence_penalty", sampling.presence_penalty.is_some(), chat && !transformers),
            ("logit_bias", !sampling.logit_bias.is_empty(), chat && !tgi),
            ("bad_words", !sampling.bad_words.is_empty(), vllm),
            ("include_stop", sampling.include_stop, vllm || !chat),
            ("stop_token_ids", !sampling.stop_token_ids.is_empty(), vllm),
            ("ignore_eos", sampling.ignore_eos, vllm),
            // A stream repeats the prompt only at its end.
            ("echo", sampling.echo, !chat && !self.stream),
            ("logprobs", sampling.logprobs, !transformers),
            ("constraint", sampling.constraint.is_some(), self.carries(sampling.constraint.as_ref())),
        ];
        table.into_iter().filter(|(_, given, can)| *given && !can).map(|(name, ..)| name).collect()
    }

    fn carries(&self, constraint: Option<&Constraint>) -> bool {
        match (self.protocol, self.dialect) {
            (Protocol::TextGeneration, _) | (_, Dialect::Tgi | Dialect::Vllm) => true,
            (_, Dialect::Openai) => matches!(constraint, Some(Constraint::JsonSchema(_))),
            (_, Dialect::Transformers) => false,
        }
    }

    /// A field of `extra_body` that would replace a parameter which is given.
    pub(super) fn conflict(&self, sampling: &SamplingParams) -> Option<&str> {
        let fields = self.chat_fields(sampling, sampling.seed, 1);
        self.extra.keys().find(|key| fields.contains_key(key.as_str())).map(String::as_str)
    }

    /// A chat body. `messages` is their JSON; `seed` is this request's own; `n` is how many choices to ask for.
    pub(super) fn chat(&self, messages: &Pieces, sampling: &SamplingParams, seed: Option<u64>, n: u32) -> Pieces {
        let mut rest = self.chat_fields(sampling, seed, n);
        rest.extend(self.extra.clone());
        let model = Value::from(self.model.as_str()).to_string();
        let rest = Value::Object(rest).to_string();
        let mut body = Pieces::default();
        body.push_str("{\"model\":");
        body.push_str(&model);
        body.push_str(",\"messages\":");
        body.push_pieces(messages);
        // `stream` is always there, so the rest is never empty.
        body.push_str(",");
        body.push_str(rest.trim_start_matches('{'));
        body
    }

    /// Everything but the model, the messages and `extra_body`.
    fn chat_fields(&self, sampling: &SamplingParams, seed: Option<u64>, n: u32) -> Map<String, Value> {
        let mut rest = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                rest.insert(name.to_owned(), value);
            }
        };
        set("max_tokens", sampling.max_new_tokens.map(Value::from));
        set("temperature", sampling.temperature.map(Value::from));
        set("top_p", sampling.top_p.map(Value::from));
        set("seed", seed.map(Value::from));
        set("n", (self.native_n && n > 1).then(|| n.into()));
        set("stop", (!sampling.stop.is_empty()).then(|| json!(sampling.stop)));
        set("frequency_penalty", sampling.frequency_penalty.map(Value::from));
        set("presence_penalty", sampling.presence_penalty.map(Value::from));
        if self.dialect != Dialect::Tgi {
            set("logit_bias", (!sampling.logit_bias.is_empty()).then(|| json!(sampling.logit_bias)));
        }
        set("logprobs", sampling.logprobs.then_some(Value::Bool(true)));
        set("top_logprobs", (sampling.logprobs && sampling.top_logprobs > 0).then(|| sampling.top_logprobs.into()));
        if self.dialect == Dialect::Vllm {
            set("min_tokens", sampling.min_new_tokens.map(Value::from));
            set("top_k", sampling.top_k.filter(|k| *k > 0).map(Value::from));
            set("min_p", sampling.min_p.map(Value::from));
            set("repetition_penalty", sampling.repetition_penalty.map(Value::from));
            set("bad_words", (!sampling.bad_words.is_empty()).then(|| json!(sampling.bad_words)));
            set("include_stop_str_in_output", sampling.include_stop.then_some(Value::Bool(true)));
            set("stop_token_ids", (!sampling.stop_token_ids.is_empty()).then(|| json!(sampling.stop_token_ids)));
            set("ignore_eos", sampling.ignore_eos.then_some(Value::Bool(true)));
        }
        if let Some((name, value)) = sampling.constraint.as_ref().and_then(|it| self.constraint(it)) {
            set(name, Some(value));
        }
        if sampling.constraint.is_none() {
            set("response_format", self.response_format.clone());
        }
        set("tools", (!self.tools.is_empty()).then(|| self.tools.clone().into()));
        set("tool_choice", self.tool_choice.clone());
        set("tool_prompt", self.tool_prompt.clone().map(Value::from));
        set("stream", Some(self.stream.into()));
        let counts = self.stream && self.dialect != Dialect::Transformers;
        set("stream_options", counts.then(|| json!({"include_usage": true})));
        rest
    }

    fn constraint(&self, constraint: &Constraint) -> Option<(&'static str, Value)> {
        Some(match (self.dialect, constraint) {
            (Dialect::Tgi, Constraint::JsonSchema(schema)) => {
                ("response_format", json!({"type": "json", "value": schema}))
            }
            (Dialect::Tgi, Constraint::Regex(regex)) => ("response_format", json!({"type": "regex", "value": regex})),
            (Dialect::Tgi, Constraint::Choice(texts)) => {
                ("response_format", json!({"type": "regex", "value": alternatives(texts)}))
            }
            (Dialect::Openai | Dialect::Vllm, Constraint::JsonSchema(schema)) => {
                let named = json!({"name": "answer", "schema": schema, "strict": true});
                ("response_format", json!({"type": "json_schema", "json_schema": named}))
            }
            (Dialect::Vllm, Constraint::Regex(regex)) => ("structured_outputs", json!({"regex": regex})),
            (Dialect::Vllm, Constraint::Choice(texts)) => ("structured_outputs", json!({"choice": texts})),
            // Refused by `unsupported`.
            (Dialect::Openai, Constraint::Regex(_) | Constraint::Choice(_)) | (Dialect::Transformers, _) => {
                return None;
            }
        })
    }

    /// A text-generation body.
    pub(super) fn text(&self, prompt: &str, sampling: &SamplingParams, seed: Option<u64>) -> Pieces {
        // TGI refuses a temperature of 0; greedy is what it does without sampling.
        let temperature = sampling.temperature.filter(|t| *t > 0.0);
        let filters = sampling.top_p.is_some() || sampling.top_k.is_some() || sampling.typical_p.is_some();
        let sample = temperature.is_some() || (sampling.temperature.is_none() && filters);
        let mut parameters = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                parameters.insert(name.to_owned(), value);
            }
        };
        set("details", Some(Value::Bool(true)));
        set("do_sample", Some(sample.into()));
        set("max_new_tokens", sampling.max_new_tokens.map(Value::from));
        set("temperature", temperature.map(Value::from));
        set("top_p", sampling.top_p.map(Value::from));
        set("top_k", sampling.top_k.filter(|k| *k > 0).map(Value::from));
        set("typical_p", sampling.typical_p.map(Value::from));
        set("repetition_penalty", sampling.repetition_penalty.map(Value::from));
        set("frequency_penalty", sampling.frequency_penalty.map(Value::from));
        set("seed", seed.map(Value::from));
        set("stop", (!sampling.stop.is_empty()).then(|| json!(sampling.stop)));
        set("return_full_text", sampling.echo.then_some(Value::Bool(true)));
        set("top_n_tokens", (sampling.logprobs && sampling.top_logprobs > 0).then(|| sampling.top_logprobs.into()));
        set(
            "grammar",
            sampling.constraint.as_ref().map(|constraint| match constraint {
                Constraint::JsonSchema(schema) => json!({"type": "json", "value": schema}),
                Constraint::Regex(regex) => json!({"type": "regex", "value": regex}),
                Constraint::Choice(texts) => json!({"type": "regex", "value": alternatives(texts)}),
            }),
        );
        let mut body = Map::new();
        body.insert("inputs".to_owned(), prompt.into());
        body.insert("parameters".to_owned(), parameters.into());
        body.insert("stream".to_owned(), self.stream.into());
        body.extend(self.extra.clone());
        let mut pieces = Pieces::default();
        pieces.push_str(&Value::Object(body).to_string());
        pieces
    }
}

/// A regular expression that matches exactly these texts.
fn alternatives(texts: &[String]) -> String {
    let escaped = texts.iter().map(|text| {
        text.chars().fold(String::new(), |mut regex, c| {
            if c.is_ascii_punctuation() {
                regex.push('\\');
            }
            regex.push(c);
            regex
        })
    });
    format!("({})", escaped.collect::<Vec<_>>().join("|"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use super::*;

    fn wire(protocol: Protocol, dialect: Dialect) -> Wire {
        Wire::new(&RemoteConfig { protocol, ..RemoteConfig::default() }, "m\"1".to_owned(), dialect)
    }

    fn messages(json: &str) -> Pieces {
        let mut pieces = Pieces::default();
        pieces.push_str(json);
        pieces
    }

    fn json_of(body: &Pieces) -> Value {
        serde_json::from_str(&body.to_text()).unwrap()
    }

    fn everything() -> SamplingParams {
        SamplingParams {
            max_new_tokens: Some(5),
            min_new_tokens: Some(1),
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(3),
            min_p: Some(0.1),
            typical_p: Some(0.2),
            repetition_penalty: Some(1.1),
            frequency_penalty: Some(0.3),
            presence_penalty: Some(0.4),
            logit_bias: [(7, 1.5)].into(),
            bad_words: vec!["no".to_owned()],
            stop: vec!["END".to_owned(); 5],
            include_stop: true,
            stop_token_ids: vec![9],
            ignore_eos: true,
            seed: Some(0),
            logprobs: true,
            top_logprobs: 2,
            echo: true,
            constraint: Some(Constraint::Regex("a+".to_owned())),
        }
    }

    #[test]
    fn what_can_not_be_sent_is_named() {
        let all = everything();
        let openai = [
            "min_new_tokens",
            "top_k",
            "min_p",
            "typical_p",
            "repetition_penalty",
            "bad_words",
            "include_stop",
            "stop_token_ids",
            "ignore_eos",
            "echo",
            "constraint",
        ];
        assert_eq!(wire(Protocol::Chat, Dialect::Openai).unsupported(&all), openai);
        assert_eq!(wire(Protocol::Chat, Dialect::Vllm).unsupported(&all), ["typical_p", "echo"]);
        let text =
            ["min_new_tokens", "min_p", "presence_penalty", "logit_bias", "bad_words", "stop_token_ids", "ignore_eos"];
        assert_eq!(wire(Protocol::TextGeneration, Dialect::Tgi).unsupported(&all), text);
        assert!(wire(Protocol::Chat, Dialect::Openai).unsupported(&SamplingParams::default()).is_empty());
        let refused = wire(Protocol::Chat, Dialect::Transformers).unsupported(&all);
        for name in ["frequency_penalty", "presence_penalty", "logprobs", "constraint", "top_k"] {
            assert!(refused.contains(&name), "{name}");
        }
    }

    /// Every parameter that is not refused is in the body.
    #[test]
    fn what_can_be_sent_is_sent() {
        let fields: [(&str, &[&str]); 21] = [
            ("max_new_tokens", &["max_tokens", "max_new_tokens"]),
            ("min_new_tokens", &["min_tokens"]),
            ("temperature", &["temperature"]),
            ("top_p", &["top_p"]),
            ("top_k", &["top_k"]),
            ("min_p", &["min_p"]),
            ("typical_p", &["typical_p"]),
            ("repetition_penalty", &["repetition_penalty"]),
            ("frequency_penalty", &["frequency_penalty"]),
            ("presence_penalty", &["presence_penalty"]),
            ("logit_bias", &["logit_bias"]),
            ("bad_words", &["bad_words"]),
            ("stop", &["stop"]),
            ("include_stop", &["include_stop_str_in_output"]),
            ("stop_token_ids", &["stop_token_ids"]),
            ("ignore_eos", &["ignore_eos"]),
            ("seed", &["seed"]),
            ("logprobs", &["logprobs", "top_n_tokens"]),
            ("top_logprobs", &["top_logprobs", "top_n_tokens"]),
            ("echo", &["return_full_text"]),
            ("constraint", &["response_format", "structured_outputs", "grammar"]),
        ];
        let all = everything();
        for dialect in [Dialect::Openai, Dialect::Tgi, Dialect::Vllm] {
            for protocol in [Protocol::Chat, Protocol::TextGeneration] {
                let wire = wire(protocol, dialect);
                let body = json_of(&match protocol {
                    Protocol::Chat => wire.chat(&messages("[]"), &all, Some(0), 1),
                    Protocol::TextGeneration => wire.text("p", &all, Some(0)),
                });
                let object = body.get("parameters").unwrap_or(&body).as_object().unwrap();
                let refused = wire.unsupported(&all);
                for (name, keys) in fields {
                    // TGI keeps the stop text by itself; the answer is cut where it should not.
                    if name == "include_stop" && protocol == Protocol::TextGeneration {
                        continue;
                    }
                    let sent = keys.iter().any(|key| object.contains_key(*key));
                    assert_eq!(sent, !refused.contains(&name), "{name} {protocol:?} {dialect:?} {body}");
                }
                let whole = protocol == Protocol::Chat && dialect != Dialect::Vllm;
                for key in object.keys().filter(|_| whole) {
                    assert!(OWN_FIELDS.contains(&key.as_str()), "{key} is not protected");
                }
            }
        }
    }

    #[test]
    fn bodies_are_json_whatever_the_model_is_called() {
        let wire = wire(Protocol::Chat, Dialect::Openai);
        let body = json_of(&wire.chat(&messages(r#"[{"a":1}]"#), &SamplingParams::default(), None, 1));
        assert_eq!(body, json!({"model": "m\"1", "messages": [{"a": 1}], "stream": false}));
    }

    #[test]
    fn stop_texts_are_never_cut_and_seed_0_is_a_seed() {
        let body = json_of(&wire(Protocol::Chat, Dialect::Openai).chat(&messages("[]"), &everything(), Some(0), 1));
        assert_eq!(body["stop"].as_array().unwrap().len(), 5);
        assert_eq!(body["seed"], 0);
    }

    #[test]
    fn constraints_in_each_dialect() {
        let with = |dialect, constraint| {
            let sampling = SamplingParams { constraint: Some(constraint), ..SamplingParams::default() };
            let wire = wire(Protocol::Chat, dialect);
            assert!(wire.unsupported(&sampling).is_empty());
            json_of(&wire.chat(&messages("[]"), &sampling, None, 1))
        };
        let schema = json!({"type": "object"});
        let named = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": true}});
        assert_eq!(with(Dialect::Openai, Constraint::JsonSchema(schema.clone()))["response_format"], named);
        let grammar = json!({"type": "json", "value": schema});
        assert_eq!(with(Dialect::Tgi, Constraint::JsonSchema(schema))["response_format"], grammar);
        let choice = Constraint::Choice(vec!["a.b".to_owned(), "c".to_owned()]);
        assert_eq!(with(Dialect::Tgi, choice.clone())["response_format"]["value"], "(a\\.b|c)");
        assert_eq!(with(Dialect::Vllm, choice)["structured_outputs"]["choice"], json!(["a.b", "c"]));
    }
}
