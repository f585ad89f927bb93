//! A scripted HTTP server on loopback, for tests and load measurements: HTTP/1.1 and HTTP/2, with TLS or without, every request recorded,
//! answers that are late, slow, cut in the middle, reset or simply wrong.
//!
//! The script is a function from a request to an [`Answer`]. It runs on the server's threads; a panic in it closes the
//! connection.

mod answer;
mod server;

pub use answer::Answer;
pub use server::{Received, Server};
