//! The server that a bench brings: the remote backend through it gives what the backend behind it gives.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use serde_json::json;
use vgen_backends::mock::{MockBackend, MockFault, MockOptions};
use vgen_backends::remote::{RemoteBackend, RemoteConfig, RemoteHooks, RemoteSecrets};
use vgen_core::{Backend, FaultClass, Message, Request, Role, SamplingParams};
use vgen_run::bench::serve::ChatServer;

fn server() -> ChatServer {
    let fault = MockFault {
        row: 0,
        sample: Some(1),
        code: "x.y".into(),
        message: "m".into(),
        class: FaultClass::Row,
        attempts: 1,
    };
    let options = MockOptions {
        answer: "{prompt}: sample {sample}".into(),
        faults: vec![fault],
        refuse: vec!["top_k".into()],
        ..MockOptions::default()
    };
    ChatServer::start(Arc::new(MockBackend::new(options).unwrap())).unwrap()
}

fn remote(server: &ChatServer, stream: bool) -> RemoteBackend {
    let config =
        json!({"base_url": server.url(), "dialect": "vllm", "stream": stream, "max_attempts": 1, "native_n": true});
    let config: RemoteConfig = serde_json::from_value(config).unwrap();
    RemoteBackend::connect(config, RemoteSecrets::default(), RemoteHooks::default()).unwrap()
}

#[test]
fn answers_pass_through_streamed_and_whole() {
    let server = server();
    let sampling = SamplingParams { max_new_tokens: Some(9), ignore_eos: true, ..SamplingParams::default() };
    for stream in [true, false] {
        let remote = remote(&server, stream);
        let ask = |sampling: &SamplingParams| {
            remote.generate(Request::new(4, vec![Message::text(Role::User, "what is it")], sampling.clone()))
        };
        let answer = ask(&sampling).unwrap().generations.remove(0).unwrap();
        assert_eq!(answer.text.as_deref(), Some("what is it: sample 0"), "{stream}");
        let usage = answer.usage.unwrap();
        assert_eq!((usage.input_tokens, usage.output_tokens), (3, 5), "{stream}");
        assert_eq!(answer.timings.first_token.is_some(), stream);
        // What the backend refuses, and what fails in it, arrives as a fault.
        let refused = SamplingParams { top_k: Some(3), ..sampling.clone() };
        let fault = ask(&refused).unwrap().generations.remove(0).unwrap_err();
        assert!(fault.message.contains("top_k"), "{stream}: {fault}");
        let both =
            Request { num_generations: 2, ..Request::new(4, vec![Message::text(Role::User, "x")], sampling.clone()) };
        assert!(remote.generate(both).unwrap().generations.iter().all(Result::is_err), "{stream}");
    }
}

#[test]
fn other_requests_are_refused() {
    let server = server();
    let address = server.url().trim_start_matches("http://").to_owned();
    for (line, body, status) in [
        ("GET /", "", "404"),
        ("POST /v1/chat/completions", "no json", "400"),
        ("POST /v1/chat/completions", r#"{"messages": [], "x": 1}"#, "400"),
    ] {
        let mut stream = TcpStream::connect(&address).unwrap();
        let length = body.len();
        write!(stream, "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        assert!(answer.contains("\"error\""));
    }
}
