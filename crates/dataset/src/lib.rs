//! Row sources and row sinks: where rows come from and where answers go.
//!
//! A [`RowSource`] hands out one row after the other and never holds more than one; a [`RowSink`] takes the output
//! rows of one input row after the other. [`JsonlSource`] and [`JsonlSink`] are those of JSON lines, plain, gzip or
//! zstd. Other formats implement the same two traits.
//!
//! ```
//! use vgen_dataset::{JsonlSink, JsonlSource, RowSink, RowSource};
//!
//! let mut source = JsonlSource::from_reader(&b"{\"id\": 1}\n\nnonsense\n"[..], "rows.jsonl");
//! let first = source.next_row()?.expect("there is a first row");
//! assert_eq!(first.origin.to_string(), "rows.jsonl line 1");
//!
//! let mut sink = JsonlSink::from_writer(Vec::new(), "memory");
//! sink.write(first.number, &[first.row?])?;
//! sink.finish()?;
//!
//! let second = source.next_row()?.expect("there is a second row");
//! assert_eq!((second.number, second.origin.line), (1, Some(3)));
//! assert_eq!(second.row.unwrap_err().code, "row.json");
//! # Ok::<(), vgen_core::Fault>(())
//! ```

mod error;
mod jsonl;
mod sink;
mod source;

pub use error::DatasetError;
pub use jsonl::{DEFAULT_MAX_LINE_BYTES, JsonlOptions, JsonlSink, JsonlSource, SinkOptions};
pub use sink::RowSink;
pub use source::{Origin, RowSource, SourceRow};
