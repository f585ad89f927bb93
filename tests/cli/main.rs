//! The programs as their users meet them: exit codes, standard output and error, files.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a failed step fails the test")]

mod checks;
mod configs;
mod inputs;
mod local;
mod messages;
mod outputs;
mod planning;
mod remote;
mod rendering;
mod runs;
mod support;
