//! `vgen bench`: what was asked for becomes rows, loads and backends; what was found becomes files.

mod entry;
mod plan;
mod results;
mod rows;
mod targets;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use vgen_core::Fault;
use vgen_run::bench::serve::ChatServer;
use vgen_run::bench::{Bench, BenchError, FORM, Report, Step, Target, compare, machine, schema};

use crate::args::BenchCommand;
use crate::interrupt::Interrupt;
use crate::messages::Messages;
use crate::{backend, exit};
use plan::Plan;
use results::Results;

/// The program with the commit that it was built from, where the build said so.
fn program() -> String {
    let commit = option_env!("VGEN_GIT_HASH").map(|commit| format!(" ({commit})")).unwrap_or_default();
    format!("{}{commit}", env!("CARGO_PKG_VERSION"))
}

/// Measures, or does what else was asked for.
pub(crate) fn bench(args: BenchCommand, messages: &Messages) -> Result<u8, Fault> {
    if args.schema {
        let text = serde_json::to_string_pretty(&schema()).unwrap_or_default();
        super::print(&(text + "\n"))?;
        return Ok(exit::DONE);
    }
    if let [first, second] = args.compare.as_slice() {
        let comparison = compare(&read(first)?, &read(second)?);
        super::print(&comparison.markdown())?;
        return Ok(exit::DONE);
    }
    let messages = messages.quiet(args.readings.quiet);
    let mut plan = Plan::new(args)?;
    let results = Results::new(&plan.out, plan.overwrite)?;
    let rows = rows::rows(&plan, &messages)?;
    plan.fit_backends(rows.len());
    // Lives as long as the bench.
    let _server = if plan.demo { Some(serve_demo(&mut plan, rows.len(), &messages)?) } else { None };
    let targets: Vec<Target<'_>> = targets::targets(&plan, &messages)?;
    let bench = Bench {
        rows,
        loads: plan.loads(),
        repeats: plan.table.repeats.unwrap_or(plan::REPEATS),
        warmup_rows: plan.table.warmup.unwrap_or(plan::WARMUP),
        sampling: plan.sampling()?,
        seed: plan.seed(),
        interleave: plan.table.interleave.unwrap_or(true),
        program: program(),
        machine: machine(),
    };
    let stop = Interrupt::install(&messages)?.run();
    let found = bench.run(&targets, &stop, &|step| {
        tell(&step, &messages);
        if let Step::Read { so_far, .. } = step
            && let Err(fault) = results.keep(so_far)
        {
            messages.warning(format!("{} [{}]", fault.message, fault.code));
        }
    });
    match found {
        Ok(report) if report.cells.is_empty() => {
            messages.info("interrupted before the first reading: nothing is written");
            Ok(exit::INTERRUPTED)
        }
        Ok(report) => {
            finish(&results, &report, &plan.out, &messages)?;
            let failed = report.cells.iter().flat_map(|cell| &cell.runs).any(|run| run.failed > 0);
            Ok(match (report.unfinished, failed) {
                (Some(_), _) => exit::INTERRUPTED,
                (None, true) => exit::SOME_ROWS_FAILED,
                (None, false) => exit::DONE,
            })
        }
        Err(BenchError { fault, report }) => {
            // Why it ended is what counts; what can't be written is said besides.
            if let Some(report) = report
                && let Err(unwritten) = finish(&results, &report, &plan.out, &messages)
            {
                messages.warning(format!("{} [{}]", unwritten.message, unwritten.code));
            }
            Err(fault)
        }
    }
}

fn finish(results: &Results, report: &Report, name: &Path, messages: &Messages) -> Result<(), Fault> {
    let text = results.finish(report)?;
    super::print(&text)?;
    if let Some(why) = &report.unfinished {
        messages.warning(format!("the results are not complete: {why}"));
    }
    messages.info(format!("written: {}.json, .md, .csv and .html", name.display()));
    Ok(())
}

/// The demo model behind a server on loopback, as a second backend of the plan.
fn serve_demo(plan: &mut Plan, rows: usize, messages: &Messages) -> Result<ChatServer, Fault> {
    let config = plan.config(0)?;
    let backend = backend::open(&config, None, &messages.quiet(true))?;
    let server = ChatServer::start(Arc::clone(&backend))?;
    plan.add_demo_server(&server.url());
    plan.fit_backends(rows);
    Ok(server)
}

fn tell(step: &Step<'_>, messages: &Messages) {
    match step {
        Step::Opening { target } => messages.info(format!("{target}: opening")),
        Step::Warming { target } => messages.info(format!("{target}: warming up")),
        Step::Read { target, load, number, of, rows_per_second, failed, .. } => {
            let failed = if *failed > 0 { format!(", {failed} failed") } else { String::new() };
            messages.info(format!("{number}/{of} {target}, {load}: {rows_per_second:.2} rows/s{failed}"));
        }
        _ => {}
    }
}

fn read(path: &Path) -> Result<Report, Fault> {
    let wrong = |reason: String| {
        Fault::stop("input.bench", format!("{} can't be read: {reason}", path.display()))
            .with_hint("name a JSON file that vgen bench wrote")
    };
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    match value.get("form").and_then(Value::as_str) {
        Some(FORM) => serde_json::from_value(value).map_err(|error| wrong(error.to_string())),
        Some(form) => Err(wrong(format!("it has the form {form:?}, and this program reads {FORM:?}"))
            .with_hint("measure again with this program, or compare with the one that wrote it")),
        None => Err(wrong("it is no result of a bench".to_owned())),
    }
}
