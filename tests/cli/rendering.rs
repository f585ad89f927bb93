//! `vgen render`: the messages without a model.

use serde_json::json;

use crate::support::{Scratch, parse};

#[test]
fn messages_are_printed_as_they_would_be_sent() {
    let scratch = Scratch::new();
    scratch.file("data/rows.jsonl", "{\"instruction\": \"What is it?\", \"image\": \"https://example.com/a.png\"}\n");
    let ended = scratch.vgen(&["render", "--input", "data/rows.jsonl", "--system-prompt", "Be brief."]).exits(0);
    assert_eq!(
        parse(&ended.stdout),
        [json!({"messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {"type": "text", "text": "What is it?"}
            ]}
        ]})]
    );
    let ended = scratch.vgen(&["render", "--input", "data/rows.jsonl", "--image-position", "as-given"]).exits(0);
    assert_eq!(parse(&ended.stdout)[0]["messages"][0]["content"][0]["type"], "text");
}

#[test]
fn paths_of_images_are_relative_to_the_input() {
    let scratch = Scratch::new();
    scratch.file("data/rows.jsonl", "{\"instruction\": \"x\", \"image\": \"pictures/a.png\"}\n");
    let ended = scratch.vgen(&["render", "--input", "data/rows.jsonl"]).exits(0);
    assert_eq!(parse(&ended.stdout)[0]["messages"][0]["content"][0]["image_url"]["url"], "data/pictures/a.png");
}

#[test]
fn rows_that_cannot_be_rendered_are_told_and_counted() {
    let scratch = Scratch::with("{\"other\": 1}\n{\"instruction\": \"x\"}\n{broken\n", "");
    let ended = scratch.vgen(&["render", "run.toml"]).exits(1);
    let lines = parse(&ended.stdout);
    assert_eq!(lines[0]["error"]["code"], "row.missing_column");
    assert_eq!(lines[1]["messages"][0]["role"], "user");
    assert_eq!(lines[2]["error"]["code"], "row.json");
    // The config's output is for answers.
    assert!(!scratch.path("out.jsonl").exists());
}

#[test]
fn the_limit_holds_and_an_empty_input_is_an_error() {
    let scratch = Scratch::with("{\"instruction\": \"x\"}\n{\"instruction\": \"y\"}\n", "");
    assert_eq!(scratch.vgen(&["render", "run.toml", "--limit", "1"]).exits(0).stdout.lines().count(), 1);
    scratch.vgen(&["render", "--input", "-"]).exits(3).says("input stdin has no rows");
}
