//! Data from outside, broken at random: images, data sets, configs, templates, schemas, records of runs, checkpoints,
//! servers' answers. Whatever it is, there is an answer or an error with a code: no panic, no endless wait.
//!
//! Some rounds in each run of the tests; `.ci/soak` does many. Rounds are numbered, and each number always breaks the
//! same things: `VGEN_FUZZ_FROM=1234 VGEN_FUZZ_ROUNDS=1 cargo test --test fuzz NAME` repeats one.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a failed step fails the test")]

#[allow(dead_code, reason = "shared with the tests of the command line")]
#[path = "../cli/support.rs"]
mod support;

mod files;
mod mutate;
mod programs;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use fastrand::Rng;

/// No round takes nearly as long, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs `usual` rounds, or `VGEN_FUZZ` times as many, and names the one that fails.
fn rounds(usual: u64, mut round: impl FnMut(&mut Rng)) {
    let from = variable("VGEN_FUZZ_FROM").unwrap_or(0);
    let count = variable("VGEN_FUZZ_ROUNDS").unwrap_or(usual * variable("VGEN_FUZZ").unwrap_or(1));
    for number in from..from + count {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| round(&mut Rng::with_seed(number))));
        assert!(outcome.is_ok(), "round {number}: {}", outcome.err().map(said).unwrap_or_default());
        assert!(start.elapsed() < PATIENCE, "round {number} took {:?}", start.elapsed());
    }
}

fn said(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
