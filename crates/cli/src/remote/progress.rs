//! Tells a person what the remote backend waits for: an endpoint that wakes, attempts that are made again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use vgen_backends::remote::RemoteEvent;

use crate::messages::Messages;

/// Shows events: a live line on a terminal while the endpoint wakes, otherwise a plain line now and then.
pub(crate) struct Waiting {
    messages: Messages,
    interval: Duration,
    bar: ProgressBar,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The endpoint's state that was told last, and when.
    endpoint: Option<(String, Instant)>,
    retry: Option<Instant>,
    untold_retries: u64,
}

impl Waiting {
    pub(crate) fn new(messages: &Messages, interval: Duration) -> Self {
        let bar = if messages.draws() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        let messages = messages.clone().above(bar.clone());
        Self { messages, interval, bar, state: Mutex::default() }
    }

    pub(crate) fn show(&self, event: RemoteEvent) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            RemoteEvent::Endpoint { name, state: now, waited } => {
                let line = format!("waiting for endpoint {name}: {now} ({} s)", waited.as_secs());
                if !self.bar.is_hidden() {
                    self.bar.enable_steady_tick(Duration::from_millis(120));
                    self.bar.set_message(line);
                    return;
                }
                let told = state.endpoint.as_ref();
                if told.is_none_or(|(before, at)| *before != now || at.elapsed() >= self.interval) {
                    self.messages.info(line);
                    state.endpoint = Some((now, Instant::now()));
                }
            }
            RemoteEvent::Retry { row, attempts, code, reason, pause } => {
                if state.retry.is_some_and(|at| at.elapsed() < self.interval) {
                    state.untold_retries += 1;
                    return;
                }
                let others = match std::mem::take(&mut state.untold_retries) {
                    0 => String::new(),
                    count => format!("; {count} more since the last such line"),
                };
                self.messages.info(format!(
                    "row {row}: attempt {attempts} failed: {reason} [{code}]; the next in {:.1} s{others}",
                    pause.as_secs_f64()
                ));
                state.retry = Some(Instant::now());
            }
            _ => {}
        }
    }

    /// The endpoint runs, or never will.
    pub(crate) fn connected(&self) {
        self.bar.finish_and_clear();
    }
}
