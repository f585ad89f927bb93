//! [`Clock`]: the time that a bench measures in. Real time, or the virtual time of a mock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use vgen_backends::mock::{Advanced, VirtualTime};

/// Seconds since a bench began.
#[derive(Clone)]
pub enum Clock {
    /// Real time since a moment.
    Real(Instant),
    /// Time that moves on when nothing else is to be done.
    Virtual(Arc<VirtualTime>),
}

/// What waiting came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited<T> {
    /// Something was sent.
    Came(T),
    /// The moment is there.
    Due,
    /// Nobody is left who could send anything.
    Never,
}

impl Clock {
    /// Real time from now on.
    pub fn real() -> Self {
        Self::Real(Instant::now())
    }

    /// Seconds.
    pub fn now(&self) -> f64 {
        match self {
            Self::Real(start) => start.elapsed().as_secs_f64(),
            Self::Virtual(time) => time.now(),
        }
    }

    /// Waits for something to be sent, but not beyond `until`. In real time also not for more than `longest` seconds:
    /// others may want to be looked at meanwhile.
    pub(super) fn wait<T>(&self, receiver: &Receiver<T>, until: Option<f64>, longest: f64) -> Waited<T> {
        match self {
            Self::Real(_) => {
                let left = until.map_or(longest, |until| (until - self.now()).clamp(0.0, longest));
                let received = receiver.recv_timeout(Duration::try_from_secs_f64(left).unwrap_or_default());
                match received {
                    Ok(sent) => Waited::Came(sent),
                    Err(RecvTimeoutError::Timeout) => Waited::Due,
                    Err(RecvTimeoutError::Disconnected) => Waited::Never,
                }
            }
            Self::Virtual(time) => loop {
                if let Ok(sent) = receiver.try_recv() {
                    return Waited::Came(sent);
                }
                match time.advance(until) {
                    Advanced::Happened => {}
                    Advanced::Reached => return Waited::Due,
                    Advanced::Idle => return Waited::Never,
                }
            },
        }
    }
}
