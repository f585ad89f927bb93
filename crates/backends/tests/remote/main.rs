//! The remote backend against a scripted server on loopback: what it sends, what it makes of answers, and that no fault
//! of a server loses or doubles a row.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

mod endpoints;
mod faults;
mod limits;
mod properties;
mod recorded;
mod requests;
mod streams;
mod support;
