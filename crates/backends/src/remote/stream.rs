//! Server-sent events, and a streamed chat answer put together from them.
//!
//! Source: <https://html.spec.whatwg.org/multipage/server-sent-events.html>, of which chat servers use `data` only.

use serde_json::{Map, Value, json};
use vgen_core::TokenLogprob;

use super::RemoteError;
use super::answer::{self, Answer, Choice};

/// Splits bytes as they arrive into events.
#[derive(Debug, Default)]
pub(super) struct Events {
    buffer: Vec<u8>,
    /// How much of the buffer is known to hold no line end.
    searched: usize,
    data: String,
    started: bool,
}

impl Events {
    /// Takes more bytes; returns the data of the events that they complete.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        self.buffer.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut start = 0;
        while let Some(end) = self.buffer[self.searched..].iter().position(|b| matches!(b, b'\n' | b'\r')) {
            let end = self.searched + end;
            let mut next = end + 1;
            if self.buffer[end] == b'\r' {
                match self.buffer.get(next) {
                    Some(b'\n') => next += 1,
                    Some(_) => {}
                    // Whether a line feed belongs to it is not known yet.
                    None => break,
                }
            }
            let line = String::from_utf8_lossy(&self.buffer[start..end]).into_owned();
            self.line(&line, &mut events);
            start = next;
            self.searched = next;
        }
        self.buffer.drain(..start);
        self.searched = self.buffer.iter().rposition(|b| *b == b'\r').unwrap_or(self.buffer.len());
        events
    }

    /// The event that the end of the stream completes, if any: not every server ends with an empty line.
    pub(super) fn finish(&mut self) -> Vec<String> {
        let mut events = self.feed(b"\n\n");
        events.retain(|event| !event.is_empty());
        events
    }

    fn line(&mut self, line: &str, events: &mut Vec<String>) {
        let line = if self.started { line } else { line.trim_start_matches('\u{feff}') };
        self.started = true;
        if line.is_empty() {
            if !self.data.is_empty() {
                events.push(std::mem::take(&mut self.data));
            }
        } else if let Some(data) = line.strip_prefix("data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
    }
}

/// A streamed answer so far: of the chat protocol, or of the text-generation protocol.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    /// Stop texts to cut off; only the text-generation protocol leaves them in.
    stop: Option<Vec<String>>,
    choices: Vec<Partial>,
    usage: Value,
    done: bool,
    /// Whether any token has come.
    pub(super) begun: bool,
}

#[derive(Debug, Default)]
struct Partial {
    index: usize,
    text: Option<String>,
    reasoning: Option<String>,
    finish: Option<String>,
    logprobs: Option<Vec<TokenLogprob>>,
    calls: Vec<Value>,
}

impl Assembly {
    /// Of the text-generation protocol.
    pub(super) fn of_text(stop: &[String]) -> Self {
        Self { stop: Some(stop.to_owned()), ..Self::default() }
    }

    /// An answer that came whole after all.
    pub(super) fn whole(self, body: &[u8]) -> Result<Answer, RemoteError> {
        match &self.stop {
            Some(stop) => answer::text(body, stop),
            None => answer::chat(body),
        }
    }

    /// Takes an event's data.
    ///
    /// # Errors
    /// If it is no chunk, or an error of the server.
    pub(super) fn event(&mut self, data: &str) -> Result<(), RemoteError> {
        if data.trim() == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let bad = |reason: &str| RemoteError::BadAnswer { reason: reason.to_owned() };
        let chunk: Value = serde_json::from_str(data).map_err(|error| bad(&format!("an event is no JSON: {error}")))?;
        let Value::Object(mut chunk) = chunk else { return Err(bad("an event is no object")) };
        let kind = chunk.get("error_type").unwrap_or(&Value::Null);
        if let Some(error) = answer::error_object(chunk.get("error").unwrap_or(&Value::Null), kind) {
            return Err(error);
        }
        if self.stop.is_some() {
            self.text_event(&chunk);
            return Ok(());
        }
        if let Some(usage) = chunk.remove("usage").filter(|usage| !usage.is_null()) {
            self.usage = usage;
        }
        if let Some(Value::Array(choices)) = chunk.remove("choices") {
            for (place, choice) in choices.into_iter().enumerate() {
                self.choice(place, &choice);
            }
        }
        Ok(())
    }

    /// A token of the text-generation protocol; the last one comes with the whole text.
    fn text_event(&mut self, chunk: &Map<String, Value>) {
        let stop = self.stop.as_deref().unwrap_or_default();
        if self.choices.is_empty() {
            self.choices.push(Partial::default());
        }
        let Some(partial) = self.choices.first_mut() else { return };
        if let Some(token) = chunk.get("token") {
            let text = token.get("text").and_then(Value::as_str).unwrap_or_default();
            if token.get("special").and_then(Value::as_bool) != Some(true) {
                partial.text.get_or_insert_default().push_str(text);
                self.begun |= !text.is_empty();
            }
            if let Some(token) = answer::text_token(token, chunk.get("top_tokens")) {
                partial.logprobs.get_or_insert_default().push(token);
            }
        }
        if let Some(text) = chunk.get("generated_text").and_then(Value::as_str) {
            let details = chunk.get("details").unwrap_or(&Value::Null);
            let reason = details.get("finish_reason").and_then(Value::as_str).unwrap_or_default();
            partial.text = Some(answer::without_stop(text, reason, stop).to_owned());
            partial.finish = Some(reason.to_owned());
            self.usage = json!({
                "prompt_tokens": details.get("input_length"), "completion_tokens": details.get("generated_tokens"),
            });
            self.done = true;
        }
    }

    fn choice(&mut self, place: usize, wire: &Value) {
        let index = wire.get("index").and_then(Value::as_u64).and_then(|i| usize::try_from(i).ok()).unwrap_or(place);
        let at = self.choices.iter().position(|partial| partial.index == index).unwrap_or_else(|| {
            self.choices.push(Partial { index, ..Partial::default() });
            self.choices.len() - 1
        });
        let Some(partial) = self.choices.get_mut(at) else { return };
        let delta = wire.get("delta").unwrap_or(&Value::Null);
        if let Some(text) = delta.get("content").and_then(Value::as_str) {
            partial.text.get_or_insert_default().push_str(text);
            self.begun |= !text.is_empty();
        }
        let reasoning = ["reasoning_content", "reasoning"].iter().find_map(|key| delta.get(*key)?.as_str());
        if let Some(text) = reasoning {
            partial.reasoning.get_or_insert_default().push_str(text);
            self.begun |= !text.is_empty();
        }
        for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            merge_call(&mut partial.calls, call);
            self.begun = true;
        }
        if let Some(reason) = wire.get("finish_reason").and_then(Value::as_str) {
            partial.finish = Some(reason.to_owned());
        }
        if let Some(more) = wire.get("logprobs").and_then(answer::logprobs) {
            partial.logprobs.get_or_insert_default().extend(more);
        }
    }

    /// Texts so far, with the choice's index, without an end that may become a stop text.
    pub(super) fn texts(&self) -> impl Iterator<Item = (usize, &str)> {
        let stop = self.stop.as_deref().filter(|_| !self.done).unwrap_or_default();
        self.choices.iter().filter_map(move |partial| Some((partial.index, settled(partial.text.as_deref()?, stop))))
    }

    /// The whole answer.
    ///
    /// # Errors
    /// If the stream ended before the generations did: a cut text must not look complete.
    pub(super) fn finish(self, first_token: Option<f64>) -> Result<Answer, RemoteError> {
        if self.choices.is_empty() && self.done {
            return Err(RemoteError::NoChoices);
        }
        if !self.done && (self.choices.is_empty() || self.choices.iter().any(|partial| partial.finish.is_none())) {
            return Err(RemoteError::Broken { reason: "the stream ended before the answer did".to_owned() });
        }
        Ok(self.so_far(first_token))
    }

    /// What there is, complete or not.
    pub(super) fn so_far(self, first_token: Option<f64>) -> Answer {
        let choices = self.choices.into_iter().map(|partial| Choice {
            index: partial.index,
            text: partial.text,
            finish: partial.finish.as_deref().and_then(answer::finish_reason),
            logprobs: partial.logprobs,
            tool_calls: (!partial.calls.is_empty()).then(|| partial.calls.into()),
            reasoning: partial.reasoning,
        });
        Answer { choices: choices.collect(), usage: answer::usage(&self.usage), first_token }
    }
}

/// A text without the longest end with which a stop text may begin.
fn settled<'a>(text: &'a str, stop: &[String]) -> &'a str {
    let starts = stop.iter().flat_map(|stop| stop.char_indices().map(|(at, c)| &stop[..at + c.len_utf8()]));
    let held = starts.filter(|start| text.ends_with(start)).map(str::len).max().unwrap_or_default();
    &text[..text.len() - held]
}

/// Adds a piece of a tool call: pieces with the same index belong together, arguments come as a text in parts.
fn merge_call(calls: &mut Vec<Value>, piece: &Value) {
    let Value::Object(piece) = piece else { return };
    let index = piece.get("index").cloned().unwrap_or_else(|| json!(0));
    let known = calls.iter_mut().find(|call| call.get("index").unwrap_or(&json!(0)) == &index);
    match known.and_then(Value::as_object_mut) {
        Some(call) => merge(call, piece),
        None => calls.push(Value::Object(piece.clone())),
    }
}

fn merge(call: &mut Map<String, Value>, piece: &Map<String, Value>) {
    for (key, value) in piece {
        match (call.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (Some(Value::String(old)), Value::String(new)) if key == "arguments" => old.push_str(new),
            (Some(_), Value::Null) => {}
            _ => {
                call.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use proptest::prelude::*;
    use vgen_core::{FinishReason, Usage};

    use super::*;

    fn whole(text: &str) -> Vec<String> {
        let mut events = Events::default();
        let mut all = events.feed(text.as_bytes());
        all.extend(events.finish());
        all
    }

    #[test]
    fn events_in_every_line_ending() {
        for end in ["\n", "\r\n", "\r"] {
            let text = "\u{feff}: hello\ndata: a\ndata:b\n\nevent: x\ndata:  c\n\n\ndata\n\ndata: d".replace('\n', end);
            assert_eq!(whole(&text), ["a\nb", " c", "d"], "{end:?}");
        }
    }

    proptest! {
        #[test]
        fn events_do_not_depend_on_how_bytes_arrive(
            parts in prop::collection::vec(prop::sample::select(vec![
                "data: ", "data:", "x", "é", "\n", "\r\n", "\r", "\n\n", ":c", "event: e", "[DONE]",
            ]), 0..30),
            cuts in prop::collection::vec(1_usize..7, 1..40),
        ) {
            let text = parts.concat();
            let mut events = Events::default();
            let mut pieces = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                pieces.extend(events.feed(now));
                rest = later;
            }
            pieces.extend(events.finish());
            prop_assert_eq!(pieces, whole(&text));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), data in ".{0,60}") {
            for mut assembly in [Assembly::default(), Assembly::of_text(&["ab".to_owned()])] {
                let mut events = Events::default();
                for event in events.feed(&bytes).into_iter().chain(events.finish()).chain([data.clone()]) {
                    let _ = assembly.event(&event);
                }
                let _ = assembly.texts().count();
                let _ = assembly.finish(None);
            }
        }
    }

    fn assemble(events: &[Value]) -> Result<Answer, RemoteError> {
        let mut assembly = Assembly::default();
        for event in events {
            assembly.event(&event.as_str().map_or_else(|| event.to_string(), str::to_owned))?;
        }
        assembly.finish(None)
    }

    #[test]
    fn an_answer_is_put_together() {
        let answer = assemble(&[
            json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
            json!({"choices": [{"index": 0, "delta": {"content": "a b"}, "logprobs": {"content": [{"token": "a", "logprob": -1.0}]}}]}),
            json!({"choices": [{"index": 1, "delta": {"content": "x", "reasoning": "hm"}}]}),
            json!({"choices": [{"index": 0, "delta": {"content": " c"}, "finish_reason": "length"}]}),
            json!({"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
            json!("[DONE]"),
        ]);
        let answer = answer.unwrap();
        assert_eq!(answer.usage, Some(Usage { input_tokens: 3, output_tokens: 4, vision_tokens: None }));
        assert_eq!(answer.choices[0].text.as_deref(), Some("a b c"));
        assert_eq!(answer.choices[0].finish, Some(FinishReason::Length));
        assert_eq!(answer.choices[0].logprobs.as_ref().unwrap().len(), 1);
        assert_eq!(
            (answer.choices[1].text.as_deref(), answer.choices[1].reasoning.as_deref()),
            (Some("x"), Some("hm"))
        );
    }

    #[test]
    fn the_text_protocol_sends_tokens_and_then_all() {
        let token = |text: &str, special: bool| json!({"token": {"text": text, "logprob": -0.5, "special": special}});
        let mut assembly = Assembly::of_text(&["END".to_owned()]);
        let mut told = Vec::new();
        let mut last = token("</s>", true);
        last["generated_text"] = json!("a bEND");
        last["details"] = json!({"finish_reason": "stop_sequence", "generated_tokens": 4, "input_length": 9});
        for event in [token("a", false), token(" bE", false), token("ND", false), last] {
            assembly.event(&event.to_string()).unwrap();
            told.push(assembly.texts().next().unwrap().1.to_owned());
        }
        assert_eq!(told, ["a", "a b", "a b", "a b"]);
        let answer = assembly.finish(Some(0.1)).unwrap();
        assert_eq!(answer.usage, Some(Usage { input_tokens: 9, output_tokens: 4, vision_tokens: None }));
        let choice = &answer.choices[0];
        assert_eq!((choice.text.as_deref(), choice.finish), (Some("a b"), Some(FinishReason::Stop)));
        assert_eq!(choice.logprobs.as_ref().unwrap().len(), 4);
        let mut cut = Assembly::of_text(&[]);
        cut.event(&token("a", false).to_string()).unwrap();
        assert!(matches!(cut.finish(None), Err(RemoteError::Broken { .. })));
        let busy = Assembly::of_text(&[]).event(r#"{"error": "busy", "error_type": "overloaded"}"#).unwrap_err();
        assert!(matches!(busy, RemoteError::ErrorObject { overloaded: true, .. }), "{busy}");
    }

    #[test]
    fn tool_calls_come_in_pieces() {
        let call = |piece: Value| json!({"choices": [{"delta": {"tool_calls": [piece]}}]});
        let answer = assemble(&[
            call(json!({"index": 0, "id": "1", "function": {"name": "f", "arguments": "{\"n\""}})),
            call(json!({"index": 0, "function": {"arguments": ":3}"}})),
            call(json!({"index": 1, "id": "2", "function": {"name": "g", "arguments": ""}})),
            json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}),
        ]);
        let calls = answer.unwrap().choices[0].tool_calls.clone().unwrap();
        assert_eq!(calls[0]["function"], json!({"name": "f", "arguments": "{\"n\":3}"}));
        assert_eq!(calls[1]["id"], "2");
    }

    #[test]
    fn a_cut_stream_is_no_answer() {
        let start = json!({"choices": [{"delta": {"content": "a"}}]});
        assert!(matches!(assemble(std::slice::from_ref(&start)), Err(RemoteError::Broken { .. })));
        assert!(matches!(assemble(&[]), Err(RemoteError::Broken { .. })));
        assert!(matches!(assemble(&[json!("[DONE]")]), Err(RemoteError::NoChoices)));
        let error = assemble(&[start, json!({"error": {"message": "out of memory"}})]).unwrap_err();
        assert!(matches!(error, RemoteError::ErrorObject { .. }), "{error}");
    }
}
