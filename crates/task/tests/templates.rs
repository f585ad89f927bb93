//! Templates held against what Jinja2 printed for them (`templates/record.py`), and what must never happen.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail and tell why")]

use serde::Deserialize;
use vgen_core::{Content, Fault, Part, Row};
use vgen_task::{ColumnCheck, RowContext, TaskBuilder, TaskError, TextGenerationWithImage, Undefined};

#[derive(Deserialize)]
struct Case {
    template: String,
    text: Option<String>,
    code: Option<String>,
}

fn text(task: &TextGenerationWithImage, row: &Row) -> Result<String, Fault> {
    let rendered = task.render(row, &RowContext::new(3))?;
    match &rendered.messages[0].content {
        Content::Parts(parts) => match &parts[0] {
            Part::Text(text) => Ok(text.clone()),
            Part::Image(_) => panic!("the text comes first"),
        },
        Content::Text(_) => panic!("the user message has parts"),
    }
}

fn builder(template: &str, row: &Row) -> TaskBuilder {
    TextGenerationWithImage::builder().template(template).columns(row.names()).image_required(false)
}

#[test]
fn templates_print_what_jinja2_prints() {
    let mut lines = include_str!("templates/cases.jsonl").lines();
    let data = Row::from_json(lines.next().unwrap()).unwrap();
    let mut wrong = Vec::new();
    for line in lines {
        let case: Case = serde_json::from_str(line).unwrap();
        let task = builder(&case.template, &data).column_check(ColumnCheck::Off).undefined(Undefined::Lenient).build();
        let found = match &task {
            Ok(task) => text(task, &data).map_err(|fault| fault.code.into_owned()),
            Err(error) => Err(error.code().to_owned()),
        };
        let expected = case.text.ok_or_else(|| case.code.unwrap());
        if found != expected {
            wrong.push(format!("{}\n  Jinja2 {expected:?}\n  ours   {found:?}", case.template));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn row(json: &str) -> Row {
    Row::from_json(json).unwrap()
}

fn fault(template: &str, data: &str) -> Fault {
    let data = row(data);
    let task = builder(template, &data).build().unwrap();
    text(&task, &data).unwrap_err()
}

fn mistake(template: &str, columns: &[&str]) -> TaskError {
    TextGenerationWithImage::builder().template(template).columns(columns.iter().copied()).build().unwrap_err()
}

#[test]
fn a_template_that_never_ends_runs_out_of_fuel() {
    let data = row(r#"{"n": 90000}"#);
    let template = "{% for a in range(n) %}{% for b in range(n) %}{{ a * b }}{% endfor %}{% endfor %}";
    let task = builder(template, &data).template_fuel(100_000u64).build().unwrap();
    let fault = text(&task, &data).unwrap_err();
    assert_eq!(fault.code, "template.fuel");
    assert!(fault.message.starts_with("row 3: template line 1"), "{}", fault.message);

    let data = row(r#"{"s": "abcdefgh"}"#);
    let doubling = "{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f(s) }}";
    let task = builder(doubling, &data).build().unwrap();
    assert!(text(&task, &data).is_err());
}

#[test]
fn widths_do_not_make_texts_without_bound() {
    for template in ["{{ s.center(10 ** 12) }}", "{{ s|center(10 ** 12) }}", "{{ s.zfill(10 ** 12) }}"] {
        assert_eq!(fault(template, r#"{"s": "x"}"#).code, "template.fuel", "{template}");
    }
}

#[test]
fn errors_name_line_column_and_words() {
    let fault = fault("one\ntwo {{ d.nope }}", r#"{"d": {}}"#);
    assert_eq!(fault.code, "template.undefined");
    assert!(fault.message.starts_with("row 3: template line 2, column 8"), "{}", fault.message);
    assert!(fault.message.contains("d.nope"), "{}", fault.message);
    assert!(fault.hint.is_some());

    let error = mistake("ä\n  {{ a | nosuch }}", &["a"]);
    assert_eq!(error.code(), "template.unknown_filter");
    assert!(error.to_string().starts_with("template line 2"), "{error}");

    let error = mistake("{{ a }}\n{% if a %}", &["a"]);
    assert_eq!(error.code(), "template.syntax");
    assert!(error.to_string().contains("line 2"), "{error}");
}

#[test]
fn columns_and_variables_are_compared_by_the_parsed_template() {
    let build = |template: &str, columns: &[&str]| {
        TextGenerationWithImage::builder().template(template).columns(columns.iter().copied()).build().map(|_| ())
    };
    assert_eq!(build("{{ a | upper }}{% for x in b %}{{ x }}{{ loop.index }}{% endfor %}", &["a", "b"]), Ok(()));
    assert_eq!(build("{{ a }}{{ b|default('') }}{% if c is defined %}{{ c }}{% endif %}", &["a"]), Ok(()));
    assert_eq!(build("{% set q = a %}{{ q }}{% macro m(z) %}{{ z }}{% endmacro %}{{ m(q) }}", &["a"]), Ok(()));
    let error = mistake("{{ a }}\n {{ typo }}", &["a", "b"]);
    let all: Vec<String> = error.all().iter().map(|error| error.code().to_owned()).collect();
    assert_eq!(all, ["template.unused_column", "template.unlisted_variable"]);
    assert!(error.to_string().contains("\"typo\" (line 2, column 5)"), "{error}");
    assert_eq!(mistake("{# a #}{% raw %}{{ a }}{% endraw %}", &["a"]).code(), "template.unused_column");
    // A loop's variable does not outlive the loop.
    assert_eq!(mistake("{% for x in a %}{% endfor %}{{ x }}", &["a"]).code(), "template.unlisted_variable");
}

#[test]
fn files_are_out_of_reach() {
    for template in ["{% include '/etc/passwd' %}", "{% extends '/etc/passwd' %}", "{% import '/etc/passwd' as p %}"] {
        let task = TextGenerationWithImage::builder().template(template).columns([""; 0]).image_required(false);
        let fault = text(&task.build().unwrap(), &row("{}")).unwrap_err();
        assert_eq!(fault.code, "template.runtime");
    }
}

#[test]
fn strict_and_lenient() {
    assert_eq!(fault("{{ d.a ~ 'x' }}", r#"{"d": {}}"#).code, "template.undefined");
    assert_eq!(fault("{{ d.a | upper }}", r#"{"d": {}}"#).code, "template.undefined");
    assert_eq!(fault("{% for x in d.a %}{% endfor %}", r#"{"d": {}}"#).code, "template.undefined");
    let data = row(r#"{"d": {}}"#);
    let task = builder("{% if d.a %}x{% endif %}{{ d.a|default('none') }}", &data).build().unwrap();
    assert_eq!(text(&task, &data).unwrap(), "none");
    let task = builder("[{{ d.a }}]", &data).undefined(Undefined::Lenient).build().unwrap();
    assert_eq!(text(&task, &data).unwrap(), "[]");
}
