//! What stands in the output: order, columns, tokens, tools, forms.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};
use vgen_loopback::Answer;

use super::{KEY, METADATA, Run, asked, chat, echo, rows};

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
