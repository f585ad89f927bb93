//! Streamed answers: pieces as they come, the time of the first, broken streams, rows given up half way.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::json;
use vgen_core::{Backend, CancelToken, Fault, FinishReason, Reply, Request, Response};
use vgen_loopback::Answer;

use crate::support::{fault, one, pair, question};

type Deltas = Arc<Mutex<Vec<(u32, String)>>>;

/// Collects pieces and the end.
struct Listener {
    deltas: Deltas,
    done: mpsc::Sender<Result<Response, Fault>>,
}

impl Reply for Listener {
    fn delta(&mut self, sample: u32, text: &str) {
        self.deltas.lock().unwrap().push((sample, text.to_owned()));
    }

    fn done(self: Box<Self>, result: Result<Response, Fault>) {
        self.done.send(result).unwrap();
    }
}

fn listen(backend: &dyn Backend, request: Request) -> (Deltas, mpsc::Receiver<Result<Response, Fault>>) {
    let (done, receive) = mpsc::channel();
    let deltas = Deltas::default();
    backend.submit(request, Box::new(Listener { deltas: Arc::clone(&deltas), done }));
    (deltas, receive)
}

fn pieces(texts: &[&str]) -> Vec<String> {
    let mut events: Vec<_> =
        texts.iter().map(|text| json!({"choices": [{"index": 0, "delta": {"content": text}}]}).to_string()).collect();
    events.push(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).to_string());
    events.push(json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).to_string());
    events.push("[DONE]".to_owned());
    events
}

#[test]
fn pieces_arrive_as_they_come() {
    let (server, backend) =
        pair(|_| Answer::events(pieces(&["a", " é", "b"]), Duration::from_millis(30)), |config| config.stream = true);
    let (deltas, done) = listen(&backend, question(0));
    let response = done.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    let generation = response.generations[0].as_ref().unwrap();
    assert_eq!(generation.text.as_deref(), Some("a éb"));
    assert_eq!(generation.finish_reason, Some(FinishReason::Stop));
    assert_eq!(generation.usage.unwrap().output_tokens, 3);
    let expected = ["a", " é", "b"].map(|text| (0, text.to_owned()));
    assert_eq!(*deltas.lock().unwrap(), expected);
    let (first, total) = (generation.timings.first_token.unwrap(), generation.timings.total);
    assert!(first >= 0.025 && total >= first + 0.1, "{first} {total}");
    let body = server.received()[0].json();
    assert_eq!((&body["stream"], &body["stream_options"]), (&json!(true), &json!({"include_usage": true})));
}

#[test]
fn a_server_without_streaming_answers_whole() {
    let (_server, backend) = pair(crate::support::echo, |config| config.stream = true);
    assert_eq!(crate::support::text(&one(&backend)), Ok("answer to row 0".to_owned()));
}

#[test]
fn a_broken_stream_is_begun_again_and_no_piece_is_told_twice() {
    let count = AtomicUsize::new(0);
    let (server, backend) = pair(
        move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::events(&pieces(&["a", "b", "c"])[..2], Duration::from_millis(10)).cut(),
            1 => Answer::events(&pieces(&["a", "b", "c"])[..2], Duration::from_millis(10)),
            _ => Answer::events(pieces(&["a", "bc", "d"]), Duration::ZERO),
        },
        |config| config.stream = true,
    );
    let (deltas, done) = listen(&backend, question(0));
    let response = done.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert_eq!(response.generations[0].as_ref().unwrap().text.as_deref(), Some("abcd"));
    let told: String = deltas.lock().unwrap().iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!((told.as_str(), server.requests()), ("abcd", 3));
}

#[test]
fn errors_inside_a_stream_are_errors() {
    let event = json!({"error": {"message": "out of memory", "code": 400}}).to_string();
    let (server, backend) = pair(move |_| Answer::events([&event], Duration::ZERO), |config| config.stream = true);
    let fault = fault(&one(&backend));
    assert_eq!((fault.code.as_ref(), server.requests()), ("remote.refused", 1));
    assert!(fault.message.contains("out of memory"));
}

#[test]
fn a_cancelled_row_keeps_what_was_streamed() {
    let (_server, backend) =
        pair(|_| Answer::events(pieces(&["a", "b"]), Duration::from_millis(300)), |config| config.stream = true);
    let mut request = question(0);
    let cancel = CancelToken::default();
    request.cancel = cancel.clone();
    let (deltas, done) = listen(&backend, request);
    let start = Instant::now();
    while deltas.lock().unwrap().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(5));
    }
    cancel.cancel();
    let response = done.recv_timeout(Duration::from_secs(5)).unwrap().unwrap();
    let generation = response.generations[0].as_ref().unwrap();
    assert_eq!((generation.text.as_deref(), generation.finish_reason), (Some("a"), Some(FinishReason::Cancelled)));
}

#[test]
fn deadlines_and_cancellation_end_rows_that_are_not_streamed() {
    let (server, backend) =
        pair(|request| crate::support::echo(request).delay(Duration::from_secs(8)), |config| config.max_in_flight = 1);
    let mut late = question(0);
    late.deadline = Some(Instant::now() + Duration::from_millis(200));
    let mut waiting = question(1);
    waiting.deadline = Some(Instant::now() + Duration::from_millis(100));
    let cancelled = question(2);
    cancelled.cancel.cancel();
    let start = Instant::now();
    let results = crate::support::run(&backend, vec![late, waiting, cancelled]);
    let codes: Vec<_> = results.iter().map(|result| fault(result).code.into_owned()).collect();
    assert_eq!(codes, ["remote.deadline", "remote.deadline", "remote.cancelled"]);
    assert!(start.elapsed() < Duration::from_secs(3));
    // Either of the two may have come first; the cancelled one never does.
    assert!(server.requests() <= 2);
}
