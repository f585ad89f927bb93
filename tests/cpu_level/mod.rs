//! `VGEN_CPU` limits the instructions of the CPU kernels for tests: `portable`, `avx2`, `avx512`, `avx512vnni`, `avx512bf16`
//! or `amx`. A machine that has more stands for one that has no more than that.

use std::sync::Once;

use vgen_kernels::cpu::{Level, limit_level};

/// Sets the limit once, before anything is loaded.
pub(crate) fn limit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Ok(name) = std::env::var("VGEN_CPU") {
            let level: Level = name.parse().expect("VGEN_CPU is a level");
            limit_level(level);
            assert_eq!(Level::current(), level.min(Level::of_machine()));
        }
    });
}
