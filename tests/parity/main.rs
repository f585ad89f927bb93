//! Comparison with what the reference implementations give for the tiny checkpoints.
//!
//! `VGEN_GOLDENS` names another folder of the form of `tests/fixtures/mllama/public`, `VGEN_CHECKPOINTS` the folder of
//! its checkpoints.

// The fixtures are part of the repository: what is wrong with them is to stop the test at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../cpu_level/mod.rs"]
mod cpu_level;
mod engine;
mod fixtures;
mod inputs;
mod network;
