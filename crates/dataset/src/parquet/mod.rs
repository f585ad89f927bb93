//! Parquet: rows in typed columns, row group by row group.

mod build;
mod features;
mod sink;
mod source;

pub(crate) use sink::RowGroups;
pub use source::ParquetSource;
