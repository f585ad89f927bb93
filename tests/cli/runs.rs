//! How runs go: order, streaming, memory, signals.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Scratch, ended, parse, rows};

#[test]
fn rows_keep_their_order_and_their_columns() {
    let scratch = Scratch::with(rows(200), "delays_ms = [30, 0, 10, 1, 0]\n");
    scratch.run(&[]).exits(0);
    let ids: Vec<_> = scratch.rows("out.jsonl").iter().map(|row| row["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (0..200).collect::<Vec<_>>());
    let first = scratch.read("out.jsonl").lines().next().unwrap().to_owned();
    assert!(
        first.starts_with("{\"id\":0,\"instruction\":\"question 0\",\"generation\":\"answer to row 0\","),
        "{first}"
    );
}

#[test]
fn standard_input_is_answered_row_by_row_while_it_is_open() {
    let scratch = Scratch::with("", "answer = \"{prompt}\"\n");
    let mut child = scratch.start(&["--input", "-", "--output", "-", "--quiet"]);
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for question in ["one", "two"] {
        writeln!(input, "{{\"instruction\": \"{question}\"}}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(parse(&line)[0]["generation"], question);
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn failures_of_the_backend_are_counted_by_code() {
    let more = "[[backend.faults]]\nrow = 1\ncode = \"remote.rate_limited\"\nmessage = \"too many requests\"\n\
        attempts = 5\n[[backend.faults]]\nrow = 3\nsample = 0\n";
    let scratch = Scratch::with(rows(5), more);
    scratch
        .run(&[])
        .exits(1)
        .says("5 rows, 2 failed")
        .says("  mock.fault: 1")
        .says("  remote.rate_limited: 1")
        .says("warning: row 1 (rows.jsonl line 2): too many requests [remote.rate_limited]");
    let error = &scratch.rows("out.jsonl")[1]["error"];
    assert_eq!((error["code"].as_str(), error["attempts"].as_u64()), (Some("remote.rate_limited"), Some(5)));
}

#[test]
fn only_the_first_failures_are_shown_one_by_one() {
    let scratch = Scratch::with("{}\n".repeat(30), "");
    let ended = scratch.run(&["--lint", "off"]).exits(1).says("warning: more rows failed");
    assert_eq!(ended.stderr.matches("warning: ").count(), 11);
}

#[test]
fn a_lost_backend_exits_with_6_and_keeps_what_was_finished() {
    let more = "window = 1\n[[backend.faults]]\nrow = 3\ncode = \"backend.lost\"\nmessage = \"it is gone\"\nclass = \"stop\"\n";
    let scratch = Scratch::with(rows(10), more);
    scratch.run(&[]).exits(6).says("error: it is gone").says("3 rows were written before");
    assert_eq!(scratch.rows("out.jsonl").len(), 3);
}

#[test]
fn progress_is_told_in_plain_lines_where_there_is_no_terminal() {
    let scratch = Scratch::with(rows(40), "delays_ms = [50]\nwindow = 4\n");
    let ended = scratch.run(&["--progress-interval", "0.1"]).exits(0);
    let line = ended.stderr.lines().find(|line| line.ends_with(" left")).expect("a line of progress");
    assert!(line.contains(" rows, 0 failed, ") && line.contains(" rows/s, ") && line.contains(" tokens/s, "), "{line}");
    assert!(!ended.stderr.contains('\r'));
}

#[test]
fn the_time_of_a_row_is_limited() {
    let scratch = Scratch::with(rows(1), "delays_ms = [600000]\n");
    scratch.run(&["--row-timeout", "0.05"]).exits(0);
    assert_eq!(scratch.rows("out.jsonl")[0]["finish_reason"], "deadline");
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let done = std::process::Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

#[cfg(unix)]
fn wait_for_rows(scratch: &Scratch, count: usize) {
    let patience = Instant::now() + Duration::from_secs(20);
    while fs::read_to_string(scratch.path("out.jsonl")).unwrap_or_default().lines().count() < count {
        assert!(Instant::now() < patience, "no rows were written");
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_writes_what_is_finished_and_exits_with_130() {
    // Row 2 takes for ever: it is given up, and what finished behind it is kept in the run record.
    let mut delays: Vec<u64> = vec![20; 100];
    delays[2] = 600_000;
    for name in ["INT", "TERM"] {
        let scratch = Scratch::with(rows(100), &format!("window = 4\ndelays_ms = {delays:?}\n"));
        let child = scratch.start(&[]);
        wait_for_rows(&scratch, 2);
        thread::sleep(Duration::from_millis(300));
        signal(&child, name);
        ended(child.wait_with_output().unwrap()).exits(130).says("interrupted: ");
        let ids: Vec<_> = scratch.rows("out.jsonl").iter().map(|row| row["id"].as_u64().unwrap()).collect();
        assert_eq!(ids, [0, 1]);
        let journal = scratch.read("out.jsonl.run/journal.jsonl");
        assert!(journal.matches("{\"row\":").count() > 3 && !journal.contains("question 2\""), "{journal}");
    }
}

#[cfg(unix)]
#[test]
fn a_run_that_waits_for_input_can_be_interrupted() {
    let scratch = Scratch::with("", "");
    let mut child = scratch.start(&["--input", "-"]);
    let mut input = child.stdin.take().unwrap();
    input.write_all(rows(1).as_bytes()).unwrap();
    wait_for_rows(&scratch, 1);
    signal(&child, "INT");
    ended(child.wait_with_output().unwrap()).exits(130);
    drop(input);
}

/// The largest resident set so far in KiB, while the program runs.
#[cfg(target_os = "linux")]
fn peak_resident(child: &mut Child) -> u64 {
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(peak);
        thread::sleep(Duration::from_millis(5));
    }
    peak
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_rows() {
    let peak = |count: usize| {
        let padding = "p".repeat(200);
        let text: String =
            (0..count).map(|id| format!("{{\"id\":{id},\"instruction\":\"x\",\"p\":\"{padding}\"}}\n")).collect();
        let scratch = Scratch::with(text, "window = 8\n");
        let mut child = scratch.start(&["--quiet"]);
        let peak = peak_resident(&mut child);
        assert!(child.wait().unwrap().success());
        let output = BufReader::new(fs::File::open(scratch.path("out.jsonl")).unwrap());
        assert_eq!(output.lines().count(), count);
        peak
    };
    let (few, many) = (peak(10_000), peak(200_000));
    // The larger file is 46 MB longer.
    assert!(many < few + 6_000, "{few} KiB for 10000 rows, {many} KiB for 200000");
}
