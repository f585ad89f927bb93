//! A run over rows: of a file, of standard input, or of the demo's samples.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use vgen_core::{Backend, Fault};
use vgen_dataset::{RowSink, RowSource};
use vgen_run::{Pipeline, Summary, Task};
use vgen_task::{TaskConfig, TextGenerationWithImage};

use super::ahead::FetchAhead;
use super::{input, lint, output};
use crate::interrupt::Interrupt;
use crate::messages::Messages;
use crate::progress::{self, Reporter};
use crate::table::{Config, Place};
use crate::{backend, demo, exit, local};

/// Asks about every row of the input.
pub(crate) fn run(config: Config, messages: &Messages) -> Result<u8, Fault> {
    // What is wrong with task, input or output shows before a model is loaded.
    let task = TextGenerationWithImage::from_config(config.task.clone())?;
    let source = input::source(&config)?;
    lint::before(&config, &task, messages)?;
    finish(&config, task, source, None, messages)
}

/// Asks about the demo's samples; the answers are a readable table unless an output is named.
pub(crate) fn demo(config: Config, messages: &Messages) -> Result<u8, Fault> {
    let task = TextGenerationWithImage::from_config(config.task.clone())?;
    let source = input::samples(&config)?;
    let table: Option<Box<dyn RowSink>> = match config.output.place {
        Place::Standard => {
            Some(Box::new(demo::AnswerTable::new(task.output_columns().first().map_or("generation", String::as_str))))
        }
        Place::File(_) => None,
    };
    finish(&config, task, source, table, messages)
}

/// Where the answers go.
enum Target {
    Stream(Box<dyn RowSink>),
    File(Box<output::Prepared>),
}

fn finish(
    config: &Config,
    task: TextGenerationWithImage,
    mut source: Box<dyn RowSource>,
    sink: Option<Box<dyn RowSink>>,
    messages: &Messages,
) -> Result<u8, Fault> {
    for warning in task.warnings() {
        messages.warning(warning);
    }
    let kept = output::kept_images(config);
    let stream = match sink {
        Some(sink) => Some(sink),
        None => output::stream(config, source.folder().map(Path::to_owned), kept.as_ref())?,
    };
    let target = match (stream, &config.output.place) {
        (None, Place::File(path)) => {
            let prepared = output::prepare(config, path, &task, &mut source)?;
            prepared.tell(messages);
            Target::File(Box::new(prepared))
        }
        (Some(_), _) if config.output.retry_failed => {
            return Err(output::no_retry());
        }
        (stream, _) => Target::Stream(stream.unwrap_or_else(|| Box::new(vgen_dataset::JsonlSink::stdout()))),
    };
    if let Target::File(prepared) = &target
        && let output::Start::Done(record, past) = &prepared.start
    {
        let counts = past.counts();
        let path = record.output.display();
        messages.info(format!("nothing is left to do: all {} rows of {path} are done", counts.rows));
        return Ok(if counts.failed_rows > 0 { exit::SOME_ROWS_FAILED } else { exit::DONE });
    }
    let interrupt = Interrupt::install(messages)?;
    let backend = backend::open(config, kept.as_ref(), messages)?;
    let task = for_backend(task, &*backend)?;
    let batch = input::batch(config)?;
    let to_terminal = config.output.place == Place::Standard && io::stdout().is_terminal();
    let mut replaces = false;
    let (sink, recorded) = match target {
        Target::Stream(sink) => (sink, None),
        Target::File(prepared) => {
            let opened = prepared.open(config, &task, &*backend, &mut source, kept.as_ref())?;
            replaces = opened.replaces;
            (opened.sink, Some((opened.ledger, opened.known)))
        }
    };
    let task: Box<dyn Task> = match batch {
        Some(batch) => Box::new(batch),
        None => Box::new(task),
    };
    let task = match kept {
        Some(kept) if !backend::fetches(config) => Box::new(FetchAhead::new(task, kept, local::limits(&config.images))),
        _ => task,
    };
    let mut pipeline = Pipeline::new(source, task, Arc::clone(&backend), sink)
        .sampling(config.sampling.clone())
        .stop_with(interrupt.run())
        .observer(Reporter::new(messages, to_terminal, config.run.progress_interval));
    if let Some((ledger, known)) = recorded {
        pipeline = pipeline.record(ledger, known);
    }
    if let Some(max) = config.run.max_errors {
        pipeline = pipeline.max_errors(max);
    }
    if let Some(timeout) = config.run.row_timeout {
        pipeline = pipeline.row_timeout(timeout);
    }
    if let Some(window) = config.run.window {
        pipeline = pipeline.window(window);
    }
    match pipeline.run_recorded() {
        Ok((summary, folder)) => {
            if let Some(folder) = folder.filter(|_| replaces && !summary.interrupted) {
                folder.install_retry()?;
            }
            progress::summary(messages, &summary);
            let cut = lint::after(config, &summary, messages);
            if let Some(path) = &config.run.stats {
                write_stats(path, &*backend, &summary)?;
            }
            Ok(match (summary.interrupted, summary.failed_rows) {
                (true, _) => exit::INTERRUPTED,
                (false, 0) if !cut => exit::DONE,
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
