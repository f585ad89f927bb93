//! From paths, patterns and folders to one source of rows.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use globset::GlobBuilder;
use serde::{Deserialize, Serialize};
use vgen_core::Fault;
use walkdir::WalkDir;

use crate::chain::{Chain, Opener};
use crate::{CsvSource, DatasetError, FolderOptions, ImageFolder, JsonlOptions, JsonlSource, ParquetSource, RowSource};

/// What an input is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputFormat {
    /// JSON lines, plain, gzip or zstd.
    Jsonl,
    /// CSV with a header, plain, gzip or zstd.
    Csv,
    /// Parquet.
    Parquet,
    /// A folder of images.
    Images,
}

/// How inputs are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputOptions {
    /// The format; by name and content unless given.
    pub format: Option<InputFormat>,
    /// Longest line of JSON lines, [`crate::DEFAULT_MAX_LINE_BYTES`] unless given.
    pub max_line_bytes: Option<u64>,
    /// How folders of images are read.
    pub folder: FolderOptions,
}

impl InputOptions {
    fn jsonl(&self) -> JsonlOptions {
        match self.max_line_bytes {
            Some(max_line_bytes) => JsonlOptions { max_line_bytes },
            None => JsonlOptions::default(),
        }
    }
}

/// The files and folders that paths and patterns stand for, each pattern's in order of path.
///
/// # Errors
/// `input.glob`, `input.no_match`, `input.open`.
pub fn expand(patterns: &[PathBuf]) -> Result<Vec<PathBuf>, Fault> {
    let mut paths = Vec::new();
    for pattern in patterns {
        let text = pattern.to_string_lossy();
        // A file that is called so is meant, whatever its name looks like.
        if !text.contains(['*', '?', '[', '{']) || pattern.exists() {
            paths.push(pattern.clone());
            continue;
        }
        let found = matches(pattern, &text)?;
        if found.is_empty() {
            return Err(DatasetError::InputNoMatch(text.into_owned()).into());
        }
        paths.extend(found);
    }
    Ok(paths)
}

fn matches(pattern: &Path, text: &str) -> Result<Vec<PathBuf>, DatasetError> {
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    let glob =
        glob.map_err(|error| DatasetError::InputGlob { pattern: text.to_owned(), what: error.kind().to_string() })?;
    let matcher = glob.compile_matcher();
    let is_plain = |part: &Component<'_>| !part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']);
    let root: PathBuf = pattern.components().take_while(is_plain).collect();
    let start = if root.as_os_str().is_empty() { Path::new(".") } else { root.as_path() };
    let deep = if text.contains("**") { usize::MAX } else { pattern.components().count() - root.components().count() };
    let mut found = Vec::new();
    for entry in WalkDir::new(start).max_depth(deep).follow_links(true) {
        // What can't be looked into can't be meant by a pattern.
        let Ok(entry) = entry else { continue };
        let path = if root.as_os_str().is_empty() {
            entry.path().strip_prefix(".").unwrap_or(entry.path())
        } else {
            entry.path()
        };
        if entry.file_type().is_file() && matcher.is_match(path) {
            found.push(path.to_owned());
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Opens files and folders as one source. The first is opened at once, so that a missing, empty or foreign file is found
/// before anything expensive starts; that the others exist is checked.
///
/// # Errors
/// `input.*`
pub fn open(paths: &[PathBuf], options: &InputOptions) -> Result<Box<dyn RowSource>, Fault> {
    let Some((first, rest)) = paths.split_first() else {
        return Err(DatasetError::InputEmpty("of no files".to_owned()).into());
    };
    if let Some(missing) = rest.iter().find(|path| !path.exists()) {
        return Err(DatasetError::InputMissing(missing.clone()).into());
    }
    if rest.is_empty() {
        return open_one(first, options);
    }
    let opener = |path: &PathBuf| -> Opener {
        let (path, options) = (path.clone(), options.clone());
        Box::new(move || match open_one(&path, &options) {
            Ok(source) => Ok(Some(source)),
            // One of several files may be empty.
            Err(fault) if fault.code == "input.empty" => Ok(None),
            Err(fault) => Err(fault),
        })
    };
    let mut openers: VecDeque<Opener> = paths.iter().map(opener).collect();
    while let Some(open) = openers.pop_front() {
        if let Some(source) = open()? {
            let name = format!("{} and {} more", first.display(), rest.len());
            return Ok(Box::new(Chain::new(name, source, openers)));
        }
    }
    Err(DatasetError::InputEmpty(first.to_string_lossy().into_owned()).into())
}

fn open_one(path: &Path, options: &InputOptions) -> Result<Box<dyn RowSource>, Fault> {
    Ok(match options.format.unwrap_or_else(|| format_of(path)) {
        InputFormat::Jsonl => Box::new(JsonlSource::open(path, options.jsonl())?),
        InputFormat::Csv => Box::new(CsvSource::open(path)?),
        InputFormat::Parquet => Box::new(ParquetSource::open(path)?),
        InputFormat::Images => match ImageFolder::open(path, options.folder.clone()) {
            Err(fault)
                if fault.code == "input.empty" && options.format.is_none() && options.folder.globs.is_empty() =>
            {
                return Err(DatasetError::InputIsFolder(path.to_owned()).into());
            }
            folder => Box::new(folder?),
        },
    })
}

/// Standard input as a source; nothing is read in advance but what the format needs.
///
/// # Errors
/// `input.standard`, `input.read`.
pub fn stdin(options: &InputOptions) -> Result<Box<dyn RowSource>, Fault> {
    match options.format {
        None | Some(InputFormat::Jsonl) => Ok(Box::new(JsonlSource::stdin(options.jsonl())?)),
        Some(InputFormat::Csv) => Ok(Box::new(CsvSource::from_reader(std::io::stdin(), "stdin", b',')?)),
        Some(InputFormat::Parquet) => Err(DatasetError::InputStandard("Parquet is read from its end").into()),
        Some(InputFormat::Images) => Err(DatasetError::InputStandard("it is no folder").into()),
    }
}

/// By what it is, its name, or its first bytes.
fn format_of(path: &Path) -> InputFormat {
    if path.is_dir() {
        return InputFormat::Images;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    match plain.rsplit_once('.').map(|(_, extension)| extension) {
        Some("csv" | "tsv") => return InputFormat::Csv,
        Some("parquet") => return InputFormat::Parquet,
        Some("jsonl" | "json" | "ndjson") => return InputFormat::Jsonl,
        _ => {}
    }
    let mut magic = [0; 4];
    // A pipe's first bytes can be read only once.
    let regular = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    match regular && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && &magic == b"PAR1" {
        true => InputFormat::Parquet,
        false => InputFormat::Jsonl,
    }
}
