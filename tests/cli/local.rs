//! `vgen-local` with a real network: the tiny random checkpoint of the fixtures, and the demo model of the program.

use std::fs;
use std::path::PathBuf;

use crate::support::Scratch;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mllama").join(name)
}

/// A model folder and three rows with an image that lies beside them; the second image is missing.
fn scratch() -> (Scratch, String) {
    let scratch = Scratch::new();
    let image = fs::read(fixture("public/images/raw_text_first_0.png")).unwrap();
    scratch.file("data/pictures/a.png", image);
    scratch.file(
        "data/rows.jsonl",
        "{\"id\": 0, \"instruction\": \"What is it?\", \"image\": \"pictures/a.png\"}\n\
         {\"id\": 1, \"instruction\": \"What is it?\", \"image\": \"pictures/b.png\"}\n\
         {\"id\": 2, \"instruction\": \"Which colour?\", \"image\": \"pictures/a.png\"}\n",
    );
    (scratch, fixture("tiny-hublike").to_str().unwrap().to_owned())
}

#[test]
fn rows_are_answered_and_a_missing_image_costs_its_row() {
    let (scratch, model) = scratch();
    let args = ["--model", &model, "--input", "data/rows.jsonl", "--max-new-tokens", "4"];
    scratch.vgen_local(&[&args[..], &["--output", "out.jsonl"]].concat()).exits(1).says("3 rows, 1 failed");
    let rows = scratch.rows("out.jsonl");
    assert!(rows[0]["generation"].is_string() && rows[2]["generation"].is_string(), "{rows:?}");
    assert!(rows[1]["error"]["code"].as_str().unwrap().starts_with("image."), "{rows:?}");
    assert_eq!(rows[0]["distilabel_metadata"]["statistics_text_generation_with_image_0"]["output_tokens"], 4);

    // The same row gives the same bytes alone.
    let alone = scratch.vgen_local(&[&args[..], &["--limit", "1", "--batch-size", "1", "--quiet"]].concat()).exits(0);
    assert_eq!(alone.stdout.trim_end(), scratch.read("out.jsonl").lines().next().unwrap());
    assert_eq!(alone.stderr, "");
}

#[test]
fn one_image_is_answered_to_the_terminal() {
    let (scratch, model) = scratch();
    let ask = ["--model", &model, "--prompt", "What is it?", "--max-new-tokens", "4"];
    let streamed = scratch.vgen_local(&[&ask[..], &["--image", "data/pictures/a.png"]].concat()).exits(0);
    let rows = ["--model", &model, "--input", "data/rows.jsonl", "--max-new-tokens", "4", "--limit", "1"];
    scratch.vgen_local(&[&rows[..], &["--output", "out.jsonl"]].concat()).exits(0);
    let expected = format!("{}\n", scratch.rows("out.jsonl")[0]["generation"].as_str().unwrap());
    let streamed = streamed.prints(&expected).says("tokens/s");
    assert!(!streamed.stderr.contains("error"));
    scratch.vgen_local(&[&ask[..], &["--image", "missing.png"]].concat()).exits(2).says("missing.png");
}

#[test]
fn what_the_engine_cannot_do_is_refused() {
    let (scratch, model) = scratch();
    let args = |more: [&'static str; 2]| {
        let base = ["--model", &model, "--input", "data/rows.jsonl"];
        scratch.vgen_local(&[&base[..], &more].concat())
    };
    args(["--temperature", "-1"]).exits(2);
    args(["--top-p", "1.5"]).exits(2).says("top_p");
    args(["--device", "abacus"]).exits(2).says("[backend] device: \"abacus\" is no device");
    args(["--dtype", "f8"]).exits(2).says("[backend] dtype: ");
    // Before weights are read.
    let unread = args(["--regex", "("]).exits(2).says("unclosed group in \"(\" at byte 0");
    assert!(!unread.stderr.contains("model ready"), "{}", unread.stderr);
    scratch.file("form.json", r#"{"type": "object", "properties": {"n": {"type": "integr"}}}"#);
    args(["--json-schema", "form.json"]).exits(2).says("Invalid type: integr at /properties/n/type");
}

#[test]
fn a_row_brings_its_own_form_of_answer() {
    let (scratch, model) = scratch();
    let row =
        |form: &str| format!("{{\"instruction\": \"Which?\", \"image\": \"pictures/a.png\", \"form\": {form}}}\n");
    let rows = [
        "{\"format\": \"choice\", \"schema\": [\"cat\", \"dog\"]}",
        "{\"format\": \"regex\", \"schema\": \"[0-9]{3}\"}",
        "{\"format\": \"json\", \"schema\": {\"type\": \"object\", \"properties\": {\"a\": {\"enum\": [1, 2]}}, \
          \"required\": [\"a\"], \"additionalProperties\": false}}",
        "null",
        "{\"format\": \"regex\", \"schema\": \"(\"}",
        "{\"format\": \"xml\", \"schema\": \"a\"}",
    ];
    scratch.file("data/rows.jsonl", rows.map(row).concat());
    let args = ["--model", &model, "--input", "data/rows.jsonl", "--max-new-tokens", "40"];
    let run = [&args[..], &["--structured-output-column", "form", "--choice", "left", "--choice", "right"]].concat();
    scratch.vgen_local(&[&run[..], &["--output", "out.jsonl"]].concat()).exits(1).says("6 rows, 2 failed");
    let rows = scratch.rows("out.jsonl");
    let answer = |at: usize| rows[at]["generation"].as_str().unwrap();
    assert!(["cat", "dog"].contains(&answer(0)), "{rows:?}");
    assert!(answer(1).len() == 3 && answer(1).parse::<u32>().is_ok(), "{rows:?}");
    let object: serde_json::Value = serde_json::from_str(answer(2)).unwrap();
    assert!(object == serde_json::json!({"a": 1}) || object == serde_json::json!({"a": 2}), "{rows:?}");
    // The run's own.
    assert!(["left", "right"].contains(&answer(3)), "{rows:?}");
    assert_eq!(rows[4]["error"]["code"], "constraint.invalid");
    assert_eq!(rows[5]["error"]["code"], "row.structured_output");
    let verified = scratch.vgen(&[&["verify", "out.jsonl"], &run[..]].concat()).exits(0);
    assert!(verified.stdout.starts_with("4 rows run again"), "{}", verified.stdout);
}

#[test]
fn a_folder_without_a_model_or_with_another_one_exits_with_4() {
    let (scratch, _) = scratch();
    fs::create_dir(scratch.path("empty")).unwrap();
    let run = |model: &str| scratch.vgen_local(&["--model", model, "--input", "data/rows.jsonl"]);
    run("empty").exits(4).says("error: ");
    scratch.file("other/config.json", "{\"model_type\": \"llava\", \"architectures\": [\"Llava\"]}");
    run("other").exits(4).says("Llava");
    run("nobody/nothing-at-all").exits(4).says("hint: ");
}

#[test]
fn the_demo_answers_its_samples_without_a_network() {
    let scratch = Scratch::new();
    let table = scratch.vgen_local(&["--demo", "--quiet"]).exits(0);
    let lines: Vec<_> = table.stdout.lines().collect();
    assert!(lines[0].starts_with("image ") && lines[0].ends_with("answer"), "{}", table.stdout);
    assert!(lines.len() > 5, "{}", table.stdout);

    scratch.vgen_local(&["--demo", "--output", "out.jsonl"]).exits(0);
    let rows = scratch.rows("out.jsonl");
    assert_eq!(rows.len(), lines.len() - 1);
    assert_eq!(rows[0]["model_name"], "vgen/shapes");
    assert!(lines[1].ends_with(rows[0]["generation"].as_str().unwrap()));

    let some = ["--demo", "--quiet", "--skip", "1", "--limit", "2"];
    let table = scratch.vgen_local(&some).exits(0).stdout;
    assert_eq!(table.lines().collect::<Vec<_>>(), [lines[0], lines[2], lines[3]]);
    scratch.vgen_local(&[&some[..], &["--output", "some.jsonl"]].concat()).exits(0);
    assert_eq!(scratch.rows("some.jsonl"), rows[1..3]);
    scratch
        .vgen_local(&["--demo", "--glob", "*.png"])
        .exits(2)
        .says("--glob: input.globs has no effect on the demo's samples");
}

#[test]
fn options_of_folders_are_refused_for_files_of_rows() {
    let (scratch, model) = scratch();
    for (flag, key) in [("--glob", "globs"), ("--instruction", "instruction")] {
        let said = format!("{flag}: input.{key} has no effect on files of rows");
        scratch.vgen_local(&["--model", &model, "--input", "data/rows.jsonl", flag, "x"]).exits(2).says(&said);
    }
}

/// Engines on several devices give the answers of one, in the same order.
#[test]
fn several_devices_give_the_answers_of_one() {
    let (scratch, model) = scratch();
    let line =
        |id: usize| format!("{{\"id\": {id}, \"instruction\": \"What is {id}?\", \"image\": \"pictures/a.png\"}}\n");
    scratch.file("data/many.jsonl", (0..40).map(line).collect::<String>());
    let args = ["--model", &model, "--input", "data/many.jsonl", "--max-new-tokens", "5", "--num-generations", "2"];
    scratch.vgen_local(&[&args[..], &["--output", "one.jsonl", "--device", "cpu"]].concat()).exits(0);
    let two = [&args[..], &["--output", "two.jsonl", "--devices", "cpu,cpu", "--batch-size", "3"]].concat();
    scratch.vgen_local(&two).exits(0).says("ready on cpu, cpu");
    assert_eq!(scratch.read("one.jsonl"), scratch.read("two.jsonl"));
}

/// A device that this build has no support for is refused in a sentence, and auto says what it took.
#[test]
#[cfg(not(any(feature = "cuda", feature = "metal")))]
fn devices_without_support_are_named() {
    let (scratch, model) = scratch();
    let args = ["--model", &model, "--prompt", "hello", "--max-new-tokens", "1"];
    let cuda = scratch.vgen_local(&[&args[..], &["--device", "cuda:1"]].concat());
    cuda.exits(2).says("this build has no CUDA support").says("--features cuda");
    let metal = scratch.vgen_local(&[&args[..], &["--devices", "cpu,metal"]].concat());
    metal.exits(2).says("this build has no Metal support");
    scratch.vgen_local(&args).exits(0).says("ready on cpu (a build without GPUs");
    scratch.vgen_local(&[&args[..], &["--devices", "cpu,abacus"]].concat()).exits(2).says("\"abacus\" is no device");
}
