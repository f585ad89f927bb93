//! Every case of the corpus recorded from distilabel, held against our task: messages, output rows, and which errors
//! are raised where.
//!
//! Each case runs twice: as the task is by default, and as [`TaskBuilder::like_distilabel`] sets it. Where ours does
//! better on purpose, `fixtures/deviations.toml` says so by rule, never by case alone, and a difference that no rule
//! explains fails the test. `VGEN_CORPUS` names another file of the same form.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a test may fail and tell why")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use vgen_core::{Content, Fault, ImageRef, Message, Part, Row};
use vgen_task::{Answer, RowContext, TaskBuilder, TaskConfig, TaskError, TextGenerationWithImage, data_url};

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/corpus_public.jsonl");
const DEVIATIONS: &str = include_str!("fixtures/deviations.toml");

#[derive(Deserialize)]
struct Case {
    case_id: String,
    category: String,
    description: String,
    quirk: Option<String>,
    params: Map<String, Value>,
    llm: Llm,
    inputs: Vec<Box<RawValue>>,
    canned: Option<Vec<Map<String, Value>>>,
    expected: Expected,
    expected_output_rows: Option<Vec<Box<RawValue>>>,
    expected_process_error: Option<ExpectedError>,
    expected_imputed_rows: Option<Vec<Box<RawValue>>>,
}

#[derive(Deserialize)]
struct Llm {
    model_name: String,
    style: String,
    raises: Option<String>,
}

#[derive(Deserialize)]
struct Expected {
    task_name: Option<String>,
    input_columns: Option<IndexMap<String, bool>>,
    output_columns: Option<Vec<String>>,
    error: Option<ExpectedError>,
    messages: Option<Box<RawValue>>,
    per_row: Option<Vec<ExpectedRow>>,
}

#[derive(Deserialize)]
struct ExpectedRow {
    error: Option<ExpectedError>,
    messages: Option<Box<RawValue>>,
}

#[derive(Clone, Deserialize)]
struct ExpectedError {
    phase: String,
    kind: String,
}

/// A rule of the table: a difference that has everything which the rule names is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deviation {
    name: String,
    reason: String,
    /// `default`, `compatible`, or `both`.
    profile: String,
    /// What differs, see [`Difference`].
    what: Vec<String>,
    /// distilabel's error, if it raised one.
    #[serde(default)]
    theirs: Vec<String>,
    /// The code of our fault, if we raised one.
    #[serde(default)]
    ours: Vec<String>,
    #[serde(default)]
    category: Vec<String>,
    /// Only cases whose recording is marked as doubtful.
    #[serde(default)]
    quirk: bool,
    /// The template contains one of these, in any case of letters.
    #[serde(default)]
    template: Vec<String>,
    /// Cases of the public corpus that it explains, for readers.
    #[serde(default)]
    cases: Vec<String>,
}

#[derive(Deserialize)]
struct Table {
    deviation: Vec<Deviation>,
}

/// How a case differs: the word for the rule, and the words for the reader.
#[derive(Debug)]
struct Difference {
    /// `refused`: we raise where distilabel does not. `accepted`: the other way round. `error`: both raise, but of
    /// another kind. `messages`, `rows`, `declared`: the same kind of result with other contents. `image_file`: only
    /// the encoding of an image differs. `raw_image`: only how the metadata names an image. `isolated`: distilabel
    /// gave up the batch for one bad row. `survived`: it lost a batch that had its answers. `metadata`: earlier
    /// metadata is kept. `vanished`: it drops the row. `swapped`: it gives restored columns to the wrong rows.
    /// `statistics`: it gives counts to the wrong answers. `address`: it prints a memory address. `line_breaks`: only
    /// line breaks inside base64 differ.
    what: &'static str,
    theirs: Option<String>,
    ours: Option<String>,
    detail: String,
}

fn differs(what: &'static str, detail: impl Into<String>) -> Difference {
    Difference { what, theirs: None, ours: None, detail: detail.into() }
}

impl Deviation {
    fn explains(&self, profile: &str, case: &Case, difference: &Difference) -> bool {
        let has = |list: &[String], value: Option<&str>| {
            list.is_empty() || value.is_some_and(|value| list.iter().any(|known| known == value))
        };
        let template = case.params.get("template").and_then(Value::as_str).unwrap_or_default().to_lowercase();
        (self.profile == "both" || self.profile == profile)
            && self.what.iter().any(|what| what == difference.what)
            && has(&self.theirs, difference.theirs.as_deref())
            && has(&self.ours, difference.ours.as_deref())
            && has(&self.category, Some(&case.category))
            && (!self.quirk || case.quirk.is_some())
            && (self.template.is_empty() || self.template.iter().any(|part| template.contains(&part.to_lowercase())))
    }
}

/// JSON with numbers and key order as they are, texts in one spelling.
fn canonical(text: &str) -> String {
    match text.trim_start().as_bytes().first() {
        Some(b'{') => {
            let members: IndexMap<String, &RawValue> = serde_json::from_str(text).unwrap();
            let members: Vec<_> =
                members.iter().map(|(key, value)| format!("{}:{}", json!(key), canonical(value.get()))).collect();
            format!("{{{}}}", members.join(","))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            format!("[{}]", items.iter().map(|item| canonical(item.get())).collect::<Vec<_>>().join(","))
        }
        Some(b'"') => json!(serde_json::from_str::<String>(text).unwrap()).to_string(),
        _ => text.trim().to_owned(),
    }
}

/// A recorded value in the form that our rows have it: images and bytes in memory as `{"bytes", "path"}`.
fn converted(text: &str) -> String {
    match text.trim_start().as_bytes().first() {
        Some(b'{') => {
            let members: IndexMap<String, &RawValue> = serde_json::from_str(text).unwrap();
            if let Some(image) = members.get("__pil__") {
                let image: Value = serde_json::from_str(image.get()).unwrap();
                return json!({"bytes": image["png_base64"], "path": null}).to_string();
            }
            if let Some(bytes) = members.get("__bytes_b64__") {
                return format!("{{\"bytes\":{},\"path\":null}}", bytes.get());
            }
            let members: Vec<_> =
                members.iter().map(|(key, value)| format!("{}:{}", json!(key), converted(value.get()))).collect();
            format!("{{{}}}", members.join(","))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            format!("[{}]", items.iter().map(|item| converted(item.get())).collect::<Vec<_>>().join(","))
        }
        _ => canonical(text),
    }
}

/// The messages as they go over the wire.
fn wire(messages: &[Message]) -> String {
    let url = |image: &ImageRef| match image {
        ImageRef::Bytes { bytes, .. } => data_url(bytes),
        other => serde_json::to_value(Part::Image(other.clone())).unwrap()["image_url"]["url"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    };
    let messages: Vec<Value> = messages
        .iter()
        .map(|message| {
            let content = match &message.content {
                Content::Text(text) => json!(text),
                Content::Parts(parts) => parts
                    .iter()
                    .map(|part| match part {
                        Part::Text(text) => json!({"type": "text", "text": text}),
                        Part::Image(image) => json!({"type": "image_url", "image_url": {"url": url(image)}}),
                    })
                    .collect(),
            };
            json!({"role": message.role, "content": content})
        })
        .collect();
    canonical(&json!(messages).to_string())
}

/// A data URL in the words of the recording.
fn described(url: &str) -> Option<String> {
    let (mime, text) = url.strip_prefix("data:")?.split_once(";base64,")?;
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).ok()?;
    let format = image::guess_format(&bytes).ok()?;
    let image = image::load_from_memory(&bytes).ok()?;
    let mode = if image.color().channel_count() < 3 { "L" } else { "RGB" };
    Some(
        json!({"__data_url__": {
            "declared_mime": mime, "encoding": "base64", "actual_format": format!("{format:?}").to_uppercase(),
            "width": image.width(), "height": image.height(), "decoded_mode": mode, "exif_tags": 0,
        }})
        .to_string(),
    )
}

/// Puts descriptions in the place of data URLs that the recording describes.
fn describe_images(text: &str) -> String {
    replace_texts(text, &|text| described(text))
}

fn replace_texts(text: &str, with: &dyn Fn(&str) -> Option<String>) -> String {
    match text.as_bytes().first() {
        Some(b'{') => {
            let members: IndexMap<String, &RawValue> = serde_json::from_str(text).unwrap();
            let members: Vec<_> = members
                .iter()
                .map(|(key, value)| format!("{}:{}", json!(key), replace_texts(value.get(), with)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            format!("[{}]", items.iter().map(|item| replace_texts(item.get(), with)).collect::<Vec<_>>().join(","))
        }
        Some(b'"') => with(&serde_json::from_str::<String>(text).unwrap()).unwrap_or_else(|| canonical(text)),
        _ => text.to_owned(),
    }
}

/// Takes out of a description what depends on the file's format.
fn without_format(text: &str) -> String {
    let strip = |text: &str, key: &str| {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(key) {
            let end = at + rest[at..].find(',').map_or(rest.len() - at, |end| end + 1);
            out.push_str(&rest[..at]);
            rest = &rest[end..];
        }
        out + rest
    };
    strip(&strip(text, "\"declared_mime\":"), "\"actual_format\":")
}

/// Phase and kind of our fault in distilabel's words.
fn phase_and_kind(code: &str) -> (&str, &str) {
    match code {
        "template.unused_column" => ("load", "column_not_in_template"),
        "template.syntax" => ("load", "template_syntax"),
        "template.unknown_filter" | "template.duplicate_block" => ("load", "template_unknown_filter_or_test"),
        "template.undefined" => ("format", "template_undefined"),
        "template.runtime" => ("format", "template_runtime"),
        "row.missing_column" => ("format", "missing_column"),
        "row.missing_image" => ("format", "missing_image_column"),
        "image.not_pil" | "image.missing" | "image.invalid" => ("format", "image_not_pil"),
        "image.not_jpeg_encodable" => ("format", "image_not_jpeg_encodable"),
        _ if code.starts_with("task.") => ("construct", "invalid_param"),
        other => ("ours", other),
    }
}

fn build(case: &Case, profile: &str) -> Result<TextGenerationWithImage, TaskError> {
    let builder = TaskBuilder::from(TaskConfig::from_map(&case.params)?);
    if profile == "compatible" { builder.like_distilabel().build() } else { builder.build() }
}

/// The fault that counts of several: distilabel stops at the first phase that fails.
fn first_code(error: &TaskError) -> &'static str {
    let order = |code: &str| match phase_and_kind(code).0 {
        "construct" => 0,
        _ if code == "template.unused_column" => 1,
        _ => 2,
    };
    error.all().iter().map(|error| error.code()).min_by_key(|code| order(code)).unwrap()
}

fn same_error(theirs: &ExpectedError, code: &str) -> Result<(), Difference> {
    if phase_and_kind(code) == (theirs.phase.as_str(), theirs.kind.as_str()) {
        return Ok(());
    }
    let detail = format!("theirs {}/{}, ours {code}", theirs.phase, theirs.kind);
    Err(Difference { what: "error", theirs: Some(theirs.kind.clone()), ours: Some(code.to_owned()), detail })
}

fn accepted(theirs: &ExpectedError) -> Difference {
    let detail = format!("they raise {}/{}, we do not", theirs.phase, theirs.kind);
    Difference { what: "accepted", theirs: Some(theirs.kind.clone()), ours: None, detail }
}

fn refused(code: &str, message: String) -> Difference {
    Difference { what: "refused", theirs: None, ours: Some(code.to_owned()), detail: message }
}

/// What the recorded LLM answers to the row of a number, in the output's words. Lists of counts are dealt out as
/// distilabel deals them: repeated when short, cut when long, left out when empty.
fn answers(case: &Case, number: usize, n: usize) -> Vec<Answer> {
    let Some(canned) = &case.canned else { return Vec::new() };
    let known = ["generation", "generations", "statistics", "input_tokens", "output_tokens"];
    let one = |text: &Value| {
        let text = text.as_str().map(str::to_owned);
        let error = text.is_none().then(|| Fault::row("backend.failed", "no answer"));
        Answer { text, error, ..Answer::default() }
    };
    if case.llm.style == "native_n" {
        let Some(reply) = canned.get(number) else { return Vec::new() };
        let texts = reply["generations"].as_array().unwrap();
        let mut list: Vec<Answer> = texts.iter().map(one).collect();
        let deal = |values: &Value, i: usize| {
            let values = values.as_array()?;
            values.get(i % values.len().max(1)).cloned()
        };
        for (i, answer) in list.iter_mut().enumerate() {
            for (key, values) in reply.get("statistics").and_then(Value::as_object).into_iter().flatten() {
                answer.statistics.extend(deal(values, i).map(|value| (key.clone(), value)));
            }
            for (key, values) in reply.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
                answer.extras.extend(deal(values, i).map(|value| (key.clone(), value)));
            }
        }
        return list;
    }
    canned
        .iter()
        .skip(number * n)
        .take(n)
        .map(|reply| {
            let mut answer = one(&reply["generation"]);
            for key in ["input_tokens", "output_tokens"] {
                answer.statistics.extend(reply.get(key).map(|value| (key.to_owned(), value.clone())));
            }
            let extras = reply.iter().filter(|(key, _)| !known.contains(&key.as_str()));
            answer.extras.extend(extras.map(|(key, value)| (key.clone(), value.clone())));
            answer
        })
        .collect()
}

fn run(case: &Case, profile: &str) -> Result<(), Difference> {
    let task = match (build(case, profile), &case.expected.error) {
        (Ok(task), Some(theirs)) if theirs.phase != "format" => {
            drop(task);
            return Err(accepted(theirs));
        }
        (Ok(task), _) => task,
        (Err(error), Some(theirs)) => return same_error(theirs, first_code(&error)),
        (Err(error), None) => return Err(refused(first_code(&error), error.to_string())),
    };
    declared(case, &task)?;

    let single = ExpectedRow { error: case.expected.error.clone(), messages: case.expected.messages.clone() };
    let per_row = match &case.expected.per_row {
        Some(rows) => rows.iter().collect(),
        None => vec![&single],
    };
    let rows: Vec<Row> = case.inputs.iter().map(|input| Row::from_json(&converted(input.get())).unwrap()).collect();
    let mut image_files = false;
    let mut out: Vec<Vec<Row>> = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let rendered = task.render(row, &RowContext::new(number as u64));
        let theirs = per_row.get(number).unwrap_or(&per_row[0]);
        match (&rendered, &theirs.error) {
            (Err(fault), Some(theirs)) => same_error(theirs, &fault.code)?,
            (Err(fault), None) => return Err(refused(&fault.code, fault.message.clone())),
            (Ok(_), Some(theirs)) => return Err(accepted(theirs)),
            (Ok(rendered), None) => {
                image_files |= same_messages(theirs.messages.as_deref().unwrap(), &wire(&rendered.messages))?;
            }
        }
        out.push(match (rendered, &case.llm.raises) {
            (Err(fault), _) => task.output_rows(row, None, &Err(fault)),
            (Ok(rendered), Some(message)) => {
                task.output_rows(row, Some(&rendered), &Err(Fault::row("backend.failed", message.clone())))
            }
            (Ok(rendered), None) => {
                let answers = answers(case, number, task.num_generations() as usize);
                task.rows_of(row, Some(&rendered), &case.llm.model_name, &answers)
            }
        });
    }
    same_rows(case, &task, &rows, &out)?;
    if image_files { Err(differs("image_file", "the image is sent in another file format")) } else { Ok(()) }
}

fn declared(case: &Case, task: &TextGenerationWithImage) -> Result<(), Difference> {
    let same_name = case.expected.task_name.as_deref().is_none_or(|name| name == task.name());
    let inputs: IndexMap<String, bool> = task.input_columns().into_iter().collect();
    let outputs = task.output_columns();
    // The recording has the task's names, not those that mappings give.
    let mapped = case.params.contains_key("input_mappings") || case.params.contains_key("output_mappings");
    let same_inputs = mapped || case.expected.input_columns.as_ref().is_none_or(|known| *known == inputs);
    let same_outputs = mapped || case.expected.output_columns.as_ref().is_none_or(|known| *known == outputs);
    if same_name && same_inputs && same_outputs {
        Ok(())
    } else {
        Err(differs("declared", format!("{} {inputs:?} {outputs:?}", task.name())))
    }
}

/// `Ok(true)` if only the format of an image's file differs.
fn same_messages(theirs: &RawValue, ours: &str) -> Result<bool, Difference> {
    let theirs = canonical(theirs.get());
    if theirs == ours || theirs == describe_images(ours) {
        return Ok(false);
    }
    if without_format(&theirs) == without_format(&describe_images(ours)) {
        return Ok(true);
    }
    if theirs.contains("0xADDR") {
        return Err(differs("address", theirs));
    }
    if theirs.contains("base64,") && theirs.replace("\\n", "") == ours.replace("\\n", "") {
        return Err(differs("line_breaks", "base64 without line breaks"));
    }
    Err(differs("messages", format!("theirs {theirs}\n    ours   {ours}")))
}

fn same_rows(case: &Case, task: &TextGenerationWithImage, rows: &[Row], ours: &[Vec<Row>]) -> Result<(), Difference> {
    let ours: Vec<(usize, Row)> =
        ours.iter().enumerate().flat_map(|(input, rows)| rows.iter().map(move |row| (input, row.clone()))).collect();
    let texts = |rows: &[(usize, Row)]| -> Vec<String> {
        rows.iter()
            .map(|(_, row)| {
                let mut row = row.clone();
                // Columns that distilabel does not have.
                row.remove("finish_reason");
                row.remove("error");
                canonical(&row.to_json())
            })
            .collect()
    };
    let theirs: Vec<String> = match (&case.expected_output_rows, &case.expected_imputed_rows) {
        (Some(rows), _) | (None, Some(rows)) => rows.iter().map(|row| canonical(&converted(row.get()))).collect(),
        (None, None) => return Ok(()),
    };
    let found = texts(&ours);
    let described: Vec<String> = found.iter().map(|row| describe_images(row)).collect();
    if theirs == found || theirs.iter().map(|row| describe_images(row)).eq(described.iter().cloned()) {
        return Ok(());
    }
    let detail = format!("theirs {}\n    ours   {}", theirs.join("\n           "), found.join("\n           "));
    if let Some(error) = &case.expected_process_error {
        let failed = ours.iter().filter(|(_, row)| row.get("error").is_some_and(|e| e.get() != "null")).count();
        let what = if error.kind == "process_failed" { "survived" } else { "isolated" };
        let partial = failed < ours.len() || what == "survived";
        return Err(if partial {
            Difference { what, theirs: Some(error.kind.clone()), ours: None, detail }
        } else {
            differs("rows", detail)
        });
    }
    let formats = |rows: &[String]| -> Vec<String> { rows.iter().map(|row| without_format(row)).collect() };
    if formats(&theirs) == formats(&described) {
        return Ok(());
    }
    let strip = |rows: &[String], names: &dyn Fn(usize, &str) -> bool| -> Vec<String> {
        rows.iter().enumerate().map(|(i, row)| strip_metadata(row, &|name| names(i, name))).collect()
    };
    let raw_input = format!("raw_input_{}", task.name());
    let without_raw = |rows: &[String]| strip(rows, &|_, name| name == raw_input);
    if found.iter().any(|row| row.contains("sha256:")) && without_raw(&theirs) == without_raw(&found) {
        return Err(differs("raw_image", detail));
    }
    let old: Vec<Vec<String>> = ours
        .iter()
        .map(|(input, _)| {
            let old = rows[*input].parse::<Map<String, Value>>("distilabel_metadata").unwrap_or_default();
            old.into_iter().map(|(key, _)| key).collect()
        })
        .collect();
    if old.iter().any(|keys| !keys.is_empty())
        && strip(&found, &|i, name| old[i].iter().any(|key| key == name)) == strip(&theirs, &|_, _| false)
    {
        return Err(differs("metadata", detail));
    }
    let statistics = format!("statistics_{}", task.name());
    let without_statistics = |rows: &[String]| strip(rows, &|_, name| name == statistics);
    let some_failed = ours.iter().any(|(_, row)| row.get("error").is_some_and(|e| e.get() != "null"));
    if some_failed && without_statistics(&theirs) == without_statistics(&found) {
        return Err(differs("statistics", detail));
    }
    let answered: Vec<_> =
        (0..rows.len()).map(|i| !answers(case, i, task.num_generations() as usize).is_empty()).collect();
    if answered.contains(&false) {
        let kept: Vec<(usize, Row)> = ours.iter().filter(|(input, _)| answered[*input]).cloned().collect();
        if texts(&kept) == theirs || case.params.contains_key("group_generations") {
            return Err(differs("vanished", detail));
        }
    }
    if task.num_generations() > 1 && case.params.contains_key("input_mappings") && theirs.len() == found.len() {
        let inputs: Vec<&str> = rows[0].names().collect();
        let outputs = |text: &String| {
            let mut row = Row::from_json(text).unwrap();
            for name in &inputs {
                row.remove(name);
            }
            row.to_json()
        };
        if theirs.iter().map(outputs).eq(found.iter().map(outputs)) {
            return Err(differs("swapped", detail));
        }
    }
    Err(differs("rows", detail))
}

/// A row without some entries of its metadata, grouped or not.
fn strip_metadata(text: &str, out: &dyn Fn(&str) -> bool) -> String {
    let mut row = Row::from_json(text).unwrap();
    let Some(metadata) = row.get("distilabel_metadata") else { return text.to_owned() };
    let strip = |object: &str| {
        let object = Row::from_json(object).unwrap();
        let kept: Row =
            object.iter().filter(|(name, _)| !out(name)).map(|(name, v)| (name.to_owned(), v.to_owned())).collect();
        kept.to_json()
    };
    let stripped = if metadata.get().starts_with('{') {
        strip(metadata.get())
    } else if let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(metadata.get()) {
        format!("[{}]", list.iter().map(|object| strip(object.get())).collect::<Vec<_>>().join(","))
    } else {
        metadata.get().to_owned()
    };
    row.set_raw("distilabel_metadata", RawValue::from_string(stripped).unwrap());
    canonical(&row.to_json())
}

#[test]
fn the_task_does_what_distilabel_does_or_better() {
    let path = std::env::var("VGEN_CORPUS").unwrap_or_else(|_| CORPUS.to_owned());
    let corpus = std::fs::read_to_string(&path).unwrap();
    let cases: Vec<Case> =
        corpus.lines().filter(|line| !line.trim().is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
    let table: Table = toml::from_str(DEVIATIONS).unwrap();

    let mut unexplained = String::new();
    let mut report = String::new();
    let mut used: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut share = BTreeMap::new();
    for profile in ["compatible", "default"] {
        let mut identical = 0;
        for case in &cases {
            let Err(difference) = run(case, profile) else {
                identical += 1;
                continue;
            };
            let rule = table.deviation.iter().find(|rule| rule.explains(profile, case, &difference));
            match rule {
                Some(rule) => {
                    used.entry(&rule.name).or_default().push(case.case_id.clone());
                    let _ = writeln!(report, "  {profile} {}: {} ({})", case.case_id, rule.name, rule.reason);
                }
                None => {
                    let _ = writeln!(
                        unexplained,
                        "{profile} {} ({}; quirk: {:?}): {} {:?} {:?}\n    {}\n    {}",
                        case.case_id,
                        case.description,
                        case.quirk,
                        difference.what,
                        difference.theirs,
                        difference.ours,
                        case.params.get("template").unwrap_or(&Value::Null),
                        difference.detail,
                    );
                }
            }
        }
        println!("{profile}: {identical} of {} cases identical", cases.len());
        share.insert(profile, identical as f64 / cases.len() as f64);
    }
    println!("{report}");
    assert!(unexplained.is_empty(), "differences that no rule explains:\n{unexplained}");
    assert!(share["compatible"] >= 0.9, "only {:.1} % are identical", share["compatible"] * 100.0);
    if path == CORPUS {
        for rule in &table.deviation {
            let mut found = used.get(rule.name.as_str()).cloned().unwrap_or_default();
            found.sort();
            found.dedup();
            let mut listed = rule.cases.clone();
            listed.sort();
            assert_eq!(found, listed, "cases of the rule {:?}", rule.name);
        }
    }
}
