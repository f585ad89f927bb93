//! `--retry-failed`: rows with errors are done again and put in their places.

use std::fs;

use crate::support::{Scratch, rows};

const FAULTS: &str = "[[backend.faults]]\nrow = 2\ncode = \"remote.timeout\"\n\
    [[backend.faults]]\nrow = 5\ncode = \"remote.refused\"\n[[backend.faults]]\nrow = 19\ncode = \"remote.timeout\"\n";

#[test]
fn rows_with_errors_are_replaced_in_place_in_every_format() {
    for output in ["out.jsonl", "out.jsonl.gz", "out.csv", "out.parquet"] {
        let scratch = Scratch::with(rows(20), "");
        let args = ["--output", output, "--row-group-rows", "6"];
        scratch.run(&["--output", &format!("whole-{output}"), "--row-group-rows", "6"]).exits(0);
        scratch.config(FAULTS);
        scratch.run(&args).exits(1).says("20 rows, 3 failed");
        scratch.config("");
        scratch.run(&args).exits(1).says("nothing is left to do");
        scratch.run(&[&args[..], &["--retry-failed"]].concat()).exits(0).says("20 rows, 0 failed");
        let expected = fs::read(scratch.path(&format!("whole-{output}"))).unwrap();
        assert!(fs::read(scratch.path(output)).unwrap() == expected, "{output}");
        assert_eq!(scratch.read(&format!("{output}.run/failed.jsonl")), "");
        assert!(!scratch.path(&format!("{output}.run/retry")).exists());
        let timed: std::collections::BTreeSet<u64> = scratch
            .rows(&format!("{output}.run/timings.jsonl"))
            .iter()
            .map(|line| line["sequence"].as_u64().unwrap())
            .collect();
        assert_eq!(timed.len(), 20, "rows that were not done again keep their times");
        scratch.run(&args).exits(0).says("nothing is left to do");
    }
}

#[test]
fn only_some_errors_may_be_done_again() {
    let scratch = Scratch::with(rows(20), FAULTS);
    scratch.run(&[]).exits(1);
    scratch.config("");
    scratch.run(&["--retry-failed", "--only", "remote.timeout"]).exits(1).says("20 rows, 1 failed");
    let failed: Vec<_> =
        scratch.rows("out.jsonl").iter().filter(|row| !row["error"].is_null()).map(|row| row["id"].clone()).collect();
    assert_eq!(failed, [5]);
    scratch.run(&["--retry-failed", "--only", "remote.refused"]).exits(0);
}

#[test]
fn samples_that_failed_take_their_rows_with_them() {
    let faults = "answer = \"{row}.{sample}\"\n[[backend.faults]]\nrow = 1\n[[backend.faults]]\nrow = 3\nsample = 1\n";
    let scratch = Scratch::with(rows(5), faults);
    // A row that fails as a whole has one output row, not three.
    scratch.run(&["--num-generations", "3"]).exits(1);
    assert_eq!(scratch.rows("out.jsonl").len(), 13);
    scratch.config("answer = \"{row}.{sample}\"\n");
    scratch.run(&["--num-generations", "3", "--retry-failed"]).exits(0);
    let answers: Vec<_> =
        scratch.rows("out.jsonl").iter().map(|row| row["generation"].as_str().unwrap().to_owned()).collect();
    let expected: Vec<_> = (0..15).map(|at| format!("{}.{}", at / 3, at % 3)).collect();
    assert_eq!(answers, expected);
}

#[cfg(unix)]
#[test]
fn a_retry_that_was_killed_goes_on_and_the_old_output_stays_until_it_is_done() {
    for output in ["out.jsonl", "out.parquet"] {
        let faults: String = (0..60).step_by(2).map(|row| format!("[[backend.faults]]\nrow = {row}\n")).collect();
        let scratch = Scratch::with(rows(60), "");
        let args = ["--output", output, "--row-group-rows", "7"];
        scratch.run(&["--output", &format!("whole-{output}"), "--row-group-rows", "7"]).exits(0);
        scratch.config(&faults);
        scratch.run(&args).exits(1);
        let old = fs::read(scratch.path(output)).unwrap();
        scratch.config("window = 2\ndelays_ms = [150]\n");
        let again = [&args[..], &["--retry-failed", "--sync-seconds", "0.02"]].concat();
        for _ in 0..3 {
            let mut child = scratch.start(&again);
            std::thread::sleep(std::time::Duration::from_millis(300));
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(fs::read(scratch.path(output)).unwrap() == old);
        }
        scratch.run(&again).exits(0);
        let expected = fs::read(scratch.path(&format!("whole-{output}"))).unwrap();
        assert!(fs::read(scratch.path(output)).unwrap() == expected, "{output}");
    }
}

#[test]
fn without_a_run_there_is_nothing_to_do_again() {
    let scratch = Scratch::with(rows(2), "");
    scratch.run(&["--retry-failed"]).exits(2).says("there is no run to go on with");
    scratch.run(&["--only", "x.y"]).exits(2);
    scratch.run(&["--retry-failed", "--output", "-"]).exits(2).says("needs an output that is a file");
}
