//! Servers, as a bench meets them: what it sends when, and what it tells of them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use vgen_loopback::{Answer, Server};

struct Ended {
    code: Option<i32>,
    stderr: String,
    report: Value,
}

/// One reading of rows without images, in an empty folder.
fn measure(folder: &Path, remote: &str, rows: usize, more: &[&str]) -> Ended {
    let text: String = (0..rows).map(|n| format!("{{\"instruction\": \"question {n}\"}}\n")).collect();
    fs::write(folder.join("rows.jsonl"), text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vgen"))
        .args(["bench", "--remote", remote, "--rows", "rows.jsonl", "--repeats", "1", "--warmup", "0", "--out", "out"])
        .args(more)
        .current_dir(folder)
        .env("HF_TOKEN", "hf_none")
        .output()
        .unwrap();
    let report = fs::read_to_string(folder.join("out.json")).unwrap_or_default();
    Ended {
        code: output.status.code(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        report: serde_json::from_str(&report).unwrap_or_default(),
    }
}

fn chunk(text: &str) -> String {
    json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}).to_string()
}

/// A streamed answer, without a count of tokens.
fn streamed() -> Answer {
    Answer::events([chunk("yes"), "[DONE]".to_owned()], Duration::ZERO)
}

#[test]
fn an_open_loop_sends_whatever_is_answered() {
    let server = Server::start(|_| streamed().delay(Duration::from_millis(1500))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let remote = format!("{},model_id=m", server.url());
    let ended = measure(folder.path(), &remote, 60, &["--rates", "1000"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(server.peak_in_flight(), 60);
    // A bound that was asked for holds, and is named.
    let folder = tempfile::tempdir().unwrap();
    let ended = measure(folder.path(), &format!("{remote},max_in_flight=8"), 12, &["--rates", "1000"]);
    let notes = ended.report["notes"].to_string();
    assert!(notes.contains("may have to wait for leave to be sent: max_in_flight"), "{notes}");
}

#[test]
fn limits_of_a_rate_are_counted_and_unknown_tokens_are_not_free() {
    let asked = AtomicUsize::new(0);
    let script = move |_: &_| match asked.fetch_add(1, Ordering::SeqCst) {
        1 | 2 => Answer::status(429).header("retry-after", "0"),
        3 => Answer::status(503).header("retry-after", "0"),
        _ => streamed(),
    };
    let server = Server::start(script).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let remote = format!("{},model_id=m,prices.per_million_output_tokens=2", server.url());
    let ended = measure(folder.path(), &remote, 4, &["--concurrency", "1"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let run = &ended.report["cells"][0]["runs"][0];
    let counted = ["retries", "rate_limits", "overloads"].map(|name| run["counters"][name].as_f64());
    assert_eq!(counted, [Some(3.0), Some(2.0), Some(3.0)]);
    assert_eq!((&run["cost"], &run["uncounted"]), (&Value::Null, &json!(4)));
    assert!(ended.report["notes"].to_string().contains("so their cost is not known"));
}

#[test]
fn secrets_stay_out_of_the_results() {
    let server = Server::start(|_| streamed()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let remote = format!(
        "{}/v1?key=s3cret,model_id=m,headers={{x-key = \"s3cret\", y = \"z\"}},extra_body={{key = \"s3cret\"}}",
        server.url()
    );
    let ended = measure(folder.path(), &remote, 2, &["--concurrency", "1"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(server.received()[0].header("x-key"), Some("s3cret"), "it is sent");
    let settings = &ended.report["targets"][0]["settings"];
    assert_eq!((&settings["headers"], &settings["model_id"]), (&json!("<not recorded>"), &json!("m")));
    for ending in ["json", "md", "csv", "html"] {
        let text = fs::read_to_string(folder.path().join(format!("out.{ending}"))).unwrap();
        assert!(!text.contains("s3cret"), "{ending}: {text}");
    }
}

#[test]
fn a_key_that_is_refused_and_a_cap_that_is_reached_end_it() {
    let server = Server::start(|_| Answer::status(401)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ended = measure(folder.path(), &format!("{},model_id=m", server.url()), 4, &["--concurrency", "1"]);
    assert_eq!((ended.code, &ended.report), (Some(6), &Value::Null), "{}", ended.stderr);
    assert_eq!(server.requests(), 1);
    assert!(ended.stderr.contains("the server answered 401"), "{}", ended.stderr);

    let server = Server::start(|_| streamed()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let remote = format!("{},model_id=m,spend_requests=6", server.url());
    let ended = measure(folder.path(), &remote, 4, &["--concurrency", "1,2"]);
    assert_eq!(ended.code, Some(7), "{}", ended.stderr);
    // The first reading is there, and says that it is not all.
    assert_eq!(ended.report["cells"].as_array().map(Vec::len), Some(1));
    assert!(ended.report["unfinished"].to_string().contains("after 1 of 2 readings"), "{}", ended.report);
}
