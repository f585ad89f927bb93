//! [`DatasetError`]: what can be wrong with an input or an output.

use std::io;
use std::path::PathBuf;

use vgen_core::{Fault, FaultClass};

use crate::Origin;

/// What can be wrong with an input or an output.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// There is no such file.
    #[error("input {} does not exist", .0.display())]
    InputMissing(PathBuf),
    /// The input is a folder.
    #[error("input {} is a folder", .0.display())]
    InputIsFolder(PathBuf),
    /// The input can't be opened.
    #[error("input {} can't be opened: {source}", path.display())]
    InputOpen {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no row in it.
    #[error("input {0} has no rows")]
    InputEmpty(String),
    /// Not JSON lines at all.
    #[error("input {name} is not JSON lines: {what}")]
    InputFormat {
        /// Which file.
        name: String,
        /// What it looks like.
        what: &'static str,
        /// How to convert it.
        hint: &'static str,
    },
    /// Not Parquet, or broken.
    #[error("input {name} is no Parquet file that can be read: {what}")]
    InputParquet {
        /// Which file.
        name: String,
        /// What the reader said.
        what: String,
    },
    /// A pattern for file names that is none.
    #[error("{pattern:?} is no pattern for paths: {what}")]
    InputGlob {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        what: String,
    },
    /// A pattern that no file matches.
    #[error("no file matches {0:?}")]
    InputNoMatch(String),
    /// Standard input can't be read twice, or not in this format.
    #[error("standard input can't be used: {0}")]
    InputStandard(&'static str),
    /// Reading broke off.
    #[error("{origin}: reading failed: {source}")]
    InputRead {
        /// How far it got.
        origin: Origin,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The line is no JSON object.
    #[error("{origin}: {what}")]
    RowJson {
        /// Which line.
        origin: Origin,
        /// What the parser said, with the column.
        what: String,
        /// The line holds a bare `NaN` or `Infinity`.
        not_a_number: bool,
    },
    /// The line has not as many values as the header has names.
    #[error("{origin}: {what}")]
    RowCsv {
        /// Which line.
        origin: Origin,
        /// How many of each.
        what: String,
    },
    /// The line is not UTF-8.
    #[error("{origin}: byte {byte} of the line is not UTF-8")]
    RowUtf8 {
        /// Which line.
        origin: Origin,
        /// Its first bad byte, from 1.
        byte: usize,
    },
    /// The line is longer than allowed.
    #[error("{origin}: the line is longer than {limit} bytes")]
    RowTooLong {
        /// Which line.
        origin: Origin,
        /// What is allowed.
        limit: u64,
    },
    /// There is something in the output file already.
    #[error("output {} exists already", .0.display())]
    OutputExists(PathBuf),
    /// Output and input are one file.
    #[error("output {} is the same file as input {}", output.display(), input.display())]
    OutputIsInput {
        /// The output's path.
        output: PathBuf,
        /// The input's path.
        input: PathBuf,
    },
    /// Another run writes there.
    #[error("output {} is being written by another run{who}", path.display())]
    OutputLocked {
        /// The output's path.
        path: PathBuf,
        /// Which run, as far as it is known.
        who: String,
    },
    /// The output can't be opened.
    #[error("output {} can't be written: {source}", path.display())]
    OutputOpen {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Writing broke off.
    #[error("writing to {name} failed: {source}")]
    OutputWrite {
        /// Which file.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A row can't be put in the output's form.
    #[error("a row can't be written to {name}: {what}")]
    OutputRow {
        /// Which file.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The reader of the pipe went away.
    #[error("the reader of {0} went away")]
    OutputClosed(String),
}

impl DatasetError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InputMissing(_) => "input.missing",
            Self::InputIsFolder(_) => "input.folder",
            Self::InputOpen { .. } => "input.open",
            Self::InputEmpty(_) => "input.empty",
            Self::InputFormat { .. } => "input.format",
            Self::InputParquet { .. } => "input.parquet",
            Self::InputGlob { .. } => "input.glob",
            Self::InputNoMatch(_) => "input.no_match",
            Self::InputStandard(_) => "input.standard",
            Self::InputRead { .. } => "input.read",
            Self::RowJson { .. } => "row.json",
            Self::RowCsv { .. } => "row.csv",
            Self::RowUtf8 { .. } => "row.utf8",
            Self::RowTooLong { .. } => "row.too_long",
            Self::OutputExists(_) => "output.exists",
            Self::OutputIsInput { .. } => "output.is_input",
            Self::OutputLocked { .. } => "output.locked",
            Self::OutputOpen { .. } => "output.open",
            Self::OutputWrite { .. } => "output.write",
            Self::OutputRow { .. } => "output.row",
            Self::OutputClosed(_) => "output.closed",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::InputIsFolder(_) => "it has no images; name files in it, for example --input 'folder/*.jsonl'".into(),
            Self::InputParquet { .. } => "write it again, or name another file".into(),
            Self::InputNoMatch(_) => "quote the pattern, so that the shell leaves it alone".into(),
            Self::InputStandard(_) => "save it to a file and name that".into(),
            Self::RowCsv { .. } => "quote values that hold the separator or line ends".into(),
            Self::InputFormat { hint, .. } => (*hint).into(),
            Self::RowJson { not_a_number: true, .. } => {
                "NaN and Infinity are not JSON; write null (Python: json.dumps(..., allow_nan=False) finds them)".into()
            }
            Self::RowUtf8 { .. } => "convert the file, for example: iconv -f latin1 -t utf-8".into(),
            Self::RowTooLong { .. } => "raise --max-line-bytes, or put images in files instead of in the row".into(),
            Self::OutputExists(_) => "add --overwrite to replace it, or name another file".into(),
            Self::OutputIsInput { .. } => "name another output: the input would be lost".into(),
            Self::OutputLocked { .. } => "wait for the other run, or name another file".into(),
            Self::OutputOpen { path, source } if source.kind() == io::ErrorKind::NotFound => {
                match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                    Some(parent) => format!("create the folder first: mkdir -p {}", parent.display()),
                    None => return None,
                }
            }
            Self::OutputWrite { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "the disk is full; make space and run again to go on from there".into()
            }
            _ => return None,
        })
    }
}

impl From<DatasetError> for Fault {
    fn from(error: DatasetError) -> Self {
        let class = match error {
            DatasetError::RowJson { .. }
            | DatasetError::RowCsv { .. }
            | DatasetError::RowUtf8 { .. }
            | DatasetError::RowTooLong { .. } => FaultClass::Row,
            _ => FaultClass::Stop,
        };
        let mut fault = Fault::new(class, error.code(), error.to_string());
        fault.hint = error.hint();
        fault
    }
}
