//! [`JsonlSink`]: rows as JSON lines to a stream, and [`Lines`]: rows as JSON lines in a file.

use std::io::{self, Write};

use vgen_core::{Fault, Row};

use super::compression::Compression;
use crate::file_sink::Format;
use crate::{DatasetError, RowSink};

/// Lines are passed on at this size even within a batch.
const FULL_BUFFER: usize = 1 << 20;
/// Uncompressed bytes after which a compressed member ends. The bound is on the rows alone, so that the members are
/// the same whenever and however often a run is interrupted.
const FULL_MEMBER: usize = 1 << 19;

/// Rows as JSON lines to standard output, a pipe, or anything else that only flows.
pub struct JsonlSink {
    writer: Box<dyn Write + Send>,
    name: String,
    buffer: Vec<u8>,
}

impl JsonlSink {
    /// Writes to standard output, flushed after each batch.
    pub fn stdout() -> Self {
        Self::from_writer(io::stdout(), "stdout")
    }

    /// Writes to anything, under a name for messages.
    pub fn from_writer(writer: impl Write + Send + 'static, name: &str) -> Self {
        Self { writer: Box::new(writer), name: name.to_owned(), buffer: Vec::new() }
    }

    fn pass_on(&mut self) -> Result<(), Fault> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = self.writer.write_all(&self.buffer).and_then(|()| self.writer.flush());
        self.buffer.clear();
        self.buffer.shrink_to(FULL_BUFFER);
        written.map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe => DatasetError::OutputClosed(self.name.clone()).into(),
            _ => DatasetError::OutputWrite { name: self.name.clone(), source }.into(),
        })
    }
}

impl RowSink for JsonlSink {
    fn write(&mut self, _number: u64, rows: &[Row]) -> Result<(), Fault> {
        for row in rows {
            push_line(&mut self.buffer, row);
        }
        if self.buffer.len() >= FULL_BUFFER { self.pass_on() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.pass_on()
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.pass_on()
    }
}

fn push_line(buffer: &mut Vec<u8>, row: &Row) {
    row.write_json(buffer);
    buffer.push(b'\n');
}

/// JSON lines in a file, plain or compressed.
pub(crate) struct Lines {
    compression: Compression,
    buffer: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(compression: Compression) -> Self {
        Self { compression, buffer: Vec::new() }
    }
}

impl Format for Lines {
    fn push(&mut self, rows: &[Row]) -> Result<(), Fault> {
        for row in rows {
            push_line(&mut self.buffer, row);
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.buffer.len() >= if self.joins() { FULL_BUFFER } else { FULL_MEMBER }
    }

    fn joins(&self) -> bool {
        self.compression == Compression::None
    }

    fn block(&mut self, _position: u64, _last: bool) -> io::Result<Vec<u8>> {
        match self.compression {
            Compression::None => Ok(std::mem::take(&mut self.buffer)),
            compression => {
                let member = compression.member(&self.buffer);
                self.buffer.clear();
                self.buffer.shrink_to(2 * FULL_MEMBER);
                member
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}
