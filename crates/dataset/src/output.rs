//! [`OutputLayout`]: from a format and columns to the sink of a file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vgen_core::Fault;

use crate::columns::Column;
use crate::csv::CsvLines;
use crate::file_sink::Format;
use crate::jsonl::Lines;
use crate::jsonl::compression::Compression;
use crate::parquet::{ParquetLayout, RowGroups};
use crate::{DatasetError, FileSink, Mark};

/// What an output is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputFormat {
    /// JSON lines; compressed if the name ends in `.gz` or `.zst`.
    Jsonl,
    /// CSV, tabs in files called `.tsv`; compressed as JSON lines.
    Csv,
    /// Parquet.
    Parquet,
    /// A text file beside each image.
    Sidecar,
}

impl OutputFormat {
    /// By the name of a file.
    pub fn of_path(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
        match plain.rsplit_once('.').map(|(_, extension)| extension) {
            Some("csv" | "tsv") => Self::Csv,
            Some("parquet") => Self::Parquet,
            _ => Self::Jsonl,
        }
    }

    /// Whether the columns must be known before the first row.
    pub fn has_schema(self) -> bool {
        matches!(self, Self::Csv | Self::Parquet)
    }
}

/// What decides the bytes of an output file, besides its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLayout {
    /// The format.
    pub format: OutputFormat,
    /// The columns, for formats with a schema.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<Column>,
    /// Input rows of a row group of Parquet.
    pub group_rows: usize,
    /// The image column, if references stand in for its images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_column: Option<String>,
}

impl OutputLayout {
    /// Opens a file for a new output; `folder` is what relative paths of images to embed are relative to.
    ///
    /// # Errors
    /// `output.open`
    pub fn create(&self, path: &Path, folder: Option<PathBuf>) -> Result<FileSink, Fault> {
        FileSink::create(path, self.writer(path, folder))
    }

    /// Goes on with a file behind `mark`.
    ///
    /// # Errors
    /// `output.open`, `output.write`
    pub fn resume(&self, path: &Path, folder: Option<PathBuf>, mark: Mark) -> Result<FileSink, Fault> {
        FileSink::resume(path, self.writer(path, folder), mark)
    }

    fn writer(&self, path: &Path, folder: Option<PathBuf>) -> Box<dyn Format> {
        let compression = Compression::of_path(path);
        match self.format {
            OutputFormat::Jsonl | OutputFormat::Sidecar => Box::new(Lines::new(compression)),
            OutputFormat::Csv => {
                let name = path.to_string_lossy();
                let plain = name.trim_end_matches(".gz").trim_end_matches(".zst");
                let separator = if plain.ends_with(".tsv") { b'\t' } else { b',' };
                Box::new(CsvLines::new(&self.columns, separator, compression))
            }
            OutputFormat::Parquet => {
                let layout = ParquetLayout {
                    columns: self.columns.clone(),
                    group_rows: self.group_rows.max(1),
                    reference_column: self.reference_column.clone(),
                    folder,
                };
                Box::new(RowGroups::new(layout, path.to_string_lossy().into_owned()))
            }
        }
    }
}

/// Refuses an output that is one of the inputs, under whatever name.
///
/// # Errors
/// `output.is_input`
pub fn check_is_no_input(output: &Path, inputs: &[PathBuf]) -> Result<(), Fault> {
    let same = inputs.iter().find(|input| same_file::is_same_file(output, input).unwrap_or(false));
    match same {
        Some(input) => Err(DatasetError::OutputIsInput { output: output.to_owned(), input: input.clone() }.into()),
        None => Ok(()),
    }
}
