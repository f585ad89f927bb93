//! [`Output`]: an output of any format that vgen writes, with what its run record says.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vgen_core::{Fault, Row};
use vgen_dataset::{InputOptions, OutputFormat, OutputLayout, RowSource, SidecarOptions};

use super::row::{Names, Place, Reader, Shown};
use super::sidecar::Sidecars;
use crate::record::{
    FailedRow, RECORD_VERSION, RecordError, RowTimings, RunFolder, RunRecord, failed_rows, row_timings,
};

/// An output, not yet read.
pub(super) struct Output {
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) record: Option<RunRecord>,
    pub(super) names: Names,
    /// Rows that can be read.
    pub(super) rows: usize,
    pub(super) warnings: Vec<String>,
    failed: HashMap<u64, FailedRow>,
    timings: BTreeMap<u64, RowTimings>,
}

impl Output {
    /// Looks for the output and its record. A run that goes on may be looked at, too: nothing is locked.
    pub(super) fn find(path: &Path, image_column: Option<&str>) -> Result<Self, Fault> {
        // Without a slash at the end.
        let path: PathBuf = path.components().collect();
        let folder = RunFolder::path_of(&path);
        let inner = path.join(".run");
        let folder = if !folder.is_dir() && inner.is_dir() { inner } else { folder };
        let record = read_record(&folder.join("run.json"))?;
        let failed = failed_rows(&folder.join("failed.jsonl")).unwrap_or_default();
        let mut warnings = Vec::new();
        if record.is_none() {
            warnings
                .push("there is no run record beside the output: times, settings and counts are not known".to_owned());
        }
        let mut names = Names::of(record.as_ref());
        if let Some(column) = image_column {
            column.clone_into(&mut names.image);
        }
        Ok(Self {
            name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
            names,
            rows: 0,
            warnings,
            failed: failed.into_iter().map(|row| (row.sequence, row)).collect(),
            timings: row_timings(&folder.join("timings.jsonl")),
            record,
            path,
        })
    }

    fn format(&self) -> OutputFormat {
        match &self.record {
            Some(record) => record.layout.format,
            None if self.path.is_dir() => OutputFormat::Sidecar,
            None => OutputFormat::of_path(&self.path),
        }
    }

    /// The output rows, one after the other.
    pub(super) fn source(&self) -> Result<Box<dyn RowSource>, Fault> {
        let format = self.format();
        if format == OutputFormat::Sidecar {
            return Ok(Box::new(self.sidecars()?));
        }
        let plain = OutputLayout { format, columns: Vec::new(), group_rows: 1 };
        self.record.as_ref().map_or(&plain, |record| &record.layout).read(&self.path)
    }

    fn sidecars(&self) -> Result<Sidecars, Fault> {
        let setting =
            |table: &str, name: &str| self.names.setting(table, name).and_then(Value::as_str).map(str::to_owned);
        let images = self.input_files().into_iter().next().unwrap_or_else(|| self.path.clone());
        let mut folder = InputOptions::default().folder;
        folder.image_column = self.names.image.clone();
        folder.instruction_column =
            self.names.columns.first().map_or_else(|| "instruction".to_owned(), |(_, column)| column.clone());
        folder.instruction = setting("input", "instruction").filter(|text| !text.starts_with('<'));
        folder.instruction_suffix = setting("input", "instruction_suffix").filter(|text| !text.starts_with('<'));
        folder.globs = self
            .names
            .setting("input", "globs")
            .and_then(|globs| serde_json::from_value(globs.clone()).ok())
            .unwrap_or_default();
        let sidecars = SidecarOptions {
            folder: self.path.clone(),
            suffix: setting("output", "sidecar_suffix").unwrap_or_else(|| ".txt".to_owned()),
            image_column: self.names.image.clone(),
            answer_column: self.names.generation.clone(),
        };
        let codes = self.failed.values().map(|row| (row.number, row.codes.clone())).collect();
        Sidecars::open(&images, folder, sidecars, self.names.error.clone(), codes)
    }

    /// The rows as the report shows them.
    pub(super) fn shown_rows(&self) -> Result<ShownRows<'_>, Fault> {
        Ok(ShownRows {
            source: self.source()?,
            output: self,
            reader: Reader::new(&self.names, self.image_folders(), self.batch_input()),
            left: self.rows,
            sequence: 0,
            // The first row takes up sequence 0.
            in_sequence: 0,
        })
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// The files and folders of the input. Their paths were relative to where the run was begun, which is often the
    /// output's folder.
    fn input_files(&self) -> Vec<PathBuf> {
        let located = |path: &PathBuf| {
            let beside = self.folder().join(path);
            if !path.exists() && beside.exists() { beside } else { path.clone() }
        };
        self.record.iter().flat_map(|record| &record.input.files).map(|file| located(&file.path)).collect()
    }

    /// What relative paths of images may be relative to.
    fn image_folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = Vec::new();
        let inputs = self.input_files().into_iter().map(|path| match path.is_dir() {
            true => path,
            false => path.parent().unwrap_or(Path::new("")).to_owned(),
        });
        let own = self.folder().to_owned();
        for folder in inputs.chain([own, PathBuf::new()]) {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        folders
    }

    /// The requests that a batch output answers, if they are still there.
    fn batch_input(&self) -> Option<Box<dyn RowSource>> {
        let paths = self.input_files();
        let options = InputOptions { max_line_bytes: Some(u64::MAX >> 1), ..InputOptions::default() };
        if self.format() != OutputFormat::Jsonl || paths.is_empty() || paths.iter().any(|path| !path.is_file()) {
            return None;
        }
        vgen_dataset::open(&paths, &options).ok()
    }

    /// How many output rows a row of the input has.
    fn output_rows(&self, sequence: u64) -> u64 {
        let usual = self.record.as_ref().map_or(1, |record| record.rows_per_input);
        self.failed.get(&sequence).map_or(usual, |row| row.output_rows)
    }
}

fn read_record(path: &Path) -> Result<Option<RunRecord>, Fault> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Io { path: path.to_owned(), verb: "read", source }.into()),
        Ok(text) => text,
    };
    let broken = |error: serde_json::Error| RecordError::Broken { path: path.to_owned(), what: error.to_string() };
    let value: Value = serde_json::from_str(&text).map_err(broken)?;
    match value.get("version").and_then(Value::as_u64) {
        Some(found) if found > RECORD_VERSION => {
            Err(RecordError::Version { path: path.to_owned(), found, known: RECORD_VERSION }.into())
        }
        _ => Ok(Some(serde_json::from_value(value).map_err(broken)?)),
    }
}

/// Reads on; what can't be read ends an output that is being written, or was torn, but does not make it worthless.
pub(super) fn next_or_end(
    source: &mut dyn RowSource,
    rows: usize,
    warnings: &mut Vec<String>,
) -> Result<Option<Result<Row, Fault>>, Fault> {
    match source.next_row() {
        Ok(row) => Ok(row.map(|row| row.row)),
        Err(fault) if rows > 0 => {
            warnings.push(format!("reading ended after {rows} rows: {}", fault.message));
            Ok(None)
        }
        Err(fault) => Err(fault),
    }
}

/// The rows of an output with what is known about each.
pub(super) struct ShownRows<'a> {
    source: Box<dyn RowSource>,
    output: &'a Output,
    reader: Reader<'a>,
    left: usize,
    sequence: u64,
    in_sequence: u64,
}

impl ShownRows<'_> {
    /// The next row, read if it is wanted.
    pub(super) fn next(&mut self, wanted: bool) -> Result<Option<Option<Shown>>, Fault> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let Some(row) = self.source.next_row()?.map(|row| row.row) else { return Ok(None) };
        while self.in_sequence >= self.output.output_rows(self.sequence) {
            self.sequence += 1;
            self.in_sequence = 0;
        }
        let place = Place {
            sequence: self.sequence,
            sample: self.in_sequence,
            samples: self.output.output_rows(self.sequence),
            timings: self.output.timings.get(&self.sequence).copied(),
        };
        self.in_sequence += 1;
        if !wanted {
            return Ok(Some(None));
        }
        Ok(Some(Some(self.reader.read(row, place))))
    }
}
