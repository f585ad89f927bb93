//! Comparison with what the reference implementations give for the tiny checkpoints.
//!
//! `VGEN_GOLDENS` names another folder of the form of `tests/fixtures/mllama/public`, `VGEN_CHECKPOINTS` the folder of
//! its checkpoints.

// The fixtures are part of the repository: what is wrong with them is to stop the test at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

/// Two tests of a function: with the kernels of the CPU, and with the operations that every device has.
macro_rules! on_both_paths {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            #[test]
            fn by_kernels() {
                super::$name(false);
            }

            #[test]
            fn portable() {
                super::$name(true);
            }
        })+
    };
}

mod engine;
mod fixtures;
mod inputs;
mod network;
