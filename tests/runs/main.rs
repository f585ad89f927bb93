//! Runs that can't be lost: killed, interrupted, gone on with, done again, merged; every format in and out.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a failed step fails the test")]

#[allow(dead_code, reason = "shared with the tests of the command line")]
#[path = "../cli/support.rs"]
mod support;

mod codes;
mod formats;
mod kills;
mod merging;
mod resuming;
mod retrying;
mod selecting;
