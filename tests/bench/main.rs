//! `vgen bench`: the harness against theory, the formulas, the program, and the server that it brings.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a failed step fails the test")]

mod endings;
mod formulas;
mod program;
mod queue;
mod remote;
mod scripted;
mod server;
