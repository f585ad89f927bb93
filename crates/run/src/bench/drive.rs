//! Sends rows to a backend by a [`Load`] and notes when what came back.

use std::sync::Arc;

use crossbeam_channel::{Sender, unbounded};
use vgen_core::{Backend, Fault, Reply, Request, Response, SamplingParams};

use super::clock::{Clock, Waited};
use super::load::{Load, arrivals};
use super::rows::BenchRow;

/// What became of a request. Times in seconds since the reading began.
#[derive(Debug)]
pub(super) struct Observed {
    /// Which of the rows.
    pub(super) at: usize,
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
    sent: f64,
    pieces: Vec<f64>,
    clock: Clock,
    answers: Sender<Observed>,
}

impl Reply for Watch {
    fn delta(&mut self, sample: u32, text: &str) {
        if sample == 0 && !text.is_empty() {
            self.pieces.push(self.clock.now() - self.began);
        }
    }

    fn done(self: Box<Self>, result: Result<Response, Fault>) {
        let ended = self.clock.now() - self.began;
        let Self { at, sent, pieces, answers, .. } = *self;
        // Nobody listens any more after a fault that ended the reading.
        let _ = answers.send(Observed { at, sent, pieces, ended, result });
    }
}

/// How requests are made.
pub(super) struct Asked<'a> {
    pub(super) sampling: &'a SamplingParams,
    /// Of the arrivals of an open loop: the bench's seed and the draw.
    pub(super) seed: u64,
    pub(super) draw: u64,
}

/// Sends all rows.
///
/// # Errors
/// `bench.lost` if the backend never answers; a fault of an answer is that row's.
pub(super) fn drive(
    backend: &Arc<dyn Backend>,
    clock: &Clock,
    rows: &[BenchRow],
    load: Load,
    asked: &Asked<'_>,
) -> Result<Reading, Fault> {
    let (answers, coming) = unbounded();
    let began = clock.now();
    let send = |at: usize| {
        let request = Request::new(rows[at].number, rows[at].messages.clone(), asked.sampling.clone());
        let sent = clock.now() - began;
        let watch = Watch { at, began, sent, pieces: Vec::new(), clock: clock.clone(), answers: answers.clone() };
        backend.submit(request, Box::new(watch));
    };
    // Moments of the clock, so that one which is waited for has come when the clock says so.
    let due: Vec<f64> = match load {
        Load::Open { rate } => arrivals(rate, rows.len(), asked.seed, asked.draw).iter().map(|at| began + at).collect(),
        _ => Vec::new(),
    };
    let limit = match load {
        Load::Closed { concurrency } => concurrency,
        Load::Window => backend.window(),
        Load::Open { .. } => usize::MAX,
    };
    let mut observed: Vec<Option<Observed>> = rows.iter().map(|_| None).collect();
    let (mut sent, mut ended) = (0, 0);
    while ended < rows.len() {
        let now = clock.now();
        while sent < rows.len() && sent - ended < limit && due.get(sent).is_none_or(|due| *due <= now) {
            send(sent);
            sent += 1;
        }
        match clock.wait(&coming, due.get(sent).copied()) {
            Waited::Came(answer) => {
                ended += 1;
                let at = answer.at;
                observed[at] = Some(answer);
            }
            Waited::Due => {}
            Waited::Never => {
                return Err(Fault::stop("bench.lost", "the backend left requests without an answer"));
            }
        }
    }
    let observed: Vec<Observed> = observed.into_iter().flatten().collect();
    let seconds = observed.iter().map(|one| one.ended).fold(0.0, f64::max);
    Ok(Reading { seconds, observed })
}
