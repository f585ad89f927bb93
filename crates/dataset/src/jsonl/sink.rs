//! [`JsonlSink`]: rows as JSON lines.
//!
//! Lines go to the final path, never to a temporary file, and only whole ones: what a crash leaves is a valid file of
//! the rows so far.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vgen_core::{Fault, Row};

use super::compression::Compression;
use crate::{DatasetError, RowSink};

/// Lines are passed on at this size even within a batch.
const FULL_BUFFER: usize = 1 << 20;
/// A compressed member is not ended for less than this, ...
const FULL_MEMBER: usize = 1 << 18;
/// ... unless it is this old.
const MEMBER_AGE: Duration = Duration::from_secs(5);

/// How an output file is opened.
#[derive(Clone, Debug, Default)]
pub struct SinkOptions {
    /// Replace what is in the file. Without it a file with content is refused; an empty one is not.
    pub overwrite: bool,
    /// The run's input: never written to, under whatever name.
    pub input: Option<PathBuf>,
}

/// Rows as JSON lines, plain, or compressed if the path ends in `.gz` or `.zst`.
pub struct JsonlSink {
    target: Target,
    name: String,
    compression: Compression,
    buffer: Vec<u8>,
    /// Since when something is in the buffer.
    waiting: Option<Instant>,
}

enum Target {
    Writer(Box<dyn Write + Send>),
    File(OutputFile),
}

struct OutputFile {
    file: File,
    path: PathBuf,
    /// Made by this sink and nothing written yet: removed again if the run ends before its first row.
    fresh: bool,
    /// The old content is cut off with the first write, so that a run that fails to start loses nothing.
    old_content: bool,
    /// Bytes written as whole lines or members; unknown for pipes and devices.
    good: Option<u64>,
}

impl JsonlSink {
    /// Opens a file. Old content stays until the first row is written.
    ///
    /// # Errors
    /// `output.is_input`, `output.exists`, `output.locked`, `output.open`.
    pub fn create(path: &Path, options: &SinkOptions) -> Result<Self, Fault> {
        let opened = |source| DatasetError::OutputOpen { path: path.to_owned(), source };
        if let Some(input) = &options.input
            && same_file::is_same_file(path, input).unwrap_or(false)
        {
            return Err(DatasetError::OutputIsInput { output: path.to_owned(), input: input.clone() }.into());
        }
        let existed = path.try_exists().map_err(opened)?;
        if existed && !options.overwrite && std::fs::metadata(path).is_ok_and(|old| old.is_file() && old.len() > 0) {
            return Err(DatasetError::OutputExists(path.to_owned()).into());
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(opened)?;
        let metadata = file.metadata().map_err(opened)?;
        if metadata.is_file()
            && let Err(TryLockError::WouldBlock) = file.try_lock()
        {
            // A file system without locks is no reason to refuse.
            return Err(DatasetError::OutputLocked(path.to_owned()).into());
        }
        let target = Target::File(OutputFile {
            file,
            path: path.to_owned(),
            fresh: !existed,
            old_content: metadata.is_file() && metadata.len() > 0,
            good: metadata.is_file().then_some(0),
        });
        Ok(Self::new(target, path.to_string_lossy().into_owned(), Compression::of_path(path)))
    }

    /// Writes to standard output, flushed after each batch.
    pub fn stdout() -> Self {
        Self::from_writer(io::stdout(), "stdout")
    }

    /// Writes to anything, under a name for messages.
    pub fn from_writer(writer: impl Write + Send + 'static, name: &str) -> Self {
        Self::new(Target::Writer(Box::new(writer)), name.to_owned(), Compression::None)
    }

    fn new(target: Target, name: String, compression: Compression) -> Self {
        Self { target, name, compression, buffer: Vec::new(), waiting: None }
    }

    fn pass_on(&mut self) -> Result<(), Fault> {
        self.waiting = None;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = match self.compression {
            Compression::None => self.target.write(&self.buffer),
            compression => compression.member(&self.buffer).and_then(|member| self.target.write(&member)),
        };
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
            self.buffer.extend_from_slice(row.to_json().as_bytes());
            self.buffer.push(b'\n');
        }
        self.waiting.get_or_insert_with(Instant::now);
        if self.buffer.len() >= FULL_BUFFER { self.pass_on() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Fault> {
        let due = self.compression == Compression::None
            || self.buffer.len() >= FULL_MEMBER
            || self.waiting.is_some_and(|since| since.elapsed() >= MEMBER_AGE);
        if due { self.pass_on() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.pass_on()?;
        if let Target::File(output) = &mut self.target {
            // A run without rows is a run all the same: its output is an empty file.
            output.fresh = false;
            output.cut_old_content().map_err(|source| DatasetError::OutputWrite { name: self.name.clone(), source })?;
        }
        Ok(())
    }
}

impl Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Writer(writer) => {
                writer.write_all(bytes)?;
                writer.flush()
            }
            Self::File(output) => output.write(bytes),
        }
    }
}

impl OutputFile {
    fn cut_old_content(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.old_content) { self.file.set_len(0) } else { Ok(()) }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.cut_old_content()?;
        self.fresh = false;
        let written = self.file.write_all(bytes);
        if let Some(good) = &mut self.good {
            match &written {
                Ok(()) => *good += bytes.len() as u64,
                Err(_) => {
                    // Whole lines only: take back what a full disk cut in two. If that fails too, the first error
                    // is the one worth telling.
                    let _ = self.file.set_len(*good).and_then(|()| self.file.seek(io::SeekFrom::Start(*good)));
                }
            }
        }
        written
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.fresh {
            // Nothing was promised of an empty file that nobody asked for.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
