//! [`RowSink`]: where output rows go.

use std::fs::File;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vgen_core::{Fault, Row};

/// A place in an output from which it can be continued: behind it everything may be cut off and made again, byte for
/// byte as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Input rows whose output rows all stand before it.
    pub rows: u64,
    /// Where it is.
    pub bytes: u64,
    /// CRC-32 of all bytes before it.
    pub crc: u32,
}

/// Where output rows go.
pub trait RowSink: Send {
    /// Takes all output rows of one input row. They may be kept back until [`RowSink::flush`].
    ///
    /// # Errors
    /// A fault of class `Stop`: `output.closed` when the reader of a pipe went away, else `output.write`.
    fn write(&mut self, number: u64, rows: &[Row]) -> Result<(), Fault>;

    /// Passes on what was kept back, so that a crash of the process no longer loses it. Called after each batch of
    /// rows; a sink whose bytes come in blocks (compression, Parquet) keeps the rows of the unfinished block.
    ///
    /// # Errors
    /// As [`RowSink::write`].
    fn flush(&mut self) -> Result<(), Fault>;

    /// Passes on everything and ends the output.
    ///
    /// # Errors
    /// As [`RowSink::write`].
    fn finish(&mut self) -> Result<(), Fault>;

    /// The last place from which the output can be continued; `None` if it can't be.
    fn mark(&self) -> Option<Mark> {
        None
    }

    /// Length and checksum of the output after [`RowSink::finish`].
    fn end(&self) -> Option<Mark> {
        self.mark()
    }

    /// The files that were written to since the last call and must reach the disk before a mark counts.
    fn unsynced(&mut self) -> Vec<Arc<File>> {
        Vec::new()
    }
}

impl<S: RowSink + ?Sized> RowSink for Box<S> {
    fn write(&mut self, number: u64, rows: &[Row]) -> Result<(), Fault> {
        (**self).write(number, rows)
    }

    fn flush(&mut self) -> Result<(), Fault> {
        (**self).flush()
    }

    fn finish(&mut self) -> Result<(), Fault> {
        (**self).finish()
    }

    fn mark(&self) -> Option<Mark> {
        (**self).mark()
    }

    fn end(&self) -> Option<Mark> {
        (**self).end()
    }

    fn unsynced(&mut self) -> Vec<Arc<File>> {
        (**self).unsynced()
    }
}
