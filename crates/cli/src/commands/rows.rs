//! A run over rows: of a file, of standard input, or of the demo's samples.

use std::io::{self, IsTerminal};

use vgen_core::Fault;
use vgen_dataset::{RowSink, RowSource};
use vgen_run::Pipeline;
use vgen_task::TextGenerationWithImage;

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
    let to_terminal = config.output.place == Place::Standard && io::stdout().is_terminal();
    let mut pipeline = Pipeline::new(source, task, backend, sink)
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
