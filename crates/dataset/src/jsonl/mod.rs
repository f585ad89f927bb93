//! JSON lines: one JSON object a line, UTF-8; plain, gzip or zstd.

mod compression;
mod sink;
mod source;

pub use sink::{JsonlSink, SinkOptions};
pub use source::{DEFAULT_MAX_LINE_BYTES, JsonlOptions, JsonlSource};
