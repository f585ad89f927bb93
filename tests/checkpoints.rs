//! Checkpoints that can't be run are refused with the reason, before any work is done.

// What is wrong with the repository's own files is to stop the test at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A copy of a small checkpoint, changed by `change`, and what `vgen-local` says of it.
fn run_with(change: impl FnOnce(&Path)) -> Output {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mllama");
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(fixtures.join("tiny-hublike")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    change(&model);
    let output = folder.path().join("out.jsonl");
    let run = Command::new(env!("CARGO_BIN_EXE_vgen-local"))
        .args([Path::new("--model"), &model, Path::new("--output"), &output])
        .args(["--max-new-tokens", "2", "--input", "-"])
        .stdin(fs::File::open(rows(folder.path())).unwrap())
        .output()
        .unwrap();
    assert!(run.status.success() || !output.exists(), "a run that can't begin leaves no output");
    run
}

fn rows(folder: &Path) -> PathBuf {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mllama/public/images/rgba_0.png");
    let path = folder.join("rows.jsonl");
    fs::write(&path, json!({"instruction": "What is it?", "image": image}).to_string()).unwrap();
    path
}

fn refused(run: &Output, words: &[&str]) {
    let message = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(4), "{message}");
    for word in words.iter().chain(&["error: ", "hint: "]) {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// The name of the shard that is first or second in the index.
const SHARD: &str = "model-00002-of-00002.safetensors";

#[test]
fn a_whole_one_runs() {
    let run = run_with(|_| {});
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

#[test]
fn a_missing_shard() {
    refused(&run_with(|model| fs::remove_file(model.join(SHARD)).unwrap()), &[SHARD]);
}

#[test]
fn a_truncated_shard() {
    let run = run_with(|model| {
        let bytes = fs::read(model.join(SHARD)).unwrap();
        fs::write(model.join(SHARD), &bytes[..bytes.len() - 100]).unwrap();
    });
    refused(&run, &[SHARD]);
}

#[test]
fn a_truncated_header() {
    let run = run_with(|model| {
        let bytes = fs::read(model.join(SHARD)).unwrap();
        fs::write(model.join(SHARD), &bytes[..60]).unwrap();
    });
    refused(&run, &[SHARD]);
}

#[test]
fn a_wrong_shape() {
    let run = run_with(|model| {
        edit_json(&model.join("config.json"), |config| config["text_config"]["intermediate_size"] = json!(192));
    });
    refused(&run, &["mlp.gate_proj.weight", "160", "192"]);
}

#[test]
fn a_tokenizer_of_another_model() {
    let run = run_with(|model| {
        let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/shapes/tokenizer.json");
        fs::copy(other, model.join("tokenizer.json")).unwrap();
    });
    refused(&run, &["tokenizer"]);
}

#[test]
fn an_architecture_that_is_not_there() {
    let run = run_with(|model| {
        edit_json(&model.join("config.json"), |config| config["architectures"] = json!(["Gemma4ForCausalLM"]));
        fs::remove_file(model.join(SHARD)).unwrap();
    });
    refused(&run, &["Gemma4ForCausalLM"]);
}

#[test]
fn a_config_that_is_no_json() {
    refused(&run_with(|model| fs::write(model.join("config.json"), "{").unwrap()), &["config.json"]);
}

#[test]
fn no_room_in_memory() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mllama/tiny");
    let run = Command::new(env!("CARGO_BIN_EXE_vgen-local"))
        .args([Path::new("--model"), &fixtures])
        .args(["--memory", "1MB", "--prompt", "hello"])
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(5), "{message}");
    assert!(message.contains("weights") && message.contains("--memory"), "{message}");
}
