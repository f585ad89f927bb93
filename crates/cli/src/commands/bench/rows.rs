//! The rows of a bench: of a file, of the demo, or drawn.

use std::collections::BTreeMap;

use vgen_core::{Fault, SamplingParams};
use vgen_dataset::{RowSource, SourceRow};
use vgen_run::Task;
use vgen_run::bench::{BenchRow, Rows, Workload};
use vgen_task::{RowContext, TaskConfig, TextGenerationWithImage};

use super::plan::{COUNT, Plan};
use crate::commands::input;
use crate::demo;
use crate::messages::Messages;

/// What is asked.
pub(super) fn rows(plan: &Plan, messages: &Messages) -> Result<Rows, Fault> {
    if plan.is_drawn() {
        let name = plan.table.workload.as_deref().unwrap_or(Workload::OneTile.name());
        let workload =
            name.parse().map_err(|error| Fault::stop("config.value", format!("[bench] workload: {error}")))?;
        return Ok(Rows::Drawn { workload, count: plan.table.count.unwrap_or(COUNT), seed: plan.seed() });
    }
    let config = plan.config_of_rows()?;
    if plan.demo {
        let task = TextGenerationWithImage::from_config(config.task)?;
        return fixed(&mut demo::samples()?, &task, plan, messages);
    }
    let task: Box<dyn Task> = match input::batch(&config)? {
        Some(batch) => Box::new(batch),
        None => Box::new(TextGenerationWithImage::from_config(with_or_without_images(config.task.clone()))?),
    };
    fixed(input::source(&config)?.as_mut(), &task, plan, messages)
}

/// Rows without an image are asked about as they are, unless the task says where images shall be.
fn with_or_without_images(task: TaskConfig) -> TaskConfig {
    let is_named = task.image_column.is_some() || !task.input_mappings.is_empty();
    TaskConfig { image_required: task.image_required.or((!is_named).then_some(false)), ..task }
}

/// Rows as a run would ask about them. Those that can't be asked about are left out, and said so.
fn fixed(source: &mut dyn RowSource, task: &dyn Task, plan: &Plan, messages: &Messages) -> Result<Rows, Fault> {
    let (name, sampling) = (source.name().to_owned(), plan.sampling()?);
    let limit = plan.table.count.unwrap_or(usize::MAX);
    let (mut rows, mut left_out) = (Vec::new(), BTreeMap::new());
    while rows.len() < limit {
        let Some(SourceRow { number, row, origin, .. }) = source.next_row()? else { break };
        let context = RowContext { base_dir: source.folder(), ..RowContext::new(number) };
        let asked = row.and_then(|values| {
            let messages = task.render(&values, &context)?.messages;
            let own = own(task.own_sampling(&values, &sampling)?, plan)?;
            Ok(BenchRow { number, messages, sampling: own.map(Box::new) })
        });
        match asked {
            Ok(row) => rows.push(row),
            Err(fault) => {
                messages.warning(format!("{origin}: {} [{}]; left out", fault.message, fault.code));
                *left_out.entry(fault.code.into_owned()).or_default() += 1;
            }
        }
    }
    if !rows.is_empty() && rows.iter().all(|row| row.images() == 0) {
        messages.warning(format!("no row of {name} has an image"));
    }
    Ok(Rows::Fixed { name, rows, left_out })
}

/// A row's own parameters under those of the bench.
fn own(sampling: Option<(SamplingParams, u32)>, plan: &Plan) -> Result<Option<SamplingParams>, Fault> {
    match sampling {
        None => Ok(None),
        Some((mut sampling, 1)) => {
            plan.fix_length(&mut sampling);
            Ok(Some(sampling))
        }
        Some((_, count)) => Err(Fault::row("batch.request", format!("a bench asks for one answer, not for {count}"))),
    }
}
