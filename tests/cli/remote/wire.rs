//! What goes over the wire: images, streams, protocols, versions of HTTP, and where it comes from.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use vgen_loopback::{Answer, Received, Server};

use super::{METADATA, Run, echo, rows};
use crate::support::{Scratch, ended};

#[test]
fn what_can_not_be_sent_is_refused_before_the_first_request() {
    let run = Run::new(rows(1), echo);
    run.remote(&["--top-k", "5", "--typical-p", "0.5"]).exits(2).says("top_k, typical_p").says("hint: ");
    run.remote(&["--dialect", "transformers", "--logprobs"])
        .exits(2)
        .says("to transformers serve can't be sent: logprobs");
    run.remote(&["--max-in-flight", "0"]).exits(2).says("--max-in-flight: is 0");
    run.remote(&["--protocol", "text-generation", "--native-n"]).exits(2).says("--native-n: needs protocol");
    run.remote(&["--endpoint-name", "x"]).exits(2).says("can't be given together");
    run.remote(&["--json-schema", "no.json"]).exits(2);
    assert_eq!(run.server.requests(), 0);
    run.bare(&["--input", "rows.jsonl"]).exits(2).says("names neither model_id, endpoint_name nor base_url");
    let config = format!("[backend]\nkind = \"inference-endpoints\"\nbase_ulr = \"{}\"\n", run.server.url());
    run.scratch.file("run.toml", config);
    run.scratch.vgen(&["run", "run.toml"]).exits(2).says("did you mean \"base_url\"?");
}

#[test]
fn images_are_passed_on_or_sent_as_they_are() {
    let png = fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/shapes/samples/square.png")).unwrap();
    let served = png.clone();
    let run = Run::new("", move |request| match request.path.as_str() {
        "/a.png" => Answer::body("image/png", served.clone()),
        _ => echo(request),
    });
    let url = format!("{}/a.png", run.server.url());
    run.scratch.file("data/photo.jpg", &png);
    run.scratch.file("rows.jsonl", "");
    let rows = format!(
        "{{\"instruction\": \"a\", \"image\": \"photo.jpg\"}}\n{{\"instruction\": \"b\", \"image\": \"{url}\"}}\n\
        {{\"instruction\": \"c\", \"image\": \"gone.jpg\"}}\n"
    );
    run.scratch.file("data/rows.jsonl", rows);
    let sent = |args: &[&str]| {
        let before = run.server.requests();
        let server = run.server.url();
        let base = ["--base-url", &server, "--input", "data/rows.jsonl", "--output", "out.jsonl", "--overwrite"];
        run.bare(&[&base[..], args].concat()).exits(1);
        let bodies = run.server.received().split_off(before).into_iter().filter(|request| request.method == "POST");
        let url = |request: Received| {
            request.json()["messages"][0]["content"][1]["image_url"]["url"].as_str().unwrap().to_owned()
        };
        let mut urls: Vec<String> = bodies.map(url).collect();
        urls.sort();
        urls
    };
    let encoded = sent(&[]);
    assert_eq!((encoded.len(), &encoded[1]), (2, &url));
    assert!(encoded[0].starts_with("data:image/png;base64,iVBOR"), "the true type, not the name's");
    assert!(run.rows()[2]["error"]["message"].as_str().unwrap().contains("gone.jpg"));
    let inlined = sent(&["--inline-images", "--allow-private-addresses", "-n", "2"]);
    assert_eq!((inlined.len(), &inlined[0], &inlined[3]), (4, &encoded[0], &encoded[0]));
    let shrunk = sent(&["--inline-images", "--allow-private-addresses", "--shrink-to-pixels", "100"]);
    assert!(shrunk[0].starts_with("data:image/png;") && shrunk[0].len() < encoded[0].len());
}

#[test]
fn one_question_is_answered_as_it_comes() {
    let pieces =
        ["A ", "board", "walk."].map(|text| json!({"choices": [{"index": 0, "delta": {"content": text}}]}).to_string());
    let last = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}});
    let run = Run::new("", move |_| {
        let events = pieces.iter().cloned().chain([last.to_string(), "[DONE]".to_owned()]);
        Answer::events(events, Duration::from_millis(5))
    });
    let url = run.server.url();
    let ask = ["--base-url", &url, "--prompt", "What is it?", "--image", "https://example.com/a.png"];
    run.bare(&ask).exits(0).prints("A boardwalk.\n").says("4 tokens in");
    let body = run.server.received()[0].json();
    assert_eq!((&body["stream"], &body["stream_options"]), (&json!(true), &json!({"include_usage": true})));
    run.bare(&[&ask[..], &["--dialect", "transformers"]].concat()).exits(0).prints("A boardwalk.\n");
    assert!(run.server.received()[1].json().get("stream_options").is_none());

    // A server that sends it whole after all.
    let run = Run::new("", echo);
    let url = run.server.url();
    run.bare(&["--base-url", &url, "--prompt", "What is it?"]).exits(0).prints("answer to What is it?\n");
    run.bare(&["--base-url", &url, "--prompt", "What is it?", "--stream=false"])
        .exits(0)
        .prints("answer to What is it?\n");
}

#[test]
fn the_text_generation_protocol_has_a_template_and_streams() {
    let run = Run::new("{\"instruction\": \"2 + 2?\"}\n", |request| {
        let end = json!({"finish_reason": "stop_sequence", "generated_tokens": 3, "input_length": 9});
        if request.json()["stream"] == true {
            let token = |text: &str| json!({"token": {"id": 1, "text": text, "logprob": -0.1, "special": false}});
            let mut last = token("END");
            (last["generated_text"], last["details"]) = (json!("4.END"), end);
            return Answer::events([token("4").to_string(), token(".").to_string(), last.to_string()], Duration::ZERO);
        }
        Answer::json(&json!([{"generated_text": "4.END", "details": end}]))
    });
    run.scratch.file(
        "template/chat_template.jinja",
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]",
    );
    run.scratch.file("template/tokenizer_config.json", "{\"bos_token\": {\"content\": \"<s>\"}}");
    let args = [
        "--protocol",
        "text-generation",
        "--chat-template",
        "template",
        "--image-required=false",
        "--stop",
        "END",
        "--system-prompt",
        "Be brief.",
        "--top-k",
        "5",
        "--overwrite",
    ];
    for stream in ["--stream=false", "--stream"] {
        run.remote(&[&args[..], &[stream]].concat()).exits(0);
        let (row, request) = (&run.rows()[0], run.server.received().pop().unwrap());
        assert_eq!((&row["generation"], &row["finish_reason"]), (&json!("4."), &json!("stop")), "{stream}");
        assert_eq!(request.json()["inputs"], "<s>[system]Be brief.[user]2 + 2?[assistant]");
        assert_eq!((request.path.as_str(), &request.json()["parameters"]["top_k"]), ("/", &json!(5)));
    }
    let counts = &run.rows()[0][METADATA]["statistics_text_generation_with_image_0"];
    assert_eq!(*counts, json!({"input_tokens": 9, "output_tokens": 3}));
    run.remote(&[&args[..], &["--stream", "--echo"]].concat()).exits(2).says("can't be sent: echo");
}

#[test]
fn http_2_needs_one_connection() {
    let run = Run::new(rows(50), |request| echo(request).delay(Duration::from_millis(10)));
    run.remote(&["--http-version", "2", "--max-in-flight", "16"]).exits(0).says("50 rows, 0 failed");
    assert_eq!((run.server.connections(), run.server.peak_in_flight()), (1, 16));
    assert!(run.server.received().iter().all(|request| format!("{:?}", request.version) == "HTTP/2.0"));
    assert_eq!(run.rows().len(), 50);
}

#[test]
fn over_tls_the_certificate_counts_and_http_2_is_spoken() {
    let scratch = Scratch::new();
    scratch.file("rows.jsonl", rows(20));
    let server = Server::start_tls(|request| echo(request).delay(Duration::from_millis(5))).unwrap();
    scratch.file("trusted.pem", server.certificate().unwrap());
    let ask = |version: &str, trusted: bool| {
        let url = server.url();
        let mut command = scratch.command("vgen-remote");
        command.args(["--base-url", &url, "--input", "rows.jsonl", "--output", "out.jsonl", "--overwrite"]);
        if trusted {
            command.env("SSL_CERT_FILE", scratch.path("trusted.pem"));
        }
        ended(command.args(["--http-version", version]).output().unwrap())
    };
    ask("auto", false).exits(6).says("no secure connection: ").says("hint: ");
    assert_eq!(server.requests(), 0);
    for (version, spoken) in [("auto", "HTTP/2.0"), ("1.1", "HTTP/1.1")] {
        let before = server.requests();
        ask(version, true).exits(0).says("20 rows, 0 failed");
        let received = server.received().split_off(before);
        assert!(received.len() == 20 && received.iter().all(|request| format!("{:?}", request.version) == spoken));
    }
}

#[test]
fn the_config_file_says_all_that_the_flags_say() {
    let run = Run::new(rows(3), echo);
    let url = run.server.url();
    let common = [
        "--model-id",
        "a/b",
        "--base-url",
        &url,
        "--native-n",
        "--header",
        "x-team=vision",
        "--extra-body",
        "{\"top_a\": 1}",
        "--input",
        "rows.jsonl",
        "--max-response-bytes",
        "1MiB",
        "--spend-requests",
        "9",
        "--requests-per-minute",
        "60000",
    ];
    let printed = run.bare(&[&common[..], &["--print-config"]].concat()).exits(0).stdout;
    run.scratch.file("run.toml", &printed);
    let again = run.scratch.vgen(&["run", "run.toml", "--output", "out.jsonl", "--max-in-flight", "2"]).exits(0);
    assert!(again.stdout.is_empty());
    let request = &run.server.received()[0];
    assert_eq!((request.header("x-team"), &request.json()["top_a"]), (Some("vision"), &json!(1)));
    assert_eq!(run.rows().len(), 3);
    let flag = run.scratch.vgen(&["run", "run.toml", "--print-config", "--max-in-flight", "2"]).exits(0).stdout;
    let line = |start: &str| flag.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
    assert!(
        line("max_in_flight = 2 ").ends_with("# --max-in-flight") && line("native_n = true ").ends_with("# run.toml")
    );
    let help = run.bare(&["--help"]).exits(0).stdout;
    for text in ["--endpoint-name", "--spend-tokens", "7 spend cap reached", "[default: 64MiB]"] {
        assert!(help.contains(text), "{text}");
    }
    run.scratch.vgen(&["remote", "--help"]).exits(0);
}
