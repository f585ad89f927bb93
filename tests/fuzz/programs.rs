//! What the programs read besides: configs, templates, schemas, records of runs, answers of servers.

use std::sync::{Arc, Mutex};

use serde_json::json;
use vgen_loopback::{Answer, Server};

use crate::mutate::mutate;
use crate::rounds;
use crate::support::{Ended, Scratch, ended, rows};

/// An exit code of the table in docs/errors.md, and no panic on the way.
fn sound(ended: &Ended) {
    let known = matches!(ended.code, 0..=7);
    assert!(known && !ended.stderr.contains("panicked"), "exit code {}:\n{}", ended.code, ended.stderr);
}

#[test]
fn configs_templates_and_schemas() {
    let seeds = [
        (
            "run.toml",
            "[input]\npath = \"rows.jsonl\"\nlimit = 3\n[output]\npath = \"out.jsonl\"\n[task]\nimage_required = false\n\
             template = \"Say {{ instruction | upper }} {% if id > 2 %}twice{% endif %}\"\ncolumns = [\"instruction\", \"id\"]\n\
             [sampling]\nmax_new_tokens = 5\ntemperature = 0.5\nstop = [\"x\"]\n[backend]\nkind = \"mock\"\n",
        ),
        (
            "template.txt",
            "{% for c in instruction %}{{ loop.index }}{{ c | tojson }}{% endfor %} {{ id * 3 // 2 ** 4 }}",
        ),
        (
            "schema.json",
            "{\"type\": \"object\", \"properties\": {\"a\": {\"enum\": [1, \"b\"]}, \"c\": {\"pattern\": \"^[a-z]{2,9}$\"}}}",
        ),
    ];
    let run = |texts: &[Vec<u8>], which: usize| {
        let scratch = Scratch::with(rows(5), "");
        for ((name, _), bytes) in seeds.iter().zip(texts) {
            scratch.file(name, bytes);
        }
        match which {
            0 => scratch.run(&["--quiet"]),
            1 => {
                let template = format!("--template={}", String::from_utf8_lossy(&texts[1]).replace('\0', ""));
                scratch.vgen(&[
                    "render",
                    "--input",
                    "rows.jsonl",
                    "--columns",
                    "instruction,id",
                    "--image-required=false",
                    &template,
                ])
            }
            _ => scratch.vgen_local(&[
                "--demo",
                "--json-schema",
                "schema.json",
                "--limit",
                "1",
                "--max-new-tokens",
                "2",
                "--quiet",
            ]),
        }
    };
    let whole: Vec<Vec<u8>> = seeds.iter().map(|(_, text)| text.as_bytes().to_vec()).collect();
    run(&whole, 0).exits(0);
    run(&whole, 1).exits(0);
    // Two tokens are too few for the form.
    assert!(run(&whole, 2).exits(1).stdout.contains("constraint.incomplete"));
    rounds(60, |rng| {
        let (broken, other) = (rng.usize(0..seeds.len()), rng.usize(0..seeds.len()));
        let mut texts = whole.clone();
        mutate(rng, &mut texts[broken], &whole[other]);
        sound(&run(&texts, broken));
    });
}

/// A run whose record or output was changed is gone on with, or refused.
#[test]
fn records_of_runs() {
    let whole = Scratch::with(rows(30), "");
    whole.run(&["--limit", "17"]).exits(0);
    let mut files = vec!["out.jsonl".to_owned()];
    files.extend(
        std::fs::read_dir(whole.path("out.jsonl.run"))
            .unwrap()
            .map(|entry| format!("out.jsonl.run/{}", entry.unwrap().file_name().to_str().unwrap())),
    );
    files.sort();
    rounds(80, |rng| {
        let scratch = Scratch::with(rows(30), "");
        let broken = rng.usize(0..files.len());
        for (number, name) in files.iter().enumerate() {
            let mut bytes = std::fs::read(whole.path(name)).unwrap();
            if number == broken {
                let other = std::fs::read(whole.path(&files[rng.usize(0..files.len())])).unwrap();
                mutate(rng, &mut bytes, &other);
            }
            scratch.file(name, bytes);
        }
        sound(&scratch.run(&["--quiet"]));
    });
}

#[test]
fn answers_of_servers() {
    let answer = json!({
        "object": "chat.completion", "id": "1", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "an answer \u{e9}"},
            "logprobs": {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": []}]}}],
        "usage": {"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 26}
    })
    .to_string();
    let seed = Arc::new(Mutex::new(fastrand::Rng::with_seed(0)));
    let script = {
        let seed = Arc::clone(&seed);
        move |_: &_| {
            let mut rng = seed.lock().unwrap();
            let mut body = answer.clone().into_bytes();
            mutate(&mut rng, &mut body, answer.as_bytes());
            let kind = ["application/json", "text/html", "text/event-stream", "\u{e9}"][rng.usize(0..4)];
            Answer::status([200, 200, 200, 201, 400, 422, 429, 500, 503][rng.usize(0..9)])
                .header("retry-after", ["0", "-1", "soon", "Thu, 01 Jan 1970 00:00:00 GMT"][rng.usize(0..4)])
                .header("content-type", kind)
                .data(String::from_utf8_lossy(&body).into_owned())
        }
    };
    let server = Server::start(script).unwrap();
    let url = server.url();
    let mut answered = 0;
    rounds(25, |rng| {
        *seed.lock().unwrap() = rng.fork();
        let scratch = Scratch::with(rows(12), "");
        let args = [
            "--base-url",
            &url,
            "--model-id",
            "m",
            "--input",
            "rows.jsonl",
            "--output",
            "out.jsonl",
            "--image-required=false",
            "--backoff-base",
            "0.001",
            "--max-attempts",
            "3",
            "--quiet",
        ];
        let ended = ended(scratch.command("vgen-remote").args(args).output().unwrap());
        sound(&ended);
        // Whatever the answers are, every row has one or an error.
        if matches!(ended.code, 0 | 1) {
            let rows = scratch.rows("out.jsonl");
            assert_eq!(rows.len(), 12);
            answered += rows.iter().filter(|row| row["generation"].is_string()).count();
        }
    });
    assert!(answered > 0);
}
