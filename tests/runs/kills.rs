//! SIGKILL at random moments: no row is missing or doubled, and the bytes are those of an uninterrupted run.
//!
//! A few kills in each run of the tests; `VGEN_KILLS=300 cargo test --release --test runs kills` does them all.
#![cfg(unix)]

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vgen_loopback::{Answer, Received, Server};

use crate::support::Scratch;

/// Kills of each test, of all of them together unless told otherwise.
const KILLS: usize = 24;
const TESTS: usize = 6;
/// Longer than any run: a test that gets nowhere must end.
const PATIENCE: Duration = Duration::from_secs(1200);

fn kills() -> usize {
    let all = std::env::var("VGEN_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    usize::div_ceil(all, TESTS)
}

struct Case {
    scratch: Scratch,
    program: &'static str,
    args: Vec<String>,
    output: &'static str,
    /// Answers as long as the case lives.
    _server: Option<Server>,
}

impl Case {
    fn command(&self, output: &str) -> Command {
        let mut command = self.scratch.command(self.program);
        command.args(&self.args).args(["--output", output, "--quiet", "--sync-seconds", "0.01"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Kills runs until there were so many, each time going on; whenever one gets to its end, its bytes are compared
    /// and the next begins anew.
    fn survives(&self, kills: usize) {
        let reference = format!("whole-{}", self.output);
        let begun = Instant::now();
        let whole = self.command(&reference).output().unwrap();
        let usual = begun.elapsed();
        let code = whole.status.code();
        assert!(matches!(code, Some(0 | 1)), "{}", String::from_utf8_lossy(&whole.stderr));
        let expected = fs::read(self.scratch.path(&reference)).unwrap();
        let failed = fs::read(self.scratch.path(&format!("{reference}.run/failed.jsonl"))).unwrap();
        let mut random = Random(kills as u64 + usual.as_nanos() as u64);
        let (mut killed, mut finished) = (0, 0);
        while killed < kills || finished == 0 {
            assert!(begun.elapsed() < PATIENCE, "{killed} kills and {finished} runs so far");
            let mut child = self.command(self.output).spawn().unwrap();
            // Up to as long as a whole run takes, so that kills meet its beginning, its middle and its end.
            let enough = killed >= kills;
            let life = if enough { PATIENCE } else { usual.mul_f64(random.share()) };
            let deadline = Instant::now() + life;
            while child.try_wait().unwrap().is_none() && Instant::now() < deadline {
                thread::sleep(Duration::from_micros(200));
            }
            let _ = child.kill();
            let ended = child.wait_with_output().unwrap();
            match ended.status.code() {
                None => killed += 1,
                Some(_) => {
                    assert_eq!(ended.status.code(), code, "{}", String::from_utf8_lossy(&ended.stderr));
                    finished += 1;
                    let bytes = fs::read(self.scratch.path(self.output)).unwrap();
                    assert!(bytes == expected, "after {killed} kills: {} bytes, not {}", bytes.len(), expected.len());
                    let record = self.scratch.path(&format!("{}.run", self.output));
                    assert_eq!(fs::read(record.join("failed.jsonl")).unwrap(), failed);
                    fs::remove_file(self.scratch.path(self.output)).unwrap();
                    fs::remove_dir_all(record).unwrap();
                }
            }
        }
    }
}

struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn mock(output: &'static str) -> Case {
    // Answers out of order, and rows that fail.
    let more = "window = 8\ndelays_ms = [1, 9, 3, 0, 5, 30, 2]\nanswer = \"{prompt}, answered as row {row}\"\n\
        [[backend.faults]]\nrow = 3\n[[backend.faults]]\nrow = 250\n";
    let mut rows: String = (0..399)
        .map(|id| format!("{{\"id\": {id}, \"instruction\": \"question {id}\", \"x\": {}.5}}\n", id * 7))
        .collect();
    rows.push_str("{broken\n");
    let scratch = Scratch::with(rows, more);
    let args = ["run", "run.toml", "--row-group-rows", "37"].map(str::to_owned).to_vec();
    Case { scratch, program: "vgen", args, output, _server: None }
}

fn local(output: &'static str) -> Case {
    let scratch = Scratch::new();
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes/samples");
    let rows = fs::read_to_string(format!("{samples}/rows.jsonl")).unwrap();
    for entry in fs::read_dir(samples).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, scratch.path(path.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    scratch.file("rows.jsonl", rows.repeat(2));
    let args = ["--demo", "--input", "rows.jsonl", "--temperature", "0.7", "--seed", "5", "--row-group-rows", "5"]
        .map(str::to_owned)
        .to_vec();
    Case { scratch, program: "vgen-local", args, output, _server: None }
}

/// A server that takes its time, each question another, and fails one for good.
fn remote(output: &'static str) -> Case {
    let answer = |request: &Received| {
        let asked = request.json()["messages"].to_string();
        let number: u64 = asked.bytes().filter(u8::is_ascii_digit).fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
        thread::sleep(Duration::from_millis(number * 7 % 23));
        if number == 40 {
            return Answer::status(400).with_json(&json!({"error": "no"}));
        }
        Answer::json(&json!({
            "object": "chat.completion", "id": "", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": format!("answer to {number}")},
                "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 26}
        }))
    };
    let server = Server::start(answer).unwrap();
    let scratch = Scratch::new();
    let rows: String = (0..150).map(|id| format!("{{\"id\": {id}, \"instruction\": \"question {id}\"}}\n")).collect();
    scratch.file("rows.jsonl", rows);
    let url = server.url();
    let args = [
        "--base-url",
        &url,
        "--model-id",
        "m",
        "--input",
        "rows.jsonl",
        "--image-required=false",
        "--max-in-flight",
        "8",
        "--row-group-rows",
        "13",
    ];
    let args = args.map(str::to_owned).to_vec();
    Case { scratch, program: "vgen-remote", args, output, _server: Some(server) }
}

#[test]
fn kills_of_a_remote_run_to_json_lines() {
    remote("out.jsonl").survives(kills());
}

#[test]
fn kills_of_a_remote_run_to_parquet() {
    remote("out.parquet").survives(kills());
}

#[test]
fn kills_of_a_mock_run_to_json_lines() {
    mock("out.jsonl").survives(kills());
}

#[test]
fn kills_of_a_mock_run_to_parquet() {
    mock("out.parquet").survives(kills());
}

#[test]
fn kills_of_a_local_run_to_json_lines() {
    local("out.jsonl").survives(kills());
}

#[test]
fn kills_of_a_local_run_to_parquet() {
    local("out.parquet").survives(kills());
}
