//! Which rows: several files, patterns, skip, sample, limit, shard.

use crate::support::{Scratch, rows};

fn ids(scratch: &Scratch, args: &[&str]) -> Vec<u64> {
    let ended = scratch.run(&[args, &["--output", "-", "--quiet"]].concat()).exits(0);
    ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_u64().unwrap())
        .collect()
}

#[test]
fn rows_are_chosen_by_place_chance_and_shard() {
    let scratch = Scratch::with(rows(20), "");
    assert_eq!(ids(&scratch, &["--skip", "15", "--limit", "3"]), [15, 16, 17]);
    let sample = ids(&scratch, &["--sample", "6", "--seed", "3"]);
    assert!(sample.len() == 6 && sample.is_sorted());
    assert_eq!(ids(&scratch, &["--sample", "6", "--seed", "3"]), sample);
    assert_ne!(ids(&scratch, &["--sample", "6", "--seed", "4"]), sample);
    let mut shards: Vec<u64> = (1..=3).flat_map(|i| ids(&scratch, &["--shard", &format!("{i}/3")])).collect();
    assert_eq!(shards[..3], [0, 3, 6]);
    shards.sort_unstable();
    assert_eq!(shards, (0..20).collect::<Vec<_>>());
    scratch.run(&["--shard", "4/3"]).exits(2).says("expected a shard like 1/4");
    scratch.run(&["--input", "-", "--sample", "3"]).exits(3).says("standard input can't be used");
}

#[test]
fn a_rows_answer_does_not_depend_on_what_was_chosen_with_it() {
    let scratch = Scratch::with(rows(20), "answer = \"{row}\"\n");
    let ended = scratch.run(&["--skip", "5", "--shard", "2/2", "--limit", "6", "--output", "-"]).exits(0);
    let answers: Vec<_> = crate::support::parse(&ended.stdout).iter().map(|row| row["generation"].clone()).collect();
    assert_eq!(answers, ["6", "8", "10"]);
}

#[test]
fn several_files_and_patterns_are_one_input() {
    let scratch = Scratch::with("", "answer = \"{row}\"\n");
    scratch.file("data/b.jsonl", "{\"id\": 2, \"instruction\": \"x\"}\n");
    scratch.file("data/a.jsonl", "{\"id\": 0, \"instruction\": \"x\"}\n{\"id\": 1, \"instruction\": \"x\"}\n");
    scratch.file("data/empty.jsonl", "");
    scratch.file("more.csv", "id,instruction\n3,x\n");
    assert_eq!(ids(&scratch, &["--input", "data/*.jsonl"]), [0, 1, 2]);
    let ended = scratch.run(&["--input", "data/b.jsonl", "--input", "more.csv", "--output", "-"]).exits(0);
    assert!(ended.stdout.contains("\"id\":\"3\",\"instruction\":\"x\",\"generation\":\"1\""), "{}", ended.stdout);
    scratch.run(&["--input", "data/*.json"]).exits(3).says("no file matches \"data/*.json\"");
    scratch.run(&["--input", "data/a.jsonl", "--input", "gone.jsonl"]).exits(3).says("input gone.jsonl does not exist");
    // Going on, and what changes under it.
    scratch.run(&["--input", "data/*.jsonl", "--limit", "2"]).exits(0);
    scratch.run(&["--input", "data/*.jsonl"]).exits(0).says("going on with");
    scratch.file("data/a.jsonl", "{\"id\": 0, \"instruction\": \"x\"}\n{\"id\": 9, \"instruction\": \"x\"}\n");
    scratch.run(&["--input", "data/*.jsonl"]).exits(3).says("changed since the run was begun");
}
