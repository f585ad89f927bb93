//! A run over rows: of a file, of standard input, or of the demo's samples.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use vgen_core::{Backend, Fault};
use vgen_dataset::{RowSink, RowSource};
use vgen_run::{Pipeline, Summary};
use vgen_task::{TaskConfig, TextGenerationWithImage};

use crate::interrupt::Interrupt;
use crate::messages::Messages;
use crate::progress::{self, Reporter};
use crate::table::{Config, Place};
use crate::{backend, demo, exit};

/// Asks about every row of the input.
pub(crate) fn run(config: Config, messages: &Messages) -> Result<u8, Fault> {
    // What is wrong with task, input or output shows before a model is loaded.
    let task = TextGenerationWithImage::from_config(config.task.clone())?;
    let source = super::source(&config)?;
    let sink = super::sink(&config)?;
    finish(&config, task, source, sink, messages)
}

/// Asks about the demo's samples; the answers are a readable table unless an output is named.
pub(crate) fn demo(config: Config, messages: &Messages) -> Result<u8, Fault> {
    let task = TextGenerationWithImage::from_config(config.task.clone())?;
    let source = demo::samples()?;
    let sink: Box<dyn RowSink> = match config.output.place {
        Place::Standard => {
            Box::new(demo::AnswerTable::new(task.output_columns().first().map_or("generation", String::as_str)))
        }
        Place::File(_) => Box::new(super::sink(&config)?),
    };
    finish(&config, task, source, sink, messages)
}

fn finish(
    config: &Config,
    task: TextGenerationWithImage,
    source: impl RowSource + 'static,
    sink: impl RowSink + 'static,
    messages: &Messages,
) -> Result<u8, Fault> {
    for warning in task.warnings() {
        messages.warning(warning);
    }
    let interrupt = Interrupt::install(messages)?;
    let backend = backend::open(config, messages)?;
    let task = for_backend(task, &*backend)?;
    let to_terminal = config.output.place == Place::Standard && io::stdout().is_terminal();
    let mut pipeline = Pipeline::new(source, task, Arc::clone(&backend), sink)
        .sampling(config.sampling.clone())
        .stop_with(interrupt.run())
        .observer(Reporter::new(messages, to_terminal, config.run.progress_interval));
    if let Some(limit) = config.input.limit {
        pipeline = pipeline.limit(limit);
    }
    if let Some(timeout) = config.run.row_timeout {
        pipeline = pipeline.row_timeout(timeout);
    }
    if let Some(window) = config.run.window {
        pipeline = pipeline.window(window);
    }
    match pipeline.run() {
        Ok(summary) => {
            progress::summary(messages, &summary);
            if let Some(path) = &config.run.stats {
                write_stats(path, &*backend, &summary)?;
            }
            Ok(match (summary.interrupted, summary.failed_rows) {
                (true, _) => exit::INTERRUPTED,
                (false, 0) => exit::DONE,
                (false, _) => exit::SOME_ROWS_FAILED,
            })
        }
        Err(error) => {
            if error.summary.rows > 0 && exit::of_fault(&error.fault) != exit::DONE {
                messages.info(format!("{} rows were written before", error.summary.rows));
            }
            Err(error.fault)
        }
    }
}

/// The task with what the backend's abilities decide: rows need no image for a model that reads text only, unless the
/// configuration says otherwise.
pub(crate) fn for_backend(
    task: TextGenerationWithImage,
    backend: &dyn Backend,
) -> Result<TextGenerationWithImage, Fault> {
    if backend.reads_images() || task.config().image_required.is_some() {
        return Ok(task);
    }
    let config = TaskConfig { image_required: Some(false), ..task.config().clone() };
    Ok(TextGenerationWithImage::from_config(config)?)
}

/// What the run did and where its time went.
fn write_stats(path: &Path, backend: &dyn Backend, summary: &Summary) -> Result<(), Fault> {
    let progress = summary.progress();
    let stats = json!({
        "model_name": backend.model_name(),
        "rows": summary.rows,
        "failed_rows": summary.failed_rows,
        "input_tokens": summary.input_tokens,
        "output_tokens": summary.output_tokens,
        "seconds": summary.elapsed.as_secs_f64(),
        "rows_per_second": progress.rows_per_second(),
        "tokens_per_second": progress.tokens_per_second(),
        "interrupted": summary.interrupted,
        "backend": backend.statistics(),
    });
    std::fs::write(path, format!("{stats:#}\n"))
        .map_err(|error| Fault::stop("output.stats", format!("{} can't be written: {error}", path.display())))
}
