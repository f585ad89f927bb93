//! `vgen-remote` against a scripted server on loopback: what arrives there, what stands in the output, how it ends.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};
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

#[test]
fn rows_come_out_in_order_with_their_columns() {
    let run = Run::new(rows(40), |request| {
        // Later ones are faster.
        echo(request).delay(Duration::from_millis(40_u64.saturating_sub(request.number as u64)))
    });
    let args = ["--model-id", "owner/vision", "-n", "2", "--seed", "7", "--max-in-flight", "8", "--temperature", "0.5"];
    run.remote(&args).exits(0).says("40 rows, 0 failed, 840 prompt tokens, 400 answer tokens");
    let out = run.rows();
    assert_eq!(out.len(), 80);
    for (place, row) in out.iter().enumerate() {
        let id = place / 2;
        assert_eq!(
            (row["id"].as_u64(), row["generation"].as_str()),
            (Some(id as u64), Some(&*format!("answer to question {id}")))
        );
        assert_eq!((row["model_name"].as_str(), row["finish_reason"].as_str()), (Some("owner/vision"), Some("stop")));
        assert!(row["error"].is_null());
        let counts = &row[METADATA]["statistics_text_generation_with_image_0"];
        assert_eq!(*counts, json!({"input_tokens": 21, "output_tokens": 5}));
    }
    let received = run.server.received();
    assert_eq!((received.len(), run.server.peak_in_flight()), (80, 8));
    assert!(run.server.connections() <= 10, "{} connections", run.server.connections());
    let bearer = format!("Bearer {KEY}");
    for request in &received {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/chat/completions"));
        assert_eq!(request.header("authorization"), Some(bearer.as_str()));
        let body = request.json();
        assert_eq!((body["model"].as_str(), body["temperature"].as_f64()), (Some("owner/vision"), Some(0.5)));
        assert!(
            body["messages"][0]["content"][1]["image_url"]["url"].as_str().unwrap().starts_with("https://example.com/")
        );
    }
    let seeds = |seed| received.iter().filter(|request| request.json()["seed"] == seed).count();
    assert_eq!((seeds(7), seeds(8)), (40, 40));
}

/// The recorded exchanges through the whole program: the requests and, column by column, the rows.
#[test]
fn recorded_exchanges_give_the_recorded_rows() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("crates/backends/tests/fixtures/wire.jsonl");
    let records = fs::read_to_string(path).unwrap();
    let mut compared = 0;
    for record in records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let id = record["wire_id"].as_str().unwrap().to_owned();
        let exchanges = record["exchanges"].as_array().cloned().unwrap_or_default();
        let family = ["chat-", "resp-", "batch-"].iter().any(|prefix| id.starts_with(prefix));
        let rows = record["result"]["rows"].as_array().cloned().unwrap_or_default();
        // Of these, the library's tests say what is done better. The last one counts tokens of a failed request.
        let better = ["chat-pil", "chat-base64", "chat-max-zero", "chat-url-7", "resp-401", "resp-404"];
        let Some(sampling) = sampling(&record) else { continue };
        if !family
            || better.contains(&id.as_str())
            || exchanges.is_empty()
            || rows.is_empty()
            || record["quirk"].is_string()
        {
            continue;
        }
        let answers: Vec<Value> = exchanges.iter().map(|exchange| exchange["response"].clone()).collect();
        let input: String = record["rows"].as_array().unwrap().iter().map(|row| format!("{row}\n")).collect();
        let run = Run::new(input, move |request| recorded_answer(&answers[request.number.min(answers.len() - 1)]));
        let url = record["llm_params"]["base_url"].as_str().unwrap().replace("127.0.0.1:PORT", &run.server.url()[7..]);
        let mut task = record["task_params"].as_object().cloned().unwrap_or_default();
        task.insert("name".to_owned(), "vision".into());
        let mut backend =
            Map::from_iter([("kind".to_owned(), json!("inference-endpoints")), ("base_url".to_owned(), url.into())]);
        for (key, value) in [("max_in_flight", json!(1)), ("max_attempts", json!(1))] {
            backend.insert(key.to_owned(), value);
        }
        if let Some(name) = record["llm_params"].get("model_display_name") {
            backend.insert("model_display_name".to_owned(), name.clone());
        }
        let config = json!({"input": {"path": "rows.jsonl"}, "output": {"path": "out.jsonl"}, "task": task,
            "sampling": sampling, "backend": backend});
        run.scratch.file("run.toml", toml::to_string(&config).unwrap());
        let ended = run.scratch.vgen(&["run", "run.toml"]);
        let failed = rows.iter().any(|row| {
            row["generation"].is_null() || row["generation"].as_array().is_some_and(|list| list.contains(&Value::Null))
        });
        assert!(ended.code == 0 || (ended.code == 1 && failed), "{id}: {} {}", ended.code, ended.stderr);

        let received = run.server.received();
        assert_eq!(received.len(), exchanges.len(), "{id}");
        for (request, exchange) in received.iter().zip(&exchanges) {
            assert_eq!(request.path, exchange["request"]["path"].as_str().unwrap(), "{id}");
            assert_eq!(request.json()["messages"], exchange["request"]["json"]["messages"], "{id}");
        }
        let host = run.server.url()[7..].to_owned();
        let ours: Vec<Value> = run.rows();
        assert_eq!(ours.len(), rows.len(), "{id}");
        for (ours, recorded) in ours.iter().zip(&rows) {
            let recorded: Value = serde_json::from_str(&recorded.to_string().replace("127.0.0.1:PORT", &host)).unwrap();
            for (column, value) in recorded.as_object().unwrap() {
                assert!(same(&ours[column], value), "{id} {column}: {} is not {value}", ours[column]);
            }
            for column in ours.as_object().unwrap().keys() {
                let known = recorded.get(column).is_some() || ["finish_reason", "error"].contains(&column.as_str());
                assert!(known, "{id}: column {column}");
            }
        }
        compared += 1;
    }
    assert!(compared >= 20, "only {compared} records were compared");
}

/// distilabel's arguments in the words of `[sampling]`; `None` if one of them has no place there.
fn sampling(record: &Value) -> Option<Value> {
    let known = [
        "max_new_tokens",
        "temperature",
        "top_p",
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "logprobs",
        "top_logprobs",
    ];
    let mut sampling = Map::new();
    for (name, value) in record["generation_kwargs"].as_object()? {
        match name.as_str() {
            "stop_sequences" if value.is_array() => sampling.insert("stop".to_owned(), value.clone()),
            name if known.contains(&name) && value.is_number() | value.is_boolean() => {
                sampling.insert(name.to_owned(), value.clone())
            }
            _ => return None,
        };
    }
    Some(sampling.into())
}

fn recorded_answer(response: &Value) -> Answer {
    if response["drop"] == true {
        return Answer::reset();
    }
    let status = u16::try_from(response["status"].as_u64().unwrap()).unwrap();
    match response.get("json") {
        Some(body) => Answer::status(status).with_json(body),
        None => {
            let text = response["text"].as_str().or_else(|| response["body"].as_str()).unwrap_or("<html>");
            Answer::status(status).header("content-type", "text/html").data(text.to_owned())
        }
    }
}

/// Equal, numbers up to the precision of a log-probability.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-6,
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, value)| b.get(name).is_some_and(|other| same(value, other)))
        }
        (a, b) => a == b,
    }
}

#[test]
fn a_failed_row_says_why_and_the_others_go_on() {
    let run = Run::new(rows(6), |request| match asked(request).as_str() {
        "question 1" => {
            Answer::status(429).header("retry-after", "0").with_json(&json!({"error": {"message": "slow down"}}))
        }
        "question 3" => Answer::status(422).with_json(&json!({"error": "no such image", "error_type": "validation"})),
        "question 4" => Answer::reset(),
        _ => echo(request),
    });
    run.remote(&["--max-attempts", "3"]).exits(1).says("6 rows, 3 failed").says("remote.rate_limited: 1");
    let out = run.rows();
    for id in [0, 2, 5] {
        assert_eq!(out[id]["generation"], format!("answer to question {id}"));
    }
    for (id, code, attempts, said) in [
        (1, "remote.rate_limited", 3, "429 (Too Many Requests): slow down"),
        (3, "remote.refused", 1, "422 (Unprocessable Entity): no such image"),
        (4, "remote.broken", 3, "broke off"),
    ] {
        let error = &out[id]["error"];
        assert_eq!((error["code"].as_str(), error["attempts"].as_u64()), (Some(code), Some(attempts)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(said), "{error}");
        assert_eq!((&out[id]["generation"], &out[id]["id"]), (&Value::Null, &json!(id)));
    }
    assert_eq!(run.server.requests(), 3 + 3 + 1 + 3);
}

#[test]
fn a_storm_of_faults_loses_and_doubles_nothing() {
    let tries: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let run = Run::new(rows(60), move |request| {
        let question = asked(request);
        let id: usize = question.trim_start_matches("question ").parse().unwrap();
        let mut tries = tries.lock().unwrap();
        let attempt = tries.entry(question).or_default();
        *attempt += 1;
        if *attempt > id % 4 {
            return echo(request);
        }
        match (id + *attempt) % 7 {
            0 => Answer::status(503),
            1 => Answer::status(429).header("retry-after", "0"),
            2 => Answer::reset(),
            3 => Answer::status(200).header("content-length", "500").data("{\"choices\"").cut(),
            4 => Answer::body("text/html", "<html>busy</html>"),
            5 => Answer::json(&json!({"error": "busy", "error_type": "overloaded"})),
            _ => Answer::json(&json!({"choices": []})),
        }
    });
    run.remote(&["--max-in-flight", "16"]).exits(0).says("60 rows, 0 failed").says("failed: ");
    let out = run.rows();
    assert_eq!(out.len(), 60);
    for (id, row) in out.iter().enumerate() {
        assert_eq!((&row["id"], &row["generation"]), (&json!(id), &json!(format!("answer to question {id}"))));
    }
}

#[test]
fn the_key_is_never_shown() {
    let quoted =
        || Answer::status(400).with_json(&json!({"error": {"message": format!("the key {KEY} may not ask this")}}));
    let run = Run::new(rows(2), move |request| if asked(request) == "question 0" { echo(request) } else { quoted() });
    let hidden = |run: &Run, ended: &Ended| {
        assert!(
            !ended.stderr.contains("sesame") && !ended.stdout.contains("sesame"),
            "{}{}",
            ended.stdout,
            ended.stderr
        );
        for file in fs::read_dir(run.scratch.folder()).unwrap() {
            let path = file.unwrap().path();
            let inside = fs::read_to_string(&path).unwrap().contains("sesame");
            assert!(!inside || path.ends_with("key.txt") || path.ends_with("bad.toml"), "{}", path.display());
        }
    };
    let ended = run.remote(&["--max-in-flight", "1"]).exits(1).says("<secret>");
    hidden(&run, &ended);
    hidden(&run, &run.remote(&["--print-config"]).exits(0));

    // From a file that lies beside the config file.
    let url = run.server.url();
    run.scratch.file("key.txt", format!("{KEY}\n"));
    let config = |key: &str| {
        format!(
            "[input]\npath = \"rows.jsonl\"\nlimit = 1\n[output]\npath = \"-\"\n[sampling]\nstop = \"END\"\n\
        [backend]\nkind = \"inference-endpoints\"\nbase_url = \"{url}\"\napi_key = {key}\n"
        )
    };
    run.scratch.file("run.toml", config("{ file = \"key.txt\" }"));
    let ended = run.scratch.vgen(&["run", "run.toml"]).exits(0);
    hidden(&run, &ended);
    assert_eq!(run.server.received().last().unwrap().header("authorization"), Some(&*format!("Bearer {KEY}")));
    assert_eq!(run.server.received().last().unwrap().json()["stop"], json!(["END"]));
    let printed = run.scratch.vgen(&["run", "run.toml", "--print-config"]).exits(0);
    assert!(printed.stdout.contains("api_key = { file = \"key.txt\" }"), "{}", printed.stdout);
    hidden(&run, &printed);

    // A key that was written where its name belongs.
    for wrong in [format!("\"{KEY}\""), format!("{{ key = \"{KEY}\" }}"), format!("{{ env = \"{KEY}\" }}")] {
        run.scratch.file("bad.toml", config(&wrong));
        hidden(&run, &run.scratch.vgen(&["run", "bad.toml"]).exits(2));
    }
    let ended =
        run.scratch.vgen(&["remote", "--base-url", &url, "--api-key-env", "NO_SUCH_KEY", "--input", "rows.jsonl"]);
    ended.exits(2).says("the environment variable NO_SUCH_KEY is not set");
}

#[test]
fn a_refused_key_ends_the_run() {
    let run = Run::new(rows(5), |_| Answer::status(401).with_json(&json!({"error": "Invalid username or password."})));
    run.remote(&[]).exits(6).says("401 (Unauthorized): Invalid username or password.").says("hint: check the API key");
    assert!(run.rows().is_empty());
}

#[test]
fn the_spend_cap_ends_the_run_and_keeps_what_is_paid() {
    // The answers come after the cap is noticed.
    let run = Run::new(rows(30), |request| echo(request).delay(Duration::from_millis(150)));
    run.remote(&["--spend-requests", "10", "--max-in-flight", "16"])
        .exits(7)
        .says("10 rows were written before")
        .says("error: the spend cap of 10 requests is reached")
        .says("hint: ");
    let out = run.rows();
    assert_eq!((out.len(), run.server.requests()), (10, 10));
    for (id, row) in out.iter().enumerate() {
        assert_eq!((&row["id"], &row["error"]), (&json!(id), &Value::Null), "{row}");
    }

    let run = Run::new(rows(30), echo);
    run.remote(&["--spend-tokens", "100", "--max-in-flight", "1"]).exits(7).says("the spend cap of 100 tokens");
    assert_eq!((run.rows().len(), run.server.requests()), (4, 4));
}

#[test]
fn a_sleeping_endpoint_is_woken_with_progress() {
    let looks = AtomicUsize::new(0);
    let woken = AtomicUsize::new(0);
    let run = Run::new(rows(2), move |request| {
        let host = request.header("host").unwrap();
        let state = |state: &str| {
            Answer::json(&json!({"name": "ep", "model": {"repository": "owner/vision"},
            "status": {"state": state, "url": format!("http://{host}/dedicated")}}))
        };
        match (request.method.as_str(), request.path.as_str()) {
            ("POST", "/ie/v2/endpoint/acme/ep/resume") => {
                woken.store(1, Ordering::SeqCst);
                state("pending")
            }
            ("GET", "/ie/v2/endpoint/acme/ep") => {
                match (woken.load(Ordering::SeqCst), looks.fetch_add(1, Ordering::SeqCst)) {
                    (0, _) => state("scaledToZero"),
                    (_, 0..4) => state("initializing"),
                    _ => state("running"),
                }
            }
            ("GET", "/ie/v2/endpoint/acme/broken") => {
                Answer::json(&json!({"status": {"state": "failed", "message": "no GPU left"}}))
            }
            ("POST", "/dedicated/v1/chat/completions") => echo(request),
            _ => Answer::status(404),
        }
    });
    let service = format!("{}/ie", run.server.url());
    let args = |name: &'static str| {
        [
            "--endpoint-name",
            name,
            "--endpoint-namespace",
            "acme",
            "--endpoints-url",
            &service,
            "--endpoint-poll",
            "0.05",
            "--input",
            "rows.jsonl",
            "--output",
            "out.jsonl",
        ]
        .map(str::to_owned)
    };
    let start = |name| run.bare(&args(name).iter().map(String::as_str).collect::<Vec<_>>());
    start("ep")
        .exits(0)
        .says("waiting for endpoint acme/ep: scaledToZero (0 s)")
        .says("waiting for endpoint acme/ep: initializing")
        .says("2 rows, 0 failed");
    assert_eq!(run.rows()[0]["model_name"], "owner/vision");
    start("broken").exits(2).says("exists already");
    fs::remove_file(run.scratch.path("out.jsonl")).unwrap();
    start("broken").exits(6).says("endpoint acme/broken is failed: no GPU left");
    start("missing").exits(6).says("endpoint acme/missing does not exist");
}

#[test]
fn tool_calls_reasoning_and_log_probabilities_have_columns() {
    let run = Run::new(rows(2), |request| {
        let mut body = chat("A.");
        body["choices"][0]["message"]["reasoning_content"] = json!("hm");
        body["choices"][0]["logprobs"] = json!({"content": [{"token": "A.", "logprob": -0.5, "top_logprobs": []}]});
        if asked(request) == "question 1" {
            body["choices"][0]["message"] = json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "0", "type": "function", "function": {"name": "count", "arguments": "{\"n\": 3}"}}]});
            body["choices"][0]["finish_reason"] = json!("tool_calls");
        }
        Answer::json(&body)
    });
    let tools = json!([{"type": "function", "function": {"name": "count", "parameters": {"type": "object"}}}]);
    run.scratch.file("tools.json", tools.to_string());
    run.remote(&["--tools", "tools.json", "--tool-choice", "auto", "--keep-reasoning", "--logprobs"]).exits(0);
    let out = run.rows();
    let column = |row: usize, what: &str| &out[row][format!("llm_text_generation_with_image_0_{what}")];
    assert_eq!((column(0, "reasoning"), &out[0]["generation"]), (&json!("hm"), &json!("A.")));
    assert_eq!(column(0, "logprobs"), &json!([[{"token": "A.", "logprob": -0.5}]]));
    assert_eq!(column(1, "tool_calls")[0]["function"]["arguments"], json!("{\"n\": 3}"));
    assert_eq!((&out[1]["generation"], &out[1]["finish_reason"]), (&Value::Null, &json!("tool_calls")));
    let body = run.server.received()[0].json();
    assert_eq!((&body["tools"], &body["tool_choice"]), (&tools, &json!("auto")));

    // Not asked for, not kept.
    run.remote(&["--overwrite", "--limit", "1"]).exits(0);
    assert!(run.rows()[0].as_object().unwrap().keys().all(|name| !name.starts_with("llm_")));
}

#[test]
fn structured_answers_have_their_form_or_the_row_says_why_not() {
    let run = Run::new(rows(4), |request| match asked(request).as_str() {
        "question 0" => Answer::json(&chat("{\"count\": 3}")),
        "question 1" => Answer::json(&chat("{\"count\": \"three\"}")),
        "question 2" => Answer::json(&chat("There are three.")),
        _ => {
            let mut body = chat("{\"count\": 3");
            body["choices"][0]["finish_reason"] = json!("length");
            Answer::json(&body)
        }
    });
    let schema = json!({"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]});
    run.scratch.file("schema.json", schema.to_string());
    run.remote(&["--json-schema", "schema.json"]).exits(1).says("4 rows, 3 failed");
    let out = run.rows();
    assert_eq!((&out[0]["generation"], &out[0]["error"]), (&json!("{\"count\": 3}"), &Value::Null));
    for (row, code, said) in [
        (1, "constraint.violated", "at /count: "),
        (2, "constraint.violated", "it is no JSON"),
        (3, "constraint.incomplete", "it is no JSON: EOF"),
    ] {
        assert_eq!((out[row]["error"]["code"].as_str(), &out[row]["generation"]), (Some(code), &Value::Null));
        assert!(out[row]["error"]["message"].as_str().unwrap().contains(said), "{}", out[row]["error"]);
    }
    let body = run.server.received()[0].json();
    assert_eq!(body["response_format"]["json_schema"]["schema"], schema);
    assert_eq!(body["messages"][0]["content"][1]["type"], "image_url");

    // In TGI's words, and in the server's own.
    run.remote(&["--overwrite", "--limit", "1", "--dialect", "tgi", "--regex", "\\{.*\\}"]).exits(0);
    assert_eq!(
        run.server.received().last().unwrap().json()["response_format"],
        json!({"type": "regex", "value": "\\{.*\\}"})
    );
    run.remote(&["--overwrite", "--limit", "3", "--response-format", "{\"type\": \"json_object\"}"])
        .exits(1)
        .says("3 rows, 1 failed");
    run.scratch.file("schema.json", "{\"type\": \"integr\"}");
    run.remote(&["--overwrite", "--json-schema", "schema.json"]).exits(2).says("the constraint can't be used");
}

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
