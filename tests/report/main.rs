//! Reports: what is in them, and how they behave in a browser.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a failed step fails the test")]
#![allow(clippy::print_stderr, reason = "what was skipped is said")]

#[allow(dead_code, reason = "shared with the tests of the command line")]
#[path = "../cli/support.rs"]
mod support;

mod browser;
mod contents;
mod page;
mod reading;
