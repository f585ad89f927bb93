//! `vgen render`: the messages of each row, without a backend.

use std::path::Path;

use vgen_core::{Fault, Row};
use vgen_dataset::{DatasetError, JsonlSink, OutputFormat, OutputLayout, RowSink, RowSource};
use vgen_task::{RowContext, TextGenerationWithImage};

use crate::exit;
use crate::messages::Messages;
use crate::table::{Config, Place};

/// Prints `{"messages": [...]}` or `{"error": {...}}` for each row.
pub(crate) fn render(config: &Config, messages: &Messages) -> Result<u8, Fault> {
    let task = TextGenerationWithImage::from_config(config.task.clone())?;
    for warning in task.warnings() {
        messages.warning(warning);
    }
    let mut source = super::input::source(config)?;
    let mut sink: Box<dyn RowSink> = match &config.output.place {
        Place::Standard => Box::new(JsonlSink::stdout()),
        Place::File(path) => {
            vgen_dataset::check_is_no_input(path, &super::input::paths(config)?)?;
            if !config.output.overwrite
                && path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0)
            {
                return Err(DatasetError::OutputExists(path.clone()).into());
            }
            let layout = OutputLayout { format: OutputFormat::Jsonl, columns: Vec::new(), group_rows: 1 };
            Box::new(layout.create(path)?)
        }
    };
    let mut failed = false;
    let mut rows = 0;
    while let Some(row) = source.next_row()? {
        rows += 1;
        let file = Some(Path::new(&*row.origin.name)).filter(|_| config.input.place != Some(Place::Standard));
        let context = RowContext { number: row.number, file, base_dir: source.folder() };
        let mut line = Row::new();
        match row.row.and_then(|values| task.render(&values, &context)) {
            Ok(rendered) => line.set("messages", &rendered.messages),
            Err(fault) => {
                failed = true;
                messages.warning(format!("{} [{}]", fault.message, fault.code));
                line.set("error", &fault)
            }
        }
        .map_err(|error| Fault::stop("run.render", error.to_string()))?;
        sink.write(row.number, &[line])?;
        sink.flush()?;
    }
    sink.finish()?;
    if rows == 0 {
        return Err(DatasetError::InputEmpty(source.name().to_owned()).into());
    }
    Ok(if failed { exit::SOME_ROWS_FAILED } else { exit::DONE })
}
