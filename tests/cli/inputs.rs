//! Bad inputs: what ends the run, what costs one row.

use std::fs;

use crate::support::{Scratch, rows};

#[test]
fn inputs_that_are_not_there_or_empty_exit_with_3() {
    for (name, content, message) in [
        ("missing", None, "error: input rows.jsonl does not exist"),
        ("empty", Some(""), "error: input rows.jsonl has no rows"),
        ("blank", Some("\n\r\n  \n"), "error: input rows.jsonl has no rows"),
        ("array", Some("[\n{\"instruction\": \"x\"}\n]\n"), "error: input rows.jsonl is not JSON lines"),
    ] {
        let scratch = Scratch::with("", "");
        match content {
            None => fs::remove_file(scratch.path("rows.jsonl")).unwrap(),
            Some(content) => fs::write(scratch.path("rows.jsonl"), content).unwrap(),
        }
        let ended = scratch.run(&[]).exits(3).says(message).prints("");
        assert!(!scratch.path("out.jsonl").exists(), "{name}: {}", ended.stderr);
    }
}

#[test]
fn a_folder_as_input_exits_with_3() {
    let scratch = Scratch::with("", "");
    scratch.run(&["--input", "."]).exits(3).says("error: input . is a folder");
}

#[test]
fn an_empty_standard_input_exits_with_3() {
    let scratch = Scratch::with("", "");
    scratch.run(&["--input", "-"]).exits(3).says("error: input stdin has no rows");
}

#[test]
fn a_broken_line_is_answered_with_its_error_and_the_others_as_ever() {
    let text = "{\"id\": 0, \"instruction\": \"a\"}\n{\"id\": 1, \"instruction\": \"b\"}\n{\"id\": 2, \"instr\n\
        {\"id\": 3, \"instruction\": \"d\"}\n{\"id\": 4, \"instruction\": \"e\"}\n";
    let scratch = Scratch::with(text, "answer = \"{prompt}!\"\n");
    let ended = scratch.run(&[]).exits(1).prints("");
    let rows = scratch.rows("out.jsonl");
    let answers: Vec<_> = rows.iter().map(|row| row["generation"].as_str()).collect();
    assert_eq!(answers, [Some("a!"), Some("b!"), None, Some("d!"), Some("e!")]);
    assert_eq!(rows[2]["error"]["code"], "row.json");
    let message = rows[2]["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("rows.jsonl line 3: not a JSON object"), "{message}");
    assert!(rows[1]["error"].is_null());
    ended.says("warning: rows.jsonl line 3: ").says("[row.json]").says("5 rows, 1 failed").says("  row.json: 1");
}

#[test]
fn every_kind_of_bad_row_costs_that_row_only() {
    let mut text = b"\xef\xbb\xbf{\"instruction\": \"bom\"}\r\n\r\n".to_vec();
    text.extend(b"{\"instruction\": \"\xff\"}\r\n");
    text.extend(b"{\"other\": 1}\n{\"instruction\": NaN}\n17\n");
    text.extend(format!("{{\"instruction\": \"{}\"}}\n", "x".repeat(2000)).bytes());
    text.extend(b"{\"instruction\": \"no image\", \"image\": \"\"}\n");
    text.extend(b"{\"instruction\": \"last\"}");
    let scratch = Scratch::with(text, "");
    scratch.run(&["--max-line-bytes", "1000"]).exits(1);
    let codes: Vec<_> =
        scratch.rows("out.jsonl").iter().map(|row| row["error"]["code"].as_str().unwrap_or("-").to_owned()).collect();
    assert_eq!(codes[..6], ["-", "row.utf8", "row.missing_column", "row.json", "row.json", "row.too_long"]);
    assert!(codes[6].starts_with("image."), "{codes:?}");
    assert_eq!(codes[7], "-");
    let nan = &scratch.rows("out.jsonl")[3];
    assert!(nan["error"]["hint"].as_str().unwrap().starts_with("NaN and Infinity are not JSON"));
}

#[test]
fn compressed_inputs_are_read_whatever_their_name() {
    let scratch = Scratch::with(rows(3), "");
    scratch.run(&["--output", "packed.jsonl.gz"]).exits(0);
    scratch.run(&["--input", "packed.jsonl.gz", "--output", "packed.jsonl.zst"]).exits(0);
    fs::rename(scratch.path("packed.jsonl.zst"), scratch.path("packed")).unwrap();
    scratch.run(&["--input", "packed", "--output", "plain.jsonl"]).exits(0);
    assert_eq!(scratch.rows("plain.jsonl")[2]["generation"], "answer to row 2");
}

#[test]
fn a_question_of_another_column_is_mapped() {
    let scratch = Scratch::with("{\"q\": \"why\"}\n", "answer = \"{prompt}\"\n");
    scratch.run(&["--input-mapping", "instruction=q", "--output-mapping", "generation=a"]).exits(0);
    assert_eq!(scratch.rows("out.jsonl")[0]["a"], "why");
}
