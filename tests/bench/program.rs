//! `vgen bench` as its users meet it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

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
    assert_eq!(report["unfinished"], Value::Null);
    assert_eq!(report["form"], "vgen-bench/2");
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
    let columns: Vec<&str> = slow.split('|').map(str::trim).collect();
    assert_eq!((columns[4], columns[6]), (columns[5], "1.000"), "{slow}");
    assert_eq!(columns[8..10], ["1.000", "within noise"], "{slow}");
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

/// The last results stay what they are, and a mistake shows before anything is measured.
#[test]
fn results_can_be_written_or_nothing_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let measure = |out: &str| {
        let args = ["--mock", "a", "--workload", "mixed", "--count", "2", "--concurrency", "1", "--repeats", "1"];
        vgen(folder.path(), &[&args[..], &["--out", out]].concat())
    };
    let ended = measure("new/folders/monday");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let mut files: Vec<_> = fs::read_dir(folder.path().join("new/folders"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["monday.csv", "monday.html", "monday.json", "monday.md"]);
    fs::write(folder.path().join("file"), "").unwrap();
    fs::create_dir(folder.path().join("taken.html")).unwrap();
    for out in ["file/monday", "taken", "new/", ".."] {
        let ended = measure(out);
        assert!(ended.code == 2 && ended.stderr.contains("can't be written"), "{out}: {}", ended.stderr);
        assert!(!ended.stderr.contains("1/1"), "{out}: {}", ended.stderr);
    }
}

#[test]
fn what_was_measured_is_kept_when_a_later_backend_fails() {
    let folder = tempfile::tempdir().unwrap();
    let second = "b,service={mean_ms=-1}";
    let args = ["--mock", "a", "--mock", second, "--one-by-one", "--workload", "mixed", "--count", "2"];
    let ended = vgen(folder.path(), &[&args[..], &["--concurrency", "1", "--repeats", "2", "--out", "x"]].concat());
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    let report = json(&folder.path().join("x.json"));
    assert_eq!(report["cells"][0]["runs"].as_array().unwrap().len(), 2);
    let why = report["unfinished"].as_str().unwrap();
    assert!(why.starts_with("after 2 of 4 readings: ") && ended.stdout.contains("**Not complete: after 2"), "{why}");
    let compared = vgen(folder.path(), &["--compare", "x.json", "x.json"]);
    assert!(compared.stdout.contains("Note: the second is not complete: after 2 of 4"), "{}", compared.stdout);
}

#[test]
#[cfg(unix)]
fn an_interrupted_bench_keeps_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["bench", "--mock", "a,delays_ms=[20]", "--workload", "mixed", "--count", "2", "--concurrency", "1"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_vgen"))
        .args(args)
        .args(["--repeats", "100000", "--out", "x"])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let path = folder.path().join("x.json");
    let begun = Instant::now();
    // There after the first reading.
    while !path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing was kept");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(json(&path)["unfinished"].as_str().unwrap().contains("still goes on"));
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(json(&path)["unfinished"].as_str().unwrap().starts_with("interrupted after "));
    assert!(folder.path().join("x.html").exists());
}

#[test]
fn what_would_change_nothing_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.toml");
    let mock = "[[backend]]\nkind = \"mock\"\n";
    for (text, message) in [
        ("[run]\nwindow = 3\n", "[run] window has no effect"),
        ("[output]\npath = \"x\"\n", "[output] path has no effect"),
        ("[task]\nnum_generations = 2\n", "[task] num_generations has no effect"),
        ("[task]\nsystem_prompt = \"x\"\n", "[task] system_prompt has no effect on rows that are drawn"),
        ("[bench]\nworkload = \"mixed\"\n[input]\npath = \"x\"\n", "[input] path has no effect"),
        ("[input]\nskip = 2\n", "[input] skip has no effect"),
        ("[bench]\nmeasure_peaks = true\n", "there is none"),
        ("[bench]\nmeasure_peaks = true\npeak_flops = 1.0\n", "exclude each other"),
    ] {
        fs::write(&path, format!("{text}{mock}")).unwrap();
        let ended = vgen(folder.path(), &["b.toml"]);
        assert!(ended.code == 2 && ended.stderr.contains(message), "{text}: {}", ended.stderr);
    }
    fs::write(&path, "[[backend]]\nkind = \"local\"\nmodel = \"m\"\nbatch_size = 2\nbatch_sizes = [1]\n").unwrap();
    let ended = vgen(folder.path(), &["b.toml"]);
    assert!(ended.code == 2 && ended.stderr.contains("exclude each other"), "{}", ended.stderr);
}

/// As --input of a run: each request has its own messages and parameters.
#[test]
fn rows_may_be_requests_of_a_batch_file() {
    let folder = tempfile::tempdir().unwrap();
    let line = |id: u32, more: &str| {
        let messages = format!("[{{\"role\": \"user\", \"content\": \"question {id}\"}}]");
        let url = "\"method\": \"POST\", \"url\": \"/v1/chat/completions\"";
        format!("{{\"custom_id\": \"{id}\", {url}, \"body\": {{\"model\": \"m\", \"messages\": {messages}{more}}}}}\n")
    };
    let rows = [line(0, ""), line(1, ", \"top_p\": 0.5"), line(2, ", \"n\": 2")].concat();
    fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
    let measure = |backend: &str, out: &str| {
        let args = ["--rows", "rows.jsonl", "--window", "--repeats", "1", "--warmup", "0", "--out", out];
        vgen(folder.path(), &[&["--mock", backend][..], &args].concat())
    };
    let ended = measure("a,answer=\"{prompt}\"", "x");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let report = json(&folder.path().join("x.json"));
    // The third asks for two answers.
    assert_eq!((&report["rows"]["rows"], &report["rows"]["left_out"]["batch.request"]), (&2.into(), &1.into()));
    assert_eq!(report["cells"][0]["runs"][0]["output_tokens"], 4, "question 0, question 1");
    let ended = measure("a,refuse=[\"top_p\"]", "y");
    assert!(ended.code == 2 && ended.stderr.contains("row 1: the mock backend can't honour top_p"), "{}", ended.stderr);
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
        (&["--mock", "a,prices=1,prices.per_hour=2"], 2, "prices is a value"),
        (&["--mock", "a,service={mean_ms=1e300}"], 2, "a mean below 0 or above 1e12"),
        (&["--mock", "a", "--rates", "1e-19"], 2, "can't be"),
        (&["--mock", "a", "--concurrency", "2,2"], 2, "asked for twice"),
        (&["--mock", "a", "--batch-sizes", "2"], 2, "there is none"),
        (&["--demo", "--batch-sizes", "2"], 2, "cannot be used with"),
        (&["--mock", "a", "--peak-flops", "1e9"], 2, "there is none"),
        (&["--local", "no-such-folder/x", "--concurrency", "1"], 4, ""),
        (&["--compare", "a.json", "b.json"], 3, "a.json can't be read"),
        (&[], 2, "required"),
    ] {
        let ended = vgen(folder.path(), args);
        assert_eq!((ended.code, ended.stderr.contains(message)), (code, true), "{args:?}: {}", ended.stderr);
    }
    fs::write(folder.path().join("a.json"), "{\"form\": \"vgen-bench/1\"}").unwrap();
    let ended = vgen(folder.path(), &["--compare", "a.json", "a.json"]);
    assert!(ended.code == 3 && ended.stderr.contains("it has the form \"vgen-bench/1\""), "{}", ended.stderr);
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
fn batch_sizes_are_measured_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--local", "vgen/shapes", "--batch-sizes", "1,2", "--workload", "one-tile", "--count", "2"];
    let more = ["--concurrency", "2", "--repeats", "1", "--output-tokens", "2", "--one-by-one", "--out", "x"];
    let ended = vgen(folder.path(), &[&args[..], &more].concat());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let report = json(&folder.path().join("x.json"));
    let targets = report["targets"].as_array().unwrap();
    for (target, batch) in targets.iter().zip([1, 2]) {
        assert_eq!(target["name"], format!("local, batch {batch}"));
        assert_eq!(target["settings"]["batch_size"], batch);
        assert_eq!(target["sweep"], serde_json::json!({"of": "local", "batch_size": batch}));
    }
    assert_eq!((&report["interleaved"], &report["agreement"][0]["exact"]), (&false.into(), &2.into()));
    assert!(fs::read_to_string(folder.path().join("x.html")).unwrap().contains("by batch size"));
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
    assert_eq!(agreement["counted_in"], "words", "nothing differs that could be counted");
    let local = &report["cells"][0]["summary"];
    // Parts of the time of one thread. It waits while this program makes requests, so a little of it is idle.
    let shares = ["encode", "prefill", "decode", "sample", "wait"]
        .map(|stage| local[&format!("{stage}_share")]["median"].as_f64().unwrap());
    let sum: f64 = shares.iter().sum();
    assert!(sum > 0.5 && sum < 1.02, "{shares:?}");
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
