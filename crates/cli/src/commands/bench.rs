//! `vgen bench`: what was asked for becomes rows, loads and backends; what was found becomes files.

mod plan;
mod rows;
mod targets;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use vgen_core::Fault;
use vgen_run::bench::serve::ChatServer;
use vgen_run::bench::{Bench, Report, Step, Target, compare, csv, html, machine, markdown, schema};

use crate::args::BenchCommand;
use crate::messages::Messages;
use crate::{backend, exit};
use plan::Plan;

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
        let comparison = compare(&read::<Report>(first)?, &read::<Report>(second)?);
        super::print(&comparison.markdown())?;
        return Ok(exit::DONE);
    }
    let messages = messages.quiet(args.readings.quiet);
    let demo = args.demo;
    let mut plan = Plan::new(args)?;
    plan.check_files()?;
    // Lives as long as the bench.
    let _server = if demo { Some(serve_demo(&mut plan, &messages)?) } else { None };
    let rows = rows::rows(&plan, &messages)?;
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
    let report = bench.run(&targets, &|step| tell(&step, &messages))?;
    write(&report, &plan.out, &messages)?;
    let failed = report.cells.iter().flat_map(|cell| &cell.runs).any(|run| run.failed > 0);
    Ok(if failed { exit::SOME_ROWS_FAILED } else { exit::DONE })
}

/// The demo model behind a server on loopback, as a second backend of the plan.
fn serve_demo(plan: &mut Plan, messages: &Messages) -> Result<ChatServer, Fault> {
    let config = plan.config(0)?;
    let backend = backend::open(&config, None, &messages.quiet(true))?;
    let server = ChatServer::start(Arc::clone(&backend))?;
    plan.add_demo_server(&server.url());
    Ok(server)
}

fn tell(step: &Step<'_>, messages: &Messages) {
    match step {
        Step::Opening { target } => messages.info(format!("{target}: opening")),
        Step::Warming { target } => messages.info(format!("{target}: warming up")),
        Step::Read { target, load, number, of, rows_per_second, failed } => {
            let failed = if *failed > 0 { format!(", {failed} failed") } else { String::new() };
            messages.info(format!("{number}/{of} {target}, {load}: {rows_per_second:.2} rows/s{failed}"));
        }
        _ => {}
    }
}

/// `NAME` with an ending put behind it, whatever dots the name has.
fn with_ending(name: &Path, ending: &str) -> PathBuf {
    let mut path = name.as_os_str().to_owned();
    path.push(ending);
    PathBuf::from(path)
}

fn write(report: &Report, name: &Path, messages: &Messages) -> Result<(), Fault> {
    let json = serde_json::to_string_pretty(report)
        .map_err(|error| Fault::stop("bench.report", format!("the report is no JSON: {error}")))?;
    let text = markdown(report);
    for (ending, content) in [(".json", &json), (".md", &text), (".csv", &csv(report)), (".html", &html(report))] {
        let path = with_ending(name, ending);
        fs::write(&path, content)
            .map_err(|error| Fault::stop("output.write", format!("{} can't be written: {error}", path.display())))?;
    }
    super::print(&text)?;
    messages.info(format!("written: {}.json, .md, .csv and .html", name.display()));
    Ok(())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Fault> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string())).map_err(|reason| {
        Fault::stop("input.bench", format!("{} can't be read: {reason}", path.display()))
            .with_hint("name a JSON file that vgen bench wrote")
    })
}
