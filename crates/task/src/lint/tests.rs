// What is wrong with a test's own values is to stop it.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::{ImagePosition, RowContext, TaskBuilder};

const PIXEL: &str = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=";

/// The codes found in the rows, and all messages.
fn lint(task: TaskBuilder, reader: Reader, rows: &[&str]) -> (Vec<String>, String) {
    let task = task.build().unwrap();
    let mut linter = Linter::new(Some(&task), reader);
    for (number, text) in rows.iter().enumerate() {
        let row = Row::from_json(&text.replace("PIXEL", PIXEL)).unwrap();
        let rendered = task.render(&row, &RowContext::new(number as u64));
        linter.look(&format!("row {number}"), Some(&row), rendered.as_ref());
    }
    assert_eq!(linter.rows(), rows.len() as u64);
    let findings = linter.findings();
    assert!(findings.iter().all(|finding| finding.hint.is_some()));
    let messages: Vec<_> = findings.iter().map(|finding| finding.message.clone()).collect();
    (findings.iter().map(|finding| finding.code.to_string()).collect(), messages.join("\n"))
}

fn task() -> TaskBuilder {
    TextGenerationWithImage::builder().image_position(ImagePosition::First)
}

const GOOD: &str = r#"{"instruction": "What is it? 1 < 2 [sic]", "image": "PIXEL", "file": "cat.jpg"}"#;

#[test]
fn good_rows_have_no_findings() {
    for reader in [Reader::Local, Reader::ServedLlama, Reader::Other] {
        assert_eq!(lint(task(), reader, &[GOOD, GOOD]), (vec![], String::new()));
    }
}

#[test]
fn text_before_an_image_matters_to_llama_only() {
    let as_given = || task().image_position(ImagePosition::AsGiven);
    let (codes, messages) = lint(as_given(), Reader::Local, &[GOOD, GOOD]);
    assert_eq!(codes, ["lint.text_before_image"]);
    assert!(messages.starts_with("2 of 2 rows looked at (first row 0) "), "{messages}");
    assert_eq!(lint(as_given(), Reader::of_model("meta-llama/Llama-3.2-11B-Vision-Instruct"), &[GOOD]).0, codes);
    assert!(lint(as_given(), Reader::of_model("Qwen/Qwen3-VL-8B"), &[GOOD]).0.is_empty());
}

#[test]
fn tags_and_tokens_in_text_are_told_with_what_becomes_of_them() {
    let tag = r#"{"instruction": "<image>\nWhat is it?", "image": "PIXEL"}"#;
    let token = r#"{"instruction": "a<|eot_id|>b", "image": "PIXEL"}"#;
    let (codes, messages) = lint(task(), Reader::Local, &[GOOD, tag, token]);
    assert_eq!(codes, ["lint.image_tag", "lint.special_token"]);
    assert!(messages.contains("1 of 3 rows looked at (first row 1) have an image tag like <image>"), "{messages}");
    assert!(messages.contains("<|eot_id|> in their text: it stays plain text"), "{messages}");
    assert!(lint(task(), Reader::Other, &[tag]).1.contains("is not known"));
    // Wherever it comes from.
    assert_eq!(lint(task().system_prompt("<|image|>"), Reader::Local, &[GOOD]).0, ["lint.image_tag"]);
}

#[test]
fn images_that_are_missing_or_too_many_are_told() {
    let none = r#"{"instruction": "What?"}"#;
    let (codes, messages) = lint(task(), Reader::Local, &[GOOD, none]);
    assert_eq!(codes, ["lint.missing_image"]);
    assert!(messages.contains("will fail"), "{messages}");
    let (codes, messages) = lint(task().image_required(false), Reader::Local, &[GOOD, none]);
    assert_eq!(codes, ["lint.missing_image"]);
    assert!(messages.contains("the others have"), "{messages}");
    assert!(lint(task().image_required(false), Reader::Local, &[none]).0.is_empty());

    let two = r#"{"instruction": "What?", "image": ["PIXEL", "a.png"]}"#;
    let twice = r#"{"instruction": "What?", "image": ["PIXEL", "PIXEL"]}"#;
    assert_eq!(lint(task(), Reader::Local, &[two]).0, ["lint.several_images"]);
    assert!(lint(task(), Reader::Other, &[two, two]).0.is_empty());
    assert_eq!(lint(task(), Reader::Other, &[GOOD, GOOD, two]).0, ["lint.several_images"]);
    assert_eq!(lint(task(), Reader::Other, &[twice]).0, ["lint.repeated_image"]);
}

#[test]
fn images_in_columns_that_nothing_reads_are_told() {
    let object = r#"{"instruction": "What?", "image": "PIXEL", "image_b": {"bytes": "AAAA", "path": null}}"#;
    assert_eq!(lint(task(), Reader::Local, &[object]).0, ["lint.unread_image_column"]);
    let path = r#"{"instruction": "What?", "photo": "folder/cat.JPG"}"#;
    let (codes, messages) = lint(task(), Reader::Local, &[path]);
    assert_eq!(codes, ["lint.missing_image", "lint.unread_image_column"]);
    assert!(messages.contains("\"photo\""), "{messages}");
}

#[test]
fn templates_and_columns_that_do_not_meet_are_told() {
    let task = |template: &str, columns: &[&str]| task().template(template).columns(columns.iter().copied());
    let off = task("{{ instruction }}", &["instruction", "context"]).column_check(crate::ColumnCheck::Off);
    let row = r#"{"instruction": "What?", "context": "x", "image": "PIXEL"}"#;
    assert_eq!(lint(off, Reader::Local, &[row]).0, ["lint.unused_column"]);

    let empty = r#"{"instruction": "What?", "context": null, "image": "PIXEL"}"#;
    let both = || task("{{ context }} {{ instruction }}", &["instruction", "context"]);
    let (codes, _) = lint(both().undefined(crate::Undefined::Lenient), Reader::Local, &[empty, empty]);
    assert_eq!(codes, ["lint.empty_column"]);
    assert!(lint(both(), Reader::Local, &[empty, row]).0.iter().all(|code| code != "lint.empty_column"));

    let braces = task("{context}: {{ instruction }} {{context}} {{{'a': 1}['a']}}", &["instruction", "context"]);
    let (codes, messages) = lint(braces, Reader::Local, &[row]);
    assert_eq!(codes, ["lint.single_braces"]);
    assert!(messages.contains("{context}"), "{messages}");
}

#[test]
fn rows_that_will_fail_are_counted_by_code() {
    let lost = r#"{"question": "What?", "image": "PIXEL"}"#;
    let (codes, messages) = lint(task(), Reader::Local, &[GOOD, lost, lost]);
    assert_eq!(codes, ["lint.failing_rows"]);
    assert!(
        messages.starts_with("2 of 3 rows looked at (first row 1) will fail with row.missing_column"),
        "{messages}"
    );
}
