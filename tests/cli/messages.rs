//! Messages and progress in lines and in JSON; completions and manual pages.

use serde_json::Value;

use crate::support::{Scratch, parse, rows};

const FAULTS: &str = "delays_ms = [5]\nwindow = 2\n[[backend.faults]]\nrow = 2\ncode = \"x.y\"\n";

#[test]
fn messages_are_json_if_asked_for() {
    let scratch = Scratch::with(rows(100), FAULTS);
    let ended = scratch.run(&["--log-format", "json", "--progress-interval", "0.1"]).exits(1);
    let lines = parse(&ended.stderr);
    assert!(lines.iter().all(|line| line["time"].as_str().is_some_and(|time| time.ends_with('Z'))), "{lines:?}");
    let event = |name: &str| -> Vec<&Value> { lines.iter().filter(|line| line["event"] == name).collect() };
    let failed = event("row_failed");
    assert_eq!((failed.len(), &failed[0]["row"], &failed[0]["code"]), (1, &2.into(), &"x.y".into()));
    assert_eq!((&failed[0]["level"], &failed[0]["origin"]), (&"warning".into(), &"rows.jsonl line 3".into()));
    let progress = event("progress");
    assert!(!progress.is_empty(), "{lines:?}");
    for name in ["rows", "rows_per_second", "tokens_per_second", "seconds_left", "memory_bytes", "share", "seconds"] {
        assert!(progress[0][name].as_f64().is_some_and(|number| number > 0.0), "{name} in {:?}", progress[0]);
    }
    assert_eq!(progress.last().unwrap()["errors"]["x.y"], 1);
    let summary = event("summary");
    assert_eq!((&summary[0]["rows"], &summary[0]["failed_rows"]), (&100.into(), &1.into()));

    // Mistakes in configuration and arguments, too.
    for args in [&["run", "no.toml"][..], &["run", "--no-such-flag"], &["run", "run.toml", "--limit", "x"]] {
        let ended = scratch.vgen(&[args, &["--log-format", "json"]].concat()).exits(2);
        let line = &parse(&ended.stderr)[0];
        assert_eq!(line["level"], "error", "{line}");
        assert!(line["code"].as_str().is_some_and(|code| code.contains('.')), "{line}");
    }
}

#[test]
fn progress_is_shown_as_told() {
    let scratch = Scratch::with(rows(60), FAULTS);
    let run =
        |how: &str| scratch.run(&["--overwrite", "--progress-interval", "0.05", "--progress", how]).exits(1).stderr;
    let left = |text: &str| text.lines().filter(|line| line.ends_with(" left")).count();
    let plain = run("plain");
    assert!(left(&plain) > 0 && plain.contains("1 failed (1 x.y), ") && plain.contains("iB, "), "{plain}");
    let json = run("json");
    let objects: Vec<_> = json.lines().filter(|line| line.starts_with('{')).collect();
    assert!(!objects.is_empty() && left(&json) == 0 && json.contains("\ndone: 60 rows, 1 failed"), "{json}");
    assert!(parse(&objects.join("\n")).iter().all(|line| line["event"] == "progress"));
    let none = run("none");
    assert!(left(&none) == 0 && !none.contains('{') && none.contains("done: 60 rows"), "{none}");
    let quiet = scratch.run(&["--overwrite", "--progress-interval", "0.05", "--progress", "json", "--quiet"]).exits(1);
    assert_eq!(quiet.stderr, "");
}

#[test]
fn shells_complete_every_program() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        for program in ["vgen", "vgen-local", "vgen-remote"] {
            let script = scratch.vgen(&["completions", shell, program]).exits(0).stdout;
            assert!(script.contains(program) && script.contains("max-new-tokens"), "{shell} {program}");
        }
    }
    scratch.vgen(&["completions", "csh"]).exits(2);
    // The script is one that bash reads, and completes with.
    let script = scratch.vgen(&["completions", "bash"]).exits(0).stdout;
    let ask = "COMP_WORDS=(vgen run --progress-); COMP_CWORD=2; _vgen vgen --progress- run; echo \"${COMPREPLY[@]}\"";
    scratch.file("complete.sh", format!("{script}\n{ask}\n"));
    if let Ok(output) = std::process::Command::new("bash").arg(scratch.path("complete.sh")).output() {
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "--progress-interval");
    }
}

#[test]
fn manual_pages_are_made_of_the_parser() {
    let scratch = Scratch::new();
    let page = scratch.vgen(&["man"]).exits(0).stdout;
    assert!(page.contains(".TH vgen 1") && page.contains("vgen\\-check(1)"), "{page}");
    scratch.vgen(&["man", "vgen-remote"]).exits(0);
    scratch.vgen(&["man", "--folder", "pages"]).exits(0);
    for name in ["vgen", "vgen-local", "vgen-remote", "vgen-run", "vgen-check", "vgen-merge"] {
        let page = scratch.read(&format!("pages/{name}.1"));
        assert!(page.contains(&format!(".TH {name} 1")), "{name}: {page}");
    }
    assert!(scratch.read("pages/vgen-run.1").contains("max\\-new\\-tokens"));
}
