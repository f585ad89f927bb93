//! `vgen verify`: a sample of a finished local run, run again.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vgen_core::{Fault, FinishReason, Row};
use vgen_dataset::{OutputFormat, OutputLayout, RowSource};
use vgen_run::record::{RunFolder, RunRecord};
use vgen_run::{Sampled, Verified};
use vgen_task::{RowContext, TextGenerationWithImage};

use super::rows::for_backend;
use crate::messages::Messages;
use crate::table::{BackendTable, Config};
use crate::{backend, exit};

/// How many rows are run again unless told otherwise.
pub(crate) const SAMPLE: u64 = 20;

/// What to look at.
pub(crate) struct Wanted {
    pub(crate) answers: PathBuf,
    pub(crate) sample: usize,
    pub(crate) seed: u64,
    pub(crate) json: bool,
}

/// How many rows the run took of its input at random, as its record says.
pub(crate) fn taken_sample(answers: &Path) -> Option<Value> {
    let record = fs::read(RunFolder::path_of(answers).join("run.json")).ok()?;
    let record: RunRecord = serde_json::from_slice(&record).ok()?;
    Some(record.config.get("input.sample")?.value.clone()).filter(Value::is_number)
}

/// Runs the sample again; says what differs.
pub(crate) fn verify(config: &Config, wanted: &Wanted, messages: &Messages) -> Result<u8, Fault> {
    if !matches!(config.backend, BackendTable::Local(_)) {
        return Err(Fault::stop("usage.verify", "only local runs can be verified")
            .with_hint("answers of a server may differ from one request to the next"));
    }
    let mut task = TextGenerationWithImage::from_config(config.task.clone())?;
    let backend = backend::open(config, None, messages)?;
    task = for_backend(task, &*backend)?;
    let sample = sample(config, wanted, &task)?;
    if sample.is_empty() {
        let message = format!("{} has no answered row", wanted.answers.display());
        return Err(Fault::stop("input.verify", message).with_hint("name the output of a run that answered rows"));
    }
    let passes = passes(sample.len());
    let verified = vgen_run::verify(&sample, &task, &*backend, &config.sampling, &passes)?;
    let text = if wanted.json { as_json(&verified) } else { as_text(&verified) };
    super::print(&text)?;
    Ok(if verified.differences.is_empty() { exit::DONE } else { exit::SOME_ROWS_FAILED })
}

/// Alone, a few, and all together.
fn passes(sample: usize) -> Vec<usize> {
    let mut passes = vec![1, 3.min(sample), sample.min(32)];
    passes.dedup();
    passes
}

/// Walks through input and output side by side and keeps the rows that the seed chooses.
fn sample(config: &Config, wanted: &Wanted, task: &TextGenerationWithImage) -> Result<Vec<Sampled>, Fault> {
    let mut source = super::input::source(config)?;
    let layout = OutputLayout { format: OutputFormat::of_path(&wanted.answers), columns: Vec::new(), group_rows: 1 };
    let mut answers = layout.read(&wanted.answers)?;
    // The smallest draws stay: the same rows whatever their order.
    let mut chosen: Vec<(u64, Sampled)> = Vec::new();
    let mut rows = 0;
    while config.input.limit.is_none_or(|limit| rows < limit) {
        let Some(input) = source.next_row()? else { break };
        rows += 1;
        let context = RowContext { base_dir: source.folder(), ..RowContext::new(input.number) };
        let row = input.row.unwrap_or_default();
        let Some(first) = next_answer(&mut answers)? else { break };
        if !belongs(&row, &first, task) {
            let message =
                format!("{}: an answer to row {} was expected, found another row's", answers.name(), input.number);
            return Err(Fault::stop("input.verify", message)
                .with_hint("give the input and all settings of the run (columns, mappings, number of answers)"));
        }
        let mut written = vec![first];
        if !failed(&written[0], task) && !task.group_generations() {
            while written.len() < task.num_generations() as usize {
                written.extend(next_answer(&mut answers)?);
            }
        }
        if written.iter().any(|row| unrepeatable(row, task)) {
            continue;
        }
        let draw = mix(wanted.seed ^ mix(input.number));
        if chosen.len() == wanted.sample && chosen.last().is_some_and(|(worst, _)| draw >= *worst) {
            continue;
        }
        // The file itself was named as it is now; messages don't matter here.
        let Ok(rendered) = task.render(&row, &context) else { continue };
        let at = chosen.partition_point(|(other, _)| *other < draw);
        chosen.insert(at, (draw, Sampled { number: input.number, row, rendered, written }));
        chosen.truncate(wanted.sample);
    }
    Ok(chosen.into_iter().map(|(_, sampled)| sampled).collect())
}

fn next_answer(answers: &mut Box<dyn RowSource>) -> Result<Option<Row>, Fault> {
    match answers.next_row()? {
        None => Ok(None),
        Some(row) => row.row.map(Some),
    }
}

/// Whether an output row begins with the input row's columns, but for those that the task writes.
fn belongs(input: &Row, output: &Row, task: &TextGenerationWithImage) -> bool {
    let written = task.written_columns();
    input
        .iter()
        .filter(|(name, _)| !written.iter().any(|other| other == name))
        .all(|(name, value)| output.get(name).is_some_and(|other| other.get() == value.get()))
}

/// Whether the row failed as a whole.
fn failed(output: &Row, task: &TextGenerationWithImage) -> bool {
    output.get(task.output_name("model_name")).is_none_or(|value| value.get() == "null")
}

/// Whether the answer was cut by the clock, or an error took its place.
fn unrepeatable(output: &Row, task: &TextGenerationWithImage) -> bool {
    let column = |name: &str| output.get(task.output_name(name)).map_or("null", |value| value.get());
    let cut = [FinishReason::Deadline, FinishReason::Cancelled]
        .iter()
        .filter_map(|reason| serde_json::to_string(reason).ok())
        .any(|reason| column("finish_reason").contains(&reason));
    cut || failed(output, task) || column("error") != "null"
}

/// SplitMix64's last step.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn as_text(verified: &Verified) -> String {
    let passes: Vec<String> = verified.passes.iter().map(usize::to_string).collect();
    let mut text =
        format!("{} rows run again, {} at a time, {} tokens: ", verified.rows, passes.join(", then "), verified.tokens);
    if verified.differences.is_empty() {
        return text + "all as they were written\n";
    }
    let mut rows: Vec<u64> = verified.differences.iter().map(|difference| difference.row).collect();
    rows.dedup();
    text.push_str(&format!("{} rows differ\n", rows.len()));
    for difference in &verified.differences {
        text.push_str(&format!("row {}, {} at a time: {}\n", difference.row, difference.together, difference.what));
    }
    text
}

fn as_json(verified: &Verified) -> String {
    let differences: Vec<_> = verified
        .differences
        .iter()
        .map(|difference| json!({"row": difference.row, "together": difference.together, "what": difference.what}))
        .collect();
    let report = json!({
        "rows": verified.rows,
        "passes": verified.passes,
        "tokens": verified.tokens,
        "differences": differences,
    });
    format!("{report:#}\n")
}
