//! What servers send back, read leniently: only the text itself has to be as the protocol says; counts, reasons and
//! log-probabilities in an unknown form are left out rather than failing a paid answer.

use serde::Deserialize;
use serde_json::Value;
use vgen_core::{FinishReason, TokenLogprob, TopLogprob, Usage};

use super::RemoteError;
use super::error::short;

/// One generation of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Choice {
    pub(super) index: usize,
    pub(super) text: Option<String>,
    pub(super) finish: Option<FinishReason>,
    pub(super) logprobs: Option<Vec<TokenLogprob>>,
    pub(super) tool_calls: Option<Value>,
    pub(super) reasoning: Option<String>,
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// At least one.
    pub(super) choices: Vec<Choice>,
    /// Of all choices together.
    pub(super) usage: Option<Usage>,
    /// When the first token arrived, in seconds after the request; streams only.
    pub(super) first_token: Option<f64>,
}

#[derive(Deserialize)]
struct WireChat {
    #[serde(default)]
    choices: Option<Vec<WireChoice>>,
    #[serde(default)]
    usage: Value,
    #[serde(default)]
    error: Value,
    #[serde(default)]
    error_type: Value,
}

#[derive(Deserialize)]
struct WireChoice {
    #[serde(default)]
    index: Value,
    #[serde(default)]
    message: Value,
    #[serde(default)]
    finish_reason: Value,
    #[serde(default)]
    logprobs: Value,
}

/// Reads a chat answer.
pub(super) fn chat(body: &[u8]) -> Result<Answer, RemoteError> {
    let wire: WireChat = serde_json::from_slice(body).map_err(|error| not_json(body, &error))?;
    if let Some(error) = error_object(&wire.error, &wire.error_type) {
        return Err(error);
    }
    let choices = wire.choices.filter(|choices| !choices.is_empty()).ok_or(RemoteError::NoChoices)?;
    let choices = choices.into_iter().enumerate().map(|(place, choice)| read_choice(place, choice));
    Ok(Answer { choices: choices.collect::<Result<_, _>>()?, usage: usage(&wire.usage), first_token: None })
}

fn read_choice(place: usize, wire: WireChoice) -> Result<Choice, RemoteError> {
    let Value::Object(mut message) = wire.message else {
        return Err(RemoteError::BadAnswer { reason: "a choice has no message".to_owned() });
    };
    let reasoning = ["reasoning_content", "reasoning"].iter().find_map(|key| message.get(*key)?.as_str());
    Ok(Choice {
        index: wire.index.as_u64().and_then(|index| usize::try_from(index).ok()).unwrap_or(place),
        text: content(message.get("content").unwrap_or(&Value::Null))?,
        finish: wire.finish_reason.as_str().and_then(finish_reason),
        logprobs: logprobs(&wire.logprobs),
        reasoning: reasoning.map(str::to_owned),
        tool_calls: message.remove("tool_calls").and_then(some_calls),
    })
}

/// The text of a message: a string, nothing, or a list of text parts.
fn content(value: &Value) -> Result<Option<String>, RemoteError> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Array(parts) => {
            let text = |part: &Value| part.get("text").and_then(Value::as_str).or(part.as_str()).map(str::to_owned);
            Ok(Some(parts.iter().filter_map(text).collect()))
        }
        _ => Err(RemoteError::BadAnswer { reason: "a message's content is neither text nor parts".to_owned() }),
    }
}

/// Tool calls, if there are any.
fn some_calls(calls: Value) -> Option<Value> {
    calls.as_array().is_some_and(|calls| !calls.is_empty()).then_some(calls)
}

/// What a server counted: only if it counted both.
pub(super) fn usage(value: &Value) -> Option<Usage> {
    let count = |name: &str| value.get(name)?.as_u64();
    Some(Usage {
        input_tokens: count("prompt_tokens")?,
        output_tokens: count("completion_tokens")?,
        vision_tokens: None,
    })
}

/// Why a generation ended, in the words of OpenAI, TGI and others.
pub(super) fn finish_reason(name: &str) -> Option<FinishReason> {
    Some(match name {
        "stop" | "eos_token" | "stop_sequence" | "end_turn" | "eos" => FinishReason::Stop,
        "length" | "max_tokens" | "model_length" => FinishReason::Length,
        "tool_calls" | "function_call" => FinishReason::ToolCalls,
        "content_filter" => FinishReason::ContentFilter,
        _ => return None,
    })
}

/// Log-probabilities of a choice: the sampled token's own value and the alternatives.
pub(super) fn logprobs(value: &Value) -> Option<Vec<TokenLogprob>> {
    value.get("content")?.as_array()?.iter().map(token_logprob).collect()
}

fn token_logprob(value: &Value) -> Option<TokenLogprob> {
    let (token, logprob) = token_and_logprob(value, "token")?;
    let alternatives = value.get("top_logprobs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let top_logprobs = alternatives
        .iter()
        .filter_map(|value| token_and_logprob(value, "token"))
        .map(|(token, logprob)| TopLogprob { token, logprob })
        .collect();
    Some(TokenLogprob { token, logprob, top_logprobs })
}

fn token_and_logprob(value: &Value, name: &str) -> Option<(String, f32)> {
    #[expect(clippy::cast_possible_truncation, reason = "a log-probability needs no more than f32")]
    let logprob = value.get("logprob")?.as_f64()? as f32;
    Some((value.get(name)?.as_str()?.to_owned(), logprob))
}

/// Reads a text-generation answer: an object, or a list of one. `stop` texts at its end are cut off, as the chat
/// protocol does.
pub(super) fn text(body: &[u8], stop: &[String]) -> Result<Answer, RemoteError> {
    let value: Value = serde_json::from_slice(body).map_err(|error| not_json(body, &error))?;
    let value = match value {
        Value::Array(mut list) => list.drain(..).next().ok_or(RemoteError::NoChoices)?,
        value => value,
    };
    if let Some(error) = error_object(&value["error"], &value["error_type"]) {
        return Err(error);
    }
    let text = value.get("generated_text").and_then(Value::as_str);
    let text = text.ok_or(RemoteError::NoChoices)?;
    let details = &value["details"];
    let reason = details.get("finish_reason").and_then(Value::as_str);
    let text = without_stop(text, reason.unwrap_or_default(), stop);
    let choice = Choice {
        text: Some(text.to_owned()),
        finish: reason.and_then(finish_reason),
        logprobs: text_logprobs(details),
        ..Choice::default()
    };
    Ok(Answer { choices: vec![choice], usage: text_usage(details), first_token: None })
}

/// A text without the stop text that ended it.
pub(super) fn without_stop<'a>(text: &'a str, reason: &str, stop: &[String]) -> &'a str {
    let ends = stop.iter().filter(|stop| reason == "stop_sequence" && text.ends_with(stop.as_str()));
    &text[..text.len() - ends.map(String::len).max().unwrap_or_default()]
}

/// TGI counts the prompt's tokens only where it lists them.
fn text_usage(details: &Value) -> Option<Usage> {
    let input = details.get("prefill")?.as_array().filter(|tokens| !tokens.is_empty())?.len() as u64;
    Some(Usage { input_tokens: input, output_tokens: details.get("generated_tokens")?.as_u64()?, vision_tokens: None })
}

fn text_logprobs(details: &Value) -> Option<Vec<TokenLogprob>> {
    let tokens = details.get("tokens")?.as_array().filter(|tokens| !tokens.is_empty())?;
    let tops = details.get("top_tokens").and_then(Value::as_array);
    let token = |(place, value): (usize, &Value)| text_token(value, tops.and_then(|tops| tops.get(place)));
    tokens.iter().enumerate().map(token).collect()
}

/// A token of the text-generation protocol with its alternatives.
pub(super) fn text_token(value: &Value, top: Option<&Value>) -> Option<TokenLogprob> {
    let (token, logprob) = token_and_logprob(value, "text")?;
    let top = top.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let top_logprobs = top
        .iter()
        .filter_map(|value| token_and_logprob(value, "text"))
        .map(|(token, logprob)| TopLogprob { token, logprob })
        .collect();
    Some(TokenLogprob { token, logprob, top_logprobs })
}

/// The error inside a success, if there is one.
pub(super) fn error_object(error: &Value, error_type: &Value) -> Option<RemoteError> {
    let message = error_text(error)?;
    let kind = error_type.as_str().or_else(|| error.get("type")?.as_str()).unwrap_or_default();
    // OpenAI-compatible servers put the status that they meant into `code`.
    let code = error.get("code").and_then(|code| code.as_u64().or_else(|| code.as_str()?.parse().ok()));
    if let Some(status) = code.and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code)) {
        return Some(RemoteError::Status { status, message, retry_after: None });
    }
    let overloaded = ["overloaded", "rate_limit"].iter().any(|word| kind.contains(word));
    Some(RemoteError::ErrorObject { message, overloaded })
}

/// The words of an error field: text, or an object with a message.
fn error_text(error: &Value) -> Option<String> {
    match error {
        Value::Null | Value::Bool(false) => None,
        Value::String(text) => Some(short(text)),
        other => {
            Some(short(&other.get("message").and_then(Value::as_str).map_or_else(|| other.to_string(), str::to_owned)))
        }
    }
}

/// What a refusal's body says: an error object's message, otherwise its text.
pub(super) fn refusal(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let Ok(value) = serde_json::from_str::<Value>(&text) else { return short(&text) };
    let field = |name: &str| error_text(value.get(name)?);
    field("error").or_else(|| field("message")).or_else(|| field("detail")).unwrap_or_else(|| short(&text))
}

fn not_json(body: &[u8], error: &serde_json::Error) -> RemoteError {
    let start = short(&String::from_utf8_lossy(&body[..body.len().min(600)]));
    let start: String = start.chars().take(80).collect();
    RemoteError::BadAnswer { reason: format!("{error}; it begins {start:?}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn one(value: &Value) -> Choice {
        chat(value.to_string().as_bytes()).unwrap().choices.remove(0)
    }

    #[test]
    fn content_may_be_text_nothing_or_parts() {
        let with = |content: Value| json!({"choices": [{"message": {"content": content}}]});
        assert_eq!(one(&with(json!("a"))).text.as_deref(), Some("a"));
        assert_eq!(one(&with(json!(""))).text.as_deref(), Some(""));
        assert_eq!(one(&with(Value::Null)).text, None);
        assert_eq!(one(&with(json!([{"type": "text", "text": "a"}, {"text": "b"}]))).text.as_deref(), Some("ab"));
        assert!(chat(with(json!(7)).to_string().as_bytes()).is_err());
    }

    #[test]
    fn the_sampled_tokens_own_value_is_kept() {
        let value = json!({"choices": [{"message": {"content": "a"}, "logprobs": {"content": [
            {"token": "a", "logprob": -2.5, "top_logprobs": [{"token": "b", "logprob": -0.5}]}]}}]});
        let expected = TokenLogprob {
            token: "a".to_owned(),
            logprob: -2.5,
            top_logprobs: vec![TopLogprob { token: "b".to_owned(), logprob: -0.5 }],
        };
        assert_eq!(one(&value).logprobs, Some(vec![expected]));
    }

    #[test]
    fn odd_extras_do_not_cost_the_text() {
        let value = json!({"choices": [{"index": "x", "message": {"content": "a", "tool_calls": 3}, "finish_reason": 7,
            "logprobs": {"content": null}}], "usage": {"prompt_tokens": -1}, "error": null});
        let answer = chat(value.to_string().as_bytes()).unwrap();
        assert_eq!(answer.usage, None);
        assert_eq!(answer.choices, [Choice { text: Some("a".to_owned()), ..Choice::default() }]);
    }

    #[test]
    fn errors_inside_a_success() {
        let read = |value: Value| chat(value.to_string().as_bytes()).unwrap_err();
        let busy = read(json!({"error": "Model too busy", "error_type": "overloaded"}));
        assert!(matches!(busy, RemoteError::ErrorObject { overloaded: true, .. }), "{busy}");
        let refused = read(json!({"error": {"message": "no", "code": 400}}));
        assert!(matches!(refused, RemoteError::Status { status: 400, .. }), "{refused}");
        assert!(matches!(read(json!({"choices": []})), RemoteError::NoChoices));
        assert!(matches!(read(json!({"choices": null})), RemoteError::NoChoices));
        assert!(matches!(read(json!([1])), RemoteError::BadAnswer { .. }));
    }

    #[test]
    fn a_stop_text_is_cut_only_where_it_stopped() {
        let read = |reason: &str| {
            let value = json!([{"generated_text": "abEND", "details": {"finish_reason": reason}}]);
            text(value.to_string().as_bytes(), &["D".to_owned(), "END".to_owned()]).unwrap().choices.remove(0)
        };
        assert_eq!(read("stop_sequence").text.as_deref(), Some("ab"));
        assert_eq!(read("length").text.as_deref(), Some("abEND"));
    }

    #[test]
    fn refusals_in_every_form() {
        assert_eq!(refusal(br#"{"error":{"message":"too long"}}"#), "too long");
        assert_eq!(refusal(br#"{"error":"too long"}"#), "too long");
        assert_eq!(refusal(br#"{"message":"too  long\n"}"#), "too long");
        assert_eq!(refusal(b"<html>\n<h1>Bad Gateway"), "<html> <h1>Bad Gateway");
        assert_eq!(refusal(b"\xff\xfe").chars().count(), 2);
    }

    /// JSON of the shapes that the reader looks into, with anything at any place.
    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        let key = prop::sample::select(vec![
            "choices",
            "message",
            "content",
            "usage",
            "prompt_tokens",
            "completion_tokens",
            "logprobs",
            "token",
            "logprob",
            "top_logprobs",
            "error",
            "code",
            "type",
            "index",
            "finish_reason",
            "tool_calls",
            "generated_text",
            "details",
            "tokens",
            "top_tokens",
            "prefill",
            "text",
            "delta",
            "function",
            "arguments",
        ]);
        leaf.prop_recursive(6, 60, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..5)
                    .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (chat(&bytes), text(&bytes, &["a".to_owned()]), refusal(&bytes));
        }

        #[test]
        fn no_json_makes_it_panic(value in anything()) {
            let bytes = value.to_string().into_bytes();
            let _ = (chat(&bytes), text(&bytes, &["a".to_owned()]), refusal(&bytes));
            let wrapped = json!({"choices": [value]}).to_string().into_bytes();
            if let Ok(answer) = chat(&wrapped) {
                prop_assert!(!answer.choices.is_empty());
            }
        }
    }
}
