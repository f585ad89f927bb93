//! The rows of a run, as the configuration describes them.

use std::path::PathBuf;

use serde_json::json;
use vgen_core::Fault;
use vgen_dataset::{FolderOptions, InputFormat, InputOptions, RowSource, Selected, Selection, expand, open, stdin};

use vgen_task::{ImagePosition, OpenAiBatch};

use crate::demo;
use crate::table::{Config, Place};

/// The files and folders of the input; none for standard input.
///
/// # Errors
/// `input.*`
pub(crate) fn paths(config: &Config) -> Result<Vec<PathBuf>, Fault> {
    match config.input.place {
        Some(Place::File(_)) => expand(&config.input.paths),
        _ => Ok(Vec::new()),
    }
}

/// The first rows of the input, whatever is sampled of it: drawing a sample takes a pass over all rows.
///
/// # Errors
/// `usage.input`, `input.*`
pub(crate) fn head(config: &Config) -> Result<Box<dyn RowSource>, Fault> {
    let selection = Selection { skip: config.input.skip, limit: config.input.limit, ..Selection::default() };
    Ok(Box::new(Selected::new(all(config)?, selection, || Ok(0))?))
}

/// Opens the input.
///
/// # Errors
/// `usage.input`, `input.*`
pub(crate) fn source(config: &Config) -> Result<Box<dyn RowSource>, Fault> {
    selected(config, all)
}

/// The demo's samples, chosen from as from any input.
///
/// # Errors
/// `config.value` if the configuration describes files.
pub(crate) fn samples(config: &Config) -> Result<Box<dyn RowSource>, Fault> {
    without_effect(config, &["format", "globs", "instruction", "instruction_suffix"], "the demo's samples")?;
    selected(config, |_| Ok(Box::new(demo::samples()?)))
}

/// The configured share of the rows that `all` opens.
fn selected(
    config: &Config,
    all: fn(&Config) -> Result<Box<dyn RowSource>, Fault>,
) -> Result<Box<dyn RowSource>, Fault> {
    let input = &config.input;
    let seed = config.sampling.seed.unwrap_or_default();
    let selection = Selection {
        skip: input.skip,
        sample: input.sample.map(|rows| (rows, seed)),
        limit: input.limit,
        shard: input.shard,
    };
    let source = all(config)?;
    if selection.is_all() {
        return Ok(source);
    }
    let count = || {
        if input.place == Some(Place::Standard) {
            let reason = "a sample is drawn from all rows, which must be counted first";
            return Err(vgen_dataset::DatasetError::InputStandard(reason).into());
        }
        Ok(all(config)?.skip(u64::MAX)?.rows)
    };
    Ok(Box::new(Selected::new(source, selection, count)?))
}

/// All rows of the input.
fn all(config: &Config) -> Result<Box<dyn RowSource>, Fault> {
    let input = &config.input;
    let mapped = |column: &str| {
        config.task.input_mappings.get(column).map_or_else(|| column.to_owned(), |mapped| mapped.clone())
    };
    let options = InputOptions {
        format: input.format,
        max_line_bytes: Some(input.max_line_bytes),
        folder: FolderOptions {
            globs: input.globs.clone(),
            instruction: input.instruction.clone(),
            instruction_suffix: input.instruction_suffix.clone(),
            image_column: image_column(config),
            instruction_column: mapped("instruction"),
        },
    };
    match &input.place {
        None => Err(Fault::stop("usage.input", "no input is named")
            .with_hint("name a file, a pattern or a folder of images with --input, or - for standard input")),
        Some(Place::Standard) => {
            without_effect(config, &FOLDER_KEYS, "standard input")?;
            stdin(&options)
        }
        Some(Place::File(_)) => {
            let paths = paths(config)?;
            if input.format != Some(InputFormat::Images) && !paths.iter().any(|path| path.is_dir()) {
                without_effect(config, &FOLDER_KEYS, "files of rows")?;
            }
            open(&paths, &options)
        }
    }
}

/// What is for folders of images alone.
const FOLDER_KEYS: [&str; 3] = ["globs", "instruction", "instruction_suffix"];

/// Refuses what is set of `keys`, since `input` has no use for it.
fn without_effect(config: &Config, keys: &[&str], input: &str) -> Result<(), Fault> {
    let is_set = |name: &str| {
        let setting = config.recorded.config.get(name)?;
        let nothing = setting.origin == "default" || setting.value == json!([]) || setting.value.is_null();
        (!nothing).then_some(&setting.origin)
    };
    for name in keys.iter().map(|key| format!("input.{key}")) {
        if let Some(origin) = is_set(&name) {
            let message = format!("{origin}: {name} has no effect on {input}");
            return Err(
                Fault::stop("config.value", message).with_hint("leave it out, or name a folder of images as the input")
            );
        }
    }
    Ok(())
}

/// What asks the requests of an OpenAI batch file, if the rows are such.
///
/// # Errors
/// As [`is_batch`].
pub(crate) fn batch(config: &Config) -> Result<Option<OpenAiBatch>, Fault> {
    let image_position = config.task.image_position.unwrap_or(ImagePosition::AsGiven);
    Ok(is_batch(config)?.then_some(OpenAiBatch { image_position }))
}

/// Whether the rows are requests of an OpenAI batch file. Standard input can't be looked at twice: there it must be said.
///
/// # Errors
/// `input.*`; `config.value` if the task is configured although the requests say everything.
pub(crate) fn is_batch(config: &Config) -> Result<bool, Fault> {
    let told = config.input.batch;
    let looks = || -> Result<bool, Fault> {
        if config.input.format.is_some() || !matches!(config.input.place, Some(Place::File(_))) {
            return Ok(false);
        }
        let first = all(config)?.next_row()?.and_then(|row| row.row.ok());
        Ok(first.is_some_and(|row| OpenAiBatch::is_request(&row)))
    };
    if !told && !looks()? {
        return Ok(false);
    }
    let set = config.recorded.config.iter().find(|(name, setting)| {
        name.starts_with("task.") && setting.origin != "default" && name.as_str() != "task.image_position"
    });
    match set {
        Some((name, setting)) if told => {
            let message = format!("{}: {name} has no effect on the requests of a batch file", setting.origin);
            Err(Fault::stop("config.value", message).with_hint("leave it out: each request has its own messages"))
        }
        // Columns and template are for rows; with these, it is rows.
        set => Ok(set.is_none()),
    }
}

/// The input's column of images.
pub(crate) fn image_column(config: &Config) -> String {
    let column = config.task.image_column.as_deref().unwrap_or("image");
    config.task.input_mappings.get(column).map_or(column, String::as_str).to_owned()
}
