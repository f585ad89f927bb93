//! [`Gate`]: keeps the number of rows between source and sink, and of requests at the backend, below their limits.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Counts rows that were read and not yet written, and requests that were submitted and not yet answered.
pub(crate) struct Gate {
    window: usize,
    capacity: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    unwritten: usize,
    in_flight: usize,
    closed: bool,
}

impl Gate {
    /// At most `window` requests in flight and `capacity` rows unwritten.
    pub(crate) fn new(window: usize, capacity: usize) -> Self {
        Self { window, capacity, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits for a place for one more row; false once the gate is closed.
    pub(crate) fn admit_row(&self) -> bool {
        self.admit(|state| state.unwritten < self.capacity, |state| state.unwritten += 1)
    }

    /// Waits until one more request may be in flight; false once the gate is closed.
    pub(crate) fn admit_request(&self) -> bool {
        self.admit(|state| state.in_flight < self.window, |state| state.in_flight += 1)
    }

    fn admit(&self, free: impl Fn(&State) -> bool, take: impl Fn(&mut State)) -> bool {
        let blocked = |state: &mut State| !state.closed && !free(state);
        let mut state = self.changed.wait_while(self.lock(), blocked).unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return false;
        }
        take(&mut state);
        true
    }

    /// So many requests were answered, and so many rows written.
    pub(crate) fn free(&self, answered: usize, written: usize) {
        if answered + written > 0 {
            self.change(|state| {
                state.in_flight -= answered;
                state.unwritten -= written;
            });
        }
    }

    /// Admits nothing more. From here on the number of requests in flight only falls.
    pub(crate) fn close(&self) {
        self.change(|state| state.closed = true);
    }

    /// Requests that were submitted and not yet answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.lock().in_flight
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counters are valid after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
