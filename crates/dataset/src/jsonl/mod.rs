//! JSON lines: one JSON object a line, UTF-8; plain, gzip or zstd.

pub(crate) mod compression;
mod sink;
mod source;

pub use sink::JsonlSink;
pub(crate) use sink::Lines;
pub use source::{DEFAULT_MAX_LINE_BYTES, JsonlOptions, JsonlSource};
