//! [`RunRecord`]: what `run.json` says about a run. For people and for `vgen report`; of it, only `version`,
//! `fingerprint`, `output` and `model` are needed to go on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vgen_core::Generation;
use vgen_dataset::OutputLayout;

use super::RecordError;

/// The version of the record's files.
pub const RECORD_VERSION: u64 = 1;

/// What is known about a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`RECORD_VERSION`]
    pub version: u64,
    /// The program that wrote it, with its version.
    pub program: String,
    /// How the run stands.
    pub state: RunState,
    /// Why it stands, if a fault ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<vgen_core::Fault>,
    /// When it was begun.
    pub created: String,
    /// When this was written.
    pub updated: String,
    /// The file, as it was named.
    pub output: PathBuf,
    /// What decides the bytes of the output besides its rows.
    pub layout: OutputLayout,
    /// Output rows of an input row that did not fail as a whole.
    pub rows_per_input: u64,
    /// Where the rows come from.
    pub input: InputRecord,
    /// The model.
    pub model: ModelRecord,
    /// The seed of sampling, if one was given.
    pub seed: Option<u64>,
    /// Every value of the configuration, by table and key, with its origin.
    pub config: BTreeMap<String, SettingRecord>,
    /// What must be the same for the run to be gone on with.
    pub fingerprint: BTreeMap<String, Value>,
    /// What was counted so far.
    pub counts: Counts,
    /// Each time that the run was begun or gone on with.
    pub sessions: Vec<Session>,
}

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// It runs, or was killed.
    Running,
    /// It was stopped by a signal.
    Interrupted,
    /// A fault ended it.
    Failed,
    /// All rows are done.
    Complete,
}

/// A value of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SettingRecord {
    /// The value; in angle brackets what depends on model or machine.
    pub value: Value,
    /// The flag, the file, or `default`.
    pub origin: String,
}

/// The input of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InputRecord {
    /// What was named.
    pub named: Vec<String>,
    /// The files found.
    pub files: Vec<InputFile>,
    /// Which shard of the rows, `1/4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
}

/// A file of the input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputFile {
    /// Its path.
    pub path: PathBuf,
    /// Its size.
    pub bytes: Option<u64>,
    /// When it was changed last.
    pub modified: Option<String>,
}

impl InputFile {
    /// What the file system says about a file.
    pub fn of(path: &Path) -> Self {
        let metadata = std::fs::metadata(path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        Self {
            path: path.to_owned(),
            bytes: metadata.filter(std::fs::Metadata::is_file).map(|metadata| metadata.len()),
            modified: modified
                .map(|time| chrono::DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Secs, true)),
        }
    }
}

/// The model of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// The `model_name` column.
    pub name: String,
    /// The commit on the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Digest of its files, where they are on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Input rows.
    pub rows: u64,
    /// Those with an error, in all or some of their samples.
    pub failed_rows: u64,
    /// Output rows.
    pub output_rows: u64,
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Answer tokens.
    pub output_tokens: u64,
    /// How often each error code occurred.
    pub errors: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.failed_rows += other.failed_rows;
        self.output_rows += other.output_rows;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        for (code, count) in &other.errors {
            *self.errors.entry(code.clone()).or_default() += count;
        }
    }
}

/// A time that the run was begun or gone on with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// When it began.
    pub started: String,
    /// When it ended; not known of one that was killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// The process.
    pub pid: u32,
    /// Rows that were done before.
    pub rows_before: u64,
    /// Rows that it did.
    pub rows: u64,
    /// Seconds that it took, without loading the model.
    pub seconds: f64,
    /// Where the time of its answers went.
    pub timings: TimingSums,
}

/// Sums of [`vgen_core::Timings`] over answers, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimingSums {
    /// Answers.
    pub answers: u64,
    /// Waiting for a place.
    pub queue: f64,
    /// Preparing images and text.
    pub prepare: f64,
    /// From submission to the first token.
    pub first_token: f64,
    /// From submission to the end.
    pub total: f64,
}

impl TimingSums {
    pub(crate) fn add(&mut self, generation: &Generation) {
        let timings = &generation.timings;
        self.answers += 1;
        self.queue += timings.queue;
        self.prepare += timings.prepare;
        self.first_token += timings.first_token.unwrap_or_default();
        self.total += timings.total;
    }
}

/// A line of `timings.jsonl`: where the time of a row went, in seconds. Of several lines for a row the last counts. A
/// line may be torn, and rows may have none: these are for looking at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowTimings {
    /// The row's place among the rows of this output, from 0.
    pub sequence: u64,
    /// The session that did it, from 0.
    #[serde(default)]
    pub session: u64,
    /// From the session's begin to the row's submission.
    pub start: f64,
    /// Waiting for a place.
    pub queue: f64,
    /// Preparing images and text.
    pub prepare: f64,
    /// While its images were in the vision tower, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encode: Option<f64>,
    /// From submission to the first token, if that is known.
    pub first_token: Option<f64>,
    /// From submission to the end.
    pub total: f64,
    /// Tiles of the row's images, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiles: Option<u64>,
}

/// The lines of `timings.jsonl`, by sequence; none if it can't be read.
pub fn row_timings(path: &Path) -> BTreeMap<u64, RowTimings> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<RowTimings>(line).ok());
    lines.map(|timings| (timings.sequence, timings)).collect()
}

/// A line of `failed.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailedRow {
    /// The row's place among the rows of this output, from 0.
    pub sequence: u64,
    /// Its number in the source, from 0.
    pub number: u64,
    /// Where it stands in the source.
    pub origin: String,
    /// How many output rows it has.
    pub output_rows: u64,
    /// The codes of its errors, of each failed sample one.
    pub codes: Vec<String>,
}

/// The lines of `failed.jsonl`.
///
/// # Errors
/// `record.io`, `record.broken`
pub fn failed_rows(path: &Path) -> Result<Vec<FailedRow>, RecordError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(RecordError::Io { path: path.to_owned(), verb: "read", source }),
    };
    let parsed: Result<Vec<FailedRow>, _> = text.lines().map(serde_json::from_str).collect();
    parsed.map_err(|error| RecordError::Broken { path: path.to_owned(), what: error.to_string() })
}

/// One line for each value that was another when the run was begun.
pub fn differences(then: &BTreeMap<String, Value>, now: &BTreeMap<String, Value>) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = then.keys().chain(now.keys()).collect();
    let shown = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "not set".to_owned(),
        Some(value) => {
            let text = value.to_string();
            if text.chars().count() > 200 { format!("{}...", text.chars().take(200).collect::<String>()) } else { text }
        }
    };
    keys.into_iter()
        .filter(|key| then.get(*key).unwrap_or(&Value::Null) != now.get(*key).unwrap_or(&Value::Null))
        .map(|key| format!("{key} was {}, now is {}", shown(then.get(key)), shown(now.get(key))))
        .collect()
}

/// The time in the form of the record.
pub fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_one_by_one() {
        let map = |text: &str| serde_json::from_str::<BTreeMap<String, Value>>(text).unwrap_or_default();
        let then = map(r#"{"sampling.temperature":0.7,"task.template":"a","backend.model":null}"#);
        let now = map(r#"{"sampling.temperature":0.9,"task.template":"a","sampling.top_k":5}"#);
        assert_eq!(
            differences(&then, &now),
            ["sampling.temperature was 0.7, now is 0.9", "sampling.top_k was not set, now is 5"]
        );
    }
}
