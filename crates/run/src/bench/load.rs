//! [`Load`]: when requests are sent.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::random::Random;

/// Requests a second of the slowest open loop: one in eleven days.
const SLOWEST: f64 = 1e-6;

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Load {
    /// Closed loop: always so many in flight, the next one when one is answered.
    Closed {
        /// In flight.
        concurrency: usize,
    },
    /// Open loop: at random moments, whatever is answered (a Poisson process).
    Open {
        /// Requests a second on average.
        rate: f64,
    },
    /// Closed loop with as many in flight as keep the backend busy, by its own word: how a run does it.
    Window,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { concurrency } => write!(f, "{concurrency} in flight"),
            Self::Open { rate } => write!(f, "{rate} a second"),
            Self::Window => f.write_str("as a run"),
        }
    }
}

impl Load {
    /// The load for warming up: an open loop would only wait.
    pub(super) fn steady(self) -> Self {
        match self {
            Self::Open { .. } => Self::Window,
            load => load,
        }
    }

    /// Whether requests can be sent so.
    pub(super) fn is_possible(&self) -> bool {
        match self {
            Self::Closed { concurrency } => *concurrency > 0,
            Self::Open { rate } => rate.is_finite() && *rate >= SLOWEST,
            Self::Window => true,
        }
    }
}

/// When the requests of an open loop are sent, in seconds from its beginning. The first comes at once.
pub(super) fn arrivals(rate: f64, count: usize, seed: u64, draw: u64) -> Vec<f64> {
    let mut random = Random::new(b"arrivals", seed, draw);
    let mut at = 0.0;
    (0..count)
        .map(|number| {
            if number > 0 {
                at += random.exponential(1.0 / rate);
            }
            at
        })
        .collect()
}
