//! [`RowSource`]: where rows come from.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use vgen_core::{Fault, Row};

use crate::columns::Column;

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
    /// Checksum of the source's content up to and with this row: the same in the next run unless something in front
    /// of the row, or the row itself, changed.
    pub digest: u32,
}

/// How far [`RowSource::skip`] came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Rows passed over: fewer than wanted at the end of the source.
    pub rows: u64,
    /// [`SourceRow::digest`] of the last of them.
    pub digest: u32,
}

/// Where rows come from, one after the other.
pub trait RowSource: Send {
    /// The file's path as it was given, or what else names the source in messages.
    fn name(&self) -> &str;

    /// The folder against which relative image paths are resolved, of the row that was handed out last.
    fn folder(&self) -> Option<&Path>;

    /// The next row; `None` at the end. A row that can't be read is `Ok` with a fault inside: the next call goes on
    /// behind it.
    ///
    /// # Errors
    /// A fault of class `Stop` (codes `input.*`) when nothing more can be read.
    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault>;

    /// Passes over rows, where possible without reading what is in them.
    ///
    /// # Errors
    /// As [`RowSource::next_row`].
    fn skip(&mut self, rows: u64) -> Result<Skipped, Fault> {
        let mut skipped = Skipped::default();
        while skipped.rows < rows {
            let Some(row) = self.next_row()? else { break };
            skipped = Skipped { rows: skipped.rows + 1, digest: row.digest };
        }
        Ok(skipped)
    }

    /// The columns, if the source has a schema.
    fn columns(&self) -> Option<Vec<Column>> {
        None
    }
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

    fn skip(&mut self, rows: u64) -> Result<Skipped, Fault> {
        (**self).skip(rows)
    }

    fn columns(&self) -> Option<Vec<Column>> {
        (**self).columns()
    }
}
