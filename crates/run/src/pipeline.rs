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

use crate::feed::{Answered, Asked, Event, Feeder};
use crate::gate::Gate;
use crate::progress::Tally;
use crate::reorder::Reorder;
use crate::{Observer, Progress, Summary, Task};

/// Rows read but not yet written, for each request in flight, unless told otherwise.
const REORDER_FACTOR: usize = 4;
/// How often a waiting run looks whether it was stopped.
const TICK: Duration = Duration::from_millis(25);
/// How often the observer hears of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// A run: rows from a source, through a task and a backend, to a sink.
pub struct Pipeline {
    source: Box<dyn RowSource>,
    task: Arc<dyn Task>,
    backend: Arc<dyn Backend>,
    sink: Box<dyn RowSink>,
    sampling: SamplingParams,
    limit: Option<u64>,
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
            limit: None,
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

    /// Ends the run after that many rows.
    #[must_use]
    pub fn limit(mut self, rows: u64) -> Self {
        self.limit = Some(rows);
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

    /// A token that ends the run early: no more rows are read, rows in flight are given up, finished ones written.
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
        let name = self.source.name().to_owned();
        // The feeder ends with the last question; a backend that goes away then takes the last answers with it.
        let _until_answered = Arc::clone(&self.backend);
        let feeder = Feeder {
            source: self.source,
            task: Arc::clone(&self.task),
            backend: self.backend,
            sampling: self.sampling,
            limit: self.limit,
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
            limit: self.limit,
            started,
            reported: started,
            reorder: Reorder::new(),
            summary: Summary::default(),
            share: None,
            ended: None,
            unwritten: 0,
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
    limit: Option<u64>,
    started: Instant,
    reported: Instant,
    reorder: Reorder<Finished>,
    summary: Summary,
    share: Option<f64>,
    /// Set once no more rows come: whether for the end of the source.
    ended: Option<bool>,
    /// Rows in the reorder buffer.
    unwritten: usize,
    fault: Option<Fault>,
    stopping: bool,
    /// Writing failed: trying again would only fail again, or tear the output.
    sink_lost: bool,
}

/// A row that only waits for its turn.
struct Finished {
    number: u64,
    origin: Origin,
    share: Option<f64>,
    rows: Vec<Row>,
    tally: Tally,
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
        let Answered { asked, submitted, result } = answered;
        if submitted {
            self.gate.answered();
        }
        if submitted && self.stopping && !is_whole(&result) {
            return;
        }
        match &result {
            Err(fault) if fault.class == FaultClass::Stop => return self.fail(fault.clone()),
            Err(fault) if fault.class == FaultClass::Drain => return self.drain(fault.clone()),
            _ => {}
        }
        let rows = self.task.output_rows(&asked.row, asked.rendered.as_ref(), &result);
        let Asked { sequence, number, origin, share, .. } = asked;
        self.unwritten += 1;
        self.reorder.put(sequence, Finished { number, origin, share, rows, tally: Tally::of(&result) });
    }

    fn write_ready(&mut self) {
        while let Some(finished) = self.reorder.next() {
            self.unwritten -= 1;
            self.gate.written();
            self.write(finished);
        }
        self.flush();
    }

    fn write(&mut self, finished: Finished) {
        if self.sink_lost {
            return;
        }
        let Finished { number, origin, share, rows, tally } = finished;
        for fault in &tally.faults {
            self.observer.row_failed(number, &origin, fault);
        }
        match self.sink.write(number, &rows) {
            Ok(()) => {
                self.summary.count(&tally, rows.len());
                self.share = share;
            }
            Err(fault) => self.lose_sink(fault),
        }
    }

    fn flush(&mut self) {
        if !self.sink_lost
            && let Err(fault) = self.sink.flush()
        {
            self.lose_sink(fault);
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
        self.gate.close();
        self.cancel.cancel();
    }

    fn report(&mut self) {
        self.reported = Instant::now();
        let limited = self.limit.map(|limit| self.summary.rows as f64 / limit.max(1) as f64);
        let share = match (self.share, limited) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        let elapsed = self.started.elapsed();
        self.observer.progress(&Progress { share, elapsed, ..self.summary.progress() });
    }

    fn finish(mut self, name: &str) -> Result<Summary, RunError> {
        self.gate.close();
        // After a stop there may be holes: rows given up between rows finished.
        let rest: Vec<Finished> = std::mem::replace(&mut self.reorder, Reorder::new()).rest().collect();
        rest.into_iter().for_each(|finished| self.write(finished));
        if !self.sink_lost
            && let Err(fault) = self.sink.finish()
        {
            self.lose_sink(fault);
        }
        self.summary.elapsed = self.started.elapsed();
        if self.fault.is_none() && self.ended == Some(true) && self.summary.rows == 0 && !self.summary.interrupted {
            self.fault = Some(DatasetError::InputEmpty(name.to_owned()).into());
        }
        self.report();
        match self.fault {
            None => Ok(self.summary),
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
