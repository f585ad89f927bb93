//! [`Pipeline`]: source, task, backend and sink as one run.
//!
//! A thread of its own reads, renders and submits ([`crate::feed`]); the thread that calls [`Pipeline::run`] takes the
//! answers, puts them back in order and writes them. Between the two stand two limits ([`crate::gate`]): requests in
//! flight (the backend's window) and rows read but not yet written (so that one slow row can't pile up the others).

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use vgen_core::{Backend, CancelToken, Fault, FaultClass, FinishReason, Response, Row, SamplingParams};
use vgen_dataset::{DatasetError, Origin, RowSink, RowSource};

use crate::errors::{ErrorCount, MaxErrors};
use crate::feed::{Answered, Asked, Event, Feeder, Outcome};
use crate::gate::Gate;
use crate::progress::Tally;
use crate::record::{KnownRow, Ledger, RunFolder, RunState};
use crate::reorder::Reorder;
use crate::{KnownRows, Observer, Progress, Summary, Task};

/// Rows read but not yet written, for each request in flight, unless told otherwise.
const REORDER_FACTOR: usize = 4;
/// Rows after which the feeder hears that there is room.
const BATCH: usize = 8;
/// How often a waiting run looks whether it was stopped.
const TICK: Duration = Duration::from_millis(25);
/// After a stop, rows in flight get this long to end.
const PATIENCE: Duration = Duration::from_secs(7);
/// How often the observer hears of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A run: rows from a source, through a task and a backend, to a sink.
pub struct Pipeline {
    source: Box<dyn RowSource>,
    task: Arc<dyn Task>,
    backend: Arc<dyn Backend>,
    sink: Box<dyn RowSink>,
    sampling: SamplingParams,
    ledger: Option<Ledger>,
    known: Box<dyn KnownRows>,
    max_errors: Option<MaxErrors>,
    window: Option<usize>,
    reorder_rows: Option<usize>,
    row_timeout: Option<Duration>,
    stop: CancelToken,
    observer: Box<dyn Observer>,
}

/// A run that could not go on, with what it did before.
#[derive(Debug, thiserror::Error)]
#[error("{fault}")]
pub struct RunError {
    /// Why it could not go on.
    pub fault: Fault,
    /// The rows that were written before.
    pub summary: Box<Summary>,
}

impl From<RunError> for Fault {
    fn from(error: RunError) -> Self {
        error.fault
    }
}

impl Pipeline {
    /// A run of all rows with the model's own sampling parameters.
    pub fn new(
        source: impl RowSource + 'static,
        task: impl Task + 'static,
        backend: Arc<dyn Backend>,
        sink: impl RowSink + 'static,
    ) -> Self {
        Self {
            source: Box::new(source),
            task: Arc::new(task),
            backend,
            sink: Box::new(sink),
            sampling: SamplingParams::default(),
            ledger: None,
            known: Box::new(()),
            max_errors: None,
            window: None,
            reorder_rows: None,
            row_timeout: None,
            stop: CancelToken::default(),
            observer: Box::new(()),
        }
    }

    /// How answers are sampled.
    #[must_use]
    pub fn sampling(mut self, sampling: SamplingParams) -> Self {
        self.sampling = sampling;
        self
    }

    /// Keeps a record of the run, by which it can be gone on with. Source and sink stand where the record does; `known`
    /// has rows that are not asked about again.
    #[must_use]
    pub fn record(mut self, ledger: Ledger, known: impl KnownRows + 'static) -> Self {
        self.ledger = Some(ledger);
        self.known = Box::new(known);
        self
    }

    /// Ends the run when too many rows fail.
    #[must_use]
    pub fn max_errors(mut self, max: MaxErrors) -> Self {
        self.max_errors = Some(max);
        self
    }

    /// Requests in flight, instead of what the backend asks for.
    #[must_use]
    pub fn window(mut self, requests: usize) -> Self {
        self.window = Some(requests);
        self
    }

    /// Rows that may be read but not yet written; four times the window unless set.
    #[must_use]
    pub fn reorder_rows(mut self, rows: usize) -> Self {
        self.reorder_rows = Some(rows);
        self
    }

    /// Time for each row from its submission; what it has by then is its answer.
    #[must_use]
    pub fn row_timeout(mut self, timeout: Duration) -> Self {
        self.row_timeout = Some(timeout);
        self
    }

    /// A token that ends the run early: no more rows are read, rows in flight are given up, finished ones written; with a
    /// record, those that would leave a gap are kept in it.
    #[must_use]
    pub fn stop_with(mut self, token: CancelToken) -> Self {
        self.stop = token;
        self
    }

    /// Who is told how the run goes.
    #[must_use]
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// Runs. Rows that fail are written with their error and counted in the summary.
    ///
    /// If the run is stopped while the source waits for input, its thread stays behind until the source hands out
    /// something.
    ///
    /// # Errors
    /// The first fault that concerns more than a row: unsupported sampling parameters (before anything is read), a
    /// source without rows or one that can't be read, a lost backend, a sink that can't be written. What was finished
    /// by then is written.
    pub fn run(self) -> Result<Summary, RunError> {
        self.run_recorded().map(|(summary, _)| summary)
    }

    /// As [`Pipeline::run`]; gives back the folder of the run record, still locked.
    ///
    /// # Errors
    /// As [`Pipeline::run`].
    pub fn run_recorded(self) -> Result<(Summary, Option<RunFolder>), RunError> {
        let started = Instant::now();
        let refuse = |fault| RunError { fault, summary: Box::default() };
        let num_generations = self.task.num_generations();
        if num_generations == 0 {
            return Err(refuse(Fault::stop("config.num_generations", "the number of generations is 0")));
        }
        self.backend.check(&self.sampling, num_generations).map_err(refuse)?;

        let window = self.window.unwrap_or_else(|| self.backend.window()).max(1);
        let capacity = self.reorder_rows.unwrap_or(window * REORDER_FACTOR).max(window);
        let gate = Arc::new(Gate::new(window, capacity));
        let cancel = CancelToken::default();
        let (events, received) = unbounded();
        let first = self.ledger.as_ref().map_or(0, Ledger::first_sequence);
        let summary = self.ledger.as_ref().map_or_else(Summary::default, |ledger| Summary::of_earlier(ledger.counts()));
        let name = self.source.name().to_owned();
        // The feeder ends with the last question; a backend that goes away then takes the last answers with it.
        let _until_answered = Arc::clone(&self.backend);
        let feeder = Feeder {
            source: self.source,
            task: Arc::clone(&self.task),
            backend: self.backend,
            sampling: self.sampling,
            first,
            known: self.known,
            row_timeout: self.row_timeout,
            gate: Arc::clone(&gate),
            cancel: cancel.clone(),
            events,
        };
        thread::spawn(move || feeder.run());

        let mut writer = Writer {
            task: self.task,
            sink: self.sink,
            observer: self.observer,
            gate,
            cancel,
            ledger: self.ledger,
            errors: ErrorCount::new(self.max_errors),
            started,
            reported: started,
            stopped: None,
            reorder: Reorder::new(first),
            summary,
            share: None,
            ended: None,
            unwritten: 0,
            answered: 0,
            fault: None,
            stopping: false,
            sink_lost: false,
        };
        writer.work(&received, &self.stop);
        writer.finish(&name)
    }
}

/// Takes answers, puts them in order and writes them.
struct Writer {
    task: Arc<dyn Task>,
    sink: Box<dyn RowSink>,
    observer: Box<dyn Observer>,
    gate: Arc<Gate>,
    cancel: CancelToken,
    ledger: Option<Ledger>,
    errors: ErrorCount,
    started: Instant,
    reported: Instant,
    /// When the run was told to stop.
    stopped: Option<Instant>,
    reorder: Reorder<Finished>,
    summary: Summary,
    share: Option<f64>,
    /// Set once no more rows come: whether for the end of the source.
    ended: Option<bool>,
    /// Rows in the reorder buffer.
    unwritten: usize,
    /// Answers that the gate has not heard of.
    answered: usize,
    fault: Option<Fault>,
    stopping: bool,
    /// Writing failed: trying again would only fail again, or tear the output.
    sink_lost: bool,
}

/// A row that only waits for its turn.
struct Finished {
    sequence: u64,
    number: u64,
    origin: Origin,
    share: Option<f64>,
    digest: u32,
    rows: Vec<Row>,
    tally: Tally,
    /// It can be had again without the backend.
    journaled: bool,
}

impl Finished {
    fn known(self) -> KnownRow {
        KnownRow {
            sequence: self.sequence,
            number: self.number,
            origin: self.origin.to_string(),
            digest: Some(self.digest),
            rows: self.rows,
            codes: self.tally.codes,
            input_tokens: self.tally.input_tokens,
            output_tokens: self.tally.output_tokens,
        }
    }

    /// For the journal, once.
    fn early(&mut self) -> Option<KnownRow> {
        if std::mem::replace(&mut self.journaled, true) {
            return None;
        }
        Some(KnownRow {
            sequence: self.sequence,
            number: self.number,
            origin: self.origin.to_string(),
            digest: Some(self.digest),
            rows: self.rows.clone(),
            codes: self.tally.codes.clone(),
            input_tokens: self.tally.input_tokens,
            output_tokens: self.tally.output_tokens,
        })
    }
}

impl Writer {
    fn work(&mut self, received: &Receiver<Event>, stop: &CancelToken) {
        loop {
            match received.recv_timeout(TICK) {
                Ok(event) => {
                    self.take(event);
                    received.try_iter().for_each(|event| self.take(event));
                    self.write_ready();
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The feeder's last word is always an end.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if stop.is_cancelled() && !self.stopping && self.fault.is_none() {
                self.summary.interrupted = true;
                self.stop();
            }
            if self.reported.elapsed() >= PROGRESS_INTERVAL {
                self.report();
            }
            self.commit();
            if self.stopped.is_some_and(|stopped| stopped.elapsed() >= PATIENCE) {
                return;
            }
            let idle = self.gate.in_flight() == 0 && received.is_empty();
            if idle && (self.stopping || (self.ended.is_some() && self.unwritten == 0)) {
                return;
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::End { fault, exhausted } => {
                self.ended = Some(exhausted);
                if let Some(fault) = fault {
                    // What can't be read doesn't spoil what was: rows in flight go on to their end.
                    self.fault.get_or_insert(fault);
                }
            }
            Event::Answered(answered) => self.take_answer(*answered),
        }
    }

    fn take_answer(&mut self, answered: Answered) {
        let Answered { asked, submitted, outcome } = answered;
        self.answered += usize::from(submitted);
        let result = match outcome {
            Outcome::Result(result) => result,
            Outcome::Known(known) => {
                let Asked { sequence, number, origin, share, digest, .. } = asked;
                let tally = Tally::of_known(&known);
                let rows = known.rows;
                self.put(Finished { sequence, number, origin, share, digest, rows, tally, journaled: true });
                return;
            }
        };
        if submitted && self.stopping && !is_whole(&result) {
            return;
        }
        match &result {
            Err(fault) if fault.class == FaultClass::Stop => return self.fail(fault.clone()),
            Err(fault) if fault.class == FaultClass::Drain => return self.drain(fault.clone()),
            _ => {}
        }
        let rows = self.task.output_rows(&asked.row, asked.rendered.as_ref(), &result);
        let Asked { sequence, number, origin, share, digest, .. } = asked;
        let tally = Tally::of(&result);
        if let Some(ledger) = &mut self.ledger {
            ledger.row_finished();
            ledger.timed(sequence, &tally.timings, tally.first_timings.as_ref(), tally.tiles);
        }
        self.put(Finished { sequence, number, origin, share, digest, rows, tally, journaled: false });
    }

    fn put(&mut self, finished: Finished) {
        self.unwritten += 1;
        self.reorder.put(finished.sequence, finished);
    }

    fn write_ready(&mut self) {
        let mut written = 0;
        while let Some(finished) = self.reorder.next() {
            self.unwritten -= 1;
            written += 1;
            self.write(finished);
            if written == BATCH {
                self.gate.free(std::mem::take(&mut self.answered), std::mem::take(&mut written));
            }
        }
        self.gate.free(std::mem::take(&mut self.answered), written);
        self.flush();
    }

    fn write(&mut self, finished: Finished) {
        if self.sink_lost {
            return;
        }
        for fault in &finished.tally.faults {
            self.observer.row_failed(finished.number, &finished.origin, fault);
        }
        if let Err(fault) = self.sink.write(finished.number, &finished.rows) {
            return self.lose_sink(fault);
        }
        self.summary.count(&finished.tally, finished.rows.len());
        self.share = finished.share;
        if let Err(fault) = self.errors.count(&finished.tally) {
            self.fail(fault);
        }
        if let Some(ledger) = &mut self.ledger {
            let journaled = finished.journaled;
            ledger.wrote(finished.known(), journaled);
        }
    }

    fn flush(&mut self) {
        if self.sink_lost {
            return;
        }
        match self.sink.flush() {
            Err(fault) => self.lose_sink(fault),
            Ok(()) => {
                if let (Some(ledger), Some(mark)) = (&mut self.ledger, self.sink.mark()) {
                    ledger.settle(mark);
                }
            }
        }
    }

    /// Makes durable what is finished, if it is time.
    fn commit(&mut self) {
        let Some(ledger) = self.ledger.as_mut().filter(|ledger| !self.sink_lost && ledger.is_due()) else { return };
        let committed = {
            let mut early = self.reorder.waiting().filter_map(Finished::early);
            ledger.commit(&mut self.sink, &mut early)
        };
        if let Err(error) = committed {
            self.lose_sink(error.into());
        }
    }

    fn lose_sink(&mut self, fault: Fault) {
        self.sink_lost = true;
        self.fail(fault);
    }

    fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        self.stop();
    }

    /// Ends the run without giving up what is in flight: it is paid for.
    fn drain(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
        self.stopping = true;
        self.gate.close();
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.stopped.get_or_insert_with(Instant::now);
        self.gate.close();
        self.cancel.cancel();
    }

    fn report(&mut self) {
        self.reported = Instant::now();
        let elapsed = self.started.elapsed();
        self.observer.progress(&Progress { share: self.share, elapsed, ..self.summary.progress() });
    }

    fn finish(mut self, name: &str) -> Result<(Summary, Option<RunFolder>), RunError> {
        self.gate.close();
        let mut rest: Vec<Finished> = std::mem::replace(&mut self.reorder, Reorder::new(0)).rest().collect();
        if self.ledger.is_none() {
            // After a stop there may be holes: rows given up between rows finished.
            rest.drain(..).for_each(|finished| self.write(finished));
        }
        if !self.sink_lost
            && let Err(fault) = self.sink.finish()
        {
            self.lose_sink(fault);
        }
        if self.fault.is_none() && self.ended == Some(true) && self.summary.rows == 0 && !self.summary.interrupted {
            self.fault = Some(DatasetError::InputEmpty(name.to_owned()).into());
        }
        let mut folder = None;
        if let Some(ledger) = self.ledger.take() {
            let state = match (&self.fault, self.summary.interrupted) {
                (Some(_), _) => RunState::Failed,
                (None, true) => RunState::Interrupted,
                (None, false) => RunState::Complete,
            };
            // Rows behind a gap are not lost: the next session takes them from the journal.
            let mut early = rest.iter_mut().filter_map(Finished::early);
            match ledger.close(&mut self.sink, &mut early, !self.sink_lost, state, self.fault.as_ref()) {
                Ok(closed) => folder = Some(closed),
                Err(error) => self.fault = self.fault.take().or_else(|| Some(error.into())),
            }
            self.summary.kept_rows = rest.len() as u64;
        }
        self.summary.elapsed = self.started.elapsed();
        self.report();
        match self.fault {
            None => Ok((self.summary, folder)),
            Some(fault) => Err(RunError { fault, summary: Box::new(self.summary) }),
        }
    }
}

/// Whether a result that came after a stop is as it would have been without.
fn is_whole(result: &Result<Response, Fault>) -> bool {
    result.as_ref().is_ok_and(|response| {
        let whole = |generation: &Result<vgen_core::Generation, Fault>| {
            generation.as_ref().is_ok_and(|generation| generation.finish_reason != Some(FinishReason::Cancelled))
        };
        response.generations.iter().all(whole)
    })
}
