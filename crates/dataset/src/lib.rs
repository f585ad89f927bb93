//! Row sources and row sinks: where rows come from and where answers go.
//!
//! A [`RowSource`] hands out one row after the other and never holds more than one; a [`RowSink`] takes the output
//! rows of one input row after the other. [`open`] finds the source for files, globs and folders by what they are
//! ([`JsonlSource`], [`CsvSource`], [`ParquetSource`], [`ImageFolder`]); [`OutputLayout`] makes the sink for a file
//! ([`FileSink`]), which can be continued after an interruption so that its bytes are those of an uninterrupted run.
//! [`JsonlSink`] writes to a stream, [`SidecarSink`] text files beside images.
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

mod chain;
mod columns;
mod csv;
mod error;
mod file_sink;
mod images;
mod input;
mod jsonl;
mod lookahead;
mod output;
mod parquet;
mod select;
mod sink;
mod source;

pub use columns::{Column, ColumnType, ImageStorage, UNFIT, infer, store_images};
pub use csv::CsvSource;
pub use error::DatasetError;
pub use file_sink::FileSink;
pub use images::{FetchImage, FolderOptions, ImageColumn, ImageFolder, SidecarOptions, SidecarSink, StoredImages};
pub use input::{InputFormat, InputOptions, expand, open, stdin};
pub use jsonl::{DEFAULT_MAX_LINE_BYTES, JsonlOptions, JsonlSink, JsonlSource};
pub use lookahead::Lookahead;
pub use output::{OutputFormat, OutputLayout, check_is_no_input};
pub use parquet::ParquetSource;
pub use select::{Selected, Selection, Shard};
pub use sink::{Mark, RowSink};
pub use source::{Origin, RowSource, Skipped, SourceRow};
