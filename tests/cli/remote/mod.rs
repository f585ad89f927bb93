//! `vgen-remote` against a scripted server on loopback: what arrives there, what stands in the output, how it ends.

mod faults;
mod rows;
mod wire;

use serde_json::{Value, json};
use vgen_loopback::{Answer, Received, Server};

use crate::support::{Ended, Scratch, ended};

const KEY: &str = "hf_open_sesame_123456";
const METADATA: &str = "distilabel_metadata";

fn chat(text: &str) -> Value {
    json!({
        "object": "chat.completion", "id": "", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 26}
    })
}

/// The text of the last message.
fn asked(request: &Received) -> String {
    let body = request.json();
    let content = &body["messages"].as_array().unwrap().last().unwrap()["content"];
    let part = content.as_array().and_then(|parts| parts.iter().find_map(|part| part["text"].as_str()));
    content.as_str().or(part).unwrap().to_owned()
}

fn echo(request: &Received) -> Answer {
    Answer::json(&chat(&format!("answer to {}", asked(request))))
}

fn rows(count: usize) -> String {
    let row = |id| {
        format!("{{\"id\": {id}, \"instruction\": \"question {id}\", \"image\": \"https://example.com/{id}.png\"}}\n")
    };
    (0..count).map(row).collect()
}

struct Run {
    scratch: Scratch,
    server: Server,
}

impl Run {
    fn new(rows: impl AsRef<[u8]>, script: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> Self {
        let scratch = Scratch::new();
        scratch.file("rows.jsonl", rows);
        Self { scratch, server: Server::start(script).unwrap() }
    }

    /// `vgen-remote` over the rows, in a hurry.
    fn remote(&self, args: &[&str]) -> Ended {
        let url = self.server.url();
        let base = ["--base-url", &url, "--input", "rows.jsonl", "--output", "out.jsonl", "--backoff-base", "0.002"];
        self.bare(&[&base[..], args].concat())
    }

    fn bare(&self, args: &[&str]) -> Ended {
        let mut command = self.scratch.command("vgen-remote");
        ended(command.env("HF_TOKEN", KEY).args(args).output().unwrap())
    }

    fn rows(&self) -> Vec<Value> {
        self.scratch.rows("out.jsonl")
    }
}
