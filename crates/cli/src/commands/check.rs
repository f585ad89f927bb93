//! `vgen check`: everything that a run does before its first answer, and nothing else. What is wrong is collected, not
//! only the first of it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use vgen_backends::local::{Frontend, Inspected, LocalOptions, inspect};
use vgen_core::{Fault, Row};
use vgen_dataset::{Origin, OutputFormat};
use vgen_run::Task;
use vgen_task::image::ImageFetcher;
use vgen_task::{Linter, Rendered, TaskConfig, TextGenerationWithImage};

use super::plan;
use super::survey::{Rows, Survey};
use super::{input, lint, output};
use crate::args::SpeedFlags;
use crate::messages::Messages;
use crate::settings::Settings;
use crate::table::{BackendTable, Config, Lint, LocalTable, Place};
use crate::{backend, exit, local, progress, remote, resolve};

/// Failing rows that are shown one by one.
const SHOWN_ROWS: u64 = 10;

/// What to look at, and how to tell.
pub(crate) struct Wanted {
    pub(crate) rows: Option<u64>,
    pub(crate) fetch: bool,
    pub(crate) json: bool,
    pub(crate) speed: SpeedFlags,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    /// The run would not begin, or not end well.
    Error,
    /// Rows would fail.
    Rows,
    /// It would go well, but perhaps not as meant.
    Warning,
}

#[derive(Debug, Serialize)]
struct Problem {
    level: Level,
    /// How many rows fail so.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<u64>,
    #[serde(flatten)]
    fault: Fault,
}

/// What was found, as it is printed.
#[derive(Debug, Default, Serialize)]
struct Report {
    problems: Vec<Problem>,
    input: Option<String>,
    /// All rows of the input, by the share that was looked at.
    rows_about: Option<u64>,
    rows: Option<Rows>,
    output: Option<String>,
    backend: Option<String>,
    plan: Option<plan::Report>,
    seconds: Option<f64>,
    exit_code: u8,
}

impl Report {
    fn error(&mut self, fault: Fault) {
        // The same mistake may be met on several ways.
        if self.problems.iter().all(|problem| problem.fault != fault) {
            self.problems.push(Problem { level: Level::Error, rows: None, fault });
        }
    }

    /// A row that would fail; the first one of a code stands for all.
    fn row(&mut self, fault: &Fault) {
        let same = |problem: &&mut Problem| problem.level == Level::Rows && problem.fault.code == fault.code;
        match self.problems.iter_mut().find(same) {
            Some(problem) => problem.rows = problem.rows.map(|rows| rows + 1),
            None => self.problems.push(Problem { level: Level::Rows, rows: Some(1), fault: fault.clone() }),
        }
    }

    fn warning(&mut self, fault: Fault) {
        self.problems.push(Problem { level: Level::Warning, rows: None, fault });
    }

    /// The value, or the mistake among the problems.
    fn take<T>(&mut self, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.error(fault)).ok()
    }
}

/// Checks; prints what was found.
pub(crate) fn check(settings: &Settings, wanted: &Wanted, messages: &Messages) -> Result<u8, Fault> {
    let mut report = Report::default();
    let mut lint = Lint::Warn;
    let mut messages = messages.clone();
    if let Some(config) = report.take(resolve::resolve(settings)) {
        messages = messages.of_run(&config.run);
        lint = config.run.lint;
        all(&config, wanted, &mut report, &messages);
    }
    let first = report.problems.iter().find(|problem| problem.level == Level::Error);
    let failing = report.problems.iter().any(|problem| problem.level == Level::Rows);
    report.exit_code = match first {
        Some(problem) => exit::of_fault(&problem.fault),
        None if failing => exit::SOME_ROWS_FAILED,
        None if lint == Lint::Deny && !report.problems.is_empty() => exit::USAGE,
        None => exit::DONE,
    };
    for problem in &report.problems {
        match problem.level {
            Level::Error => messages.error(&problem.fault),
            Level::Warning => messages.warn(&problem.fault),
            // They were told one by one.
            Level::Rows => {}
        }
    }
    if wanted.json {
        if let Some(plan) = &mut report.plan {
            report.rows = plan.rows.take();
        }
        let text = serde_json::to_string_pretty(&report).map_err(|e| Fault::stop("run.plan", e.to_string()))?;
        super::print(&(text + "\n"))?;
    } else {
        super::print(&report.text())?;
    }
    Ok(report.exit_code)
}

/// What asks about the rows of an input: their requests if they are such, else the task, as a model that is known needs
/// it.
pub(super) fn task(config: &Config, model: Option<&Inspected>) -> Result<Box<dyn Task>, Fault> {
    if let Some(batch) = input::batch(config)? {
        return Ok(Box::new(batch));
    }
    Ok(Box::new(own_task(config, model)?))
}

fn own_task(config: &Config, model: Option<&Inspected>) -> Result<TextGenerationWithImage, Fault> {
    let mut task = config.task.clone();
    if model.is_some_and(|model| model.processor.is_none()) {
        task = TaskConfig { image_required: task.image_required.or(Some(false)), ..task };
    }
    Ok(TextGenerationWithImage::from_config(task)?)
}

/// A local model, as far as it can be had without its weights.
struct Model {
    options: LocalOptions,
    inspected: Inspected,
    frontend: Option<Frontend>,
}

fn all(config: &Config, wanted: &Wanted, report: &mut Report, messages: &Messages) {
    let model = model(config, report, messages);
    let task = report.take(own_task(config, model.as_ref().map(|model| &model.inspected)));
    for warning in task.iter().flat_map(|task| task.warnings()) {
        report.warning(Fault::stop("task.invalid_parameter", warning.clone()));
    }
    let readable = report.take(input::source(config)).is_some();
    if let Some(task) = &task
        && readable
    {
        rows(config, wanted, task, model.as_ref(), report, messages);
        output(config, task, model.as_ref(), report);
    }
    if let Some(model) = model {
        let measured = report.take(wanted.speed.measured()).flatten();
        let rows = report.rows.take();
        let Model { options, inspected, .. } = &model;
        let plan = plan::Report::new(config, options, inspected, rows, wanted.speed.rows_per_second, measured.as_ref());
        report.take(inspected.plan.check(inspected.free).and_then(|()| plan.check()));
        let looked = plan.rows.as_ref().map_or(0, |rows| rows.rows);
        let scale = report.rows_about.map_or(1.0, |all| all as f64 / looked.max(1) as f64);
        report.seconds = plan.seconds.map(|seconds| seconds * scale);
        report.plan = Some(plan);
    } else if let (Some(speed), Some(rows)) = (speed(config, wanted), report.rows_about) {
        report.seconds = Some(rows as f64 / speed);
    }
}

/// Rows a second of a backend that is not local: what was said, or what a server's limit allows.
fn speed(config: &Config, wanted: &Wanted) -> Option<f64> {
    let limit = match &config.backend {
        BackendTable::Remote(table) => table.config.requests_per_minute.map(|requests| {
            let each = if table.config.native_n { 1 } else { config.task.num_generations.unwrap_or(1).max(1) };
            requests / 60.0 / each as f64
        }),
        _ => None,
    };
    wanted.speed.rows_per_second.or(limit)
}

fn model(config: &Config, report: &mut Report, messages: &Messages) -> Option<Model> {
    let checked = match &config.backend {
        BackendTable::Local(table) => return local_model(config, table, report),
        BackendTable::Remote(table) => remote::dry(table, &config.images, config.run.progress_interval, messages),
        _ => backend::open(config, None, messages).map(Some),
    };
    match report.take(checked)? {
        Some(backend) => {
            let generations = config.task.num_generations.and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
            report.take(backend.check(&config.sampling, generations));
            report.backend = Some(backend.model_name().to_owned());
        }
        None => {
            report.backend = Some("an endpoint, which is not asked: its parameters are checked at the start".to_owned())
        }
    }
    None
}

fn local_model(config: &Config, table: &LocalTable, report: &mut Report) -> Option<Model> {
    let options = report.take(local::options(table, &config.images))?;
    let inspected = report.take(inspect(&options))?;
    let frontend = match Frontend::open(&options) {
        Ok(frontend) => {
            report.take(frontend.check(&config.sampling));
            Some(frontend)
        }
        Err(fault) if fault.code.starts_with("hub.") => {
            let message = format!("tokenizer and parameters are not checked: {}", fault.message);
            report.warning(Fault { message, ..fault });
            None
        }
        Err(fault) => {
            report.error(fault);
            None
        }
    };
    let name = options.model.name();
    report.backend = Some(format!("{name} in {} on {}", inspected.dtype, inspected.device));
    Some(Model { options, inspected, frontend })
}

/// Looks at rows, their prompts and images.
fn rows(
    config: &Config,
    wanted: &Wanted,
    task: &TextGenerationWithImage,
    model: Option<&Model>,
    report: &mut Report,
    messages: &Messages,
) {
    let Some(batch) = report.take(input::batch(config)) else { return };
    let asker: &dyn Task = batch.as_ref().map_or(task as &dyn Task, |batch| batch);
    let limits = local::limits(&config.images);
    let survey = Survey {
        task: asker,
        model: model.map(|model| &model.inspected),
        frontend: model.and_then(|model| model.frontend.as_ref()),
        fetcher: wanted.fetch.then(|| ImageFetcher::new(limits.clone())),
        limits,
        sampling: &config.sampling,
        most_rows: wanted.rows,
    };
    let Some(mut source) = report.take(input::source(config)) else { return };
    let mut linter = Linter::new(batch.is_none().then_some(task), lint::reader(config));
    let mut failing = 0;
    let mut watch = |origin: &Origin, row: Option<&Row>, rendered: Result<&Rendered, &Fault>| {
        linter.look(&origin.to_string(), row, rendered);
        if let Err(fault) = rendered {
            failing += 1;
            if failing <= SHOWN_ROWS {
                messages.warning(format!("{} [{}]", placed(origin, fault), fault.code));
            }
            report.row(&Fault { message: placed(origin, fault), ..fault.clone() });
        }
    };
    let surveyed = survey.of(&mut source, &mut watch);
    report.input = Some(source.name().to_owned());
    let Some(rows) = report.take(surveyed) else { return };
    if rows.rows == 0 {
        report.error(vgen_dataset::DatasetError::InputEmpty(source.name().to_owned()).into());
    }
    let all = rows.share.filter(|share| *share > 0.0).map(|share| (rows.rows as f64 / share).round() as u64);
    report.rows_about = all;
    report.rows = Some(rows);
    if config.run.lint != Lint::Off {
        // Rows that fail are told as what they are.
        let findings = linter.findings().into_iter().filter(|finding| finding.code != "lint.failing_rows");
        findings.for_each(|finding| report.warning(finding));
    }
}

/// What is wrong, and where, in case the message does not say.
pub(super) fn placed(origin: &Origin, fault: &Fault) -> String {
    let place = origin.to_string();
    if fault.message.contains(&place) { fault.message.clone() } else { format!("{place}: {}", fault.message) }
}

/// Where the rows would go, and whether an earlier run would be gone on with.
fn output(config: &Config, task: &TextGenerationWithImage, model: Option<&Model>, report: &mut Report) {
    let stream = |path: Option<&Path>| {
        let name = path.map_or_else(|| "standard output".to_owned(), |path| path.display().to_string());
        Some(format!("{name}, JSON lines without a record"))
    };
    let path = match &config.output.place {
        Place::Standard => {
            report.output = stream(None);
            if config.output.retry_failed {
                report.error(output::no_retry());
            }
            return;
        }
        Place::File(path) if output::is_stream(path) => return report.output = stream(Some(path)),
        Place::File(path) => path,
    };
    let Some(mut source) = report.take(input::source(config)) else { return };
    let Some(prepared) = report.take(output::prepare(config, path, task, &mut source)) else { return };
    let name = match &config.backend {
        BackendTable::Local(_) => model.map(|model| model.options.model.name().to_owned()),
        _ => report.backend.clone(),
    };
    if let Some(name) = name {
        report.take(prepared.check_model(config, &name));
    }
    let format = match output::format(config, path) {
        OutputFormat::Jsonl => "JSON lines",
        OutputFormat::Csv => "CSV",
        OutputFormat::Parquet => "Parquet",
        OutputFormat::Sidecar => "a text file beside each image",
    };
    let state = match &prepared.start {
        output::Start::Fresh(_) => "begins anew".to_owned(),
        output::Start::Resume(_, past) => format!("goes on after {} rows", past.finished_rows()),
        output::Start::Retry(record, _) => format!("does {} failed rows again", record.counts.failed_rows),
        output::Start::Done(..) => "nothing is left to do".to_owned(),
    };
    report.output = Some(format!("{}, {format}: {state}", path.display()));
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{name:<26}{value}");
        };
        if let Some(input) = &self.input {
            line("input", input);
        }
        if let Some(output) = &self.output {
            line("output", output);
        }
        if let (Some(backend), None) = (&self.backend, &self.plan) {
            line("model", backend);
        }
        let rows = self.plan.as_ref().map_or(self.rows.as_ref(), |plan| plan.rows.as_ref());
        if let Some(rows) = rows {
            let of =
                self.rows_about.filter(|all| *all > rows.rows).map_or_else(String::new, |n| format!(" of about {n}"));
            line("rows looked at", &format!("{}{of}, {} can't be run", rows.rows, rows.faulty_rows));
            for (code, count) in &rows.errors {
                line("", &format!("{count} {code}"));
            }
            if self.plan.is_none() {
                line("images", &rows.images_in_words());
                line("prompt tokens", &rows.tokens_in_words());
            }
        }
        if let Some(plan) = &self.plan {
            text.push_str(&plan.text(false));
        }
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(text, "{name:<26}{value}");
        };
        if let Some(seconds) = self.seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
            line("time", &format!("about {}", progress::duration(seconds)));
        }
        let count = |level| self.problems.iter().filter(|problem| problem.level == level).count();
        line("problems", &format!("errors: {}, warnings: {}", count(Level::Error), count(Level::Warning)));
        text
    }
}
