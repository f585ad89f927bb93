//! The embedded demo model: it answers what it never saw, it needs to see it, and it answers as the network that
//! trained it does.

// What is wrong with the repository's own files is to stop the test at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/shapes")
}

fn evaluation() -> Vec<Value> {
    let text = std::fs::read_to_string(model().join("eval.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs rows through `vgen-local --demo`, in one run, and returns the answers.
fn answers(rows: &[Value]) -> Vec<String> {
    answers_in("f32", rows)
}

fn answers_in(dtype: &str, rows: &[Value]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("rows.jsonl"), folder.path().join("out.jsonl"));
    let mut file = std::fs::File::create(&input).unwrap();
    for row in rows {
        writeln!(file, "{row}").unwrap();
    }
    let run = Command::new(env!("CARGO_BIN_EXE_vgen-local"))
        .args(["--demo", "--temperature", "0", "--quiet", "--batch-size", "16", "--dtype", dtype])
        .args([Path::new("--input"), &input, Path::new("--output"), &output])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let text = std::fs::read_to_string(output).unwrap();
    let generation =
        |line: &str| serde_json::from_str::<Value>(line).unwrap()["generation"].as_str().map(str::to_owned);
    let answers: Vec<String> = text.lines().filter_map(generation).collect();
    assert_eq!(answers.len(), rows.len());
    answers
}

/// Right and all, by kind of question.
type Tally<'a> = BTreeMap<&'a str, (usize, usize)>;

fn accuracy<'a>(rows: &'a [Value], answers: &[String]) -> (f64, Tally<'a>) {
    let mut by_kind = Tally::new();
    for (row, answer) in rows.iter().zip(answers) {
        let (right, all) = by_kind.entry(row["kind"].as_str().unwrap()).or_default();
        *right += usize::from(row["answer"] == json!(answer));
        *all += 1;
    }
    let right: usize = by_kind.values().map(|(right, _)| right).sum();
    (right as f64 / rows.len() as f64, by_kind)
}

#[test]
fn answers_questions_about_unseen_images() {
    let rows = evaluation();
    let images: std::collections::BTreeSet<_> = rows.iter().map(|row| row["image"].to_string()).collect();
    assert!(rows.len() >= 300 && images.len() >= 300, "{} rows, {} images", rows.len(), images.len());
    let answers = answers(&rows);
    let (accuracy, by_kind) = accuracy(&rows, &answers);
    assert!(accuracy >= 0.95, "accuracy {accuracy}: {by_kind:?}");
    // The network of the training script gave these answers with the same weights.
    let different: Vec<_> =
        rows.iter().zip(&answers).filter(|(row, answer)| row["reference"] != json!(answer)).collect();
    assert!(different.is_empty(), "{different:?}");
}

#[test]
fn weights_in_fewer_bits_cost_little() {
    let rows = evaluation();
    let right = |dtype| accuracy(&rows, &answers_in(dtype, &rows)).0;
    let exact = right("f32");
    for (dtype, most) in [("bf16", 0.005), ("q8_0", 0.005), ("q4_k", 0.03)] {
        let found = right(dtype);
        assert!(found >= exact - most, "{dtype}: {found} of {exact}");
    }
}

#[test]
fn without_the_image_accuracy_collapses() {
    let mut rows = evaluation();
    for row in &mut rows {
        let url = row["image"].as_str().unwrap();
        let bytes = STANDARD.decode(url.split_once(',').unwrap().1).unwrap();
        let drawn = image::load_from_memory(&bytes).unwrap();
        let blank = RgbImage::from_pixel(drawn.width(), drawn.height(), Rgb([240, 240, 240]));
        let mut png = std::io::Cursor::new(Vec::new());
        blank.write_to(&mut png, ImageFormat::Png).unwrap();
        row["image"] = json!(format!("data:image/png;base64,{}", STANDARD.encode(png.into_inner())));
    }
    let (blind, by_kind) = accuracy(&rows, &answers(&rows));
    assert!(blind <= 0.35, "accuracy without images {blind}: {by_kind:?}");
}

#[test]
fn the_samples_are_answered() {
    let run = Command::new(env!("CARGO_BIN_EXE_vgen-local")).arg("--demo").output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let rows = std::fs::read_to_string(model().join("samples/rows.jsonl")).unwrap().lines().count();
    assert!(String::from_utf8(run.stdout).unwrap().lines().count() > rows, "a line for each row and a heading");
}
