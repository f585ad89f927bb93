//! What the tests share: a backend in a hurry, questions, answers, and a run that counts replies.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde_json::{Value, json};
use vgen_backends::remote::{RemoteBackend, RemoteConfig, RemoteHooks, RemoteSecrets};
use vgen_core::{Backend, Content, Fault, ImageRef, Message, Part, Request, Response, Role, SamplingParams, Secret};
use vgen_loopback::{Answer, Received, Server};

pub(crate) const IMAGE: &str = "https://example.com/boardwalk.jpg";

/// A config with short pauses and limits.
pub(crate) fn config(base_url: &str) -> RemoteConfig {
    RemoteConfig {
        base_url: Some(base_url.to_owned()),
        backoff_base: 0.002,
        backoff_max: 0.01,
        connect_timeout: 2.0,
        first_byte_timeout: 5.0,
        idle_timeout: 5.0,
        total_timeout: 10.0,
        max_elapsed: 20.0,
        max_attempts: 4,
        ..RemoteConfig::default()
    }
}

pub(crate) fn connect(config: RemoteConfig) -> RemoteBackend {
    RemoteBackend::connect(config, RemoteSecrets { api_key: Secret::new("hf_sesame") }, RemoteHooks::default()).unwrap()
}

/// A server that answers every request, and a backend for it.
pub(crate) fn pair(
    script: impl Fn(&Received) -> Answer + Send + Sync + 'static,
    change: impl FnOnce(&mut RemoteConfig),
) -> (Server, RemoteBackend) {
    let server = Server::start(script).unwrap();
    let mut config = config(&server.url());
    change(&mut config);
    let backend = connect(config);
    (server, backend)
}

/// A question about an image.
pub(crate) fn question(row: u64) -> Request {
    let parts = vec![Part::Text(format!("row {row}")), Part::Image(ImageRef::Url(IMAGE.into()))];
    let message = Message { role: Role::User, content: Content::Parts(parts) };
    Request::new(row, vec![message], SamplingParams::default())
}

/// The text of a request's last message.
pub(crate) fn asked(request: &Received) -> String {
    let body = request.json();
    let content = &body["messages"].as_array().unwrap().last().unwrap()["content"];
    content.as_str().or_else(|| content[0]["text"].as_str()).unwrap().to_owned()
}

pub(crate) fn chat(text: &str) -> Value {
    json!({
        "object": "chat.completion", "id": "", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": null,
                     "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 26}
    })
}

/// Answers with what was asked.
pub(crate) fn echo(request: &Received) -> Answer {
    Answer::json(&chat(&format!("answer to {}", asked(request))))
}

/// Asks everything at once; the results in the order of the questions. Each must be answered exactly once.
pub(crate) fn run(backend: &RemoteBackend, requests: Vec<Request>) -> Vec<Result<Response, Fault>> {
    let count = requests.len();
    let replies: Arc<Vec<AtomicUsize>> = Arc::new((0..count).map(|_| AtomicUsize::new(0)).collect());
    let (send, receive) = mpsc::channel();
    for (place, request) in requests.into_iter().enumerate() {
        let (send, replies) = (send.clone(), Arc::clone(&replies));
        backend.submit(
            request,
            Box::new(move |result| {
                replies[place].fetch_add(1, Ordering::SeqCst);
                send.send((place, result)).unwrap();
            }),
        );
    }
    drop(send);
    let mut results: Vec<Option<Result<Response, Fault>>> = (0..count).map(|_| None).collect();
    for _ in 0..count {
        let (place, result) = receive.recv_timeout(Duration::from_secs(60)).expect("a row was lost");
        assert!(results[place].replace(result).is_none(), "row {place} was answered twice");
    }
    assert!(receive.recv_timeout(Duration::from_millis(20)).is_err(), "an answer too many");
    assert!(replies.iter().all(|replies| replies.load(Ordering::SeqCst) == 1));
    results.into_iter().map(Option::unwrap).collect()
}

/// The text of a row's only generation.
pub(crate) fn text(result: &Result<Response, Fault>) -> Result<String, Fault> {
    let response = result.as_ref().map_err(Clone::clone)?;
    assert_eq!(response.generations.len(), 1);
    let generation = response.generations[0].as_ref().map_err(Clone::clone)?;
    Ok(generation.text.clone().unwrap_or_default())
}

/// The fault of a row's only generation.
pub(crate) fn fault(result: &Result<Response, Fault>) -> Fault {
    let fault = text(result).expect_err("an answer where a fault was due");
    assert!(!format!("{fault:?}").contains("sesame"), "the key is in {fault:?}");
    fault
}

pub(crate) fn one(backend: &RemoteBackend) -> Result<Response, Fault> {
    run(backend, vec![question(0)]).remove(0)
}
