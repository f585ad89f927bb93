//! The rows of a run, as the configuration describes them.

use std::path::PathBuf;

use vgen_core::Fault;
use vgen_dataset::{FolderOptions, InputOptions, RowSource, Selected, Selection, expand, open, stdin};

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

/// Opens the input.
///
/// # Errors
/// `usage.input`, `input.*`
pub(crate) fn source(config: &Config) -> Result<Box<dyn RowSource>, Fault> {
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
        Some(Place::Standard) => stdin(&options),
        Some(Place::File(_)) => open(&paths(config)?, &options),
    }
}

/// The input's column of images.
pub(crate) fn image_column(config: &Config) -> String {
    let column = config.task.image_column.as_deref().unwrap_or("image");
    config.task.input_mappings.get(column).map_or(column, String::as_str).to_owned()
}
