//! Going on with an earlier run, and when that is refused.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Ended, Scratch, ended, rows};

/// A run of a hundred rows that takes about two seconds, in every format.
const SLOW: &str = "window = 4\ndelays_ms = [60, 90, 75, 81]\nanswer = \"{prompt}!\"\n";

fn slow() -> Scratch {
    Scratch::with(rows(100), SLOW)
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let done = std::process::Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

/// Interrupts a run after a while.
#[cfg(unix)]
fn interrupted(scratch: &Scratch, args: &[&str], after: Duration) -> Ended {
    let child = scratch.start(args);
    thread::sleep(after);
    signal(&child, "INT");
    ended(child.wait_with_output().unwrap()).exits(130)
}

/// What does not compress.
fn noise(seed: u64) -> u128 {
    (u128::from(seed) + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
}

fn record(scratch: &Scratch, output: &str) -> Value {
    serde_json::from_str(&scratch.read(&format!("{output}.run/run.json"))).unwrap()
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes_in_every_format() {
    for output in ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst", "out.csv", "out.tsv.gz", "out.parquet"] {
        let scratch = slow();
        scratch.run(&["--output", &format!("whole-{output}"), "--row-group-rows", "7"]).exits(0);
        let args = ["--output", output, "--row-group-rows", "7"];
        interrupted(&scratch, &args, Duration::from_millis(700));
        assert_eq!(record(&scratch, output)["state"], "interrupted");
        interrupted(&scratch, &args, Duration::from_millis(500));
        scratch.run(&args).exits(0).says("going on with");
        let expected = fs::read(scratch.path(&format!("whole-{output}"))).unwrap();
        assert!(fs::read(scratch.path(output)).unwrap() == expected, "{output}");
        let record = record(&scratch, output);
        assert_eq!((&record["state"], record["sessions"].as_array().unwrap().len()), (&Value::from("complete"), 3));
        assert_eq!(record["counts"]["rows"], 100);
        scratch.run(&args).exits(0).says("nothing is left to do: all 100 rows");
    }
}

#[cfg(unix)]
#[test]
fn rows_behind_a_gap_are_kept_and_not_asked_about_again() {
    // Row 2 takes for ever, until the next session.
    let mut delays: Vec<u64> = vec![5; 40];
    delays[2] = 600_000;
    let scratch = Scratch::with(rows(40), &format!("window = 4\ndelays_ms = {delays:?}\nanswer = \"first\"\n"));
    let told = interrupted(&scratch, &["--sync-seconds", "0.05"], Duration::from_millis(900));
    assert!(told.stderr.contains("interrupted"), "{}", told.stderr);
    assert_eq!(scratch.rows("out.jsonl").len(), 2);
    // Another answer would be another run; only the record can tell that these rows are done.
    scratch.config("window = 4\nanswer = \"first\"\n[[backend.faults]]\nrow = 3\n[[backend.faults]]\nrow = 12\n");
    scratch.run(&[]).exits(0);
    assert!(scratch.rows("out.jsonl").iter().all(|row| row["generation"] == "first"));
}

#[test]
fn what_differs_is_told_value_by_value() {
    let scratch = Scratch::with(rows(3), "[sampling]\ntemperature = 0.5\n");
    scratch.run(&[]).exits(0);
    scratch
        .run(&["--temperature", "0.7", "--template", "{{ instruction }}?"])
        .exits(2)
        .says("error: output out.jsonl was begun by a run that differs:")
        .says("sampling.temperature was 0.5, now is 0.7")
        .says("task.template was \"{{ instruction }}\", now is \"{{ instruction }}?\"")
        .says("add --overwrite to begin anew");
    // What changes no row may differ, and a default may be written out.
    scratch.run(&["--progress-interval", "3", "--num-generations", "1"]).exits(0).says("nothing is left to do");
    scratch.run(&["--temperature", "0.7", "--overwrite"]).exits(0).says("3 rows");
}

#[test]
fn whether_to_go_on_can_be_said() {
    let scratch = Scratch::with(rows(3), "");
    scratch.run(&["--resume", "require"]).exits(2).says("there is no run to go on with at out.jsonl");
    assert!(!scratch.path("out.jsonl.run").exists());
    scratch.run(&["--resume", "never"]).exits(0);
    scratch.run(&["--resume", "never"]).exits(2).says("output out.jsonl exists already");
    scratch.run(&["--resume", "require"]).exits(0);
    scratch.run(&["--resume", "require", "--overwrite"]).exits(2).says("--overwrite begins anew");
}

#[test]
fn an_input_that_grew_is_gone_on_with_and_one_that_changed_is_not() {
    for output in ["out.jsonl", "out.jsonl.zst", "out.parquet", "out.csv"] {
        let scratch = Scratch::with(rows(10), "");
        scratch.run(&["--output", output]).exits(0);
        scratch.file("rows.jsonl", rows(15));
        scratch.run(&["--output", output]).exits(0).says("15 rows");
        scratch.run(&["--output", "whole", "--output-format", "jsonl"]).exits(0);
        scratch.run(&["--output", &format!("whole-{output}")]).exits(0);
        let expected = fs::read(scratch.path(&format!("whole-{output}"))).unwrap();
        assert!(fs::read(scratch.path(output)).unwrap() == expected, "{output}");
        scratch.file("rows.jsonl", rows(16).replace("question 4", "question 5"));
        scratch.run(&["--output", output]).exits(3).says("input rows.jsonl changed since the run was begun");
        scratch.file("rows.jsonl", rows(9));
        scratch.run(&["--output", output]).exits(3).says("changed since the run was begun");
    }
}

#[test]
fn a_higher_limit_goes_on() {
    let scratch = Scratch::with(rows(30), "");
    scratch.run(&["--limit", "10"]).exits(0).says("10 rows");
    scratch.run(&["--limit", "10"]).exits(0).says("nothing is left to do");
    scratch.run(&["--limit", "20"]).exits(0).says("going on with out.jsonl: 10 rows are done");
    scratch.run(&[]).exits(0);
    assert_eq!(scratch.rows("out.jsonl").len(), 30);
}

#[test]
fn an_output_that_was_touched_is_not_gone_on_with() {
    for output in ["out.jsonl", "out.parquet"] {
        let scratch = Scratch::with(rows(10), "");
        let path = scratch.path(output);
        let args = ["--output", output];
        scratch.run(&args).exits(0);
        let bytes = fs::read(&path).unwrap();
        let mut edited = bytes.clone();
        edited[20] ^= 1;
        fs::write(&path, &edited).unwrap();
        scratch.run(&args).exits(2).says("is not as its run left it: its content was changed");
        fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        scratch.run(&args).exits(2).says("is not as its run left it: it has");
        fs::write(&path, [bytes.as_slice(), b"more"].concat()).unwrap();
        scratch.run(&args).exits(2).says("is not as its run left it: it has");
        fs::remove_file(&path).unwrap();
        scratch.run(&args).exits(2).says("is not as its run left it: it is gone").says("--overwrite");
        fs::write(&path, &bytes).unwrap();
        scratch.run(&args).exits(0);
    }
}

#[cfg(unix)]
#[test]
fn a_torn_last_line_is_cut_off_and_made_again() {
    let scratch = slow();
    scratch.run(&["--output", "whole.jsonl"]).exits(0);
    let mut child = scratch.start(&["--sync-seconds", "0.05"]);
    thread::sleep(Duration::from_millis(800));
    child.kill().unwrap();
    child.wait().unwrap();
    let path = scratch.path("out.jsonl");
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(b"{\"id\": 77, \"instr");
    fs::write(&path, &torn).unwrap();
    let journal = scratch.path("out.jsonl.run/journal.jsonl");
    let mut torn = fs::read(&journal).unwrap();
    torn.extend_from_slice(b"0123abcd {\"commit\": {\"mark\"");
    fs::write(&journal, &torn).unwrap();
    scratch.run(&[]).exits(0);
    assert_eq!(scratch.read("out.jsonl"), scratch.read("whole.jsonl"));
}

#[test]
fn a_broken_record_is_told_and_can_be_replaced() {
    let scratch = Scratch::with(rows(3), "");
    scratch.run(&[]).exits(0);
    scratch.file("out.jsonl.run/run.json", "{\"version\": 1, \"nonsense\": true}");
    scratch.run(&[]).exits(2).says("the run record out.jsonl.run/run.json is broken");
    scratch.file("out.jsonl.run/run.json", "{\"version\": 99}");
    scratch.run(&[]).exits(2).says("has version 99; this program knows versions up to 1");
    scratch.run(&["--overwrite"]).exits(0);
}

#[test]
fn a_second_process_is_refused_and_a_lock_left_behind_is_not_a_lock() {
    let scratch = Scratch::with(rows(50), "window = 1\ndelays_ms = [100]\n");
    let mut child = scratch.start(&[]);
    let patience = Instant::now() + Duration::from_secs(20);
    while fs::read_to_string(scratch.path("out.jsonl")).unwrap_or_default().is_empty() {
        assert!(Instant::now() < patience);
        thread::sleep(Duration::from_millis(5));
    }
    scratch
        .run(&["--overwrite"])
        .exits(2)
        .says("output out.jsonl is being written by another run (process ")
        .says("hint: wait for the other run, or name another file");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(scratch.path("out.jsonl.run/lock").exists());
    scratch.config("");
    scratch.run(&[]).exits(0);
    assert_eq!(scratch.rows("out.jsonl").len(), 50);
}

#[cfg(unix)]
#[test]
fn a_full_disk_stops_cleanly_and_the_run_goes_on_when_there_is_room() {
    for output in ["out.jsonl", "out.parquet"] {
        let text: String =
            (0..3000u64).map(|id| format!("{{\"id\":{id},\"instruction\":\"{:x}\"}}\n", noise(id))).collect();
        let scratch = Scratch::with(text, "answer = \"{row} {prompt}\"\n");
        scratch.run(&["--output", &format!("whole-{output}"), "--row-group-rows", "500"]).exits(0);
        // A limit on the size of files, in blocks of 1024 bytes, stands in for a disk.
        let program = scratch.command("vgen").get_program().to_owned();
        let line = format!(
            "trap '' XFSZ; ulimit -f 60; exec {} run run.toml --output {output} --row-group-rows 500",
            program.to_string_lossy()
        );
        let mut shell = std::process::Command::new("bash");
        shell.current_dir(scratch.folder()).args(["-c", &line]);
        ended(shell.output().unwrap()).exits(2).says("error: ");
        scratch.run(&["--output", output, "--row-group-rows", "500"]).exits(0);
        let expected = fs::read(scratch.path(&format!("whole-{output}"))).unwrap();
        assert!(fs::read(scratch.path(output)).unwrap() == expected, "{output}");
    }
}

/// Waits until the output has so many rows.
fn written(scratch: &Scratch, output: &str, count: usize) {
    let patience = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(scratch.path(output)).unwrap_or_default().lines().count() < count {
        assert!(Instant::now() < patience, "{output} has not {count} rows");
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_the_run_at_once_and_nothing_written_is_lost() {
    // Row 30 takes for ever, whoever gives it up.
    let mut delays: Vec<u64> = vec![2; 60];
    delays[30] = 600_000;
    let scratch = Scratch::with(
        rows(60),
        &format!("window = 4\nignores_cancel = true\ndelays_ms = {delays:?}\nanswer = \"{{row}}\"\n"),
    );
    let mut child = scratch.start(&["--sync-seconds", "0.05", "--progress", "none"]);
    written(&scratch, "out.jsonl", 30);
    thread::sleep(Duration::from_millis(300));
    signal(&child, "INT");
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("interrupted: writing what is finished; once more quits at once")));
    // It waits for the row in flight, some seconds at most.
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    let before = scratch.read("out.jsonl");
    let begun = Instant::now();
    signal(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!((before.lines().count(), scratch.read("out.jsonl") == before), (30, true));
    // Only what was not finished is asked about.
    let known: String = (0..30).map(|row| format!("[[backend.faults]]\nrow = {row}\n")).collect();
    scratch.config(&format!("answer = \"{{row}}\"\n{known}"));
    scratch.run(&[]).exits(0);
    scratch.config("answer = \"{row}\"\n");
    scratch.run(&["--output", "whole.jsonl"]).exits(0);
    assert_eq!(scratch.read("out.jsonl"), scratch.read("whole.jsonl"));
}

#[cfg(unix)]
#[test]
fn an_interrupted_local_run_goes_on_to_the_same_bytes() {
    let scratch = Scratch::new();
    let samples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/shapes/eval.jsonl");
    let samples = fs::read_to_string(samples).unwrap();
    scratch.file("rows.jsonl", samples.lines().take(80).map(|line| format!("{line}\n")).collect::<String>());
    let args = ["--demo", "--input", "rows.jsonl", "--temperature", "0.9", "--seed", "5", "--batch-size", "3"];
    let to = |output: &'static str| [&args[..], &["--output", output]].concat();
    let child = scratch.command("vgen-local").args(to("out.jsonl")).stderr(Stdio::piped()).spawn().unwrap();
    written(&scratch, "out.jsonl", 5);
    signal(&child, "INT");
    ended(child.wait_with_output().unwrap()).exits(130).says("interrupted");
    assert_eq!(record(&scratch, "out.jsonl")["state"], "interrupted");
    assert!((5..80).contains(&scratch.rows("out.jsonl").len()));
    scratch.vgen_local(&to("out.jsonl")).exits(0).says("going on with");
    scratch.vgen_local(&to("whole.jsonl")).exits(0);
    assert_eq!(scratch.read("out.jsonl"), scratch.read("whole.jsonl"));
}

#[cfg(unix)]
#[test]
fn both_signals_end_a_stuck_run_in_time() {
    for name in ["INT", "TERM"] {
        let scratch = Scratch::with(rows(10), "window = 2\ndelays_ms = [600000]\n");
        let child = scratch.start(&[]);
        thread::sleep(Duration::from_millis(500));
        let begun = Instant::now();
        signal(&child, name);
        ended(child.wait_with_output().unwrap()).exits(130);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

#[test]
fn the_record_says_what_was_run() {
    let scratch = Scratch::with(format!("{}broken\n", rows(4)), "answer = \"{row}\"\n[sampling]\nseed = 11\n");
    scratch.run(&["--top-k", "3"]).exits(1);
    let record = record(&scratch, "out.jsonl");
    assert_eq!(record["version"], 1);
    assert_eq!(record["seed"], 11);
    assert_eq!(record["state"], "complete");
    assert_eq!(record["model"]["name"], "mock");
    assert_eq!(record["config"]["sampling.top_k"]["origin"], "--top-k");
    assert_eq!(record["config"]["sampling.seed"]["origin"], "run.toml");
    assert_eq!(record["config"]["sampling.temperature"]["origin"], "default");
    assert_eq!(record["input"]["files"][0]["path"], "rows.jsonl");
    assert_eq!((&record["counts"]["rows"], &record["counts"]["failed_rows"]), (&5.into(), &1.into()));
    assert_eq!(record["counts"]["errors"]["row.json"], 1);
    let failed: Value = serde_json::from_str(scratch.read("out.jsonl.run/failed.jsonl").trim()).unwrap();
    assert_eq!((&failed["sequence"], &failed["origin"]), (&4.into(), &"rows.jsonl line 5".into()));
    let timings = scratch.rows("out.jsonl.run/timings.jsonl");
    assert_eq!(timings.len(), 4);
    assert!(timings.iter().all(|line| line["session"] == 0 && line["total"].is_number()), "{timings:?}");
}

#[test]
fn too_many_errors_end_the_run() {
    let faults: String =
        (0..300).map(|row| format!("[[backend.faults]]\nrow = {row}\ncode = \"remote.down\"\n")).collect();
    let scratch = Scratch::with(rows(1000), &format!("window = 2\n{faults}"));
    scratch
        .run(&["--max-errors", "10"])
        .exits(1)
        .says("rows failed, more than --max-errors 10 allows; most often: remote.down");
    assert!(scratch.rows("out.jsonl").len() < 50);
    scratch.config("");
    scratch.run(&["--retry-failed"]).exits(0);
    assert_eq!(scratch.rows("out.jsonl").len(), 1000);
    scratch.config(&faults);
    scratch.run(&["--overwrite", "--max-errors", "35%"]).exits(1).says("more than --max-errors 35% allows");
    scratch.config("");
    scratch.run(&["--overwrite", "--max-errors", "35%"]).exits(0);
    scratch.run(&["--max-errors", "many"]).exits(2).says("expected a number of rows like 100, or a share like 5%");
}
