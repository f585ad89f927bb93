//! What goes wrong, what it costs, and what is never shown.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use vgen_loopback::Answer;

use super::{KEY, Run, asked, echo, rows};
use crate::support::Ended;

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
        // The folder and the run's record in it.
        let folders = [run.scratch.folder().to_owned(), run.scratch.path("out.jsonl.run")];
        let files =
            folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().map(|file| file.unwrap().path());
        for path in files.filter(|path| path.is_file()) {
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
    start("broken").exits(2).says("was begun by a run that differs").says("endpoint_name");
    fs::remove_file(run.scratch.path("out.jsonl")).unwrap();
    fs::remove_dir_all(run.scratch.path("out.jsonl.run")).unwrap();
    start("broken").exits(6).says("endpoint acme/broken is failed: no GPU left");
    start("missing").exits(6).says("endpoint acme/missing does not exist");
}
