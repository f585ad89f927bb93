//! The rows of a bench: of a file, of the demo, or drawn.

use vgen_core::Fault;
use vgen_dataset::RowSource;
use vgen_run::bench::{BenchRow, Rows, Workload};
use vgen_task::{RowContext, TextGenerationWithImage};

use super::plan::{COUNT, Plan};
use crate::commands::input;
use crate::demo;
use crate::messages::Messages;

/// What is asked.
pub(super) fn rows(plan: &Plan, messages: &Messages) -> Result<Rows, Fault> {
    let config = plan.config_of_rows()?;
    let task = TextGenerationWithImage::from_config(config.task.clone())?;
    if plan.demo {
        return fixed(&mut demo::samples()?, &task, plan.table.count.unwrap_or(usize::MAX), messages);
    }
    if config.input.place.is_some() && plan.table.workload.is_none() {
        let mut source = input::source(&config)?;
        return fixed(source.as_mut(), &task, usize::MAX, messages);
    }
    let name = plan.table.workload.as_deref().unwrap_or(Workload::OneTile.name());
    let workload = name.parse().map_err(|error| Fault::stop("config.value", format!("[bench] workload: {error}")))?;
    Ok(Rows::Drawn { workload, count: plan.table.count.unwrap_or(COUNT), seed: plan.seed() })
}

/// Rows as a run would ask about them. Those that can't be asked about are left out, and said so.
fn fixed(
    source: &mut dyn RowSource,
    task: &TextGenerationWithImage,
    limit: usize,
    messages: &Messages,
) -> Result<Rows, Fault> {
    let name = source.name().to_owned();
    let mut rows = Vec::new();
    while rows.len() < limit {
        let Some(row) = source.next_row()? else { break };
        let context = RowContext { base_dir: source.folder(), ..RowContext::new(row.number) };
        match row.row.and_then(|values| task.render(&values, &context)) {
            Ok(rendered) => rows.push(BenchRow { number: row.number, messages: rendered.messages }),
            Err(fault) => messages.warning(format!("{}: {} [{}]; left out", row.origin, fault.message, fault.code)),
        }
    }
    Ok(Rows::Fixed { name, rows })
}
