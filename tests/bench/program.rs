//! `vgen bench` as its users meet it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

fn vgen(folder: &Path, args: &[&str]) -> Ended {
    let output = Command::new(env!("CARGO_BIN_EXE_vgen")).arg("bench").args(args).current_dir(folder).output().unwrap();
    Ended {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

const CONFIG: &str = r#"
[bench]
workload = "mixed"
count = 6
concurrency = [1, 3]
rates = [50.0]
repeats = 4
warmup = 1
out = "found"

[sampling]
max_new_tokens = 8

[[backend]]
kind = "mock"
name = "quick"
service = { mean_ms = 5.0, servers = 2 }
prices = { per_hour = 3.6 }

[[backend]]
kind = "mock"
name = "slow"
answer = "something else"
service = { distribution = "exponential", mean_ms = 2000.0, servers = 1 }
virtual_time = true
"#;

#[test]
fn a_config_file_becomes_four_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("bench.toml"), CONFIG).unwrap();
    let ended = vgen(folder.path(), &["bench.toml"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(
        ended.stdout.contains("## Throughput") && ended.stdout.contains("## Answers of slow beside those of quick")
    );
    assert!(ended.stderr.contains("24/24 "), "{}", ended.stderr);
    let report = json(&folder.path().join("found.json"));
    assert_eq!(report["form"], "vgen-bench/1");
    assert_eq!(report["rows"]["images"], 3);
    assert_eq!(report["sampling"]["temperature"], 0.0);
    assert_eq!(report["cells"].as_array().unwrap().len(), 6);
    assert_eq!(report["agreement"][0]["exact"], 0);
    assert!(report["cells"][0]["summary"]["cost_per_1000_rows"]["median"].as_f64().unwrap() > 0.0);
    for ending in ["md", "csv", "html"] {
        assert!(fs::metadata(folder.path().join(format!("found.{ending}"))).unwrap().len() > 200);
    }
    // Results are not replaced unless asked.
    let again = vgen(folder.path(), &["bench.toml"]);
    assert_eq!((again.code, again.stderr.contains("found.json is there already")), (2, true), "{}", again.stderr);
    // The same seed asks the same, another seed something else.
    for (seed, out) in [("0", "same"), ("1", "other")] {
        let args = ["bench.toml", "--seed", seed, "--out", out, "--repeats", "4", "--quiet"];
        assert_eq!(vgen(folder.path(), &args).code, 0);
    }
    let digest = |name: &str| json(&folder.path().join(name))["rows"]["digest"].clone();
    assert_eq!(digest("same.json"), report["rows"]["digest"]);
    assert_ne!(digest("other.json"), report["rows"]["digest"]);

    let compared = vgen(folder.path(), &["--compare", "found.json", "same.json"]);
    assert_eq!(compared.code, 0, "{}", compared.stderr);
    let slow = compared.stdout.lines().find(|line| line.starts_with("| slow | 1 in flight | rows_per_second")).unwrap();
    // In virtual time the same draws take the same time, to the digit.
    assert!(slow.contains("1.000 | 1.000 to 1.000") || slow.contains("within noise"), "{slow}");
    let other = vgen(folder.path(), &["--compare", "found.json", "other.json"]);
    assert!(other.stdout.contains("Note: the rows differ"), "{}", other.stdout);
}

#[test]
fn rows_of_a_file_and_flags_alone() {
    let folder = tempfile::tempdir().unwrap();
    let rows: String = (0..3).map(|n| format!("{{\"instruction\": \"question {n}\"}}\n")).collect();
    fs::write(folder.path().join("rows.jsonl"), rows + "{\"image\": 3}\n").unwrap();
    let args = [
        "--mock",
        "a,answer=\"{prompt}\"",
        "--mock",
        "b,answer=\"{prompt}!\",prices.per_request=0.5",
        "--rows",
        "rows.jsonl",
        "--window",
        "--repeats",
        "1",
        "--warmup",
        "0",
        "--out",
        "out",
    ];
    let ended = vgen(folder.path(), &args);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("rows.jsonl line 4") && ended.stderr.contains("left out"), "{}", ended.stderr);
    let report = json(&folder.path().join("out.json"));
    assert_eq!((&report["rows"]["rows"], &report["rows"]["drawn"]), (&Value::from(3), &Value::from(false)));
    let agreement = &report["agreement"][0];
    assert_eq!((&agreement["exact"], &agreement["normalised"]), (&Value::from(0), &Value::from(3)));
    assert_eq!(report["cells"][1]["runs"][0]["cost"], 1.5);
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (args, code, message) in [
        (&["--mock", "a", "--workload", "cats"][..], 2, "there is no workload"),
        (&["--mock", "a", "--mock", "a"], 2, "two backends are called"),
        (&["--mock", "a,answr=x"], 2, "answr"),
        (&["--mock", "a,answer"], 2, "has no value"),
        (&["--mock", "a", "--concurrency", "0"], 2, "can't be"),
        (&["--mock", "a,refuse=[\"ignore_eos\"]", "--output-tokens", "4"], 2, "ignore_eos"),
        (&["--local", "no-such-folder/x", "--concurrency", "1"], 4, ""),
        (&["--compare", "a.json", "b.json"], 3, "a.json can't be read"),
        (&[], 2, "required"),
    ] {
        let ended = vgen(folder.path(), args);
        assert_eq!((ended.code, ended.stderr.contains(message)), (code, true), "{args:?}: {}", ended.stderr);
    }
    fs::write(folder.path().join("b.toml"), "[bench]\nrepeat = 3\n[[backend]]\nkind = \"mock\"\n").unwrap();
    let ended = vgen(folder.path(), &["b.toml"]);
    assert!(ended.code == 2 && ended.stderr.contains("repeat"), "{}", ended.stderr);
}

#[test]
fn failed_rows_are_in_the_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let fault = "a,faults=[{row=5}]";
    let args = [
        "--mock",
        fault,
        "--workload",
        "one-image",
        "--count",
        "4",
        "--concurrency",
        "2",
        "--repeats",
        "1",
        "--out",
        "x",
    ];
    let ended = vgen(folder.path(), &args);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    assert_eq!(json(&folder.path().join("x.json"))["cells"][0]["runs"][0]["errors"]["mock.fault"], 1);
}

#[test]
fn the_demo_compares_the_model_with_itself_behind_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--demo", "--repeats", "1", "--concurrency", "4", "--output-tokens", "6", "--warmup", "1"];
    let ended = vgen(folder.path(), &args);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let report = json(&folder.path().join("vgen-bench-demo.json"));
    let agreement = &report["agreement"][0];
    assert_eq!(agreement["compared"], 14);
    assert_eq!(agreement["exact"], agreement["compared"], "{agreement:#}");
    let local = &report["cells"][0]["summary"];
    for metric in
        ["ttft_p50", "tpot_p50", "itl_p50", "encode_share", "decode_share", "cross_kv_bytes", "images_encoded"]
    {
        assert!(local[metric]["median"].as_f64().is_some_and(|value| value > 0.0), "{metric}");
    }
    assert!(local["text_out_per_second"]["median"].as_f64().unwrap() > 0.0);
    assert!(report["cells"][1]["summary"]["ttft_p50"]["median"].as_f64().unwrap() > 0.0, "streamed");
    assert_eq!(report["cells"][0]["runs"][0]["output_tokens"], 14 * 6);
    assert_eq!(report["cells"][1]["runs"][0]["output_tokens"], 14 * 6);
    assert!(fs::read_to_string(folder.path().join("vgen-bench-demo.html")).unwrap().contains("<svg"));
}
