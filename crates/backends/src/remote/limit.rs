//! How much may be in flight, how fast, and how much in all.
//!
//! The window of requests in flight follows the rule that keeps TCP stable: additive increase, multiplicative decrease
//! (Chiu and Jain, 1989). Overload halves it, at most once for the requests that were in flight together; each whole
//! window of successes adds one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep_until;

use super::RemoteError;
use super::config::RemoteConfig;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All limits of one backend.
#[derive(Debug)]
pub(super) struct Limiter {
    slots: Arc<Semaphore>,
    window: Mutex<Window>,
    adaptive: bool,
    pause: Mutex<Option<Instant>>,
    pace: Option<Pace>,
    budget: Option<Budget>,
    pub(super) spend: Spend,
}

#[derive(Debug)]
struct Window {
    limit: f64,
    max: f64,
    /// Slots that are to vanish as soon as they are given back.
    debt: usize,
    last_cut: Option<Instant>,
}

/// The right to one request. Gives its place back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    limiter: Arc<Limiter>,
    permit: Option<OwnedSemaphorePermit>,
    started: Instant,
    charged: f64,
}

impl Limiter {
    pub(super) fn new(config: &RemoteConfig) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "at most 65536")]
        let max = config.max_in_flight as f64;
        Self {
            slots: Arc::new(Semaphore::new(config.max_in_flight)),
            window: Mutex::new(Window { limit: max, max, debt: 0, last_cut: None }),
            adaptive: config.adaptive,
            pause: Mutex::new(None),
            pace: config.requests_per_minute.map(Pace::new),
            budget: config.tokens_per_minute.map(Budget::new),
            spend: Spend {
                max_requests: config.spend_requests,
                max_tokens: config.spend_tokens,
                requests: AtomicU64::new(0),
                tokens: AtomicU64::new(0),
            },
        }
    }

    /// Waits for a place in the window and for the rates. `tokens` is what the request is expected to take.
    pub(super) async fn acquire(self: &Arc<Self>, tokens: f64) -> Slot {
        // The semaphore is only closed with the program.
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok();
        let mut slot = Slot { limiter: Arc::clone(self), permit, started: Instant::now(), charged: 0.0 };
        if let Some(budget) = &self.budget {
            budget.charge(tokens).await;
            slot.charged = tokens;
        }
        if let Some(pace) = &self.pace {
            pace.turn().await;
        }
        loop {
            let until = *lock(&self.pause);
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => sleep_until(until.into()).await,
                None => break,
            }
        }
        slot.started = Instant::now();
        slot
    }

    /// Holds all requests back: the server asked for it.
    pub(super) fn pause(&self, wait: Duration) {
        let Some(until) = Instant::now().checked_add(wait) else { return };
        let mut pause = lock(&self.pause);
        *pause = Some(pause.map_or(until, |old| old.max(until)));
    }

    /// How many requests may be in flight now.
    pub(super) fn in_flight_limit(&self) -> usize {
        whole(lock(&self.window).limit)
    }

    fn grow(&self) {
        let mut window = lock(&self.window);
        let before = whole(window.limit);
        window.limit = (window.limit + 1.0 / window.limit).min(window.max);
        for _ in before..whole(window.limit) {
            if window.debt > 0 {
                window.debt -= 1;
            } else {
                self.slots.add_permits(1);
            }
        }
    }

    fn cut(&self, started: Instant) {
        let mut window = lock(&self.window);
        // Requests that were sent before the last cut say nothing about the smaller window.
        if window.last_cut.is_some_and(|cut| started <= cut) {
            return;
        }
        window.last_cut = Some(Instant::now());
        let before = whole(window.limit);
        window.limit = (window.limit / 2.0).max(1.0);
        let fewer = before - whole(window.limit);
        window.debt += fewer - self.slots.forget_permits(fewer);
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 65536")]
fn whole(limit: f64) -> usize {
    limit as usize
}

impl Slot {
    /// The request was answered. `tokens` is what it took, if known.
    pub(super) fn succeeded(mut self, tokens: Option<f64>) {
        if let (Some(budget), Some(tokens)) = (&self.limiter.budget, tokens) {
            budget.settle(self.charged - tokens);
        }
        self.charged = 0.0;
        if self.limiter.adaptive {
            self.limiter.grow();
        }
    }

    /// The request failed; its tokens were not used.
    pub(super) fn failed(self, overload: bool) {
        if overload && self.limiter.adaptive {
            self.limiter.cut(self.started);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(budget) = self.limiter.budget.as_ref().filter(|_| self.charged > 0.0) {
            budget.settle(self.charged);
        }
        let mut window = lock(&self.limiter.window);
        if window.debt > 0
            && let Some(permit) = self.permit.take()
        {
            window.debt -= 1;
            permit.forget();
        }
    }
}

/// Requests at even distances.
#[derive(Debug)]
struct Pace {
    step: Duration,
    next: Mutex<Option<Instant>>,
}

impl Pace {
    fn new(per_minute: f64) -> Self {
        Self { step: super::config::seconds(60.0 / per_minute), next: Mutex::new(None) }
    }

    async fn turn(&self) {
        let now = Instant::now();
        let turn = {
            let mut next = lock(&self.next);
            let turn = next.map_or(now, |next| next.max(now));
            *next = turn.checked_add(self.step);
            turn
        };
        if turn > now {
            sleep_until(turn.into()).await;
        }
    }
}

/// Tokens by the minute: a bucket that fills steadily, is charged with what a request is expected to take and settled
/// when its real size is known.
#[derive(Debug)]
struct Budget {
    per_second: f64,
    state: Mutex<(f64, Instant)>,
}

/// How many seconds' worth of tokens may be saved up.
const SAVED: f64 = 5.0;

impl Budget {
    fn new(per_minute: f64) -> Self {
        let per_second = per_minute / 60.0;
        Self { per_second, state: Mutex::new((per_second * SAVED, Instant::now())) }
    }

    async fn charge(&self, tokens: f64) {
        loop {
            let wait = {
                let mut state = lock(&self.state);
                let now = Instant::now();
                let filled = state.0 + now.duration_since(state.1).as_secs_f64() * self.per_second;
                *state = (filled.min(self.per_second * SAVED), now);
                if state.0 > 0.0 {
                    state.0 -= tokens;
                    return;
                }
                (1.0 - state.0) / self.per_second
            };
            tokio::time::sleep(super::config::seconds(wait.clamp(0.001, 60.0))).await;
        }
    }

    fn settle(&self, back: f64) {
        lock(&self.state).0 += back;
    }
}

/// What the run has cost, and may cost.
#[derive(Debug)]
pub(super) struct Spend {
    max_requests: Option<u64>,
    max_tokens: Option<u64>,
    requests: AtomicU64,
    tokens: AtomicU64,
}

impl Spend {
    /// Takes requests out of the cap, before they are sent.
    pub(super) fn take(&self, requests: u64) -> Result<(), RemoteError> {
        if let Some(cap) = self.max_tokens.filter(|cap| self.tokens.load(Ordering::Relaxed) >= *cap) {
            return Err(RemoteError::SpendCap { what: "tokens", cap });
        }
        let cap = self.max_requests.unwrap_or(u64::MAX);
        let within = |taken: u64| taken.checked_add(requests).filter(|sum| *sum <= cap);
        match self.requests.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within) {
            Ok(_) => Ok(()),
            Err(_) => Err(RemoteError::SpendCap { what: "requests", cap }),
        }
    }

    /// Gives back requests that were never sent.
    pub(super) fn give_back(&self, requests: u64) {
        self.requests.fetch_sub(requests, Ordering::Relaxed);
    }

    /// Adds what an answer took.
    pub(super) fn add_tokens(&self, tokens: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use super::*;

    fn limiter(change: impl FnOnce(&mut RemoteConfig)) -> Arc<Limiter> {
        let mut config = RemoteConfig { max_in_flight: 8, ..RemoteConfig::default() };
        change(&mut config);
        Arc::new(Limiter::new(&config))
    }

    async fn all(limiter: &Arc<Limiter>) -> Vec<Slot> {
        let mut slots = Vec::new();
        while let Ok(slot) = tokio::time::timeout(Duration::from_millis(20), limiter.acquire(0.0)).await {
            slots.push(slot);
        }
        slots
    }

    #[tokio::test]
    async fn overload_halves_the_window_once_and_success_grows_it_back() {
        let limiter = limiter(|_| {});
        let slots = all(&limiter).await;
        assert_eq!(slots.len(), 8);
        for slot in slots {
            slot.failed(true);
        }
        assert_eq!(limiter.in_flight_limit(), 4);
        let mut slots = all(&limiter).await;
        assert_eq!(slots.len(), 4);
        slots.pop().unwrap().failed(true);
        slots.clear();
        assert_eq!(all(&limiter).await.len(), 2);

        for _ in 0..200 {
            limiter.acquire(0.0).await.succeeded(None);
        }
        assert_eq!(limiter.in_flight_limit(), 8);
        assert_eq!(all(&limiter).await.len(), 8);
    }

    #[tokio::test]
    async fn a_window_that_does_not_adapt_stays() {
        let limiter = limiter(|config| config.adaptive = false);
        for slot in all(&limiter).await {
            slot.failed(true);
        }
        assert_eq!(all(&limiter).await.len(), 8);
    }

    #[tokio::test]
    async fn requests_keep_their_distance() {
        let limiter = limiter(|config| config.requests_per_minute = Some(1200.0));
        let start = Instant::now();
        for _ in 0..5 {
            limiter.acquire(0.0).await.succeeded(None);
        }
        let took = start.elapsed().as_secs_f64();
        assert!((0.2..1.0).contains(&took), "{took}");
    }

    #[tokio::test]
    async fn tokens_are_charged_settled_and_given_back() {
        // 100 a second, 500 saved up.
        let limiter = limiter(|config| config.tokens_per_minute = Some(6000.0));
        let start = Instant::now();
        limiter.acquire(1000.0).await.failed(false);
        limiter.acquire(1000.0).await.succeeded(Some(490.0));
        limiter.acquire(40.0).await.succeeded(Some(40.0));
        assert!(start.elapsed() < Duration::from_millis(200));
        // 30 below zero now.
        limiter.acquire(1.0).await.succeeded(Some(1.0));
        let took = start.elapsed().as_secs_f64();
        assert!((0.2..1.0).contains(&took), "{took}");
    }

    #[tokio::test]
    async fn a_pause_holds_everybody() {
        let limiter = limiter(|_| {});
        limiter.pause(Duration::from_millis(100));
        limiter.pause(Duration::from_millis(10));
        let start = Instant::now();
        drop(limiter.acquire(0.0).await);
        assert!(start.elapsed() >= Duration::from_millis(95));
    }

    #[test]
    fn the_cap_counts_requests_and_tokens() {
        let limiter = limiter(|config| {
            config.spend_requests = Some(3);
            config.spend_tokens = Some(100);
        });
        assert!(limiter.spend.take(2).is_ok());
        assert!(limiter.spend.take(2).is_err());
        limiter.spend.give_back(1);
        assert!(limiter.spend.take(2).is_ok());
        limiter.spend.give_back(3);
        limiter.spend.add_tokens(100);
        assert!(matches!(limiter.spend.take(1), Err(RemoteError::SpendCap { what: "tokens", cap: 100 })));
    }
}
