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
    #[error("output {} is being written by another run", .0.display())]
    OutputLocked(PathBuf),
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
            Self::InputRead { .. } => "input.read",
            Self::RowJson { .. } => "row.json",
            Self::RowUtf8 { .. } => "row.utf8",
            Self::RowTooLong { .. } => "row.too_long",
            Self::OutputExists(_) => "output.exists",
            Self::OutputIsInput { .. } => "output.is_input",
            Self::OutputLocked(_) => "output.locked",
            Self::OutputOpen { .. } => "output.open",
            Self::OutputWrite { .. } => "output.write",
            Self::OutputClosed(_) => "output.closed",
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::InputIsFolder(_) => "name a file of JSON lines, one object a line".into(),
            Self::InputFormat { hint, .. } => (*hint).into(),
            Self::RowJson { not_a_number: true, .. } => {
                "NaN and Infinity are not JSON; write null (Python: json.dumps(..., allow_nan=False) finds them)".into()
            }
            Self::RowUtf8 { .. } => "convert the file, for example: iconv -f latin1 -t utf-8".into(),
            Self::RowTooLong { .. } => "raise --max-line-bytes, or put images in files instead of in the row".into(),
            Self::OutputExists(_) => "add --overwrite to replace it, or name another file".into(),
            Self::OutputIsInput { .. } => "name another output: the input would be lost".into(),
            Self::OutputLocked(_) => "wait for the other run, or name another file".into(),
            Self::OutputOpen { path, source } if source.kind() == io::ErrorKind::NotFound => {
                match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                    Some(parent) => format!("create the folder first: mkdir -p {}", parent.display()),
                    None => return None,
                }
            }
            Self::OutputWrite { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "the disk is full; the output ends with its last whole row".into()
            }
            _ => return None,
        })
    }
}

impl From<DatasetError> for Fault {
    fn from(error: DatasetError) -> Self {
        let class = match error {
            DatasetError::RowJson { .. } | DatasetError::RowUtf8 { .. } | DatasetError::RowTooLong { .. } => {
                FaultClass::Row
            }
            _ => FaultClass::Stop,
        };
        let mut fault = Fault::new(class, error.code(), error.to_string());
        fault.hint = error.hint();
        fault
    }
}
