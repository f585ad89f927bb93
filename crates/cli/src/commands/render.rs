//! `vgen render`: the messages of each row, without a backend.

use vgen_core::{Fault, Row};
use vgen_dataset::{RowSink, RowSource};
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
    let mut source = super::source(config)?;
    let mut sink = super::sink(config)?;
    let mut failed = false;
    let mut rows = 0;
    while config.input.limit.is_none_or(|limit| rows < limit) {
        let Some(row) = source.next_row()? else { break };
        rows += 1;
        let file = match &config.input.place {
            Some(Place::File(path)) => Some(path.as_path()),
            _ => None,
        };
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
        return Err(vgen_dataset::DatasetError::InputEmpty(source.name().to_owned()).into());
    }
    Ok(if failed { exit::SOME_ROWS_FAILED } else { exit::DONE })
}
