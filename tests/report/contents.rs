//! What is in a report: the same rows from every format, sides paired, images small, broken ones told.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::reading::{element, index, unpacked};
use crate::support::Scratch;

/// A picture of its own for each number.
pub(crate) fn png(number: u32, width: u32, height: u32) -> Vec<u8> {
    let mut picture = image::RgbImage::new(width, height);
    for (x, y, pixel) in picture.enumerate_pixels_mut() {
        let wave = ((x * (3 + number % 7) + y * 2 + number * 37) % 256) as u8;
        *pixel = image::Rgb([wave, (y * 255 / height) as u8, (number * 53 % 256) as u8]);
    }
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

/// Five rows: a file, a data URL, a broken file, a URL, and one whose file is missing and whose answer fails.
pub(crate) fn scratch() -> Scratch {
    let scratch = Scratch::new();
    scratch.file("a.png", png(1, 900, 600));
    scratch.file("broken.png", b"\x89PNG\r\n\x1a\nnonsense");
    let data = format!("data:image/png;base64,{}", STANDARD.encode(png(2, 40, 30)));
    let rows = [
        json!({"id": "one", "instruction": "What is seen?", "image": "a.png", "note": "kept"}),
        json!({"id": "two", "instruction": "And here?", "image": data}),
        json!({"id": "three", "instruction": "Broken?", "image": "broken.png"}),
        json!({"id": "four", "instruction": "Elsewhere?", "image": "http://127.0.0.1:9/none.png"}),
        json!({"id": "five", "instruction": "Fails?", "image": "a.png"}),
    ];
    scratch.file("rows.jsonl", rows.map(|row| row.to_string()).join("\n"));
    config(&scratch, "run.toml", "out.jsonl", "row {row} says yes");
    scratch
}

/// A config file for the mock backend, whose last row fails.
pub(crate) fn config(scratch: &Scratch, name: &str, output: &str, answer: &str) {
    scratch.file(
        name,
        format!(
            "[input]\npath = \"rows.jsonl\"\n[output]\npath = \"{output}\"\n[task]\nsystem_prompt = \"Be brief.\"\n\
             [backend]\nkind = \"mock\"\nanswer = \"{answer}\"\n\
             [[backend.faults]]\nrow = 4\ncode = \"mock.fault\"\nmessage = \"it was told to\"\n"
        ),
    );
}

fn line(index: &Value, at: usize) -> Value {
    index["lines"][at].clone()
}

#[test]
fn a_report_says_what_the_output_says_whatever_its_format() {
    for output in ["out.jsonl", "out.jsonl.gz", "out.csv", "out.tsv", "out.parquet"] {
        let scratch = scratch();
        config(&scratch, "run.toml", output, "row {row} says yes");
        scratch.run(&[]).exits(1);
        scratch.vgen(&["report", output]).exits(0).says("5 rows shown");
        let html = scratch.read(&format!("{output}.html"));
        let index = unpacked(&html, "index");
        assert_eq!(index["lines"].as_array().unwrap().len(), 5, "{output}");
        let first = line(&index, 0);
        assert_eq!(first["prompt"], "What is seen?", "{output}");
        assert_eq!(first["sides"][0]["t"], "row 0 says yes", "{output}");
        assert_eq!(first["sides"][0]["f"], "stop");
        assert_eq!(first["sides"][0]["o"], 4);
        assert_eq!(first["sides"][0]["z"].as_array().unwrap().len(), 7);
        assert_eq!(line(&index, 4)["sides"][0]["e"], "mock.fault", "{output}");
        assert_eq!(index["runs"][0]["record"]["counts"]["failed_rows"], 1);
        // Rows 0 and 4 have one image together.
        let slots = index["slots"].as_array().unwrap();
        assert_eq!(slots.len(), 4, "{output}: {slots:?}");
        assert_eq!((first["images"][0].clone(), line(&index, 4)["images"][0].clone()), (json!(0), json!(0)));
        assert_eq!((slots[0]["w"].clone(), slots[0]["h"].clone()), (json!(900), json!(600)));
        assert!(slots[0]["u"].as_str().unwrap().starts_with("file:///"), "{}", slots[0]);
        assert!(slots[2]["y"].as_str().is_some(), "{}", slots[2]);
        assert!(slots[3]["y"].as_str().unwrap().contains("--fetch-images"), "{}", slots[3]);
        let images = element(&html, "images-0");
        let jpegs: Vec<Vec<u8>> = images.split('\n').map(|line| STANDARD.decode(line).unwrap()).collect();
        let small = image::load_from_memory(&jpegs[0]).unwrap();
        assert_eq!((small.width(), small.height()), (768, 512));
        assert!(jpegs[2].is_empty() && jpegs[3].is_empty());
        let details = unpacked(&html, "details-0");
        assert_eq!(details[0]["messages"][0]["content"], "Be brief.", "{output}");
        assert!(details[0]["columns"].as_array().unwrap().contains(&json!(["note", "kept"])), "{}", details[0]);
        assert_eq!(details[4]["sides"][0]["errors"][0]["message"], "it was told to", "{output}");
    }
}

#[test]
fn two_runs_are_paired_by_what_names_their_rows() {
    let scratch = scratch();
    scratch.run(&[]).exits(1);
    config(&scratch, "other.toml", "other.csv", "row {row} says {prompt}");
    scratch.vgen(&["run", "other.toml", "--skip", "1"]).exits(1);
    scratch.vgen(&["report", "out.jsonl", "other.csv", "-o", "both.html"]).exits(0);
    let index = index(&scratch.path("both.html"));
    assert_eq!(index["pairing"]["by"], "column \"id\"");
    assert_eq!((index["pairing"]["paired"].clone(), index["pairing"]["only"].clone()), (json!(4), json!([1, 0])));
    assert_eq!(line(&index, 0)["sides"][1], Value::Null);
    let second = line(&index, 1);
    assert_eq!(second["sides"][1]["t"], "row 1 says And here?");
    let alike = second["alike"].as_f64().unwrap();
    assert!((0.3..0.95).contains(&alike), "{alike}");
    assert_eq!(line(&index, 4)["alike"], Value::Null);
}

#[test]
fn the_answers_of_a_batch_file_have_their_questions() {
    let scratch = Scratch::new();
    let request = |id: &str, text: &str| {
        json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions",
            "body": {"messages": [{"role": "user", "content": text}]}})
    };
    scratch.file("rows.jsonl", format!("{}\n{}\n", request("x", "first?"), request("y", "second?")));
    scratch.file(
        "run.toml",
        "[input]\npath = \"rows.jsonl\"\n[output]\npath = \"out.jsonl\"\n[backend]\nkind = \"mock\"\nanswer = \"yes\"\n",
    );
    scratch.run(&[]).exits(0);
    scratch.vgen(&["report", "out.jsonl"]).exits(0);
    let index = index(&scratch.path("out.jsonl.html"));
    assert_eq!(line(&index, 1)["prompt"], "second?");
    assert_eq!(line(&index, 1)["sides"][0]["t"], "yes");
}

#[test]
fn answers_beside_images_are_an_output_too() {
    let scratch = Scratch::new();
    scratch.file("photos/a.png", png(1, 30, 20));
    scratch.file("photos/in/b.png", png(2, 30, 20));
    scratch.file(
        "run.toml",
        "[input]\npath = \"photos\"\ninstruction = \"caption\"\n[output]\npath = \"captions\"\nformat = \"sidecar\"\n\
         [backend]\nkind = \"mock\"\nanswer = \"caption {row}\"\n",
    );
    scratch.run(&[]).exits(0);
    scratch.vgen(&["report", "captions"]).exits(0);
    let index = index(&scratch.path("captions.html"));
    assert_eq!(line(&index, 1)["sides"][0]["t"], "caption 1");
    assert_eq!(line(&index, 1)["prompt"], "caption");
    assert_eq!(index["slots"][1]["w"], 30);
}

#[test]
fn several_answers_and_no_record_and_few_rows_of_many() {
    let scratch = scratch();
    scratch.run(&["--num-generations", "2"]).exits(1);
    scratch.vgen(&["report", "out.jsonl"]).exits(0).says("9 rows shown");
    let all = index(&scratch.path("out.jsonl.html"));
    assert_eq!((line(&all, 1)["sides"][0]["n"].clone(), line(&all, 1)["sides"][0]["k"].clone()), (json!(0), json!(2)));
    std::fs::remove_dir_all(scratch.path("out.jsonl.run")).unwrap();
    scratch.vgen(&["report", "out.jsonl", "--rows", "3", "--image-size", "0"]).exits(0).says("there is no run record");
    let few = index(&scratch.path("out.jsonl.html"));
    assert_eq!(few["lines"].as_array().unwrap().len(), 3);
    assert!(few["lines"].as_array().unwrap().iter().any(|line| line["sides"][0]["e"] == "mock.fault"));
    assert_eq!(few["runs"][0]["record"], Value::Null);
}

#[test]
fn what_is_no_report_is_not_overwritten() {
    let scratch = scratch();
    scratch.run(&[]).exits(1);
    scratch.file("mine.html", "my own page");
    scratch.vgen(&["report", "out.jsonl", "-o", "mine.html"]).exits(2).says("--overwrite");
    assert_eq!(scratch.read("mine.html"), "my own page");
    scratch.vgen(&["report", "out.jsonl", "-o", "out.jsonl"]).exits(2);
    scratch.vgen(&["report", "out.jsonl", "-o", "mine.html", "--overwrite"]).exits(0);
    scratch.vgen(&["report", "out.jsonl", "-o", "mine.html"]).exits(0);
    scratch.vgen(&["report", "nothing.jsonl"]).exits(3).says("does not exist");
}
