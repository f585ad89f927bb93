//! [`VirtualTime`]: time that stands still until somebody moves it on, for measuring hours of waiting in a second.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::{Mutex, MutexGuard, PoisonError};

type Task = Box<dyn FnOnce() + Send>;

/// Seconds since the beginning, and what shall happen when.
#[derive(Default)]
pub struct VirtualTime(Mutex<State>);

#[derive(Default)]
struct State {
    now: f64,
    tasks: u64,
    timers: BinaryHeap<Timer>,
}

struct Timer {
    at: f64,
    /// What was set first happens first at the same moment.
    number: u64,
    task: Task,
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives its largest: the earliest.
        other.at.total_cmp(&self.at).then(other.number.cmp(&self.number))
    }
}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Timer {}

/// What [`VirtualTime::advance`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advanced {
    /// Something happened.
    Happened,
    /// The moment that was asked for, without anything happening before it.
    Reached,
    /// Nothing is left that could happen.
    Idle,
}

impl VirtualTime {
    /// Seconds since the beginning.
    pub fn now(&self) -> f64 {
        self.lock().now
    }

    /// Has something happen in `seconds` from now, on the thread that moves the time on.
    pub fn after(&self, seconds: f64, task: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        let (at, number) = (state.now + seconds.max(0.0), state.tasks);
        state.tasks += 1;
        state.timers.push(Timer { at, number, task: Box::new(task) });
    }

    /// Moves on to the next thing that happens and lets it happen, but not beyond `until`.
    pub fn advance(&self, until: Option<f64>) -> Advanced {
        let mut state = self.lock();
        let next = state.timers.peek().map(|timer| timer.at);
        match (next, until) {
            (Some(at), until) if until.is_none_or(|until| at <= until) => {
                let Some(timer) = state.timers.pop() else { return Advanced::Idle };
                state.now = state.now.max(timer.at);
                drop(state);
                (timer.task)();
                Advanced::Happened
            }
            (_, Some(until)) => {
                state.now = state.now.max(until);
                Advanced::Reached
            }
            _ => Advanced::Idle,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn things_happen_in_order_of_time() {
        let (time, seen) = (Arc::new(VirtualTime::default()), Arc::new(Mutex::new(Vec::new())));
        for (seconds, name) in [(2.0, "late"), (1.0, "early"), (1.0, "early too")] {
            let (clock, seen) = (Arc::clone(&time), Arc::clone(&seen));
            time.after(seconds, move || seen.lock().unwrap_or_else(PoisonError::into_inner).push((name, clock.now())));
        }
        assert_eq!(time.advance(Some(0.5)), Advanced::Reached);
        assert_eq!(time.now(), 0.5);
        while time.advance(None) == Advanced::Happened {}
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(*seen, [("early", 1.0), ("early too", 1.0), ("late", 2.0)]);
        assert_eq!(time.advance(None), Advanced::Idle);
    }
}
