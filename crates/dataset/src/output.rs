//! [`OutputLayout`]: from a format and columns to the sink of a file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use vgen_core::Fault;

use crate::columns::{Column, ColumnType};
use crate::csv::CsvLines;
use crate::file_sink::Format;
use crate::jsonl::Lines;
use crate::jsonl::compression::Compression;
use crate::parquet::RowGroups;
use crate::{DatasetError, FileSink, InputFormat, InputOptions, Mark, RowSource, SourceRow, open};

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
}

impl OutputLayout {
    /// Opens a file for a new output.
    ///
    /// # Errors
    /// `output.open`
    pub fn create(&self, path: &Path) -> Result<FileSink, Fault> {
        FileSink::create(path, self.writer(path))
    }

    /// Goes on with a file behind `mark`.
    ///
    /// # Errors
    /// `output.open`, `output.write`
    pub fn resume(&self, path: &Path, mark: Mark) -> Result<FileSink, Fault> {
        FileSink::resume(path, self.writer(path), mark)
    }

    /// The rows of a file that was written so, as they were given to its sink.
    ///
    /// # Errors
    /// `input.*`
    pub fn read(&self, path: &Path) -> Result<Box<dyn RowSource>, Fault> {
        let format = match self.format {
            OutputFormat::Csv => InputFormat::Csv,
            OutputFormat::Parquet => InputFormat::Parquet,
            OutputFormat::Jsonl | OutputFormat::Sidecar => InputFormat::Jsonl,
        };
        // Lines may be as long as the run made them.
        let options =
            InputOptions { format: Some(format), max_line_bytes: Some(u64::MAX >> 1), ..InputOptions::default() };
        let source = open(&[path.to_owned()], &options)?;
        if format != InputFormat::Parquet {
            return Ok(source);
        }
        let json = self.columns.iter().filter(|column| column.kind == ColumnType::Json);
        Ok(Box::new(Unpacked { source, json: json.map(|column| column.name.clone()).collect() }))
    }

    fn writer(&self, path: &Path) -> Box<dyn Format> {
        let compression = Compression::of_path(path);
        match self.format {
            OutputFormat::Jsonl | OutputFormat::Sidecar => Box::new(Lines::new(compression)),
            OutputFormat::Csv => {
                let name = path.to_string_lossy();
                let plain = name.trim_end_matches(".gz").trim_end_matches(".zst");
                let separator = if plain.ends_with(".tsv") { b'\t' } else { b',' };
                Box::new(CsvLines::new(&self.columns, separator, compression))
            }
            OutputFormat::Parquet => Box::new(RowGroups::new(self.columns.clone(), self.group_rows.max(1))),
        }
    }
}

/// Parquet whose columns of JSON text are values again.
struct Unpacked {
    source: Box<dyn RowSource>,
    json: Vec<String>,
}

impl RowSource for Unpacked {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn folder(&self) -> Option<&Path> {
        self.source.folder()
    }

    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        let Some(mut row) = self.source.next_row()? else { return Ok(None) };
        if let Ok(row) = &mut row.row {
            for name in &self.json {
                let text = row.text(name).and_then(|text| RawValue::from_string(text.into_owned()).ok());
                if let Some(value) = text {
                    row.set_raw(name.as_str(), value);
                }
            }
        }
        Ok(Some(row))
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
