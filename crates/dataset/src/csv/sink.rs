//! [`CsvLines`]: rows as CSV. Texts and scalars stand as they are, everything else as JSON text, null as nothing.

use std::io;

use csv::{QuoteStyle, WriterBuilder};
use serde_json::value::RawValue;
use vgen_core::{Fault, Row};

use crate::columns::{Column, UNFIT};
use crate::file_sink::Format;
use crate::jsonl::compression::Compression;

/// Bytes after which a plain file's lines are passed on, and uncompressed bytes of a compressed member.
const FULL: usize = 1 << 19;

/// CSV in a file, plain or compressed.
pub(crate) struct CsvLines {
    columns: Vec<String>,
    separator: u8,
    compression: Compression,
    buffer: Vec<u8>,
}

impl CsvLines {
    pub(crate) fn new(columns: &[Column], separator: u8, compression: Compression) -> Self {
        let mut columns: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
        columns.retain(|name| name != UNFIT);
        columns.push(UNFIT.to_owned());
        Self { columns, separator, compression, buffer: Vec::new() }
    }

    fn line<'a>(&mut self, values: impl Iterator<Item = std::borrow::Cow<'a, str>>) -> Result<(), Fault> {
        let mut writer = WriterBuilder::new()
            .delimiter(self.separator)
            .quote_style(QuoteStyle::Necessary)
            .from_writer(&mut self.buffer);
        let values: Vec<_> = values.collect();
        let written =
            writer.write_record(values.iter().map(|value| value.as_bytes())).and_then(|()| Ok(writer.flush()?));
        // Writing to memory.
        written.map_err(|error| Fault::stop("output.write", error.to_string()))
    }
}

fn field(value: &RawValue) -> std::borrow::Cow<'_, str> {
    let text = value.get();
    if text == "null" {
        return "".into();
    }
    match text.starts_with('"') {
        true => serde_json::from_str::<String>(text).map_or_else(|_| text.into(), Into::into),
        false => text.into(),
    }
}

impl Format for CsvLines {
    fn push(&mut self, rows: &[Row]) -> Result<(), Fault> {
        let columns = std::mem::take(&mut self.columns);
        let mut pushed = Ok(());
        for row in rows {
            let mut unfit = Row::new();
            for (name, value) in row.iter().filter(|(name, _)| !columns.iter().any(|column| column == name)) {
                unfit.set_raw(name, value.to_owned());
            }
            let unfit = if unfit.is_empty() { String::new() } else { unfit.to_json() };
            let values = columns.iter().map(|name| match row.get(name) {
                Some(value) => field(value),
                None if name == UNFIT => unfit.as_str().into(),
                None => "".into(),
            });
            pushed = pushed.and_then(|()| self.line(values));
        }
        self.columns = columns;
        pushed
    }

    fn is_full(&self) -> bool {
        self.buffer.len() >= FULL
    }

    fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    fn joins(&self) -> bool {
        self.compression == Compression::None
    }

    fn block(&mut self, position: u64, _last: bool) -> io::Result<Vec<u8>> {
        let lines = std::mem::take(&mut self.buffer);
        if position == 0 {
            let columns = std::mem::take(&mut self.columns);
            let headed = self.line(columns.iter().map(|name| name.as_str().into()));
            self.columns = columns;
            headed.map_err(|fault| io::Error::other(fault.message))?;
            self.buffer.extend_from_slice(&lines);
        } else {
            self.buffer = lines;
        }
        let block = self.compression.member(&self.buffer);
        self.buffer.clear();
        block
    }
}
