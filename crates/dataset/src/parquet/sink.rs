//! [`RowGroups`]: rows as Parquet, one row group after the other.
//!
//! Each row group is written as a whole Parquet file of its own: its pages, and a footer that describes them. Joined,
//! with one more footer at the end that describes them all, these are one Parquet file. So the file itself tells how to
//! go on after an interruption: the footers of the row groups are found from behind.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use arrow_array::builder::StringBuilder;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{
    FileMetaData, KeyValue, ParquetMetaData, ParquetMetaDataReader, ParquetMetaDataWriter, RowGroupMetaData,
};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use serde_json::value::RawValue;
use vgen_core::{Fault, Row};

use super::build::{array, data_type, unfit_text};
use super::features;
use crate::columns::{Column, UNFIT};
use crate::file_sink::Format;

/// Bytes of rows after which a row group ends, however few rows it has.
const FULL_BYTES: usize = 32 << 20;
/// A footer's length and the magic behind it.
const TAIL: u64 = 8;
const MAGIC: &[u8] = b"PAR1";

/// Parquet in a file.
pub(crate) struct RowGroups {
    /// The columns; the one of what fits in no other comes behind them.
    columns: Vec<Column>,
    /// Input rows of a row group.
    group_rows: usize,
    schema: SchemaRef,
    rows: Vec<Row>,
    inputs: usize,
    bytes: usize,
    groups: Vec<RowGroupMetaData>,
    /// Of the first row group; of no rows at all until then.
    file_metadata: Option<FileMetaData>,
}

impl RowGroups {
    pub(crate) fn new(mut columns: Vec<Column>, group_rows: usize) -> Self {
        columns.retain(|column| column.name != UNFIT);
        let mut fields: Vec<Field> =
            columns.iter().map(|column| Field::new(&column.name, data_type(&column.kind), true)).collect();
        fields.push(Field::new(UNFIT, DataType::Utf8, true));
        // `datasets` takes them from the schema of Arrow that is embedded in the file, others from the file itself.
        let features = [(features::KEY.to_owned(), features::text(&columns))];
        let schema = Arc::new(Schema::new_with_metadata(fields, HashMap::from(features)));
        let (rows, groups) = (Vec::new(), Vec::new());
        Self { columns, group_rows, schema, rows, inputs: 0, bytes: 0, groups, file_metadata: None }
    }

    fn properties(&self) -> WriterProperties {
        WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true)
            .set_created_by("vgen".to_owned())
            .set_max_row_group_row_count(None)
            .set_key_value_metadata(Some(vec![KeyValue::new(features::KEY.to_owned(), features::text(&self.columns))]))
            .build()
    }

    fn batch(&self) -> Result<RecordBatch, parquet::errors::ParquetError> {
        let columns = &self.columns;
        let mut unfit: Vec<Vec<usize>> = vec![Vec::new(); self.rows.len()];
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.len() + 1);
        for (at, column) in columns.iter().enumerate() {
            let mark = |row: usize| unfit[row].push(at);
            arrays.push(array(column, self.rows.iter(), mark)?);
        }
        let mut rest = StringBuilder::new();
        for (row, unfit) in self.rows.iter().zip(&unfit) {
            // Of a row that was written before and is copied, what did not fit then is text already.
            let carried = row.text(UNFIT).map(std::borrow::Cow::into_owned);
            let text = unfit_text(row, columns, unfit).map_err(|fault| io::Error::other(fault.message))?;
            rest.append_option(match carried {
                Some(carried) => Some(carried),
                None => text.filter(|_| !row.contains(UNFIT)),
            });
        }
        arrays.push(Arc::new(rest.finish()));
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), arrays)?)
    }

    /// The rows as a Parquet file of one row group.
    fn segment(&self) -> Result<(Vec<u8>, ParquetMetaData), parquet::errors::ParquetError> {
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, Arc::clone(&self.schema), Some(self.properties()))?;
        if !self.rows.is_empty() {
            writer.write(&self.batch()?)?;
        }
        writer.close()?;
        let length = footer_length(&bytes[bytes.len() - TAIL as usize..]).unwrap_or_default();
        let footer = &bytes[bytes.len() - TAIL as usize - length as usize..bytes.len() - TAIL as usize];
        let metadata = ParquetMetaDataReader::decode_metadata(footer)?;
        Ok((bytes, metadata))
    }

    /// Takes over a segment's row groups.
    fn learn(&mut self, metadata: &ParquetMetaData, start: u64) -> Result<(), parquet::errors::ParquetError> {
        for group in metadata.row_groups() {
            let group = moved(group.clone(), start as i64, self.groups.len())?;
            self.groups.push(group);
        }
        self.file_metadata.get_or_insert_with(|| metadata.file_metadata().clone());
        Ok(())
    }
}

fn footer_length(tail: &[u8]) -> Option<u64> {
    let (length, magic) = tail.split_at_checked(4)?;
    (magic == MAGIC).then(|| u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]])))
}

/// A row group whose segment stands `by` bytes further behind than it thinks.
fn moved(group: RowGroupMetaData, by: i64, ordinal: usize) -> Result<RowGroupMetaData, parquet::errors::ParquetError> {
    let columns = group.columns().iter().cloned().map(|column| {
        let data = column.data_page_offset() + by;
        let dictionary = column.dictionary_page_offset().map(|offset| offset + by);
        column.into_builder().set_data_page_offset(data).set_dictionary_page_offset(dictionary).build()
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    let offset = group.file_offset().map(|offset| offset + by);
    let mut builder = group.into_builder().set_column_metadata(columns).set_ordinal(ordinal as i32);
    if let Some(offset) = offset {
        builder = builder.set_file_offset(offset);
    }
    builder.build()
}

impl Format for RowGroups {
    fn push(&mut self, rows: &[Row]) -> Result<(), Fault> {
        for row in rows {
            // Of a row that was written before and is copied the same: where row groups end depends on the values alone.
            let values = self.columns.iter().filter_map(|column| row.get(&column.name).map(RawValue::get));
            self.bytes += values.filter(|value| *value != "null").map(str::len).sum::<usize>();
            self.rows.push(row.clone());
        }
        self.inputs += 1;
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.inputs >= self.group_rows || self.bytes >= FULL_BYTES
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn block(&mut self, position: u64, last: bool) -> io::Result<Vec<u8>> {
        let (bytes, metadata) = self.segment().map_err(io::Error::other)?;
        self.rows.clear();
        (self.inputs, self.bytes) = (0, 0);
        self.learn(&metadata, position).map_err(io::Error::other)?;
        let _ = last;
        Ok(bytes)
    }

    fn end(&mut self, position: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let Some(file) = self.file_metadata.clone() else {
            // No rows at all: a file of the schema alone.
            return self.segment().map(|(bytes, _)| bytes).map_err(io::Error::other);
        };
        let rows = self.groups.iter().map(RowGroupMetaData::num_rows).sum();
        let file = FileMetaData::new(
            file.version(),
            rows,
            file.created_by().map(str::to_owned),
            file.key_value_metadata().cloned(),
            file.schema_descr_ptr(),
            file.column_orders().cloned(),
        );
        let _ = position;
        let metadata = ParquetMetaData::new(file, self.groups.clone());
        ParquetMetaDataWriter::new(&mut bytes, &metadata).finish().map_err(io::Error::other)?;
        Ok(bytes)
    }

    fn resume(&mut self, file: &mut File, bytes: u64) -> io::Result<()> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "its row groups are broken");
        let mut found = Vec::new();
        let mut end = bytes;
        while end > 0 {
            let mut tail = [0; TAIL as usize];
            file.seek(SeekFrom::Start(end.checked_sub(TAIL).ok_or_else(broken)?))?;
            file.read_exact(&mut tail)?;
            let length = footer_length(&tail).ok_or_else(broken)?;
            let footer_start = end.checked_sub(TAIL + length).ok_or_else(broken)?;
            let mut footer = vec![0; length as usize];
            file.seek(SeekFrom::Start(footer_start))?;
            file.read_exact(&mut footer)?;
            let metadata = ParquetMetaDataReader::decode_metadata(&footer).map_err(io::Error::other)?;
            let pages: u64 = metadata.row_groups().iter().map(|group| group.compressed_size().max(0) as u64).sum();
            let start = footer_start.checked_sub(pages + MAGIC.len() as u64).ok_or_else(broken)?;
            found.push((metadata, start));
            end = start;
        }
        for (metadata, start) in found.into_iter().rev() {
            self.learn(&metadata, start).map_err(io::Error::other)?;
        }
        Ok(())
    }
}
