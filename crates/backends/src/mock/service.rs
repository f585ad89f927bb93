//! [`MockService`]: how long a scripted server works on a request, and how many it works on at a time.

use serde::{Deserialize, Serialize};

use crate::local::RandomStream;

/// The longest mean in milliseconds, about 30 years: no drawn time is longer than a clock can wait for.
const LONGEST_MS: f64 = 1e12;

/// Servers with one queue, first come, first served. With exponential times and Poisson arrivals they are the queue
/// M/M/c, whose waiting times are known exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MockService {
    /// How service times are distributed.
    #[serde(default)]
    pub distribution: Distribution,
    /// Their mean in milliseconds.
    pub mean_ms: f64,
    /// How many requests are served at a time; the others wait.
    #[serde(default = "one")]
    pub servers: usize,
    /// Which times are drawn. A row's time is a function of this and its number alone.
    #[serde(default)]
    pub seed: u64,
}

/// How service times are distributed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distribution {
    /// All the same.
    #[default]
    Fixed,
    /// Exponentially.
    Exponential,
}

fn one() -> usize {
    1
}

impl MockService {
    /// Seconds of work on a row.
    pub fn seconds(&self, row: u64) -> f64 {
        let mean = self.mean_ms / 1e3;
        match self.distribution {
            Distribution::Fixed => mean,
            // The uniform number is below 1, so that its complement has a logarithm.
            Distribution::Exponential => -mean * (1.0 - RandomStream::new(self.seed, row, 0).uniform(0)).ln(),
        }
    }

    /// Whether it can be played.
    pub(super) fn is_possible(&self) -> bool {
        self.servers > 0 && (0.0..=LONGEST_MS).contains(&self.mean_ms)
    }
}
