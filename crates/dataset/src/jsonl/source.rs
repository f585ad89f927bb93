//! [`JsonlSource`]: rows from JSON lines.
//!
//! A line that can't be read costs one row, never the run. Accepted besides plain lines: a byte order mark at the
//! start, CRLF, blank lines (skipped, and not counted as rows), a last line without a line end, gzip and zstd.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vgen_core::{Fault, Row};

use super::compression::{Compression, decoded};
use crate::{DatasetError, Origin, RowSource, Skipped, SourceRow};

/// Longest line that is read unless told otherwise: 256 MiB.
pub const DEFAULT_MAX_LINE_BYTES: u64 = 256 << 20;
/// Line buffers above this size are given back after use.
const KEPT_LINE_BYTES: usize = 1 << 20;
const READ_BUFFER: usize = 1 << 16;

/// How JSON lines are read.
#[derive(Clone, Copy, Debug)]
pub struct JsonlOptions {
    /// Longest line in bytes, its end not counted; a longer one becomes a row with an error.
    pub max_line_bytes: u64,
}

impl Default for JsonlOptions {
    fn default() -> Self {
        Self { max_line_bytes: DEFAULT_MAX_LINE_BYTES }
    }
}

/// Rows from JSON lines.
pub struct JsonlSource {
    reader: Box<dyn BufRead + Send>,
    name: Arc<str>,
    folder: Option<PathBuf>,
    options: JsonlOptions,
    position: Position,
    line: u64,
    number: u64,
    buffer: Vec<u8>,
    started: bool,
    /// Over the lines so far.
    digest: crc32fast::Hasher,
    /// Read ahead, to find an empty file before anything expensive starts.
    pending: Option<SourceRow>,
}

/// How far a source is, for the share of the file that is behind a row.
struct Position {
    size: Option<u64>,
    /// Bytes of lines handed out: exact, for plain files.
    lines: u64,
    /// Bytes taken from the file by a decoder, for compressed files.
    raw: Option<Arc<AtomicU64>>,
}

impl Position {
    fn share(&self) -> Option<f64> {
        let done = self.raw.as_ref().map_or(self.lines, |raw| raw.load(Ordering::Relaxed));
        // A pipe or a growing file has no size worth the name.
        self.size.filter(|size| *size > 0).map(|size| (done as f64 / size as f64).min(1.0))
    }
}

impl JsonlSource {
    /// Opens a file and reads its first row, so that a missing, empty or foreign file is found at once.
    ///
    /// # Errors
    /// `input.missing`, `input.folder`, `input.open`, `input.empty`, `input.format`, `input.read`.
    pub fn open(path: &Path, options: JsonlOptions) -> Result<Self, Fault> {
        let opened = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => DatasetError::InputMissing(path.to_owned()),
            _ => DatasetError::InputOpen { path: path.to_owned(), source },
        };
        let file = File::open(path).map_err(opened)?;
        let metadata = file.metadata().map_err(opened)?;
        if metadata.is_dir() {
            return Err(DatasetError::InputIsFolder(path.to_owned()).into());
        }
        let size = metadata.is_file().then_some(metadata.len());
        let name = path.to_string_lossy();
        let folder = path.parent().map(|parent| match parent.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => parent.to_owned(),
        });
        let mut source = Self::new(Box::new(file), &name, size, options)?;
        source.folder = folder;
        source.pending = source.read()?;
        if source.pending.is_none() {
            return Err(DatasetError::InputEmpty(name.into_owned()).into());
        }
        Ok(source)
    }

    /// Reads from standard input, nothing of it in advance. Relative image paths are resolved against the working
    /// folder.
    ///
    /// # Errors
    /// `input.read` if not even its first bytes can be read.
    pub fn stdin(options: JsonlOptions) -> Result<Self, Fault> {
        let mut source = Self::new(Box::new(LateStdin), "stdin", None, options)?;
        source.folder = Some(PathBuf::from("."));
        Ok(source)
    }

    /// Reads from anything, under a name for messages. Relative image paths are resolved against the working folder.
    pub fn from_reader(reader: impl Read + Send + 'static, name: &str) -> Self {
        Self::from_buffered(Box::new(BufReader::with_capacity(READ_BUFFER, reader)), name)
    }

    fn from_buffered(reader: Box<dyn BufRead + Send>, name: &str) -> Self {
        Self {
            reader,
            name: name.into(),
            folder: Some(PathBuf::from(".")),
            options: JsonlOptions::default(),
            position: Position { size: None, lines: 0, raw: None },
            line: 0,
            number: 0,
            buffer: Vec::new(),
            started: false,
            digest: crc32fast::Hasher::new(),
            pending: None,
        }
    }

    fn new(reader: Box<dyn Read + Send>, name: &str, size: Option<u64>, options: JsonlOptions) -> Result<Self, Fault> {
        let raw = Arc::new(AtomicU64::new(0));
        let counted = Counted { reader, count: Arc::clone(&raw) };
        let mut source = Self::from_reader(counted, name);
        source.options = options;
        source.position = Position { size, lines: 0, raw: Some(raw) };
        Ok(source)
    }

    fn origin(&self) -> Origin {
        Origin { name: Arc::clone(&self.name), line: Some(self.line) }
    }

    fn failed(&self, source: io::Error) -> DatasetError {
        DatasetError::InputRead { origin: self.origin(), source }
    }

    /// Finds out how the input is compressed; not done before the first row is wanted, since it may block.
    fn start(&mut self) -> Result<(), DatasetError> {
        self.started = true;
        let reader = std::mem::replace(&mut self.reader, Box::new(io::empty()));
        let (compression, reader) = decoded(reader).map_err(|error| self.failed(error))?;
        self.reader = reader;
        if compression == Compression::None {
            self.position.raw = None;
        }
        Ok(())
    }

    /// Reads the next line into the buffer, without its end. `None` at the end; `Some(false)` if it is too long.
    fn read_line(&mut self) -> io::Result<Option<bool>> {
        if self.buffer.capacity() > KEPT_LINE_BYTES {
            self.buffer = Vec::new();
        }
        self.buffer.clear();
        // One byte more than allowed for each of `\r` and `\n`.
        let most = self.options.max_line_bytes.saturating_add(2);
        let read = self.reader.by_ref().take(most).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        self.position.lines += read as u64;
        self.digest.update(&self.buffer);
        let ended = self.buffer.last() == Some(&b'\n');
        if ended {
            self.buffer.pop();
            if self.buffer.last() == Some(&b'\r') {
                self.buffer.pop();
            }
        }
        if self.buffer.len() as u64 <= self.options.max_line_bytes {
            return Ok(Some(true));
        }
        if !ended {
            self.position.lines += self.reader.skip_until(b'\n')? as u64;
        }
        Ok(Some(false))
    }

    fn read(&mut self) -> Result<Option<SourceRow>, DatasetError> {
        if !self.started {
            self.start()?;
        }
        loop {
            let fits = match self.read_line() {
                Ok(None) => return Ok(None),
                Ok(Some(fits)) => fits,
                Err(error) => {
                    self.line += 1;
                    return Err(self.failed(error));
                }
            };
            let row = if fits {
                let skip = if self.line == 1 { self.check_start()? } else { 0 };
                let line = &self.buffer[skip..];
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                if self.number == 0 {
                    self.check_first_row(line)?;
                }
                parse(line, || self.origin())
            } else {
                Err(DatasetError::RowTooLong { origin: self.origin(), limit: self.options.max_line_bytes })
            };
            let number = self.number;
            self.number += 1;
            let row = row.map_err(Fault::from);
            let (share, digest) = (self.position.share(), self.digest.clone().finalize());
            return Ok(Some(SourceRow { number, origin: self.origin(), row, share, digest }));
        }
    }

    /// The length of a byte order mark; an error for UTF-16.
    fn check_start(&self) -> Result<usize, DatasetError> {
        match self.buffer.as_slice() {
            [0xef, 0xbb, 0xbf, ..] => Ok(3),
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                Err(self.foreign("it starts like UTF-16", "convert it: iconv -f utf-16 -t utf-8"))
            }
            _ => Ok(0),
        }
    }

    /// A JSON array would give one error for each of its lines; say it once.
    fn check_first_row(&self, line: &[u8]) -> Result<(), DatasetError> {
        let Some(rest) = line.trim_ascii().strip_prefix(b"[") else {
            return Ok(());
        };
        match rest.trim_ascii_start() {
            [] | [b'{', ..] => {
                Err(self.foreign("it starts like a JSON array", "write one object a line, for example: jq -c '.[]'"))
            }
            _ => Ok(()),
        }
    }

    fn foreign(&self, what: &'static str, hint: &'static str) -> DatasetError {
        DatasetError::InputFormat { name: self.name.to_string(), what, hint }
    }
}

impl RowSource for JsonlSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        match self.pending.take() {
            Some(row) => Ok(Some(row)),
            None => Ok(self.read()?),
        }
    }

    fn skip(&mut self, rows: u64) -> Result<Skipped, Fault> {
        let mut skipped = Skipped::default();
        let mut read = false;
        if rows > 0
            && let Some(row) = self.pending.take()
        {
            skipped = Skipped { rows: 1, digest: row.digest };
        }
        if !self.started && skipped.rows < rows {
            self.start()?;
        }
        while skipped.rows < rows {
            // The checks of the first row have been made when it was read.
            let Some(fits) = self.read_line().map_err(|error| self.failed(error))? else { break };
            if fits && self.buffer.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            self.number += 1;
            skipped.rows += 1;
            read = true;
        }
        if read {
            skipped.digest = self.digest.clone().finalize();
        }
        Ok(skipped)
    }
}

fn parse(line: &[u8], origin: impl Fn() -> Origin) -> Result<Row, DatasetError> {
    let text = std::str::from_utf8(line)
        .map_err(|error| DatasetError::RowUtf8 { origin: origin(), byte: error.valid_up_to() + 1 })?;
    Row::from_json(text).map_err(|error| DatasetError::RowJson {
        origin: origin(),
        // The parser sees one line only; the file's line is in the origin.
        what: error.to_string().replace(" at line 1 column ", " at column "),
        not_a_number: has_bare_not_a_number(text),
    })
}

/// Whether `NaN` or `Infinity` stands outside strings, as Python's `json.dumps` writes them.
fn has_bare_not_a_number(text: &str) -> bool {
    let mut in_string = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'N' | b'I' if !in_string => {
                let rest = &text.as_bytes()[at..];
                if rest.starts_with(b"NaN") || rest.starts_with(b"Infinity") {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// Counts the bytes that pass.
struct Counted<R> {
    reader: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Standard input without holding its lock, which is not `Send`.
struct LateStdin;

impl Read for LateStdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::stdin().read(buffer)
    }
}
