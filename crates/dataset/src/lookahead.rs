//! [`Lookahead`]: a source of which rows were looked at before they are read.

use std::collections::VecDeque;
use std::path::Path;

use vgen_core::Fault;

use crate::columns::Column;
use crate::{RowSource, SourceRow};

/// A source that can be looked into, for inputs that can't be opened twice.
pub struct Lookahead<S> {
    source: S,
    rows: VecDeque<SourceRow>,
}

impl<S: RowSource> Lookahead<S> {
    /// Nothing is looked at yet.
    pub fn new(source: S) -> Self {
        Self { source, rows: VecDeque::new() }
    }

    /// Shows rows until `more` says that it is enough; all of them are read again later.
    ///
    /// # Errors
    /// As [`RowSource::next_row`].
    pub fn look(&mut self, mut more: impl FnMut(&SourceRow) -> bool) -> Result<(), Fault> {
        while let Some(row) = self.source.next_row()? {
            let enough = !more(&row);
            self.rows.push_back(row);
            if enough {
                break;
            }
        }
        Ok(())
    }
}

impl<S: RowSource> RowSource for Lookahead<S> {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn folder(&self) -> Option<&Path> {
        self.source.folder()
    }

    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        match self.rows.pop_front() {
            Some(row) => Ok(Some(row)),
            None => self.source.next_row(),
        }
    }

    fn columns(&self) -> Option<Vec<Column>> {
        self.source.columns()
    }
}
