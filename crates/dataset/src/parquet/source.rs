//! [`ParquetSource`]: rows from Parquet. Values become JSON, bytes become base64, so that an Image feature of Hugging
//! Face (`{bytes, path}`) is what the task expects.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use arrow_json::writer::{Encoder, EncoderFactory, EncoderOptions, NullableEncoder, make_encoder};
use arrow_schema::{ArrowError, DataType, FieldRef};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc32fast::Hasher;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use vgen_core::{Fault, Row, catch_panic};

use super::features;
use crate::columns::{Column, ColumnType};
use crate::{DatasetError, Origin, RowSource, Skipped, SourceRow};

/// Decoded bytes to hold at a time, about.
const BATCH_BYTES: i64 = 8 << 20;
const MOST_BATCH_ROWS: i64 = 1024;

/// Rows from Parquet.
pub struct ParquetSource {
    file: File,
    metadata: ArrowReaderMetadata,
    name: Arc<str>,
    folder: Option<PathBuf>,
    reader: Option<ParquetRecordBatchReader>,
    rows: VecDeque<Row>,
    /// The row group that is being read, and rows of it that are behind.
    group: usize,
    behind: u64,
    number: u64,
    total: u64,
    /// Over the bytes of the row groups up to the current one.
    digest: Hasher,
    /// What the file says that its columns are, in the words of Hugging Face's `datasets`.
    features: Map<String, Value>,
}

impl ParquetSource {
    /// Opens a file and reads its schema.
    ///
    /// # Errors
    /// `input.missing`, `input.folder`, `input.open`, `input.empty`, `input.format`.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let opened = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => DatasetError::InputMissing(path.to_owned()),
            _ => DatasetError::InputOpen { path: path.to_owned(), source },
        };
        let file = File::open(path).map_err(opened)?;
        if file.metadata().map_err(opened)?.is_dir() {
            return Err(DatasetError::InputIsFolder(path.to_owned()).into());
        }
        let name: Arc<str> = path.to_string_lossy().into();
        let broken = |what: String| DatasetError::InputParquet { name: name.to_string(), what };
        let metadata = catch_panic(|| ArrowReaderMetadata::load(&file, Default::default()))
            .map_err(broken)?
            .map_err(|error| broken(error.to_string()))?;
        let features = features::declared(metadata.metadata().file_metadata());
        let total = metadata.metadata().file_metadata().num_rows().max(0) as u64;
        if total == 0 {
            return Err(DatasetError::InputEmpty(name.to_string()).into());
        }
        let folder = path.parent().map(|parent| match parent.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => parent.to_owned(),
        });
        Ok(Self {
            file,
            metadata,
            name,
            folder,
            reader: None,
            rows: VecDeque::new(),
            group: 0,
            behind: 0,
            number: 0,
            total,
            digest: Hasher::new(),
            features,
        })
    }

    /// How many rows it has.
    pub fn len(&self) -> u64 {
        self.total
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    fn failed(&self, error: impl std::fmt::Display) -> DatasetError {
        DatasetError::InputRead {
            origin: self.origin(),
            source: io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
        }
    }

    fn origin(&self) -> Origin {
        Origin { name: Arc::clone(&self.name), line: None }
    }

    fn group_rows(&self, group: usize) -> Option<u64> {
        let groups = self.metadata.metadata().row_groups();
        groups.get(group).map(|group| group.num_rows().max(0) as u64)
    }

    /// Takes the bytes of the current row group into the digest.
    fn digest_group(&mut self) -> io::Result<()> {
        let metadata = Arc::clone(self.metadata.metadata());
        let Some(group) = metadata.row_groups().get(self.group) else { return Ok(()) };
        let mut file = &self.file;
        let mut buffer = vec![0; 1 << 18];
        for column in group.columns() {
            let (start, length) = column.byte_range();
            file.seek(SeekFrom::Start(start))?;
            let mut left = length;
            while left > 0 {
                let part = &mut buffer[..left.min(1 << 18) as usize];
                file.read_exact(part)?;
                self.digest.update(part);
                left -= part.len() as u64;
            }
        }
        Ok(())
    }

    /// Makes sure that the next row's group is open; false at the end.
    fn open_group(&mut self) -> Result<bool, DatasetError> {
        while self.group_rows(self.group).is_some_and(|rows| self.behind >= rows) {
            self.group += 1;
            self.behind = 0;
            self.reader = None;
        }
        let Some(rows) = self.group_rows(self.group) else { return Ok(false) };
        if self.reader.is_some() {
            return Ok(true);
        }
        if self.behind == 0 {
            self.digest_group().map_err(|source| DatasetError::InputRead { origin: self.origin(), source })?;
        }
        let size = self.metadata.metadata().row_group(self.group).total_byte_size();
        let batch = (BATCH_BYTES / (size / rows.max(1) as i64).max(1)).clamp(1, MOST_BATCH_ROWS) as usize;
        let file = self.file.try_clone().map_err(|source| DatasetError::InputRead { origin: self.origin(), source })?;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.metadata.clone())
            .with_row_groups(vec![self.group])
            .with_offset(self.behind as usize)
            .with_batch_size(batch)
            .build();
        self.reader = Some(reader.map_err(|error| self.failed(error))?);
        Ok(true)
    }

    fn read(&mut self) -> Result<Option<SourceRow>, DatasetError> {
        while self.rows.is_empty() {
            if !self.open_group()? {
                return Ok(None);
            }
            let Some(batch) = self.reader.as_mut().and_then(Iterator::next) else {
                return Err(self.failed("a row group has fewer rows than it says"));
            };
            let batch = batch.map_err(|error| self.failed(error))?;
            self.behind += batch.num_rows() as u64;
            self.rows = rows(&batch, &self.features).map_err(|error| self.failed(error))?;
        }
        let Some(row) = self.rows.pop_front() else { return Ok(None) };
        let number = self.number;
        self.number += 1;
        Ok(Some(SourceRow {
            number,
            origin: Origin { name: Arc::clone(&self.name), line: Some(self.number) },
            row: Ok(row),
            share: Some(self.number as f64 / self.total as f64),
            digest: self.digest.clone().finalize(),
        }))
    }

    fn skip_rows(&mut self, rows: u64) -> Result<Skipped, DatasetError> {
        let mut left = rows;
        // What is decoded already.
        let decoded = (self.rows.len() as u64).min(left);
        self.rows.drain(..decoded as usize);
        left -= decoded;
        if left > 0 {
            self.reader = None;
        }
        while let Some(in_group) = self.group_rows(self.group).filter(|_| left > 0) {
            if self.behind == 0 {
                self.digest_group().map_err(|source| DatasetError::InputRead { origin: self.origin(), source })?;
            }
            let step = left.min(in_group - self.behind);
            self.behind += step;
            left -= step;
            if self.behind == in_group && left > 0 {
                self.group += 1;
                self.behind = 0;
            }
        }
        self.number += rows - left;
        Ok(Skipped { rows: rows - left, digest: self.digest.clone().finalize() })
    }
}

impl RowSource for ParquetSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    // The library's arithmetic panics where a file's own numbers don't fit each other.
    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        let row = catch_panic(|| self.read()).map_err(|said| self.failed(said))?;
        Ok(row?)
    }

    fn skip(&mut self, rows: u64) -> Result<Skipped, Fault> {
        let skipped = catch_panic(|| self.skip_rows(rows)).map_err(|said| self.failed(said))?;
        Ok(skipped?)
    }

    fn columns(&self) -> Option<Vec<Column>> {
        Some(
            self.metadata
                .schema()
                .fields()
                .iter()
                .map(|field| {
                    let feature = self.features.get(field.name());
                    let kind = match is_bare_image(field, feature) {
                        true => ColumnType::Image,
                        false => column_type(field),
                    };
                    let feature = feature.and_then(|feature| features::kept(feature, &kind));
                    Column { feature, ..Column::new(field.name(), kind) }
                })
                .collect(),
        )
    }
}

/// Whether a column that is declared as images has their bytes without a name.
fn is_bare_image(field: &FieldRef, feature: Option<&Value>) -> bool {
    let bytes = matches!(field.data_type(), DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
    bytes && feature.is_some_and(features::is_image)
}

/// The type of an output's column that holds what this one does.
fn column_type(field: &FieldRef) -> ColumnType {
    let data_type = field.data_type();
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => ColumnType::Text,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => ColumnType::Integer,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => ColumnType::Integer,
        DataType::Float32 | DataType::Float64 => ColumnType::Number,
        DataType::Boolean => ColumnType::Boolean,
        DataType::List(item) if item.data_type() == &DataType::Utf8 => ColumnType::Texts,
        DataType::List(item) if is_image(item.data_type()) => ColumnType::Images,
        DataType::List(item) if is_error(item.data_type()) => ColumnType::Errors,
        other if is_image(other) => ColumnType::Image,
        other if is_error(other) => ColumnType::Error,
        // What has bytes inside comes as base64, which no type but text takes back.
        other if has_bytes(other) => ColumnType::Json,
        other
            if other.to_string().parse().is_ok_and(|same: DataType| same == *other) && super::build::decodes(other) =>
        {
            ColumnType::Arrow(other.clone())
        }
        _ => ColumnType::Json,
    }
}

fn names_of(data_type: &DataType) -> Vec<&str> {
    match data_type {
        DataType::Struct(fields) => fields.iter().map(|field| field.name().as_str()).collect(),
        _ => Vec::new(),
    }
}

fn is_image(data_type: &DataType) -> bool {
    let mut names = names_of(data_type);
    names.sort_unstable();
    names == ["bytes", "path"]
}

fn is_error(data_type: &DataType) -> bool {
    names_of(data_type) == ["code", "message", "hint", "attempts"]
}

fn has_bytes(data_type: &DataType) -> bool {
    match data_type {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => true,
        DataType::Struct(fields) => fields.iter().any(|field| has_bytes(field.data_type())),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => has_bytes(field.data_type()),
        DataType::Dictionary(_, values) => has_bytes(values),
        _ => false,
    }
}

fn rows(batch: &RecordBatch, features: &Map<String, Value>) -> Result<VecDeque<Row>, ParquetError> {
    let options = EncoderOptions::default().with_explicit_nulls(true).with_encoder_factory(Arc::new(Base64Bytes));
    let schema = batch.schema();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (field, array) in schema.fields().iter().zip(batch.columns()) {
        let bare = is_bare_image(field, features.get(field.name()));
        columns.push((field.name(), bare, make_encoder(field, array.as_ref(), &options)?));
    }
    let mut rows = VecDeque::with_capacity(batch.num_rows());
    let mut text = Vec::new();
    for at in 0..batch.num_rows() {
        let mut row = Row::new();
        for (name, bare, encoder) in &mut columns {
            let value = if encoder.is_null(at) {
                RawValue::NULL.to_owned()
            } else {
                text.clear();
                if *bare {
                    text.extend_from_slice(b"{\"bytes\":");
                }
                encoder.encode(at, &mut text);
                if *bare {
                    text.extend_from_slice(b",\"path\":null}");
                }
                let text = String::from_utf8(text.clone()).map_err(|error| ParquetError::External(Box::new(error)))?;
                RawValue::from_string(text).map_err(|error| ParquetError::External(Box::new(error)))?
            };
            row.set_raw(name.as_str(), value);
        }
        rows.push_back(row);
    }
    Ok(rows)
}

/// Bytes as base64 text, where Arrow would write hexadecimal digits.
#[derive(Debug)]
struct Base64Bytes;

impl EncoderFactory for Base64Bytes {
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let bytes: Box<dyn Fn(usize) -> &'a [u8] + 'a> = match array.data_type() {
            DataType::Binary => {
                let array = array.as_binary::<i32>();
                Box::new(|at| array.value(at))
            }
            DataType::LargeBinary => {
                let array = array.as_binary::<i64>();
                Box::new(|at| array.value(at))
            }
            DataType::BinaryView => {
                let array = array.as_binary_view();
                Box::new(|at| array.value(at))
            }
            DataType::FixedSizeBinary(_) => {
                let array = array.as_fixed_size_binary();
                Box::new(|at| array.value(at))
            }
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(Box::new(Base64Encoder(bytes)), array.nulls().cloned())))
    }
}

struct Base64Encoder<'a>(Box<dyn Fn(usize) -> &'a [u8] + 'a>);

impl Encoder for Base64Encoder<'_> {
    fn encode(&mut self, at: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(STANDARD.encode((self.0)(at)).as_bytes());
        out.push(b'"');
    }
}
