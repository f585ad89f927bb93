//! Which instruction sets the kernels use on this machine.

use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// A set of instructions, each level containing those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Plain Rust, on any machine.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with VNNI (8-bit dot products).
    Avx512Vnni,
    /// AVX-512 with VNNI and BF16 (dot products of bf16 pairs).
    Avx512Bf16,
    /// All that and AMX (products of whole tiles of bf16).
    Amx,
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "portable" => Self::Portable,
            "avx2" => Self::Avx2,
            "avx512" => Self::Avx512,
            "avx512vnni" => Self::Avx512Vnni,
            "avx512bf16" => Self::Avx512Bf16,
            "amx" => Self::Amx,
            _ => {
                let names = "portable, avx2, avx512, avx512vnni, avx512bf16 and amx are";
                return Err(format!("{text:?} is no set of instructions: {names}"));
            }
        })
    }
}

impl Level {
    /// All levels, lowest first.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16, Self::Amx];

    /// The highest level that this machine has.
    #[must_use]
    pub fn of_machine() -> Self {
        static OF_MACHINE: OnceLock<Level> = OnceLock::new();
        *OF_MACHINE.get_or_init(Self::detect)
    }

    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if !(has!("avx2") && has!("fma") && has!("f16c")) {
                return Self::Portable;
            }
            if !(has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl")) {
                return Self::Avx2;
            }
            if !has!("avx512vnni") {
                return Self::Avx512;
            }
            if !has!("avx512bf16") {
                return Self::Avx512Vnni;
            }
            if crate::x86::amx::is_usable() { Self::Amx } else { Self::Avx512Bf16 }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self::Portable
    }

    /// The level in use: that of the machine, or the limit set with [`limit_level`] where that is lower.
    #[must_use]
    pub fn current() -> Self {
        Self::of_machine().min(Self::from_u8(LIMIT.load(Ordering::Relaxed)))
    }

    /// The levels that can run here, lowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|level| *level <= Self::of_machine()).collect()
    }

    fn from_u8(value: u8) -> Self {
        Self::ALL.get(usize::from(value)).copied().unwrap_or(Self::Amx)
    }
}

static LIMIT: AtomicU8 = AtomicU8::new(Level::Amx as u8);

/// Uses no instructions above `level` from now on, to compare levels or to get another machine's bits.
///
/// Weights keep the level at which they were packed.
pub fn limit_level(level: Level) {
    LIMIT.store(level as u8, Ordering::Relaxed);
}
