//! How long to wait before the next attempt: exponential backoff with full jitter, and what the server asks for.
//!
//! Full jitter (a uniform share of the exponential step) spreads clients that failed together best; see Brooker,
//! "Exponential Backoff And Jitter", AWS 2015.

use std::time::{Duration, SystemTime};

/// When and how often to try again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    pub(super) base: Duration,
    pub(super) max: Duration,
}

impl Backoff {
    /// The pause after the given number of attempts. `share` is a random number in 0..1. What the server asks for is a
    /// lower bound, and a little is added so that clients told the same moment don't come back together.
    pub(super) fn pause(&self, attempts: u32, retry_after: Option<Duration>, share: f64) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        let step = self.base.saturating_mul(1 << doublings).min(self.max);
        let jittered = step.mul_f64(share);
        match retry_after {
            Some(asked) => asked.saturating_add(self.base.min(step).mul_f64(share)),
            None => jittered,
        }
    }
}

/// A `Retry-After` header: seconds, or an HTTP date. A date that has passed means now; what can't be read means nothing.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { base: Duration::from_millis(500), max: Duration::from_secs(60) };

    #[test]
    fn pauses_double_up_to_the_limit() {
        let longest = |attempts| BACKOFF.pause(attempts, None, 1.0).as_secs_f64();
        assert_eq!([1, 2, 3, 8, 9, 200].map(longest), [0.5, 1.0, 2.0, 60.0, 60.0, 60.0]);
        assert_eq!(BACKOFF.pause(5, None, 0.0), Duration::ZERO);
    }

    #[test]
    fn what_the_server_asks_for_is_the_least() {
        for share in [0.0, 0.5, 0.999] {
            let pause = BACKOFF.pause(1, Some(Duration::from_secs(7)), share).as_secs_f64();
            assert!((7.0..7.5).contains(&pause), "{pause}");
        }
        assert_eq!(BACKOFF.pause(1, Some(Duration::from_secs(100)), 0.0), Duration::from_secs(100));
    }

    #[test]
    fn both_forms_of_retry_after() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_480);
        let read = |value| retry_after(value, now).map(|wait| wait.as_secs());
        assert_eq!(read(" 120 "), Some(120));
        assert_eq!(read("0.5"), Some(0));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:30 GMT"), Some(30));
        assert_eq!(read("Wednesday, 21-Oct-15 07:28:30 GMT"), Some(30));
        assert_eq!(read("Wed, 21 Oct 2015 07:00:00 GMT"), Some(0));
        for nothing in ["", "soon", "-1", "NaN", "inf", "1e400"] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
    }
}
