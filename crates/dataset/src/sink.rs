//! [`RowSink`]: where output rows go.

use vgen_core::{Fault, Row};

/// Where output rows go.
pub trait RowSink: Send {
    /// Takes all output rows of one input row. They may be kept back until [`RowSink::flush`].
    ///
    /// # Errors
    /// A fault of class `Stop`: `output.closed` when the reader of a pipe went away, else `output.write`.
    fn write(&mut self, number: u64, rows: &[Row]) -> Result<(), Fault>;

    /// Passes on what was kept back, so that a crash no longer loses it. Called after each batch of rows; a sink that
    /// gains much by larger blocks (compression) may wait for more.
    ///
    /// # Errors
    /// As [`RowSink::write`].
    fn flush(&mut self) -> Result<(), Fault>;

    /// Passes on everything and ends the output. Without it an output may lack its last rows, but is never broken.
    ///
    /// # Errors
    /// As [`RowSink::write`].
    fn finish(&mut self) -> Result<(), Fault>;
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
}
