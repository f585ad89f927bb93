//! From an output row to what the report shows of it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use vgen_core::{Fault, ImageRef, Row};
use vgen_dataset::{RowSource, UNFIT};
use vgen_task::{ImageType, image_refs};

use crate::record::{RowTimings, RunRecord, SettingRecord};

/// Longest prompt or answer, in characters.
const LONGEST_TEXT: usize = 100_000;
/// Longest message of an error in the list.
const LONGEST_MESSAGE: usize = 400;
/// Longest value of another column.
const LONGEST_VALUE: usize = 4_000;
/// Longest value that looks like data rather than text.
const LONGEST_DATA: usize = 120;
/// Tokens whose log-probabilities are shown, at most.
const MOST_LOGPROBS: usize = 2_000;

/// The names of the columns.
pub(super) struct Names {
    pub(super) generation: String,
    pub(super) error: String,
    metadata: String,
    model_name: String,
    finish_reason: String,
    pub(super) image: String,
    /// Columns of the template: the task's name and the data set's.
    pub(super) columns: Vec<(String, String)>,
    image_type: Option<ImageType>,
    task: String,
    grouped: bool,
    settings: BTreeMap<String, SettingRecord>,
}

impl Names {
    /// As the run had them, or the usual ones.
    pub(super) fn of(record: Option<&RunRecord>) -> Self {
        let settings = record.map(|record| record.config.clone()).unwrap_or_default();
        let value = |name: &str| settings.get(&format!("task.{name}")).map(|setting| &setting.value);
        let text = |name: &str, usual: &str| value(name).and_then(Value::as_str).unwrap_or(usual).to_owned();
        let mapped = |table: &str, name: &str| {
            let mapped = value(table).and_then(|mappings| mappings.get(name)).and_then(Value::as_str);
            mapped.unwrap_or(name).to_owned()
        };
        let written = |name: &str| mapped("output_mappings", name);
        let columns = match value("columns") {
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::String(one)) => vec![one.clone()],
            _ => vec!["instruction".to_owned()],
        };
        Self {
            generation: written("generation"),
            error: written("error"),
            metadata: written("distilabel_metadata"),
            model_name: written("model_name"),
            finish_reason: written("finish_reason"),
            image: mapped("input_mappings", &text("image_column", "image")),
            columns: columns
                .into_iter()
                .map(|column| {
                    let mapped = mapped("input_mappings", &column);
                    (column, mapped)
                })
                .collect(),
            image_type: value("image_type").and_then(|kind| serde_json::from_value(kind.clone()).ok()),
            task: text("name", "text_generation_with_image_0"),
            grouped: value("group_generations").and_then(Value::as_bool).unwrap_or_default(),
            settings,
        }
    }

    /// A value of the run's configuration.
    pub(super) fn setting(&self, table: &str, name: &str) -> Option<&Value> {
        self.settings.get(&format!("{table}.{name}")).map(|setting| &setting.value)
    }

    /// Whether the column is the task's and not the input's.
    pub(super) fn is_written(&self, name: &str) -> bool {
        [&self.generation, &self.error, &self.metadata, &self.model_name, &self.finish_reason]
            .iter()
            .any(|other| *other == name)
            || name == UNFIT
            || self.extra(name).is_some()
    }

    /// `logprobs` of `llm_<task>_logprobs`.
    fn extra<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix("llm_")?.strip_prefix(self.task.as_str())?.strip_prefix('_')
    }
}

/// What is known of a row besides its columns.
pub(super) struct Place {
    pub(super) sequence: u64,
    pub(super) sample: u64,
    pub(super) samples: u64,
    pub(super) timings: Option<RowTimings>,
}

/// A run's part of a line of the list. The names are short since there are many.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Side {
    #[serde(rename = "n")]
    pub(super) number: u64,
    /// Which of several answers, from 1.
    #[serde(rename = "k", skip_serializing_if = "Option::is_none")]
    pub(super) sample: Option<u64>,
    #[serde(rename = "t", skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<String>,
    /// The code of its error.
    #[serde(rename = "e", skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// Its message.
    #[serde(rename = "x", skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(rename = "f", skip_serializing_if = "Option::is_none")]
    pub(super) finish: Option<String>,
    #[serde(rename = "m", skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<String>,
    #[serde(rename = "i", skip_serializing_if = "Option::is_none")]
    pub(super) input_tokens: Option<u64>,
    #[serde(rename = "o", skip_serializing_if = "Option::is_none")]
    pub(super) output_tokens: Option<u64>,
    #[serde(rename = "v", skip_serializing_if = "Option::is_none")]
    pub(super) vision_tokens: Option<u64>,
    #[serde(rename = "s", skip_serializing_if = "Option::is_none")]
    pub(super) tiles: Option<u64>,
    /// Session, start, queue, prepare, encode, first token, total.
    #[serde(rename = "z", skip_serializing_if = "Option::is_none")]
    pub(super) times: Option<[Option<f64>; 7]>,
}

/// What a side shows when the line is opened.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SideDetail {
    /// Several answers in one row.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    answers: Vec<Option<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extras: Vec<(String, Value)>,
}

/// A row as the report shows it.
#[derive(Default)]
pub(super) struct Shown {
    pub(super) side: Side,
    pub(super) detail: SideDetail,
    pub(super) prompt: String,
    pub(super) messages: Vec<Value>,
    pub(super) columns: Vec<(String, Value)>,
    pub(super) images: Vec<ImageRef>,
    pub(super) image_fault: Option<String>,
}

/// Reads rows.
pub(super) struct Reader<'a> {
    names: &'a Names,
    folders: Vec<PathBuf>,
    /// The requests of a batch file, read as far as their answers are.
    requests: Option<Box<dyn RowSource>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(names: &'a Names, folders: Vec<PathBuf>, requests: Option<Box<dyn RowSource>>) -> Self {
        Self { names, folders, requests }
    }

    /// What the report shows of a row.
    pub(super) fn read(&mut self, row: Result<Row, Fault>, place: Place) -> Shown {
        let mut shown = match row {
            Err(fault) => failed(&fault),
            Ok(row) if is_batch(&row) => self.batch(&row),
            Ok(row) => self.row(&row),
        };
        let side = &mut shown.side;
        side.number = place.sequence;
        side.sample = (place.samples > 1).then_some(place.sample + 1);
        if let Some(timings) = place.timings {
            let known = |value: f64| Some((value * 1e4).round() / 1e4);
            side.tiles = timings.tiles;
            side.times = Some([
                Some(timings.session as f64),
                known(timings.start),
                known(timings.queue),
                known(timings.prepare),
                timings.encode.and_then(known),
                timings.first_token.and_then(known),
                known(timings.total),
            ]);
        }
        shown
    }

    fn row(&self, row: &Row) -> Shown {
        let names = self.names;
        let mut shown = Shown::default();
        let answers = texts(row, &names.generation, names.grouped);
        let finish = texts(row, &names.finish_reason, names.grouped);
        let errors: Vec<Value> = match value(row, &names.error) {
            Some(Value::Array(list)) => list.into_iter().filter(|error| !error.is_null()).collect(),
            Some(error @ Value::Object(_)) => vec![error],
            Some(Value::String(text)) if !text.is_empty() => vec![json!({"code": text, "message": ""})],
            _ => Vec::new(),
        };
        let metadata: Vec<Map<String, Value>> = match value(row, &names.metadata) {
            Some(Value::Object(one)) => vec![one],
            Some(Value::Array(list)) => list.into_iter().filter_map(|item| item.as_object().cloned()).collect(),
            _ => Vec::new(),
        };
        let side = &mut shown.side;
        (side.error, side.message) = (errors.first().map(code_of), errors.first().and_then(message_of));
        side.finish = joined(&finish);
        side.model = texts(row, &names.model_name, false).into_iter().flatten().next();
        let of_task = |prefix: &str, object: &Map<String, Value>| {
            let own = object.get(&format!("{prefix}{}", names.task)).cloned();
            own.or_else(|| {
                object.iter().rev().find(|(name, _)| name.starts_with(prefix)).map(|(_, value)| value.clone())
            })
        };
        let statistics: Vec<Value> = metadata.iter().filter_map(|object| of_task("statistics_", object)).collect();
        let counts = |name: &'static str| statistics.iter().filter_map(move |one| one.get(name)?.as_u64());
        side.input_tokens = counts("input_tokens").max();
        side.vision_tokens = counts("vision_tokens").max();
        side.output_tokens = counts("output_tokens").reduce(|a, b| a + b);
        side.answer = together(&answers);
        if answers.len() > 1 {
            shown.detail.answers = answers;
        }
        shown.detail.errors = errors;
        if let Some(Value::Array(messages)) = metadata.first().and_then(|object| of_task("raw_input_", object)) {
            shown.messages = messages.iter().map(clipped_deep).collect();
        }
        shown.prompt = self.prompt(row, &shown.messages);
        for (name, _) in row.iter() {
            let Some(value) = value(row, name).filter(|value| !value.is_null()) else { continue };
            match names.extra(name) {
                Some("logprobs") => shown.detail.logprobs = Some(first_tokens(value)),
                Some(extra) => shown.detail.extras.push((extra.to_owned(), clipped_deep(&value))),
                None if name != names.image && (name == UNFIT || !names.is_written(name)) => {
                    shown.columns.push((name.to_owned(), clipped_deep(&value)));
                }
                None => {}
            }
        }
        if let Some(raw) = row.get(&names.image) {
            (shown.images, shown.image_fault) = self.images(raw);
        }
        shown
    }

    /// What was asked: the last message's text, or the columns of the template.
    fn prompt(&self, row: &Row, messages: &[Value]) -> String {
        let asked = messages.iter().rev().find(|message| message["role"] == "user").map(message_text);
        if let Some(text) = asked.filter(|text| !text.is_empty()) {
            return clip(&text, LONGEST_TEXT).into_owned();
        }
        let several = self.names.columns.len() > 1;
        let of_column = |(_, column): &(String, String)| {
            let text = match value(row, column)? {
                Value::String(text) => text,
                Value::Null => return None,
                other => other.to_string(),
            };
            Some(if several { format!("{column}: {text}") } else { text })
        };
        let texts: Vec<String> = self.names.columns.iter().filter_map(of_column).collect();
        clip(&texts.join("\n"), LONGEST_TEXT).into_owned()
    }

    fn images(&self, raw: &RawValue) -> (Vec<ImageRef>, Option<String>) {
        // Formats without objects hold JSON text.
        let inner: Option<Box<RawValue>> = serde_json::from_str::<String>(raw.get())
            .ok()
            .filter(|text| text.starts_with(['[', '{', '"']))
            .and_then(|text| serde_json::from_str(&text).ok());
        let raw = inner.as_deref().unwrap_or(raw);
        if raw.get() == "\"\"" {
            return (Vec::new(), None);
        }
        let long_text = raw.get().len() > 1024 && raw.get().starts_with('"') && !raw.get().starts_with("\"data:");
        let mut kinds = vec![ImageType::Url, ImageType::Base64];
        if long_text || self.names.image_type == Some(ImageType::Base64) {
            kinds.reverse();
        }
        let mut why = None;
        for kind in kinds {
            match image_refs(raw, kind, None) {
                Ok(images) => return (images.into_iter().map(|image| self.found(image)).collect(), None),
                Err(fault) => why = why.or(Some(fault.message)),
            }
        }
        (Vec::new(), why)
    }

    /// A relative path, in the first folder where it leads to a file.
    fn found(&self, image: ImageRef) -> ImageRef {
        match image {
            ImageRef::Path(path) if path.is_relative() => {
                let there = self.folders.iter().map(|folder| folder.join(&path)).find(|path| path.is_file());
                ImageRef::Path(there.unwrap_or(path))
            }
            other => other,
        }
    }

    /// A line of a batch output; its question is in the batch input.
    fn batch(&mut self, row: &Row) -> Shown {
        let mut shown = Shown::default();
        let custom_id = row.text("custom_id").map(Cow::into_owned).unwrap_or_default();
        let body = value(row, "response").and_then(|response| response.get("body").cloned()).unwrap_or_default();
        let choices = body["choices"].as_array().cloned().unwrap_or_default();
        let answers: Vec<Option<String>> =
            choices.iter().map(|choice| choice["message"]["content"].as_str().map(str::to_owned)).collect();
        let finish: Vec<Option<String>> =
            choices.iter().map(|choice| choice["finish_reason"].as_str().map(str::to_owned)).collect();
        let side = &mut shown.side;
        side.model = body["model"].as_str().map(str::to_owned);
        side.input_tokens = body["usage"]["prompt_tokens"].as_u64();
        side.output_tokens = body["usage"]["completion_tokens"].as_u64();
        side.finish = joined(&finish);
        side.answer = together(&answers);
        if answers.len() > 1 {
            shown.detail.answers = answers;
        }
        if let Some(error @ Value::Object(_)) = value(row, "error") {
            (side.error, side.message) = (Some(code_of(&error)), message_of(&error));
            shown.detail.errors.push(error);
        }
        shown.columns.push(("custom_id".to_owned(), custom_id.as_str().into()));
        if let Some(request) = self.request(&custom_id) {
            let messages = request["body"]["messages"].as_array().cloned().unwrap_or_default();
            let urls: Vec<&Value> = messages
                .iter()
                .filter_map(|message| message["content"].as_array())
                .flatten()
                .map(|part| &part["image_url"])
                .filter_map(|url| if url.is_string() { Some(url) } else { url.get("url") })
                .collect();
            if let Ok(raw) = serde_json::value::to_raw_value(&urls) {
                (shown.images, shown.image_fault) = self.images(&raw);
            }
            shown.messages = messages.iter().map(clipped_deep).collect();
            shown.prompt = self.prompt(row, &shown.messages);
        }
        shown
    }

    /// The request of an answer: both files have the same order.
    fn request(&mut self, custom_id: &str) -> Option<Value> {
        let requests = self.requests.as_mut()?;
        while let Ok(Some(row)) = requests.next_row() {
            if let Ok(row) = row.row
                && row.text("custom_id").is_some_and(|id| id == custom_id)
            {
                return serde_json::from_str(&row.to_json()).ok();
            }
        }
        self.requests = None;
        None
    }
}

fn is_batch(row: &Row) -> bool {
    row.contains("custom_id") && row.contains("response") && row.contains("error")
}

fn failed(fault: &Fault) -> Shown {
    let mut shown = Shown::default();
    shown.side.error = Some(fault.code.to_string());
    shown.side.message = Some(clip(&fault.message, LONGEST_MESSAGE).into_owned());
    shown.detail.errors.extend(serde_json::to_value(fault).ok());
    shown
}

fn code_of(error: &Value) -> String {
    error["code"].as_str().unwrap_or("unknown").to_owned()
}

fn message_of(error: &Value) -> Option<String> {
    let message = error["message"].as_str().filter(|message| !message.is_empty())?;
    Some(clip(message, LONGEST_MESSAGE).into_owned())
}

/// A column's value; JSON text, where a format has nothing else for it, as what it says.
fn value(row: &Row, name: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(row.get(name)?.get()).ok()?;
    match value {
        Value::String(text) if text.starts_with(['{', '[']) => {
            Some(serde_json::from_str(&text).unwrap_or(Value::String(text)))
        }
        other => Some(other),
    }
}

/// One text, or several where the row has the answers of a group.
fn texts(row: &Row, name: &str, grouped: bool) -> Vec<Option<String>> {
    // An answer may be JSON itself: then it stays text.
    if let Some(text) = row.text(name).filter(|_| !grouped) {
        return if text.is_empty() { vec![None] } else { vec![Some(text.into_owned())] };
    }
    match value(row, name) {
        Some(Value::Array(list)) => list.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        Some(Value::String(text)) => vec![Some(text)],
        _ => Vec::new(),
    }
}

fn together(answers: &[Option<String>]) -> Option<String> {
    let there: Vec<&str> = answers.iter().flatten().map(String::as_str).collect();
    (!there.is_empty()).then(|| clip(&there.join("\n\n"), LONGEST_TEXT).into_owned())
}

fn joined(reasons: &[Option<String>]) -> Option<String> {
    let mut different: Vec<&str> = reasons.iter().flatten().map(String::as_str).collect();
    different.dedup();
    (!different.is_empty()).then(|| different.join(", "))
}

/// The texts of a message.
fn message_text(message: &Value) -> String {
    match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

fn first_tokens(logprobs: Value) -> Value {
    match logprobs {
        Value::Array(mut list) => {
            list.truncate(MOST_LOGPROBS);
            Value::Array(list)
        }
        other => other,
    }
}

fn clip(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => Cow::Borrowed(text),
        Some((end, _)) => {
            let left = text[end..].chars().count();
            Cow::Owned(format!("{}… ({left} more characters)", &text[..end]))
        }
    }
}

/// A value with its long texts cut, shorter where they are data.
fn clipped_deep(value: &Value) -> Value {
    match value {
        Value::String(text) => {
            let data = text.len() > 512 && !text.contains(' ') && text.is_ascii();
            let most = if data { LONGEST_DATA } else { LONGEST_VALUE };
            Value::String(clip(text, most).into_owned())
        }
        Value::Array(list) => list.iter().map(clipped_deep).collect(),
        Value::Object(object) => {
            Value::Object(object.iter().map(|(name, value)| (name.clone(), clipped_deep(value))).collect())
        }
        other => other.clone(),
    }
}
