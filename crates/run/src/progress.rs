//! [`Progress`] of a run while it goes, its [`Summary`] at the end, and the [`Observer`] who is told.

use std::collections::BTreeMap;
use std::time::Duration;

use vgen_core::{Fault, Response};
use vgen_dataset::Origin;

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Rows written, failed ones too.
    pub rows: u64,
    /// Rows written with an error, in all or some of their samples.
    pub failed_rows: u64,
    /// Prompt tokens of the rows written.
    pub input_tokens: u64,
    /// Answer tokens of the rows written.
    pub output_tokens: u64,
    /// The share of the run that is done, 0 to 1, if the size of the source or a limit of rows is known.
    pub share: Option<f64>,
    /// Since the run began.
    pub elapsed: Duration,
}

impl Progress {
    /// Rows a second since the run began.
    pub fn rows_per_second(&self) -> f64 {
        per_second(self.rows, self.elapsed)
    }

    /// Answer tokens a second since the run began.
    pub fn tokens_per_second(&self) -> f64 {
        per_second(self.output_tokens, self.elapsed)
    }

    /// Time left at the pace so far, once there is one.
    pub fn eta(&self) -> Option<Duration> {
        let share = self.share.filter(|share| *share > 0.0)?;
        let left = self.elapsed.as_secs_f64() * (1.0 - share) / share;
        Duration::try_from_secs_f64(left).ok()
    }
}

fn per_second(count: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Rows written, failed ones too.
    pub rows: u64,
    /// Rows written with an error, in all or some of their samples.
    pub failed_rows: u64,
    /// How often each error code occurred, once for each failed row or sample.
    pub errors: BTreeMap<String, u64>,
    /// Output rows written: more than `rows` when each generation has its own.
    pub output_rows: u64,
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Answer tokens.
    pub output_tokens: u64,
    /// Wall time.
    pub elapsed: Duration,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
}

impl Summary {
    /// The numbers of a finished run in the form of a running one.
    pub fn progress(&self) -> Progress {
        Progress {
            rows: self.rows,
            failed_rows: self.failed_rows,
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            share: None,
            elapsed: self.elapsed,
        }
    }

    /// Counts a row that was written.
    pub(crate) fn count(&mut self, tally: &Tally, output_rows: usize) {
        self.rows += 1;
        self.failed_rows += u64::from(!tally.faults.is_empty());
        self.output_rows += output_rows as u64;
        self.input_tokens += tally.input_tokens;
        self.output_tokens += tally.output_tokens;
        for fault in &tally.faults {
            *self.errors.entry(fault.code.to_string()).or_default() += 1;
        }
    }
}

/// What one row adds to the summary.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) faults: Vec<Fault>,
    input_tokens: u64,
    output_tokens: u64,
}

impl Tally {
    pub(crate) fn of(result: &Result<Response, Fault>) -> Self {
        let response = match result {
            Ok(response) => response,
            Err(fault) => return Self { faults: vec![fault.clone()], ..Self::default() },
        };
        let mut tally = Self::default();
        for generation in &response.generations {
            match generation {
                Err(fault) => tally.faults.push(fault.clone()),
                Ok(generation) => {
                    let usage = generation.usage.unwrap_or_default();
                    // All samples of a row share one prompt.
                    tally.input_tokens = tally.input_tokens.max(usage.input_tokens);
                    tally.output_tokens += usage.output_tokens;
                }
            }
        }
        tally
    }
}

/// Who is told how a run goes. Called on the thread that runs the pipeline; what takes long there slows the run.
pub trait Observer: Send {
    /// About ten times a second, and once at the end.
    fn progress(&mut self, progress: &Progress) {
        let _ = progress;
    }

    /// A row, or a sample of it, failed; it is written with its error.
    fn row_failed(&mut self, number: u64, origin: &Origin, fault: &Fault) {
        let _ = (number, origin, fault);
    }
}

impl Observer for () {}
