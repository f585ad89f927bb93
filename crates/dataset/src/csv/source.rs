//! [`CsvSource`]: rows from CSV. Every value is a text.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crc32fast::Hasher;
use csv::{ByteRecord, Reader, ReaderBuilder};
use vgen_core::{Fault, Row};

use crate::jsonl::compression::decoded;
use crate::{DatasetError, Origin, RowSource, Skipped, SourceRow};

/// Rows from CSV with a header.
pub struct CsvSource {
    reader: Reader<Box<dyn BufRead + Send>>,
    header: Vec<String>,
    name: Arc<str>,
    folder: Option<PathBuf>,
    size: Option<u64>,
    record: ByteRecord,
    number: u64,
    digest: Hasher,
    pending: Option<SourceRow>,
}

impl CsvSource {
    /// Opens a file, plain or compressed, and reads its header and first row. The separator is a tab in files that are
    /// called `.tsv`, else a comma.
    ///
    /// # Errors
    /// `input.missing`, `input.folder`, `input.open`, `input.empty`, `input.format`, `input.read`.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let opened = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => DatasetError::InputMissing(path.to_owned()),
            _ => DatasetError::InputOpen { path: path.to_owned(), source },
        };
        let file = File::open(path).map_err(opened)?;
        let metadata = file.metadata().map_err(opened)?;
        if metadata.is_dir() {
            return Err(DatasetError::InputIsFolder(path.to_owned()).into());
        }
        let name = path.to_string_lossy();
        let plain = name.trim_end_matches(".gz").trim_end_matches(".zst");
        let separator = if plain.ends_with(".tsv") { b'\t' } else { b',' };
        let mut source = Self::from_reader(file, &name, separator)?;
        source.size = metadata.is_file().then_some(metadata.len());
        source.folder = path.parent().map(|parent| match parent.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => parent.to_owned(),
        });
        source.pending = source.read()?;
        if source.pending.is_none() {
            return Err(DatasetError::InputEmpty(name.into_owned()).into());
        }
        Ok(source)
    }

    /// Reads from anything, under a name for messages.
    ///
    /// # Errors
    /// `input.read`, `input.format`: there is no usable header.
    pub fn from_reader(reader: impl Read + Send + 'static, name: &str, separator: u8) -> Result<Self, Fault> {
        let origin = Origin { name: name.into(), line: Some(1) };
        let (_, mut reader) = decoded(Box::new(BufReader::new(reader)))
            .map_err(|source| DatasetError::InputRead { origin: origin.clone(), source })?;
        // A byte order mark, as spreadsheets write it.
        let mut first = Vec::with_capacity(3);
        reader
            .by_ref()
            .take(3)
            .read_to_end(&mut first)
            .map_err(|source| DatasetError::InputRead { origin: origin.clone(), source })?;
        if first == [0xef, 0xbb, 0xbf] {
            first.clear();
        }
        let reader: Box<dyn BufRead + Send> = Box::new(io::Cursor::new(first).chain(reader));
        let mut reader = ReaderBuilder::new().delimiter(separator).flexible(true).from_reader(reader);
        let format = |what, hint| DatasetError::InputFormat { name: name.to_owned(), what, hint };
        let header = reader.byte_headers().map_err(|error| broken(origin, error))?;
        let header = header.iter().map(|name| String::from_utf8(name.to_vec())).collect::<Result<Vec<_>, _>>();
        let header =
            header.map_err(|_| format("its header is not UTF-8", "convert it, for example: iconv -t utf-8"))?;
        let mut names = std::collections::HashSet::new();
        if !header.iter().all(|name| names.insert(name)) {
            return Err(format("two columns of its header have the same name", "rename one of them").into());
        }
        let mut digest = Hasher::new();
        header.iter().for_each(|name| digest.update(name.as_bytes()));
        Ok(Self {
            reader,
            header,
            name: name.into(),
            folder: Some(PathBuf::from(".")),
            size: None,
            record: ByteRecord::new(),
            number: 0,
            digest,
            pending: None,
        })
    }

    fn origin(&self) -> Origin {
        Origin { name: Arc::clone(&self.name), line: self.record.position().map(csv::Position::line) }
    }

    /// Reads the next record; false at the end.
    fn advance(&mut self) -> Result<bool, DatasetError> {
        if !self.reader.read_byte_record(&mut self.record).map_err(|error| broken(self.origin(), error))? {
            return Ok(false);
        }
        self.number += 1;
        for value in &self.record {
            self.digest.update(value);
            self.digest.update(&[0x1f]);
        }
        self.digest.update(&[0x1e]);
        Ok(true)
    }

    fn read(&mut self) -> Result<Option<SourceRow>, DatasetError> {
        if !self.advance()? {
            return Ok(None);
        }
        // Positions count bytes after decompression, which has no known end.
        let position = self.reader.position().byte();
        let share = self.size.filter(|size| *size > 0).map(|size| (position as f64 / size as f64).min(1.0));
        Ok(Some(SourceRow {
            number: self.number - 1,
            origin: self.origin(),
            row: self.row().map_err(Fault::from),
            share,
            digest: self.digest.clone().finalize(),
        }))
    }

    fn row(&self) -> Result<Row, DatasetError> {
        if self.record.len() != self.header.len() {
            let what = format!("{} values for {} columns", self.record.len(), self.header.len());
            return Err(DatasetError::RowCsv { origin: self.origin(), what });
        }
        let mut row = Row::new();
        for (name, value) in self.header.iter().zip(&self.record) {
            let text = std::str::from_utf8(value)
                .map_err(|error| DatasetError::RowUtf8 { origin: self.origin(), byte: error.valid_up_to() + 1 })?;
            // A text always serialises.
            let _ = row.set(name.as_str(), text);
        }
        Ok(row)
    }
}

fn broken(origin: Origin, error: csv::Error) -> DatasetError {
    let message = error.to_string();
    let source = match error.into_kind() {
        csv::ErrorKind::Io(source) => source,
        _ => io::Error::new(io::ErrorKind::InvalidData, message),
    };
    DatasetError::InputRead { origin, source }
}

impl RowSource for CsvSource {
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
        if rows > 0
            && let Some(row) = self.pending.take()
        {
            skipped = Skipped { rows: 1, digest: row.digest };
        }
        while skipped.rows < rows && self.advance()? {
            skipped = Skipped { rows: skipped.rows + 1, digest: self.digest.clone().finalize() };
        }
        Ok(skipped)
    }
}
