//! From [`Settings`] to the typed [`Config`]. The only files read here are those that a value names as its content
//! (`json_schema`).

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};
use vgen_backends::mock::MockOptions;
use vgen_core::{Constraint, Fault, SamplingParams};
use vgen_dataset::{DEFAULT_MAX_LINE_BYTES, InputFormat};
use vgen_run::record::Durability;
use vgen_task::TaskConfig;

use crate::keys;
use crate::quantity;
use crate::recorded::Recorded;
use crate::remote;
use crate::settings::{Origin, Settings, invalid};
use crate::table::{BackendTable, Config, Images, Input, LocalTable, Output, Place, Resume, Run};

/// Seconds between lines of progress where there is no terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// The format of OpenAI batch files: JSON lines with requests of their own.
const BATCH: &str = "openai_batch";
/// Input rows of a row group of Parquet.
const ROW_GROUP_ROWS: usize = 10_000;
const CONSTRAINTS: [&str; 3] = ["json_schema", "regex", "choice"];

/// Resolves everything.
///
/// # Errors
/// `config.value`, and the task's own (`task.*`).
pub(crate) fn resolve(settings: &Settings) -> Result<Config, Fault> {
    let backend = backend(settings)?;
    Ok(Config {
        input: input(settings)?,
        output: output(settings)?,
        task: task(settings, &backend)?,
        sampling: sampling(settings)?,
        images: images(settings)?,
        run: run(settings)?,
        backend,
        recorded: Recorded::of(settings),
    })
}

fn place(path: PathBuf) -> Place {
    if path.as_os_str() == "-" { Place::Standard } else { Place::File(path) }
}

fn input(settings: &Settings) -> Result<Input, Fault> {
    let limit = settings.parse_with("input", "limit", |limit: u64| match limit {
        0 => Err("expected 1 or more rows, got 0".to_owned()),
        limit => Ok(limit),
    })?;
    let max_line_bytes = size(settings, "input", "max_line_bytes")?.unwrap_or(DEFAULT_MAX_LINE_BYTES);
    let paths = settings.paths("input", "path")?;
    let place = match paths.as_slice() {
        [] => None,
        [only] => Some(place(only.clone())),
        [first, ..] if paths.iter().all(|path| path.as_os_str() != "-") => Some(Place::File(first.clone())),
        _ => {
            return Err(Fault::stop("usage.input", "standard input can't be one of several inputs")
                .with_hint("name files only, or - alone"));
        }
    };
    let at_least_one = |rows: u64| if rows > 0 { Ok(rows) } else { Err("expected 1 or more rows, got 0".to_owned()) };
    let batch = settings.get("input", "format").is_some_and(|setting| setting.value == BATCH);
    Ok(Input {
        place,
        paths,
        format: match batch {
            true => Some(InputFormat::Jsonl),
            false => settings.parse("input", "format")?,
        },
        batch,
        globs: settings.parse("input", "globs")?.unwrap_or_default(),
        instruction: settings.parse("input", "instruction")?,
        instruction_suffix: settings.parse("input", "instruction_suffix")?,
        skip: settings.parse("input", "skip")?.unwrap_or_default(),
        sample: settings.parse_with("input", "sample", at_least_one)?,
        limit,
        shard: settings.parse_with("input", "shard", |text: String| text.parse())?,
        max_line_bytes,
    })
}

fn output(settings: &Settings) -> Result<Output, Fault> {
    let output = Output {
        place: settings.path("output", "path")?.map_or(Place::Standard, place),
        format: settings.parse("output", "format")?,
        overwrite: settings.parse("output", "overwrite")?.unwrap_or(false),
        resume: settings.parse("output", "resume")?.unwrap_or_default(),
        retry_failed: settings.parse("output", "retry_failed")?.unwrap_or(false),
        only: settings.parse("output", "only")?.unwrap_or_default(),
        durability: Durability {
            interval: settings
                .parse_with("output", "sync_seconds", quantity::seconds)?
                .unwrap_or(Durability::default().interval),
            rows: settings.parse_with("output", "sync_rows", |rows: u64| match rows {
                0 => Err("expected 1 or more rows, got 0".to_owned()),
                rows => Ok(rows),
            })?,
        },
        row_group_rows: settings
            .parse_with("output", "row_group_rows", |rows: usize| match rows {
                0 => Err("expected 1 or more rows, got 0".to_owned()),
                rows => Ok(rows),
            })?
            .unwrap_or(ROW_GROUP_ROWS),
        images: settings.parse("output", "images")?.unwrap_or_default(),
        suffix: settings.parse("output", "sidecar_suffix")?.unwrap_or_else(|| ".txt".to_owned()),
    };
    if output.overwrite && (output.resume == Resume::Require || output.retry_failed) {
        return Err(Fault::stop("config.value", "--overwrite begins anew: it can't go on with a run as well")
            .with_hint("leave out one of them"));
    }
    Ok(output)
}

/// The task's own checks name the parameter; here they also get the place where it stands.
fn task(settings: &Settings, backend: &BackendTable) -> Result<TaskConfig, Fault> {
    let mut table = Map::new();
    for (_, name, setting) in settings.iter().filter(|(table, ..)| *table == "task") {
        let one = Map::from_iter([(name.to_owned(), setting.value.clone())]);
        TaskConfig::from_map(&one).map_err(|error| {
            let fault = Fault::from(error);
            let message = format!("{}: {}", place_of(&setting.origin, "task"), fault.message);
            Fault { message, ..fault }
        })?;
        table.extend(one);
    }
    // Text that stands before the image can't see it in Llama-3.2-Vision.
    if matches!(backend, BackendTable::Local(_)) && !table.contains_key("image_position") {
        table.insert("image_position".to_owned(), Value::from("first"));
    }
    Ok(TaskConfig::from_map(&table)?)
}

fn place_of(origin: &Origin, table: &str) -> String {
    match origin {
        Origin::File(path) => format!("config {}: [{table}]", path.display()),
        origin => origin.to_string(),
    }
}

fn sampling(settings: &Settings) -> Result<SamplingParams, Fault> {
    let table = settings.table("sampling", &CONSTRAINTS);
    for name in table.keys() {
        settings.parse_with("sampling", name, |value: Value| {
            serde_json::from_value::<SamplingParams>(Value::Object(Map::from_iter([(name.clone(), value)])))
                .map_err(|error| error.to_string())
        })?;
    }
    let mut sampling: SamplingParams = serde_json::from_value(Value::Object(table))
        .map_err(|error| Fault::stop("config.value", format!("[sampling]: {error}")))?;
    let mut given = CONSTRAINTS.into_iter().filter(|name| settings.get("sampling", name).is_some());
    if let (Some(first), Some(second)) = (given.next(), given.next()) {
        let message = format!("[sampling]: {first} and {second} exclude each other");
        return Err(Fault::stop("config.value", message).with_hint("keep one of them"));
    }
    sampling.constraint = constraint(settings)?;
    Ok(sampling)
}

fn constraint(settings: &Settings) -> Result<Option<Constraint>, Fault> {
    if let Some(regex) = settings.parse("sampling", "regex")? {
        return Ok(Some(Constraint::Regex(regex)));
    }
    if let Some(choice) = settings.parse("sampling", "choice")? {
        return Ok(Some(Constraint::Choice(choice)));
    }
    match settings.get("sampling", "json_schema").map(|setting| (&setting.value, &setting.origin)) {
        None => Ok(None),
        // A table is the schema itself.
        Some((Value::Object(schema), _)) => Ok(Some(Constraint::JsonSchema(Value::Object(schema.clone())))),
        Some((_, origin)) => {
            let Some(path) = settings.path("sampling", "json_schema")? else { return Ok(None) };
            let schema = std::fs::read_to_string(&path)
                .map_err(|error| error.to_string())
                .and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
            schema.map(|schema| Some(Constraint::JsonSchema(schema))).map_err(|reason| {
                invalid("sampling", "json_schema", origin, &format!("{} can't be read: {reason}", path.display()))
            })
        }
    }
}

fn images(settings: &Settings) -> Result<Images, Fault> {
    Ok(Images {
        max_bytes: size(settings, "images", "max_bytes")?,
        max_pixels: settings.parse("images", "max_pixels")?,
        max_redirects: settings.parse("images", "max_redirects")?,
        retries: settings.parse("images", "retries")?,
        connect_timeout: settings.parse_with("images", "connect_timeout", quantity::seconds)?,
        timeout: settings.parse_with("images", "timeout", quantity::seconds)?,
        allow_private_addresses: settings.parse("images", "allow_private_addresses")?,
    })
}

fn run(settings: &Settings) -> Result<Run, Fault> {
    Ok(Run {
        row_timeout: settings.parse_with("run", "row_timeout", quantity::seconds)?,
        window: settings.parse_with("run", "window", |window: usize| match window {
            0 => Err("expected 1 or more requests, got 0".to_owned()),
            window => Ok(window),
        })?,
        max_errors: settings.parse_with("run", "max_errors", |value: Value| match &value {
            Value::String(text) => text.parse(),
            value => value.to_string().parse(),
        })?,
        quiet: settings.parse("run", "quiet")?.unwrap_or(false),
        stats: settings.path("run", "stats")?,
        progress: settings.parse("run", "progress")?.unwrap_or_default(),
        lint: settings.parse("run", "lint")?.unwrap_or_default(),
        progress_interval: settings
            .parse_with("run", "progress_interval", quantity::seconds)?
            .unwrap_or(PROGRESS_INTERVAL),
    })
}

fn backend(settings: &Settings) -> Result<BackendTable, Fault> {
    let kind: Option<String> = settings.parse("backend", "kind")?;
    let Some(kind) = kind else { return Ok(BackendTable::None) };
    let known = keys::backend(&kind).unwrap_or_default();
    let foreign =
        settings.iter().find(|(table, name, _)| *table == "backend" && known.iter().all(|key| key.name != *name));
    if let Some((_, name, setting)) = foreign {
        let message = format!("{}: a backend of kind {kind:?} has no {name}", setting.origin);
        return Err(Fault::stop("config.value", message).with_hint("leave it out, or choose another backend"));
    }
    match kind.as_str() {
        "local" => Ok(BackendTable::Local(Box::new(local(settings)?))),
        "inference-endpoints" => Ok(BackendTable::Remote(Box::new(remote::table::resolve(settings)?))),
        _ => Ok(BackendTable::Mock(mock(settings)?)),
    }
}

fn local(settings: &Settings) -> Result<LocalTable, Fault> {
    let at_least_one =
        |number: usize| if number > 0 { Ok(number) } else { Err("expected 1 or more, got 0".to_owned()) };
    Ok(LocalTable {
        model: model(settings)?,
        revision: settings.parse("backend", "revision")?,
        device: settings.parse("backend", "device")?,
        devices: settings.parse("backend", "devices")?.unwrap_or_default(),
        fixed_shapes: settings.parse("backend", "fixed_shapes")?,
        dtype: settings.parse("backend", "dtype")?,
        tensor_types: settings.parse("backend", "tensor_types")?.unwrap_or_default(),
        kv_dtype: settings.parse("backend", "kv_dtype")?,
        reference: settings.parse("backend", "reference")?,
        batch_size: settings.parse_with("backend", "batch_size", at_least_one)?,
        step_tokens: settings.parse_with("backend", "step_tokens", at_least_one)?,
        threads: settings.parse_with("backend", "threads", at_least_one)?,
        prepare_threads: settings.parse_with("backend", "prepare_threads", at_least_one)?,
        image_cache: size(settings, "backend", "image_cache")?,
        memory: size(settings, "backend", "memory")?,
        chat_template: settings.parse("backend", "chat_template")?,
        date: settings.parse("backend", "date")?,
    })
}

/// A model in a config file is a folder relative to it if there is one, else a name on the hub.
fn model(settings: &Settings) -> Result<Option<String>, Fault> {
    let Some(model) = settings.parse::<String>("backend", "model")? else { return Ok(None) };
    let folder = settings.path("backend", "model")?.filter(|path| path.is_dir());
    Ok(Some(folder.and_then(|path| path.to_str().map(str::to_owned)).unwrap_or(model)))
}

fn mock(settings: &Settings) -> Result<MockOptions, Fault> {
    let table = settings.table("backend", &["kind"]);
    for name in table.keys() {
        settings.parse_with("backend", name, |value: Value| {
            serde_json::from_value::<MockOptions>(Value::Object(Map::from_iter([(name.clone(), value)])))
                .map_err(|error| error.to_string())
        })?;
    }
    serde_json::from_value(Value::Object(table))
        .map_err(|error| Fault::stop("config.value", format!("[backend]: {error}")))
}

/// A size in bytes, as a number or as text with a unit.
fn size(settings: &Settings, table: &str, name: &str) -> Result<Option<u64>, Fault> {
    settings.parse_with(table, name, |value: Value| match &value {
        Value::String(text) => quantity::bytes(text),
        value => value.as_u64().ok_or_else(|| format!("expected a size in bytes, got {value}")),
    })
}
