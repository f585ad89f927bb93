//! CSV: a header line, then a row a line; plain, gzip or zstd.

mod sink;
mod source;

pub(crate) use sink::CsvLines;
pub use source::CsvSource;
