//! Parquet: rows in typed columns, row group by row group.

mod build;
mod sink;
mod source;

pub(crate) use sink::{ParquetLayout, RowGroups};
pub use source::ParquetSource;
