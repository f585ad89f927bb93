//! [`Progress`] of a run while it goes, its [`Summary`] at the end, and the [`Observer`] who is told.

use std::collections::BTreeMap;
use std::time::Duration;

use vgen_core::{Fault, FinishReason, Response, Timings};
use vgen_dataset::Origin;

use crate::record::{Counts, KnownRow, TimingSums};

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Rows written, failed ones and those of earlier sessions too.
    pub rows: u64,
    /// Those that earlier sessions wrote.
    pub earlier_rows: u64,
    /// Answer tokens of these.
    pub earlier_output_tokens: u64,
    /// Rows written with an error, in all or some of their samples.
    pub failed_rows: u64,
    /// How often each error code occurred.
    pub errors: BTreeMap<String, u64>,
    /// Prompt tokens of the rows written.
    pub input_tokens: u64,
    /// Answer tokens of the rows written.
    pub output_tokens: u64,
    /// The share of the run that is done, 0 to 1, if the size of the source or a limit of rows is known.
    pub share: Option<f64>,
    /// Since this session began.
    pub elapsed: Duration,
}

impl Progress {
    /// Rows a second in this session.
    pub fn rows_per_second(&self) -> f64 {
        per_second(self.rows.saturating_sub(self.earlier_rows), self.elapsed)
    }

    /// Answer tokens a second in this session.
    pub fn tokens_per_second(&self) -> f64 {
        per_second(self.output_tokens.saturating_sub(self.earlier_output_tokens), self.elapsed)
    }

    /// Time left at the pace so far, once there is one.
    pub fn eta(&self) -> Option<Duration> {
        let share = self.share.filter(|share| *share > 0.0)?;
        // The part of the share that is this session's own.
        let own = share * (self.rows.saturating_sub(self.earlier_rows) as f64 / self.rows.max(1) as f64);
        let left = self.elapsed.as_secs_f64() * (1.0 - share) / own;
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
    /// Rows written, failed ones and those of earlier sessions too.
    pub rows: u64,
    /// Those that earlier sessions wrote.
    pub earlier_rows: u64,
    /// Answer tokens of these.
    pub earlier_output_tokens: u64,
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
    /// Rows that finished behind a gap: they are in the run record, not yet in the output.
    pub kept_rows: u64,
    /// Answers that this session got.
    pub answers: u64,
    /// Those of them that ended at the limit of tokens.
    pub cut_by_length: u64,
    /// Those of them that ended at the limit of time.
    pub cut_by_time: u64,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
}

impl Summary {
    /// The numbers of a finished run in the form of a running one.
    pub fn progress(&self) -> Progress {
        Progress {
            rows: self.rows,
            earlier_rows: self.earlier_rows,
            earlier_output_tokens: self.earlier_output_tokens,
            failed_rows: self.failed_rows,
            errors: self.errors.clone(),
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
            share: None,
            elapsed: self.elapsed,
        }
    }

    /// Begins with what earlier sessions counted.
    pub(crate) fn of_earlier(counts: &Counts) -> Self {
        Self {
            rows: counts.rows,
            earlier_rows: counts.rows,
            earlier_output_tokens: counts.output_tokens,
            failed_rows: counts.failed_rows,
            errors: counts.errors.clone(),
            output_rows: counts.output_rows,
            input_tokens: counts.input_tokens,
            output_tokens: counts.output_tokens,
            ..Self::default()
        }
    }

    /// Counts a row that was written.
    pub(crate) fn count(&mut self, tally: &Tally, output_rows: usize) {
        self.rows += 1;
        self.failed_rows += u64::from(!tally.codes.is_empty());
        self.output_rows += output_rows as u64;
        self.input_tokens += tally.input_tokens;
        self.output_tokens += tally.output_tokens;
        self.answers += tally.answers;
        self.cut_by_length += tally.cut_by_length;
        self.cut_by_time += tally.cut_by_time;
        for code in &tally.codes {
            *self.errors.entry(code.clone()).or_default() += 1;
        }
        if tally.known {
            self.earlier_rows += 1;
            self.earlier_output_tokens += tally.output_tokens;
        }
    }
}

/// What one row adds to the summary.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Of rows of this session.
    pub(crate) faults: Vec<Fault>,
    pub(crate) codes: Vec<String>,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) answers: u64,
    pub(crate) cut_by_length: u64,
    pub(crate) cut_by_time: u64,
    /// It was done by an earlier session.
    pub(crate) known: bool,
    pub(crate) timings: TimingSums,
    pub(crate) first_timings: Option<Timings>,
    pub(crate) tiles: Option<u64>,
}

impl Tally {
    pub(crate) fn of(result: &Result<Response, Fault>) -> Self {
        let response = match result {
            Ok(response) => response,
            Err(fault) => {
                return Self { codes: vec![fault.code.to_string()], faults: vec![fault.clone()], ..Self::default() };
            }
        };
        let mut tally = Self::default();
        for generation in &response.generations {
            match generation {
                Err(fault) => {
                    tally.codes.push(fault.code.to_string());
                    tally.faults.push(fault.clone());
                }
                Ok(generation) => {
                    let usage = generation.usage.unwrap_or_default();
                    // All samples of a row share one prompt.
                    tally.input_tokens = tally.input_tokens.max(usage.input_tokens);
                    tally.output_tokens += usage.output_tokens;
                    tally.answers += 1;
                    tally.cut_by_length += u64::from(generation.finish_reason == Some(FinishReason::Length));
                    tally.cut_by_time += u64::from(generation.finish_reason == Some(FinishReason::Deadline));
                    tally.timings.add(generation);
                    tally.first_timings.get_or_insert(generation.timings);
                    tally.tiles = tally.tiles.or(generation.tiles);
                }
            }
        }
        tally
    }

    pub(crate) fn of_known(row: &KnownRow) -> Self {
        Self {
            codes: row.codes.clone(),
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
            known: true,
            ..Self::default()
        }
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
