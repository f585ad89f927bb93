//! `vgen merge`: shards to one output, each row once.

use std::fs;

use crate::support::{Scratch, rows};

#[test]
fn merged_shards_are_the_undivided_run_byte_for_byte() {
    for output in ["jsonl", "jsonl.zst", "csv", "parquet"] {
        let more =
            "answer = \"{row}.{sample}\"\n[[backend.faults]]\nrow = 4\n[[backend.faults]]\nrow = 9\nsample = 1\n";
        let scratch = Scratch::with(rows(23), more);
        let args = ["--num-generations", "2", "--row-group-rows", "5", "--skip", "1", "--output"];
        scratch.run(&[&args[..], &[&format!("whole.{output}")]].concat()).exits(1);
        let mut shards = Vec::new();
        for index in 1..=3 {
            let name = format!("shard-{index}.{output}");
            let shard = format!("{index}/3");
            scratch.run(&[&args[..], &[&name, "--shard", &shard]].concat());
            shards.push(name);
        }
        let merged = format!("merged.{output}");
        let line = ["merge", &shards[2], &shards[0], &shards[1], "--output", &merged];
        scratch.vgen(&line).exits(1).says("3 shards: 22 rows, 2 failed");
        let expected = fs::read(scratch.path(&format!("whole.{output}"))).unwrap();
        assert!(fs::read(scratch.path(&merged)).unwrap() == expected, "{output}");
        assert_eq!(
            scratch.read(&format!("{merged}.run/failed.jsonl")).lines().count(),
            scratch.read(&format!("whole.{output}.run/failed.jsonl")).lines().count()
        );
        scratch.vgen(&line).exits(2).says("exists already");
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let scratch = Scratch::with(rows(10), "");
    for index in 1..=3 {
        let shard = format!("{index}/3");
        scratch.run(&["--shard", &shard, "--output", &format!("{index}.jsonl")]).exits(0);
    }
    let merge = |parts: &[&str]| scratch.vgen(&[&["merge", "--output", "all.jsonl"], parts].concat());
    merge(&["1.jsonl", "2.jsonl"]).exits(2).says("shard 3/3 is missing");
    merge(&["1.jsonl", "2.jsonl", "3.jsonl", "4.jsonl"]).exits(2).says("4.jsonl has no run record");
    scratch.run(&["--shard", "1/2", "--output", "half.jsonl"]).exits(0);
    merge(&["1.jsonl", "half.jsonl"]).exits(2).says("is shard 1/2");
    scratch.run(&["--shard", "3/3", "--output", "other.jsonl", "--temperature", "0.5"]).exits(0);
    merge(&["1.jsonl", "2.jsonl", "other.jsonl"]).exits(2).says("sampling.temperature was");
    scratch.run(&["--shard", "3/3", "--output", "short.jsonl", "--limit", "4"]).exits(0);
    merge(&["1.jsonl", "2.jsonl", "short.jsonl"]).exits(2).says("rows where 3 of 8 are due");
    scratch.run(&["--output", "whole.jsonl"]).exits(0);
    merge(&["whole.jsonl"]).exits(2).says("whole.jsonl is the output of a whole run");
    merge(&["1.jsonl", "2.jsonl", "3.jsonl"]).exits(0);
    assert_eq!(scratch.read("all.jsonl"), scratch.read("whole.jsonl"));
}
