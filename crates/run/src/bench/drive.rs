//! Sends rows to a backend by a [`Load`] and notes when what came back.

use std::sync::Arc;

use crossbeam_channel::{Sender, unbounded};
use vgen_core::{Backend, CancelToken, Fault, FaultClass, Reply, Request, Response, SamplingParams};

use super::clock::{Clock, Waited};
use super::load::{Load, arrivals};
use super::rows::BenchRow;

/// How often a wait looks whether the bench was stopped.
const TICK: f64 = 0.025;

/// What became of a request. Times in seconds since the reading began.
#[derive(Debug)]
pub(super) struct Observed {
    /// Which of the rows.
    pub(super) at: usize,
    /// When it was to be sent: in an open loop its random moment, else when its place was free.
    pub(super) due: f64,
    /// When it was sent.
    pub(super) sent: f64,
    /// When pieces of the answer came.
    pub(super) pieces: Vec<f64>,
    pub(super) ended: f64,
    pub(super) result: Result<Response, Fault>,
}

/// A reading: all rows of a draw, once.
#[derive(Debug)]
pub(super) struct Reading {
    /// From the first request to the last answer.
    pub(super) seconds: f64,
    /// In the order of the rows.
    pub(super) observed: Vec<Observed>,
}

struct Watch {
    at: usize,
    began: f64,
    due: f64,
    sent: f64,
    pieces: Vec<f64>,
    clock: Clock,
    /// Until it is told what came; `None` is told if nothing does.
    answers: Option<Sender<Option<Observed>>>,
}

impl Reply for Watch {
    fn delta(&mut self, sample: u32, text: &str) {
        if sample == 0 && !text.is_empty() {
            self.pieces.push(self.clock.now() - self.began);
        }
    }

    fn done(mut self: Box<Self>, result: Result<Response, Fault>) {
        let ended = self.clock.now() - self.began;
        let pieces = std::mem::take(&mut self.pieces);
        if let Some(answers) = self.answers.take() {
            // Nobody listens any more after a fault that ended the reading.
            let _ = answers.send(Some(Observed { at: self.at, due: self.due, sent: self.sent, pieces, ended, result }));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(answers) = self.answers.take() {
            let _ = answers.send(None);
        }
    }
}

/// How requests are made.
pub(super) struct Asked<'a> {
    pub(super) sampling: &'a SamplingParams,
    /// Of the arrivals of an open loop: the bench's seed and the draw.
    pub(super) seed: u64,
    pub(super) draw: u64,
    /// Ends the reading early.
    pub(super) stop: &'a CancelToken,
}

/// Sends all rows. `None` if the bench was stopped before all were answered.
///
/// # Errors
/// `bench.lost` if the backend gives a request up without an answer; a fault that stops a run. Other faults of answers are
/// the rows'.
pub(super) fn drive(
    backend: &Arc<dyn Backend>,
    clock: &Clock,
    rows: &[BenchRow],
    (load, window): (Load, usize),
    asked: &Asked<'_>,
) -> Result<Option<Reading>, Fault> {
    // Whatever ends the reading gives up what is in flight.
    let flight = Flight(CancelToken::default());
    let (answers, coming) = unbounded();
    let began = clock.now();
    let send = |at: usize, due: Option<f64>| {
        let sampling = rows[at].sampling.as_deref().unwrap_or(asked.sampling).clone();
        let request = Request::new(rows[at].number, rows[at].messages.clone(), sampling);
        let request = Request { cancel: flight.0.clone(), ..request };
        let sent = clock.now() - began;
        let due = due.map_or(sent, |due| due - began);
        let answers = Some(answers.clone());
        let watch = Watch { at, began, due, sent, pieces: Vec::new(), clock: clock.clone(), answers };
        backend.submit(request, Box::new(watch));
    };
    // Moments of the clock, so that one which is waited for has come when the clock says so.
    let due: Vec<f64> = match load {
        Load::Open { rate } => arrivals(rate, rows.len(), asked.seed, asked.draw).iter().map(|at| began + at).collect(),
        _ => Vec::new(),
    };
    let limit = match load {
        Load::Closed { concurrency } => concurrency,
        Load::Window => window,
        Load::Open { .. } => usize::MAX,
    };
    let lost = || Fault::stop("bench.lost", "the backend left requests without an answer");
    let mut observed: Vec<Option<Observed>> = rows.iter().map(|_| None).collect();
    let (mut sent, mut ended) = (0, 0);
    while ended < rows.len() {
        if asked.stop.is_cancelled() {
            return Ok(None);
        }
        while sent < rows.len() && sent - ended < limit && due.get(sent).is_none_or(|due| *due <= clock.now()) {
            send(sent, due.get(sent).copied());
            sent += 1;
        }
        match clock.wait(&coming, due.get(sent).copied(), TICK) {
            Waited::Came(Some(answer)) => {
                // Then no other row could be answered either.
                match fault(&answer.result) {
                    Some(fault) if matches!(fault.class, FaultClass::Stop | FaultClass::Drain) => {
                        return Err(fault.clone());
                    }
                    _ => ended += 1,
                }
                let at = answer.at;
                observed[at] = Some(answer);
            }
            Waited::Due => {}
            Waited::Came(None) | Waited::Never => return Err(lost()),
        }
    }
    let observed: Vec<Observed> = observed.into_iter().flatten().collect();
    let seconds = observed.iter().map(|one| one.ended).fold(0.0, f64::max);
    Ok(Some(Reading { seconds, observed }))
}

/// The requests of a reading. What is still in flight when it ends is given up.
struct Flight(CancelToken);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What is wrong with a request's answer.
pub(super) fn fault(result: &Result<Response, Fault>) -> Option<&Fault> {
    match result {
        Err(fault) => Some(fault),
        Ok(response) => response.generations.first().and_then(|generation| generation.as_ref().err()),
    }
}
