//! [`Feeder`]: the thread that reads rows, renders them and submits them to the backend.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use vgen_core::{Backend, CancelToken, Fault, FaultClass, Reply, Request, Response, Row, SamplingParams};
use vgen_dataset::{Origin, RowSource};
use vgen_task::{Rendered, RowContext};

use crate::gate::Gate;
use crate::record::KnownRow;
use crate::{KnownRows, Task};

/// What the feeder, and the backend's replies, tell the pipeline.
pub(crate) enum Event {
    /// A row has its answer or its fault.
    Answered(Box<Answered>),
    /// There are no more rows, or none can be read.
    End {
        /// Why, if not for the end of the source.
        fault: Option<Fault>,
        /// The source came to its end.
        exhausted: bool,
    },
}

/// A row with its answer or fault.
pub(crate) struct Answered {
    pub(crate) asked: Asked,
    /// Whether it was at the backend, and so counts as in flight until now.
    pub(crate) submitted: bool,
    pub(crate) outcome: Outcome,
}

/// What became of a row.
pub(crate) enum Outcome {
    /// The backend's answer, or why there is none.
    Result(Result<Response, Fault>),
    /// It was done before.
    Known(Box<KnownRow>),
}

/// A row on its way.
pub(crate) struct Asked {
    /// Its place among the rows of the output, without gaps.
    pub(crate) sequence: u64,
    /// Its number in the source.
    pub(crate) number: u64,
    pub(crate) origin: Origin,
    pub(crate) share: Option<f64>,
    pub(crate) digest: u32,
    pub(crate) row: Row,
    pub(crate) rendered: Option<Rendered>,
}

/// Reads, renders and submits.
pub(crate) struct Feeder {
    pub(crate) source: Box<dyn RowSource>,
    pub(crate) task: Arc<dyn Task>,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) sampling: SamplingParams,
    /// Rows that are in the output already and were skipped in the source.
    pub(crate) first: u64,
    pub(crate) known: Box<dyn KnownRows>,
    pub(crate) row_timeout: Option<Duration>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) cancel: CancelToken,
    pub(crate) events: Sender<Event>,
}

impl Feeder {
    pub(crate) fn run(mut self) {
        let mut end = End { events: self.events.clone(), fault: None, exhausted: false, done: false };
        end.fault = self.feed(&mut end.exhausted).err();
        end.done = true;
    }

    fn feed(&mut self, exhausted: &mut bool) -> Result<(), Fault> {
        let mut sequence = self.first;
        while self.gate.admit_row() {
            let Some(row) = self.source.next_row()? else {
                *exhausted = true;
                break;
            };
            let known = self.known.take(sequence, row.digest)?;
            let (values, rendered) = match row.row {
                _ if known.is_some() => (Row::new(), None),
                Err(fault) => (Row::new(), Some(Err(fault))),
                Ok(values) => {
                    let context = RowContext {
                        number: row.number,
                        file: Some(Path::new(&*row.origin.name)),
                        base_dir: self.source.folder(),
                    };
                    let rendered = self.task.render(&values, &context);
                    (values, Some(rendered))
                }
            };
            let row = Asked {
                sequence,
                number: row.number,
                origin: row.origin,
                share: row.share,
                digest: row.digest,
                row: values,
                rendered: None,
            };
            sequence += 1;
            match (known, rendered) {
                (Some(known), _) => row.send(Outcome::Known(Box::new(known)), false, &self.events),
                (None, Some(Err(fault))) if fault.class == FaultClass::Stop => return Err(fault),
                (None, Some(Err(fault))) => row.send(Outcome::Result(Err(fault)), false, &self.events),
                (None, Some(Ok(rendered))) if self.gate.admit_request() => self.submit(row, rendered),
                (None, _) => break,
            }
        }
        Ok(())
    }

    fn submit(&self, mut row: Asked, rendered: Rendered) {
        let own = match self.task.own_sampling(&row.row, &self.sampling) {
            Ok(own) => own,
            Err(fault) => return row.send(Outcome::Result(Err(fault)), true, &self.events),
        };
        let (sampling, num_generations) = match own {
            None => (self.sampling.clone(), self.task.num_generations()),
            Some((sampling, count)) => match self.backend.check(&sampling, count) {
                Ok(()) => (sampling, count),
                Err(fault) => {
                    let fault = Fault { class: FaultClass::Row, ..fault };
                    return row.send(Outcome::Result(Err(fault)), true, &self.events);
                }
            },
        };
        let messages = rendered.messages.clone();
        row.rendered = Some(rendered);
        let request = Request {
            num_generations,
            deadline: self.row_timeout.map(|timeout| Instant::now() + timeout),
            cancel: self.cancel.clone(),
            ..Request::new(row.number, messages, sampling)
        };
        self.backend.submit(request, Box::new(RowReply { row: Some(row), events: self.events.clone() }));
    }
}

impl Asked {
    fn send(self, outcome: Outcome, submitted: bool, events: &Sender<Event>) {
        // After a stop nobody listens any more.
        let _ = events.send(Event::Answered(Box::new(Answered { asked: self, submitted, outcome })));
    }
}

/// Takes a row's result from the backend. If the backend drops it instead, the row is answered all the same: a run
/// never waits for what can't come.
struct RowReply {
    row: Option<Asked>,
    events: Sender<Event>,
}

impl Reply for RowReply {
    fn done(mut self: Box<Self>, result: Result<Response, Fault>) {
        if let Some(row) = self.row.take() {
            row.send(Outcome::Result(result), true, &self.events);
        }
    }
}

impl Drop for RowReply {
    fn drop(&mut self) {
        if let Some(row) = self.row.take() {
            let lost = Fault::stop("backend.lost", format!("{}: the backend gave no answer", row.origin));
            row.send(Outcome::Result(Err(lost)), true, &self.events);
        }
    }
}

/// Tells the pipeline that no more rows come, also when the thread panics.
struct End {
    events: Sender<Event>,
    fault: Option<Fault>,
    exhausted: bool,
    done: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.done {
            self.fault = Some(Fault::stop("run.reader", "the thread that reads rows ended early"));
        }
        let _ = self.events.send(Event::End { fault: self.fault.take(), exhausted: self.exhausted });
    }
}
