//! [`FileSink`]: rows to a file that can be continued.
//!
//! A [`Format`] turns rows into blocks of bytes: whole lines, compressed members, row groups. Where a block ends
//! depends on the rows alone, never on time or on how often the run was interrupted. The end of the last whole block is
//! the sink's [`Mark`]; [`FileSink::resume`] cuts off what stands behind it, and with the rows from there on the file
//! becomes what it would have been.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crc32fast::Hasher;
use vgen_core::{Fault, Row};

use crate::{DatasetError, Mark, RowSink};

/// How rows become bytes of a file.
pub(crate) trait Format: Send {
    /// Takes the output rows of one input row.
    fn push(&mut self, rows: &[Row]) -> Result<(), Fault>;

    /// Whether the block is to end here.
    fn is_full(&self) -> bool;

    /// Whether nothing was pushed since the last block.
    fn is_empty(&self) -> bool;

    /// Whether blocks may end anywhere without a change of the bytes.
    fn joins(&self) -> bool {
        false
    }

    /// The block's bytes, which will stand at `position`. The last one of a finished file may be short; the next call
    /// then comes for the end only.
    fn block(&mut self, position: u64, last: bool) -> io::Result<Vec<u8>>;

    /// What stands behind the last block.
    fn end(&mut self, position: u64) -> io::Result<Vec<u8>> {
        let _ = position;
        Ok(Vec::new())
    }

    /// Learns what it needs of the blocks in a file's first `bytes` bytes.
    fn resume(&mut self, file: &mut File, bytes: u64) -> io::Result<()> {
        let _ = (file, bytes);
        Ok(())
    }
}

/// Rows to a file, in any format.
pub struct FileSink {
    file: Arc<File>,
    path: PathBuf,
    name: String,
    format: Box<dyn Format>,
    /// Made by this sink and nothing written yet: removed again if the run ends before its first row.
    fresh: bool,
    /// The old content is cut off with the first write, so that a run that fails to start loses nothing.
    old_content: bool,
    /// A pipe or a device has no length to go back to.
    regular: bool,
    pushed: u64,
    mark: Mark,
    crc: Hasher,
    end: Option<Mark>,
    unsynced: bool,
}

impl FileSink {
    /// Opens a file for a new output. Old content stays until the first row is written.
    ///
    /// # Errors
    /// `output.open`.
    pub(crate) fn create(path: &Path, format: Box<dyn Format>) -> Result<Self, Fault> {
        let opened = |source| DatasetError::OutputOpen { path: path.to_owned(), source };
        let existed = path.try_exists().map_err(opened)?;
        let file =
            OpenOptions::new().read(existed).write(true).create(true).truncate(false).open(path).or_else(|error| {
                // Devices that can only be written.
                if existed { OpenOptions::new().write(true).open(path) } else { Err(error) }
            });
        let file = file.map_err(opened)?;
        let metadata = file.metadata().map_err(opened)?;
        let regular = metadata.is_file();
        let old_content = regular && metadata.len() > 0;
        let mut sink = Self::new(file, path, format, regular);
        (sink.fresh, sink.old_content) = (!existed, old_content);
        Ok(sink)
    }

    /// Goes on in a file behind `mark`; what stands behind it is cut off.
    ///
    /// # Errors
    /// `output.open`, `output.write`.
    pub(crate) fn resume(path: &Path, format: Box<dyn Format>, mark: Mark) -> Result<Self, Fault> {
        let opened = |source| DatasetError::OutputOpen { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(opened)?;
        let mut sink = Self::new(file, path, format, true);
        let mut file = &*sink.file;
        let cut = file.set_len(mark.bytes);
        let mut handle = sink.file.try_clone().map_err(opened)?;
        cut.and_then(|()| sink.format.resume(&mut handle, mark.bytes))
            .and_then(|()| file.seek(SeekFrom::Start(mark.bytes)))
            .map_err(|source| DatasetError::OutputWrite { name: sink.name.clone(), source })?;
        sink.pushed = mark.rows;
        sink.mark = mark;
        sink.crc = Hasher::new_with_initial_len(mark.crc, mark.bytes);
        Ok(sink)
    }

    fn new(file: File, path: &Path, format: Box<dyn Format>, regular: bool) -> Self {
        Self {
            file: Arc::new(file),
            path: path.to_owned(),
            name: path.to_string_lossy().into_owned(),
            format,
            fresh: false,
            old_content: false,
            regular,
            pushed: 0,
            mark: Mark::default(),
            crc: Hasher::new(),
            end: None,
            unsynced: false,
        }
    }

    /// Whether it is a file with a length, not a pipe or a device.
    pub fn is_regular(&self) -> bool {
        self.regular
    }

    fn failed(&self, source: io::Error) -> Fault {
        match source.kind() {
            io::ErrorKind::BrokenPipe => DatasetError::OutputClosed(self.name.clone()).into(),
            _ => DatasetError::OutputWrite { name: self.name.clone(), source }.into(),
        }
    }

    fn pass_on(&mut self) -> Result<(), Fault> {
        let block = self.format.block(self.mark.bytes, false).map_err(|error| self.failed(error))?;
        self.append(&block, self.mark.bytes)?;
        self.crc.update(&block);
        self.mark =
            Mark { rows: self.pushed, bytes: self.mark.bytes + block.len() as u64, crc: self.crc.clone().finalize() };
        Ok(())
    }

    fn append(&mut self, bytes: &[u8], position: u64) -> Result<(), Fault> {
        let cut = self.cut_old_content();
        let mut file = &*self.file;
        let written = cut.and_then(|()| file.write_all(bytes));
        self.fresh = false;
        self.unsynced = true;
        written.map_err(|source| {
            if self.regular {
                // Whole blocks only: take back what a full disk cut in two. If that fails too, the first error is the
                // one worth telling.
                let _ = file.set_len(position).and_then(|()| file.seek(SeekFrom::Start(position)).map(drop));
            }
            self.failed(source)
        })
    }

    fn cut_old_content(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.old_content) { self.file.set_len(0) } else { Ok(()) }
    }
}

impl RowSink for FileSink {
    fn write(&mut self, _number: u64, rows: &[Row]) -> Result<(), Fault> {
        self.format.push(rows)?;
        self.pushed += 1;
        if self.format.is_full() { self.pass_on() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Fault> {
        if self.format.joins() && !self.format.is_empty() { self.pass_on() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.flush()?;
        let mut rest = Vec::new();
        if !self.format.is_empty() {
            rest = self.format.block(self.mark.bytes, true).map_err(|error| self.failed(error))?;
        }
        let position = self.mark.bytes + rest.len() as u64;
        rest.extend(self.format.end(position).map_err(|error| self.failed(error))?);
        // A run without rows is a run all the same: its output is an empty file.
        self.append(&rest, self.mark.bytes)?;
        let mut crc = self.crc.clone();
        crc.update(&rest);
        self.end = Some(Mark { rows: self.pushed, bytes: self.mark.bytes + rest.len() as u64, crc: crc.finalize() });
        Ok(())
    }

    fn mark(&self) -> Option<Mark> {
        self.regular.then_some(self.mark)
    }

    fn end(&self) -> Option<Mark> {
        if self.regular { self.end } else { None }
    }

    fn unsynced(&mut self) -> Vec<Arc<File>> {
        if std::mem::take(&mut self.unsynced) && self.regular { vec![Arc::clone(&self.file)] } else { Vec::new() }
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        if self.fresh {
            // Nothing was promised of an empty file that nobody asked for.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
