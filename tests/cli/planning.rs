//! `vgen plan` and `vgen verify`, `--stats`, and models that read text only.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::Scratch;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn model(name: &str) -> String {
    fixture(name).to_str().unwrap().to_owned()
}

/// Rows of which the first two share an image of one tile, the third has one of four, the fourth one in the network,
/// and the fifth one that isn't there.
fn scratch() -> Scratch {
    let scratch = Scratch::new();
    for (name, image) in [("a.png", "raw_text_first_0.png"), ("wide.png", "wide_extreme_0.png")] {
        scratch.file(name, fs::read(fixture("mllama/public/images").join(image)).unwrap());
    }
    let row = |image: &str| format!("{{\"instruction\": \"What is it?\", \"image\": \"{image}\"}}\n");
    let images = ["a.png", "a.png", "wide.png", "https://example.com/x.png", "none.png"];
    scratch.file("rows.jsonl", images.map(row).concat());
    scratch
}

#[test]
fn a_plan_reads_headers_only() {
    let scratch = scratch();
    // Without weights, tokenizer or anything but the configuration.
    let config = fs::read(fixture("mllama/tiny-hublike/config.json")).unwrap();
    scratch.file("model/config.json", config);
    let args = ["plan", "--model", "model", "--input", "rows.jsonl", "--max-new-tokens", "50"];
    let plan = scratch.vgen(&[&args[..], &["--json", "--rows-per-second", "2"]].concat()).exits(0).says("none.png");
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let rows = &plan["rows"];
    assert_eq!((&rows["rows"], &rows["faulty_rows"], &rows["images"]), (&5.into(), &1.into(), &5.into()), "{plan:#}");
    assert_eq!((&rows["different_images"], &rows["unseen_images"]), (&3.into(), &1.into()), "{plan:#}");
    assert_eq!(plan["seconds"], 2.5);
    let number = |value: &Value| value.as_u64().unwrap();
    assert_eq!(number(&rows["cross_kv_bytes"]), number(&rows["different_tiles"]) * number(&plan["cross_kv_per_tile"]));
    assert_eq!(number(&rows["most_tiles"]), 4);
    // 56 / 14 patches a side and a class token, 2 cross-attention layers, 2 heads of 16, keys and values, bf16.
    assert_eq!(number(&plan["cross_kv_per_tile"]), (4 * 4 + 1) * 2 * 2 * 2 * 16 * 2);
    assert!(number(&plan["rows_that_fit"]) > 0);

    let text = scratch.vgen(&args).exits(0);
    for word in
        ["weights", "vision workspace", "keys, values per token", "prepared images", "fits", "5, 1 can't be run"]
    {
        assert!(text.stdout.contains(word), "{word:?} is not in\n{}", text.stdout);
    }
    scratch.vgen(&[&args[..], &["--memory", "2MB"]].concat()).exits(5).says("are allowed").says("--memory");
    scratch.vgen(&["plan"]).exits(2).says("no model is named");

    // What the model says of its answers; more answers than a batch are made in turns.
    scratch.file("model/generation_config.json", "{\"max_new_tokens\": 77}");
    let many = ["plan", "--model", "model", "--num-generations", "100", "--batch-size", "3", "--json"];
    let plan: Value = serde_json::from_str(&scratch.vgen(&many).exits(0).stdout).unwrap();
    assert_eq!((&plan["max_new_tokens"], &plan["at_a_time"], &plan["batch_size"]), (&77.into(), &3.into(), &3.into()));
    let text = number(&plan["row_bytes"]) - number(&plan["cross_kv_per_image"]);
    assert_eq!(text, 4 * (256 + 77) * number(&plan["kv_per_token"]), "{plan:#}");
}

#[test]
fn a_run_that_cannot_fit_is_refused_with_numbers() {
    let (scratch, model) = (scratch(), model("mllama/tiny-hublike"));
    let args = ["--model", &model, "--input", "rows.jsonl", "--memory", "3MB"];
    scratch
        .vgen_local(&args)
        .exits(5)
        .says("plan: ")
        .says("2.9 MiB are allowed")
        .says("keys, values per tile")
        .says("8 answers at a time at most");
}

#[test]
fn stats_say_where_the_time_went_and_a_plan_can_reckon_with_them() {
    let (scratch, model) = (scratch(), model("mllama/tiny-hublike"));
    let args = ["--model", &model, "--input", "rows.jsonl", "--limit", "3", "--max-new-tokens", "6"];
    scratch.vgen_local(&[&args[..], &["--output", "out.jsonl", "--stats", "stats.json"]].concat()).exits(0);
    let stats: Value = serde_json::from_str(&scratch.read("stats.json")).unwrap();
    assert_eq!(stats["rows"], 3);
    let engine = &stats["backend"];
    for name in ["prepare_seconds", "encode_seconds", "prefill_seconds", "decode_seconds", "sample_seconds"] {
        assert!(engine[name].as_f64().unwrap() > 0.0, "{name} in {stats:#}");
    }
    assert_eq!((&engine["images_encoded"], &engine["images_reused"]), (&2.into(), &1.into()), "{stats:#}");
    let planned = [&["plan"], &args[..], &["--measured", "stats.json", "--json"]].concat();
    let plan: Value = serde_json::from_str(&scratch.vgen(&planned).exits(0).stdout).unwrap();
    assert!(plan["seconds"].as_f64().unwrap() > 0.0, "{plan:#}");
}

#[test]
fn a_run_is_verified_and_a_changed_answer_is_found() {
    let (scratch, model) = (scratch(), model("mllama/tiny-hublike"));
    let row = |n: u32| {
        format!(
            "{{\"instruction\": \"Question {n}?\", \"image\": \"{}\"}}\n",
            ["a.png", "wide.png", "none.png"][n as usize % 3]
        )
    };
    scratch.file("many.jsonl", (0..12).map(row).collect::<String>());
    let args = [
        "--model",
        &model,
        "--input",
        "many.jsonl",
        "--max-new-tokens",
        "6",
        "--num-generations",
        "2",
        "--temperature",
        "0.8",
        "--logprobs",
    ];
    scratch.vgen_local(&[&args[..], &["--output", "out.jsonl"]].concat()).exits(1);
    let verify = |more: &[&str]| scratch.vgen(&[&["verify", "out.jsonl"], &args[..], more].concat());
    let ended = verify(&["--sample", "5"]).exits(0);
    assert!(ended.stdout.starts_with("5 rows run again, 1, then 3, then 5 at a time, "), "{}", ended.stdout);
    let report: Value = serde_json::from_str(&verify(&["--json"]).exits(0).stdout).unwrap();
    // All that were answered.
    assert_eq!((&report["rows"], &report["tokens"]), (&8.into(), &(8 * 2 * 6 * 3).into()), "{report:#}");

    // The run's own --sample is in its record; here it is how many rows are looked at.
    scratch.vgen_local(&[&args[..], &["--output", "some.jsonl", "--sample", "4", "--seed", "0"]].concat());
    let some = scratch.vgen(&[&["verify", "some.jsonl", "--sample", "1", "--seed", "0"], &args[..]].concat()).exits(0);
    assert!(some.stdout.starts_with("1 rows run again, 1 at a time, "), "{}", some.stdout);

    // With other settings the answers are others; a changed line is found.
    verify(&["--seed", "3"]).exits(1);
    let lines = scratch.read("out.jsonl");
    let first = lines.lines().next().unwrap();
    let mut changed: Value = serde_json::from_str(first).unwrap();
    changed["generation"] = "something else".into();
    scratch.file("out.jsonl", lines.replacen(first, &changed.to_string(), 1));
    let ended = verify(&[]).exits(1);
    assert!(
        ended.stdout.contains("row 0, 1 at a time: generation: \"something else\" was written"),
        "{}",
        ended.stdout
    );
    scratch.file("out.jsonl", lines.lines().skip(1).collect::<Vec<_>>().join("\n"));
    verify(&[]).exits(3).says("another row's");
}

#[test]
fn rows_of_a_model_that_reads_text_need_no_image() {
    let (scratch, model) = (scratch(), model("llama/chatml"));
    scratch.file("text.jsonl", "{\"instruction\": \"Hi\"}\n{\"instruction\": \"Hi\", \"image\": \"a.png\"}\n");
    let args = ["--model", &model, "--input", "text.jsonl", "--max-new-tokens", "4", "--output", "out.jsonl"];
    scratch.vgen_local(&args).exits(1);
    let rows = scratch.rows("out.jsonl");
    assert!(rows[0]["generation"].is_string(), "{rows:?}");
    assert_eq!(rows[1]["error"]["code"], "prompt.text_only", "{rows:?}");
    scratch.vgen_local(&["--model", &model, "--prompt", "Hi", "--max-new-tokens", "4"]).exits(0);
    let required = [&args[..], &["--overwrite", "--image-required"]].concat();
    scratch.vgen_local(&required).exits(1);
    assert!(scratch.rows("out.jsonl")[0]["error"]["code"].is_string());
}

/// The page of the documentation shows what the program says, to the letter.
#[test]
fn the_page_of_costs_is_what_the_program_counts() {
    let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("crates/backends/docs");
    let page = fs::read_to_string(docs.join("performance-model.md")).unwrap();
    let scratch = Scratch::new();
    for model in ["11b", "90b"] {
        let config = fs::read(docs.join(format!("llama-3.2-{model}-vision.json"))).unwrap();
        scratch.file(&format!("{model}/config.json"), config);
        for device in ["h100", "a100", "4090", "m3"] {
            let said = scratch.vgen(&["plan", "--model", model, "--device-model", device]);
            assert!(page.contains(said.stdout.trim_end()), "{model} on {device}:\n{}", said.stdout);
            if (model, device) == ("90b", "4090") {
                said.exits(5).says("");
            } else {
                said.exits(0);
            }
        }
    }
    let args = ["plan", "--model", "11b", "--device-model", "h100", "--json", "--max-new-tokens", "16"];
    let json: Value = serde_json::from_str(&scratch.vgen(&args).exits(0).stdout).unwrap();
    assert_eq!(json["work"]["new_tokens"], 16);
    assert!(json["rows_per_second_at_most"].as_f64().unwrap() > 10.0, "{json:#}");
    scratch.vgen(&["plan", "--model", "11b", "--device-model", "abacus"]).exits(2).says("h100, a100, 4090, m3");
}
