//! [`Chain`]: several files as one source, row numbers going on from one to the next.

use std::collections::VecDeque;
use std::path::Path;

use crc32fast::Hasher;
use vgen_core::Fault;

use crate::columns::Column;
use crate::{RowSource, Skipped, SourceRow};

/// Opens one of the files.
pub(crate) type Opener = Box<dyn FnOnce() -> Result<Option<Box<dyn RowSource>>, Fault> + Send>;

/// Several sources, each opened when its turn comes.
pub(crate) struct Chain {
    name: String,
    current: Box<dyn RowSource>,
    rest: VecDeque<Opener>,
    files: usize,
    /// Rows of the sources before the current one, and what of the current one was read.
    before: u64,
    read: u64,
    /// Checksum of the sources before the current one, and of what was read of it.
    digest_before: u32,
    digest: u32,
}

impl Chain {
    /// `first` is open already, so that the commonest mistakes show at once.
    pub(crate) fn new(name: String, first: Box<dyn RowSource>, rest: VecDeque<Opener>) -> Self {
        let files = rest.len() + 1;
        Self { name, current: first, rest, files, before: 0, read: 0, digest_before: 0, digest: 0 }
    }

    /// Goes on to the next file; false after the last one.
    fn next_file(&mut self) -> Result<bool, Fault> {
        while let Some(open) = self.rest.pop_front() {
            if let Some(next) = open()? {
                self.current = next;
                self.before += std::mem::take(&mut self.read);
                self.digest_before = self.joined(self.digest);
                self.digest = 0;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn joined(&self, digest: u32) -> u32 {
        if self.digest_before == 0 {
            return digest;
        }
        let mut hasher = Hasher::new();
        hasher.update(&self.digest_before.to_le_bytes());
        hasher.update(&digest.to_le_bytes());
        hasher.finalize()
    }
}

impl RowSource for Chain {
    fn name(&self) -> &str {
        &self.name
    }

    fn folder(&self) -> Option<&Path> {
        self.current.folder()
    }

    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        loop {
            if let Some(mut row) = self.current.next_row()? {
                self.read = row.number + 1;
                self.digest = row.digest;
                row.number += self.before;
                row.digest = self.joined(row.digest);
                let done = (self.files - self.rest.len() - 1) as f64;
                row.share = row.share.map(|share| (done + share) / self.files as f64);
                return Ok(Some(row));
            }
            if !self.next_file()? {
                return Ok(None);
            }
        }
    }

    fn skip(&mut self, rows: u64) -> Result<Skipped, Fault> {
        let mut skipped = Skipped::default();
        loop {
            let inner = self.current.skip(rows - skipped.rows)?;
            if inner.rows > 0 {
                self.read += inner.rows;
                self.digest = inner.digest;
                skipped = Skipped { rows: skipped.rows + inner.rows, digest: self.joined(inner.digest) };
            }
            if skipped.rows == rows || !self.next_file()? {
                return Ok(skipped);
            }
        }
    }

    fn columns(&self) -> Option<Vec<Column>> {
        self.current.columns()
    }
}
