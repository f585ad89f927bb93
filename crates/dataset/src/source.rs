//! [`RowSource`]: where rows come from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use vgen_core::{Fault, Row};

/// Where a row stands in its source, for messages: `rows.jsonl line 3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file's path as it was given, or `stdin`.
    pub name: Arc<str>,
    /// Line number from 1, for sources that have lines.
    pub line: Option<u64>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.line {
            Some(line) => write!(f, " line {line}"),
            None => Ok(()),
        }
    }
}

/// A row as a source hands it out.
#[derive(Clone, Debug)]
pub struct SourceRow {
    /// Number of the row, from 0, counting rows that can't be read too. It decides the row's random stream.
    pub number: u64,
    /// Where it stands.
    pub origin: Origin,
    /// The row, or why it can't be read.
    pub row: Result<Row, Fault>,
    /// The share of the source up to and with this row, 0 to 1, if the source knows its size.
    pub share: Option<f64>,
}

/// Where rows come from, one after the other.
pub trait RowSource: Send {
    /// The file's path as it was given, or what else names the source in messages.
    fn name(&self) -> &str;

    /// The folder against which relative image paths of the rows are resolved.
    fn folder(&self) -> Option<&Path>;

    /// The next row; `None` at the end. A row that can't be read is `Ok` with a fault inside: the next call goes on
    /// behind it.
    ///
    /// # Errors
    /// A fault of class `Stop` (codes `input.*`) when nothing more can be read.
    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault>;
}

impl<S: RowSource + ?Sized> RowSource for Box<S> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn folder(&self) -> Option<&Path> {
        (**self).folder()
    }

    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        (**self).next_row()
    }
}
