//! Outputs: never lost, never torn, never mixed with messages.

use std::fs;
use std::io::{BufRead, BufReader};

use crate::support::{Scratch, ended, parse, rows};

#[test]
fn an_output_with_content_is_refused_unless_told_otherwise() {
    let scratch = Scratch::with(rows(2), "");
    scratch.file("out.jsonl", "{\"precious\": 1}\n");
    scratch.run(&[]).exits(2).says("error: output out.jsonl exists already").says("hint: add --overwrite");
    assert_eq!(scratch.read("out.jsonl"), "{\"precious\": 1}\n");
    scratch.run(&["--overwrite"]).exits(0);
    assert_eq!(scratch.rows("out.jsonl").len(), 2);
    // An empty file holds nothing to lose.
    scratch.file("empty.jsonl", "");
    scratch.run(&["--output", "empty.jsonl"]).exits(0);
}

#[cfg(unix)]
#[test]
fn the_output_is_never_the_input() {
    let scratch = Scratch::with(rows(2), "");
    fs::hard_link(scratch.path("rows.jsonl"), scratch.path("hard.jsonl")).unwrap();
    std::os::unix::fs::symlink("rows.jsonl", scratch.path("soft.jsonl")).unwrap();
    for output in ["rows.jsonl", "./rows.jsonl", "hard.jsonl", "soft.jsonl"] {
        scratch.run(&["--output", output, "--overwrite"]).exits(2).says("is the same file as input rows.jsonl");
    }
    assert_eq!(scratch.read("rows.jsonl"), rows(2));
}

#[test]
fn outputs_that_cannot_be_written_exit_with_2_before_anything_runs() {
    let scratch = Scratch::with(rows(2), "");
    scratch
        .run(&["--output", "no/such/out.jsonl"])
        .exits(2)
        .says("error: output no/such/out.jsonl can't be written")
        .says("hint: create the folder first: mkdir -p no/such");
    scratch.run(&["--output", "."]).exits(2).says("error: output . can't be written");
}

#[test]
fn a_full_disk_exits_with_2() {
    if !std::path::Path::new("/dev/full").exists() {
        return;
    }
    let scratch = Scratch::with(rows(2), "");
    scratch.run(&["--output", "/dev/full"]).exits(2).says("error: writing to /dev/full failed");
}

#[test]
fn data_goes_to_standard_output_and_all_else_to_standard_error() {
    let scratch = Scratch::with(format!("{}broken\n", rows(2)), "");
    let ended = scratch.run(&["--output", "-"]).exits(1).says("done: 3 rows, 1 failed");
    assert_eq!(parse(&ended.stdout).len(), 3);
    let quiet = scratch.run(&["--output", "-", "--quiet"]).exits(1);
    assert_eq!((quiet.stderr.as_str(), quiet.stdout), ("", ended.stdout));
}

#[test]
fn messages_are_coloured_only_when_asked_for() {
    let scratch = Scratch::with("", "");
    assert!(!scratch.run(&[]).exits(3).stderr.contains('\x1b'));
    scratch.vgen(&["--color", "always", "run", "run.toml"]).exits(3).says("\x1b[1;31merror\x1b[0m: input");
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let scratch = Scratch::with(rows(50_000), "");
    let mut child = scratch.start(&["--output", "-"]);
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    drop(output);
    assert_eq!(parse(&line)[0]["generation"], "answer to row 0");
    let ended = ended(child.wait_with_output().unwrap()).exits(0);
    assert!(!ended.stderr.contains("error"), "{}", ended.stderr);
}

#[test]
fn grouped_and_separate_generations() {
    let scratch = Scratch::with(rows(2), "answer = \"{row}.{sample}\"\n");
    scratch.run(&["--num-generations", "2", "--output", "separate.jsonl"]).exits(0);
    let answers: Vec<_> = scratch.rows("separate.jsonl").iter().map(|row| row["generation"].clone()).collect();
    assert_eq!(answers, ["0.0", "0.1", "1.0", "1.1"]);
    scratch.run(&["--num-generations", "2", "--group-generations", "--output", "grouped.jsonl"]).exits(0);
    assert_eq!(scratch.rows("grouped.jsonl")[1]["generation"], serde_json::json!(["1.0", "1.1"]));
}
