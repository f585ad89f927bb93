//! Where the parts meet: a [`Pipeline`] takes rows from a source, asks a backend what a task makes of them, and writes
//! the answers to a sink, in the order of the rows and in memory that does not grow with them.
//!
//! ```
//! use std::sync::Arc;
//!
//! use vgen_backends::mock::{MockBackend, MockOptions};
//! use vgen_dataset::{JsonlSink, JsonlSource};
//! use vgen_run::Pipeline;
//! use vgen_task::TextGenerationWithImage;
//!
//! let rows = &b"{\"instruction\": \"What is it?\", \"image\": \"https://example.com/a.png\"}\n"[..];
//! let source = JsonlSource::from_reader(rows, "rows.jsonl");
//! let task = TextGenerationWithImage::builder().system_prompt("Answer in one word.").build()?;
//! let backend = MockBackend::new(MockOptions { answer: "a cat".into(), ..MockOptions::default() })?;
//! let sink = JsonlSink::from_writer(Vec::new(), "memory");
//!
//! let summary = Pipeline::new(source, task, Arc::new(backend), sink).run()?;
//! assert_eq!((summary.rows, summary.failed_rows), (1, 0));
//! # Ok::<(), vgen_core::Fault>(())
//! ```

pub mod bench;
mod errors;
mod feed;
mod gate;
mod known;
mod merge;
mod pipeline;
mod progress;
pub mod record;
mod reorder;
pub mod report;
mod task;
mod verify;

pub use errors::MaxErrors;
pub use known::{JournalRows, KnownRows, OldRows, check_skipped};
pub use merge::{Merged, merge};
pub use pipeline::{Pipeline, RunError};
pub use progress::{Observer, Progress, Summary};
pub use task::Task;
pub use verify::{Difference, Sampled, Verified, verify};

/// The examples of the README, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
