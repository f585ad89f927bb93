//! `vgen check`, and what is said of prompts and answers before and after a run.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Scratch, rows};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A folder with two images, and a row of each kind.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    for (name, image) in [("a.png", "raw_text_first_0.png"), ("wide.png", "wide_extreme_0.png")] {
        scratch.file(name, fs::read(fixture("mllama/public/images").join(image)).unwrap());
    }
    let rows = [
        r#"{"instruction": "What is it?", "image": "a.png"}"#,
        r#"{"instruction": "<|image|>What is it?", "image": "wide.png"}"#,
        r#"{"instruction": "What is it?", "image": "none.png"}"#,
        r#"{"instruction": "What is it?", "image": "https://example.com/x.png"}"#,
        "nonsense",
    ];
    scratch.file("rows.jsonl", rows.join("\n"));
    scratch
}

fn model() -> String {
    fixture("mllama/tiny-hublike").to_str().unwrap().to_owned()
}

fn checked(stdout: &str) -> Value {
    serde_json::from_str(stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

fn codes(report: &Value, level: &str) -> Vec<String> {
    let problems = report["problems"].as_array().unwrap().iter().filter(|problem| problem["level"] == level);
    problems.map(|problem| problem["code"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_check_looks_at_everything_and_leaves_nothing_behind() {
    let (scratch, model) = (scratch(), model());
    let args =
        ["check", "--model", &model, "--input", "rows.jsonl", "--output", "out.parquet", "--rows-per-second", "2"];
    let before = fs::read_dir(scratch.folder()).unwrap().count();
    let ended =
        scratch.vgen(&args).exits(1).says("rows.jsonl line 3: image ./none.png does not exist [image.not_found]");
    let ended = ended.says("rows.jsonl line 5: not a JSON object").says("[lint.image_tag]").says("stays plain text");
    for line in
        ["5, 2 can't be run", "1 image.not_found", "out.parquet, Parquet: begins anew", "about 2.5 s", "weights"]
    {
        assert!(ended.stdout.contains(line), "{line:?} is not in\n{}", ended.stdout);
    }
    let report = checked(&scratch.vgen(&[&args[..], &["--json"]].concat()).exits(1).stdout);
    assert_eq!(codes(&report, "rows"), ["image.not_found", "row.json"]);
    assert_eq!(codes(&report, "warning"), ["lint.image_tag"]);
    assert_eq!((&report["exit_code"], &report["rows_about"], &report["seconds"]), (&json!(1), &json!(5), &json!(2.5)));
    assert_eq!((&report["rows"]["images"], &report["rows"]["unseen_images"]), (&json!(4), &json!(1)), "{report:#}");
    // By the tokenizer, which is there: a question is of a few tokens, and not a quarter of its bytes and a guess.
    assert!(report["plan"]["weights"].as_u64().unwrap() > 0);
    assert_eq!(fs::read_dir(scratch.folder()).unwrap().count(), before);

    // Fewer rows: what is behind them is reckoned.
    let few = checked(&scratch.vgen(&[&args[..], &["--json", "--rows", "2"]].concat()).exits(0).stdout);
    assert_eq!(few["rows"]["rows"], 2);
    assert!((4..=6).contains(&few["rows_about"].as_u64().unwrap()), "{few:#}");
    scratch.vgen(&[&args[..], &["--rows", "2", "--lint", "deny"]].concat()).exits(2).says("[lint.image_tag]");
    let off = scratch.vgen(&[&args[..], &["--rows", "2", "--lint", "off"]].concat()).exits(0);
    assert!(!off.stderr.contains("lint."), "{}", off.stderr);
}

#[test]
fn a_check_tells_all_mistakes_at_once() {
    let (scratch, model) = (scratch(), model());
    let args = ["check", "--model", &model, "--input", "rows.jsonl", "--output", "rows.jsonl", "--rows", "1", "--json"];
    let more = ["--regex", "(", "--memory", "1MB", "--template", "{{ instruction }} {{ nothing }}"];
    let report = checked(&scratch.vgen(&[&args[..], &more[..]].concat()).exits(2).stdout);
    let errors = codes(&report, "error");
    for code in ["constraint.invalid", "plan.memory"] {
        assert!(errors.iter().any(|known| known == code), "{code} is not in {errors:?}");
    }
    assert!(errors.iter().any(|code| code.starts_with("template.")), "{errors:?}");
    let report = checked(&scratch.vgen(&args).exits(2).stdout);
    assert_eq!(codes(&report, "error"), ["output.is_input"]);

    scratch.vgen(&["check", "--model", &model, "--input", "no.jsonl"]).exits(3).says("no.jsonl");
    scratch.vgen(&["check", "--model", "nowhere/nothing", "--input", "rows.jsonl", "--rows", "1"]).exits(4);
    scratch.vgen(&["check", "--config"]).exits(2);
    scratch.file("bad.toml", "[task]\ntemplat = \"x\"\n");
    scratch.vgen(&["check", "bad.toml"]).exits(2).says("template");
    // What the tokenizer finds: the model reads few tokens.
    let long = format!("{{\"instruction\": \"{}\", \"image\": \"a.png\"}}\n", "word ".repeat(200_000));
    scratch.file("long.jsonl", long);
    scratch.vgen(&["check", "--model", &model, "--input", "long.jsonl"]).exits(1).says("[prompt.too_long]");
}

#[test]
fn a_check_says_whether_a_run_would_go_on() {
    let scratch = Scratch::with(rows(30), "[[backend.faults]]\nrow = 7\ncode = \"x.y\"\n");
    let check = |args: &[&str]| scratch.vgen(&[&["check", "run.toml"], args].concat());
    assert!(check(&[]).exits(0).stdout.contains("out.jsonl, JSON lines: begins anew"));
    scratch.run(&["--limit", "10"]).exits(1);
    let output = scratch.read("out.jsonl");
    let goes_on = check(&[]).exits(0).stdout;
    assert!(goes_on.contains("goes on after 10 rows"), "{goes_on}");
    assert!(check(&["--limit", "10"]).exits(0).stdout.contains("nothing is left to do"));
    assert!(check(&["--limit", "10", "--retry-failed"]).exits(0).stdout.contains("does 1 failed rows again"));
    check(&["--template", "Q: {{ instruction }}"]).exits(2).says("task.template");
    assert_eq!(scratch.read("out.jsonl"), output);
    scratch.file("rows.jsonl", rows(30).replace("question 3\"", "question X\""));
    check(&[]).exits(3).says("are not what they were");
}

#[test]
fn a_check_of_a_server_asks_nobody() {
    let scratch = scratch();
    let args = ["check", "--base-url", "http://127.0.0.1:9", "--model-id", "m", "--input", "rows.jsonl", "--rows", "2"];
    scratch.vgen(&args).exits(0).says("[lint.image_tag]").says("is not known");
    scratch.vgen(&[&args[..], &["--top-k", "5"]].concat()).exits(2).says("top_k");
    // A name that is Llama-3.2-Vision's: text before the image can't see it.
    let llama = ["--model-id", "meta-llama/Llama-3.2-11B-Vision-Instruct"];
    let llama = [&args[..3], &llama[..], &args[5..]].concat();
    scratch.vgen(&llama).exits(0).says("[lint.text_before_image]");
    let endpoint = ["check", "--endpoint-name", "e", "--input", "rows.jsonl", "--rows", "1"];
    let ended = scratch.vgen(&endpoint).exits(0);
    assert!(ended.stdout.contains("an endpoint, which is not asked"), "{}", ended.stdout);
    let timed = scratch.vgen(&[&args[..], &["--requests-per-minute", "60"]].concat()).exits(0);
    assert!(timed.stdout.contains("time"), "{}", timed.stdout);
}

#[test]
fn prompts_are_looked_at_before_a_run_and_answers_after_it() {
    let (scratch, model) = (scratch(), model());
    let args =
        ["--model", &model, "--input", "rows.jsonl", "--limit", "2", "--max-new-tokens", "3", "--temperature", "0"];
    let ended = scratch.vgen_local(&args).exits(0).says("1 of 2 rows looked at (first rows.jsonl line 2)");
    // The tag stays text: as a token it would ask for a second image.
    let ended = ended.says("[lint.image_tag]").says("2 of 2 answers were cut").says("--max-new-tokens, which is 3");
    assert_eq!(ended.stdout.matches("\"finish_reason\":\"length\"").count(), 2, "{}", ended.stdout);
    let tagged = ended.stdout.lines().nth(1).unwrap().to_owned();
    scratch.vgen_local(&[&args[..], &["--image-position", "as-given"]].concat()).says("[lint.text_before_image]");

    let off = scratch.vgen_local(&[&args[..], &["--lint", "off"]].concat()).exits(0);
    assert!(!off.stderr.contains("lint.") && off.stdout.lines().nth(1) == Some(&tagged), "{}", off.stderr);
    let denied = [&args[..], &["--lint", "deny", "--output", "out.jsonl"]].concat();
    scratch.vgen_local(&denied).exits(2).says("1 things look wrong").says("--lint warn");
    assert!(!scratch.path("out.jsonl").exists() && !scratch.path("out.jsonl.run").exists());
    // Nothing wrong with the first row; but its answer is cut.
    let first = [&args[..4], &["--limit", "1", "--max-new-tokens", "3", "--lint", "deny"]].concat();
    scratch.vgen_local(&first).exits(1).says("[lint.cut_by_length]");
}

#[test]
fn a_check_fetches_images_only_if_asked_to() {
    let photo = fs::read(fixture("mllama/public/images/raw_text_first_0.png")).unwrap();
    let server = vgen_loopback::Server::start(move |request| match request.path.as_str() {
        "/none.png" => vgen_loopback::Answer::status(404),
        _ => vgen_loopback::Answer::body("image/png", photo.clone()),
    })
    .unwrap();
    let (scratch, model) = (Scratch::new(), model());
    let row = |name: &str| format!("{{\"instruction\": \"What?\", \"image\": \"{}/{name}\"}}\n", server.url());
    scratch.file("rows.jsonl", ["a.png", "b.png", "a.png", "none.png"].map(row).concat());
    let args = ["check", "--model", &model, "--input", "rows.jsonl", "--allow-private-addresses", "--json"];
    let seen = checked(&scratch.vgen(&args).exits(0).stdout);
    assert_eq!((&seen["rows"]["unseen_images"], server.requests()), (&json!(4), 0));
    let seen = checked(&scratch.vgen(&[&args[..], &["--fetch"]].concat()).exits(1).stdout);
    assert_eq!((&seen["rows"]["unseen_images"], &seen["rows"]["different_images"]), (&json!(0), &json!(2)), "{seen:#}");
    assert_eq!((codes(&seen, "rows"), server.requests()), (vec!["image.http_status".to_owned()], 3));
}
