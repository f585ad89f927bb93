//! Comparison with what the reference implementations give for the tiny checkpoints.
//!
//! `VGEN_GOLDENS` names another folder of the form of `tests/fixtures/mllama/public`, `VGEN_CHECKPOINTS` the folder of
//! its checkpoints.

// The fixtures are part of the repository: what is wrong with them is to stop the test at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write as _;

use vgen_backends::local::DeviceChoice;

/// Where and how a test computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    /// The kernels of the CPU.
    Kernels,
    /// The operations that every device has, on the CPU.
    Portable,
    /// The same with the form of attention over pages that a GPU may have a kernel for.
    Pages,
    /// The same on a GPU.
    Gpu(DeviceChoice),
}

/// A GPU that works, or a message why the test is skipped.
fn gpu() -> Option<On> {
    let mut reasons = Vec::new();
    for choice in [DeviceChoice::Cuda(0), DeviceChoice::Metal] {
        match choice.open() {
            Ok(_) => return Some(On::Gpu(choice)),
            Err(fault) => reasons.push(fault.message),
        }
    }
    // Not by a macro, whose text would be kept back.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "skipped: {}", reasons.join("; ")).unwrap();
    None
}

/// Tests of a function: with the kernels of the CPU, with the operations that every device has, and with these on a GPU
/// where there is one.
macro_rules! on_all_paths {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            use crate::On;

            #[test]
            fn by_kernels() {
                crate::cpu_level::limit();
                super::$name(On::Kernels);
            }

            #[test]
            fn portable() {
                super::$name(On::Portable);
            }

            #[test]
            fn gpu() {
                if let Some(gpu) = crate::gpu() {
                    super::$name(gpu);
                }
            }
        })+
    };
}

#[path = "../cpu_level/mod.rs"]
mod cpu_level;
mod engine;
mod fixtures;
mod inputs;
mod network;
