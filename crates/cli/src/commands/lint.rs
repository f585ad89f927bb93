//! What looks wrong with the prompts of a run: before it, by a sample of its rows, and after it, by its answers.

use vgen_core::Fault;
use vgen_dataset::RowSource;
use vgen_run::{Summary, Task};
use vgen_task::{Linter, Reader, RowContext, TextGenerationWithImage};

use super::input;
use crate::messages::Messages;
use crate::table::{BackendTable, Config, Lint, Place};

/// Rows, and bytes of them, that are looked at before a run.
const ROWS: u64 = 200;
const BYTES: usize = 16 << 20;

/// Whose prompts they are.
pub(crate) fn reader(config: &Config) -> Reader {
    match &config.backend {
        BackendTable::Local(_) => Reader::Local,
        BackendTable::Remote(table) => {
            let config = &table.config;
            Reader::of_model(config.model_id.as_deref().or(config.model_display_name.as_deref()).unwrap_or_default())
        }
        BackendTable::Mock(options) => Reader::of_model(&options.model_name),
        BackendTable::None => Reader::Other,
    }
}

/// Looks at the first rows of an input that is not a stream, and says what looks wrong.
///
/// # Errors
/// `lint.denied` if something does and that is not allowed.
pub(crate) fn before(config: &Config, task: &TextGenerationWithImage, messages: &Messages) -> Result<(), Fault> {
    if config.run.lint == Lint::Off {
        return Ok(());
    }
    let batch = input::batch(config)?;
    let asker: &dyn Task = batch.as_ref().map_or(task as &dyn Task, |batch| batch);
    let mut linter = Linter::new(batch.is_none().then_some(task), reader(config));
    if matches!(config.input.place, Some(Place::File(_))) {
        let mut source = input::head(config)?;
        let mut bytes = 0;
        while linter.rows() < ROWS && bytes < BYTES {
            let Some(row) = source.next_row()? else { break };
            let place = row.origin.to_string();
            let context = RowContext { base_dir: source.folder(), ..RowContext::new(row.number) };
            match row.row {
                Err(fault) => linter.look(&place, None, Err(&fault)),
                Ok(values) => {
                    bytes += values.size();
                    linter.look(&place, Some(&values), asker.render(&values, &context).as_ref());
                }
            }
        }
    }
    tell(&linter.findings(), config.run.lint, messages)
}

/// Says what was found.
///
/// # Errors
/// `lint.denied` if there is something and that is not allowed.
pub(crate) fn tell(findings: &[Fault], lint: Lint, messages: &Messages) -> Result<(), Fault> {
    findings.iter().for_each(|finding| messages.warn(finding));
    if findings.is_empty() || lint != Lint::Deny {
        return Ok(());
    }
    let message = format!("{} things look wrong with the prompts", findings.len());
    let first = findings.first().map_or_else(String::new, |finding| format!(": {}", finding.message));
    Err(Fault::stop("lint.denied", format!("{message}{first}")).with_hint("mend them, or go on with --lint warn"))
}

/// Says how many answers were cut; whether that is to count as a failure.
pub(crate) fn after(config: &Config, summary: &Summary, messages: &Messages) -> bool {
    if config.run.lint == Lint::Off {
        return false;
    }
    let mut cut = false;
    let mut tell = |code: &'static str, count: u64, limit: &str, hint: String| {
        if count > 0 {
            cut = true;
            let message = format!("{count} of {} answers were cut at the limit of {limit}", summary.answers);
            messages.warn(&Fault::stop(code, message).with_hint(hint));
        }
    };
    let tokens = match config.sampling.max_new_tokens {
        Some(tokens) => format!("raise --max-new-tokens, which is {tokens}, or ask for shorter answers"),
        None => "raise --max-new-tokens, or ask for shorter answers".to_owned(),
    };
    tell("lint.cut_by_length", summary.cut_by_length, "tokens", tokens);
    let seconds = config.run.row_timeout.map_or(0.0, |timeout| timeout.as_secs_f64());
    let time = format!("raise --row-timeout, which is {seconds} s, or ask for shorter answers");
    tell("lint.cut_by_time", summary.cut_by_time, "time", time);
    cut && config.run.lint == Lint::Deny
}
