//! Random numbers of a bench: a stream for each use, named by the seed, so that a bench can be repeated.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A stream of random numbers.
pub(super) struct Random(ChaCha8Rng);

impl Random {
    /// The stream of a use: what it is for, the bench's seed, and which of such streams.
    pub(super) fn new(purpose: &[u8; 8], seed: u64, number: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(purpose);
        key[8..16].copy_from_slice(&seed.to_le_bytes());
        key[16..24].copy_from_slice(&number.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in `[0, 1)`.
    pub(super) fn uniform(&mut self) -> f64 {
        const SCALE: f64 = 1.0 / (1u64 << 53) as f64;
        (self.0.next_u64() >> 11) as f64 * SCALE
    }

    /// Uniform in `0..end`; 0 if `end` is 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.uniform() * end as f64) as usize
    }

    /// Exponential with this mean.
    pub(super) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.uniform()).ln()
    }

    /// A byte.
    pub(super) fn byte(&mut self) -> u8 {
        (self.0.next_u32() >> 24) as u8
    }
}
