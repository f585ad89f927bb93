//! [`OpenAiBatch`]: the requests of an OpenAI batch file, answered as its output file has them.
//!
//! A line of the input is `{"custom_id", "method", "url": "/v1/chat/completions", "body": {"messages", ...}}`. The body's
//! parameters override the run's; its `model` is not used, since the run's model answers. A parameter that can't be
//! honoured fails its row, it is never ignored.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use vgen_core::{
    Constraint, Content, Fault, FinishReason, Generation, ImageRef, MAX_NUM_GENERATIONS, Message, Part, Response, Role,
    Row, SamplingParams,
};

use crate::config::ImagePosition;
use crate::images::url_or_path;
use crate::render::{Rendered, RowContext};

/// Keys of a body that say nothing about the answer.
const NEUTRAL: [&str; 5] = ["messages", "model", "user", "metadata", "store"];

/// Asks what the lines of a batch file ask.
#[derive(Clone, Copy, Debug)]
pub struct OpenAiBatch {
    /// Whether images are put before the text of their message.
    pub image_position: ImagePosition,
}

#[derive(Deserialize)]
struct WireMessage {
    role: String,
    content: Value,
}

fn wrong(message: impl Into<String>) -> Fault {
    Fault::row("batch.request", message).with_hint(
        "a line is {\"custom_id\", \"method\", \"url\": \"/v1/chat/completions\", \"body\": {\"messages\", ...}}",
    )
}

impl OpenAiBatch {
    /// Whether a row is a line of a batch file.
    pub fn is_request(row: &Row) -> bool {
        row.text("custom_id").is_some() && row.get("body").is_some_and(|body| body.get().starts_with('{'))
    }

    /// The messages of a row's request.
    ///
    /// # Errors
    /// `batch.request`, `image.*`
    pub fn render(&self, row: &Row, context: &RowContext<'_>) -> Result<Rendered, Fault> {
        if row.text("custom_id").is_none() {
            return Err(wrong("the request has no custom_id"));
        }
        if let Some(url) = row.text("url")
            && !url.ends_with("/chat/completions")
        {
            return Err(wrong(format!("requests to {url:?} can't be answered")));
        }
        let body = body(row)?;
        let messages = body.get("messages").cloned().unwrap_or(Value::Null);
        let messages: Vec<WireMessage> =
            serde_json::from_value(messages).map_err(|error| wrong(format!("its messages: {error}")))?;
        if messages.is_empty() {
            return Err(wrong("the request has no messages"));
        }
        let messages = messages.into_iter().map(|message| self.message(message, context.base_dir));
        Ok(Rendered { messages: messages.collect::<Result<_, _>>()?, raw_input: None })
    }

    fn message(&self, message: WireMessage, base_dir: Option<&Path>) -> Result<Message, Fault> {
        let role = match message.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => return Err(wrong(format!("messages of the role {other:?} can't be answered"))),
        };
        let parts = match message.content {
            Value::String(text) => return Ok(Message::text(role, text)),
            Value::Array(parts) => parts,
            _ => return Err(wrong("a message's content is neither text nor a list of parts")),
        };
        let mut read = Vec::with_capacity(parts.len());
        for part in &parts {
            let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
            read.push(match (kind, part.get("text").and_then(Value::as_str), part.get("image_url")) {
                ("text", Some(text), _) => Part::Text(text.to_owned()),
                ("image_url", _, Some(url)) => Part::Image(image(url, base_dir)?),
                _ => return Err(wrong(format!("parts of the type {kind:?} can't be answered"))),
            });
        }
        if self.image_position == ImagePosition::First {
            read.sort_by_key(|part| matches!(part, Part::Text(_)));
        }
        Ok(Message { role, content: Content::Parts(read) })
    }

    /// The run's parameters with those of the row's body over them, and how many answers it wants.
    ///
    /// # Errors
    /// `batch.request`
    pub fn sampling(&self, row: &Row, run: &SamplingParams) -> Result<(SamplingParams, u32), Fault> {
        let mut sampling = run.clone();
        let mut count = 1;
        for (name, value) in &body(row)? {
            if value.is_null() || NEUTRAL.contains(&name.as_str()) {
                continue;
            }
            let bad = || wrong(format!("the body's {name} can't be {value}"));
            let number = || value.as_f64().ok_or_else(bad);
            let whole = || value.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(bad);
            match name.as_str() {
                "max_tokens" | "max_completion_tokens" => sampling.max_new_tokens = Some(whole()?),
                "temperature" => sampling.temperature = Some(number()?),
                "top_p" => sampling.top_p = Some(number()?),
                "top_k" => sampling.top_k = Some(whole()?),
                "min_p" => sampling.min_p = Some(number()?),
                "repetition_penalty" => sampling.repetition_penalty = Some(number()?),
                "frequency_penalty" => sampling.frequency_penalty = Some(number()?),
                "presence_penalty" => sampling.presence_penalty = Some(number()?),
                "seed" => sampling.seed = Some(value.as_u64().ok_or_else(bad)?),
                "n" => count = whole().ok().filter(|n| (1..=MAX_NUM_GENERATIONS).contains(n)).ok_or_else(bad)?,
                "logprobs" => sampling.logprobs = value.as_bool().ok_or_else(bad)?,
                "top_logprobs" => sampling.top_logprobs = whole()?,
                "stop" => {
                    sampling.stop = match value {
                        Value::String(text) => vec![text.clone()],
                        list => serde_json::from_value(list.clone()).map_err(|_| bad())?,
                    }
                }
                "logit_bias" => sampling.logit_bias = serde_json::from_value(value.clone()).map_err(|_| bad())?,
                "response_format" => sampling.constraint = constraint(value).ok_or_else(bad)?,
                "stream" if value == &Value::Bool(false) => {}
                _ => return Err(wrong(format!("the body's {name} can't be honoured"))),
            }
        }
        Ok((sampling, count))
    }

    /// The line of the output file.
    pub fn output_rows(&self, row: &Row, result: &Result<Response, Fault>) -> Vec<Row> {
        let custom_id = row.text("custom_id").map(std::borrow::Cow::into_owned);
        let id = format!("batch_req_{}", custom_id.as_deref().unwrap_or_default());
        let (response, error) = match result.as_ref().map_err(Clone::clone).and_then(|response| answer(&id, response)) {
            Ok(body) => (json!({"status_code": 200, "request_id": id, "body": body}), None),
            Err(fault) => (Value::Null, Some(fault)),
        };
        let mut out = Row::new();
        // Plain data always serialises.
        let _ = out.set("id", &id);
        let _ = out.set("custom_id", &custom_id);
        let _ = out.set("response", &response);
        let _ = out.set("error", &error);
        vec![out]
    }
}

fn body(row: &Row) -> Result<Map<String, Value>, Fault> {
    row.parse("body").map_err(|error| wrong(error.to_string()))
}

fn image(value: &Value, base_dir: Option<&Path>) -> Result<ImageRef, Fault> {
    let url = value.as_str().or_else(|| value.get("url").and_then(Value::as_str));
    let url = url.ok_or_else(|| wrong("an image has no URL"))?;
    let given = url_or_path(url, base_dir).map_err(|error| {
        let mut fault = Fault::row(error.code, error.message);
        fault.hint = error.hint.map(str::to_owned);
        fault
    })?;
    Ok(given.image)
}

fn constraint(format: &Value) -> Option<Option<Constraint>> {
    match format.get("type")?.as_str()? {
        "text" => Some(None),
        "json_object" => Some(Some(Constraint::JsonSchema(json!({"type": "object"})))),
        "json_schema" => Some(Some(Constraint::JsonSchema(format.get("json_schema")?.get("schema")?.clone()))),
        _ => None,
    }
}

/// The body of a chat completion. It has no time in it: the same answer is the same line.
fn answer(id: &str, response: &Response) -> Result<Value, Fault> {
    let mut choices = Vec::with_capacity(response.generations.len());
    let (mut prompt, mut completion) = (0, 0);
    for (index, generation) in response.generations.iter().enumerate() {
        let generation: &Generation = generation.as_ref().map_err(Clone::clone)?;
        let usage = generation.usage.unwrap_or_default();
        prompt = prompt.max(usage.input_tokens);
        completion += usage.output_tokens;
        let mut message = json!({"role": "assistant", "content": generation.text});
        if let (Some(calls), Some(message)) = (&generation.tool_calls, message.as_object_mut()) {
            message.insert("tool_calls".to_owned(), calls.clone());
        }
        let reason = match generation.finish_reason {
            Some(FinishReason::Deadline | FinishReason::Cancelled) => Some(FinishReason::Length),
            other => other,
        };
        let logprobs = generation.logprobs.as_ref().map(|tokens| json!({"content": tokens}));
        choices.push(json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}));
    }
    Ok(json!({
        "id": id.replacen("batch_req_", "chatcmpl-", 1),
        "object": "chat.completion",
        "created": 0,
        "model": response.model_name,
        "choices": choices,
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }))
}
