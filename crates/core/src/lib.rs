//! The words that every part of vgen uses: rows, messages, images, sampling parameters, generations, the
//! [`Backend`] trait and the [`Fault`] that every error becomes.
//!
//! This crate names no tensor, async or HTTP library.

mod attention_span;
mod backend;
mod fault;
mod generation;
mod image;
mod message;
mod panics;
mod row;
mod sampling;
mod secret;

pub use attention_span::image_spans;
pub use backend::{Backend, CancelToken, MAX_NUM_GENERATIONS, Reply, Request, Response};
pub use fault::{Fault, FaultClass};
pub use generation::{FinishReason, Generation, Timings, TokenLogprob, TopLogprob, Usage};
pub use image::{ImageRef, PixelTiles};
pub use message::{Content, Message, Part, Role};
pub use panics::catch_panic;
pub use row::{Row, RowError};
pub use sampling::{Constraint, SamplingParams};
pub use secret::Secret;
