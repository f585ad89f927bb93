//! [`Ledger`]: keeps the record of a run while it goes.
//!
//! Rows come in the order of the output. Those before the sink's mark are counted as soon as the sink says so; those
//! behind it, and those that finished early and wait for others, are written to the journal at the next commit.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vgen_core::{Fault, Timings};
use vgen_dataset::{Mark, RowSink};

use super::folder::{FAILED, JOURNAL, RECORD, RunFolder, TIMINGS};
use super::journal::{self, Closed, Commit, KnownRow, Past};
use super::manifest::{Counts, FailedRow, RowTimings, RunRecord, RunState, Session, TimingSums, now};
use super::syncer::{Job, Syncer};
use super::{RecordError, files};

/// `run.json` is brought up to date so often.
const RECORD_INTERVAL: Duration = Duration::from_secs(30);
/// Rows whose times are written down.
const MOST_TIMINGS: u64 = 20_000;

/// How much finished work a crash may lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durability {
    /// Finished rows reach the disk after this time, and the time that the disk takes.
    pub interval: Duration,
    /// Or when there are so many.
    pub rows: Option<u64>,
}

impl Default for Durability {
    /// One second.
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), rows: None }
    }
}

/// The record of a run that goes.
pub struct Ledger {
    /// Held for its lock.
    folder: RunFolder,
    /// Where the record's files are: the folder, or the one for `--retry-failed` in it.
    path: PathBuf,
    record: RunRecord,
    durability: Durability,
    syncer: Syncer,
    /// As of the sink's mark.
    commit: Commit,
    committed: Commit,
    /// Rows in the sink behind its mark.
    behind: VecDeque<Behind>,
    /// Lines for the list of failed rows, of rows before the mark.
    failed: Vec<u8>,
    /// Rows that finished since the last commit.
    finished: u64,
    since: Instant,
    started: Instant,
    recorded: Instant,
    session: Session,
    timings: Option<(BufWriter<File>, u64)>,
}

struct Behind {
    row: KnownRow,
    output_rows: u64,
    journaled: bool,
}

impl Ledger {
    /// Begins a run: what was in the record before is forgotten.
    ///
    /// # Errors
    /// `record.io`
    pub fn begin(folder: RunFolder, record: RunRecord, durability: Durability) -> Result<Self, RecordError> {
        let path = folder.path().to_owned();
        let output = folder.output().to_owned();
        folder.drop_retry()?;
        Self::open(folder, path, &output, record, Past::default(), durability)
    }

    /// Goes on with a run from where it stands.
    ///
    /// # Errors
    /// `record.io`
    pub fn resume(
        folder: RunFolder,
        record: RunRecord,
        past: &Past,
        durability: Durability,
    ) -> Result<Self, RecordError> {
        let path = folder.path().to_owned();
        let output = folder.output().to_owned();
        Self::open(folder, path, &output, record, past.clone(), durability)
    }

    /// Begins or goes on with `--retry-failed`, whose output is another file until it is whole.
    ///
    /// # Errors
    /// `record.io`
    pub fn retry(
        folder: RunFolder,
        record: RunRecord,
        past: &Past,
        durability: Durability,
    ) -> Result<Self, RecordError> {
        let (path, output) = folder.retry()?;
        if !path.join(TIMINGS).exists() {
            // The times of rows that are not done again; of the others, the last line counts.
            let _ = fs::copy(folder.path().join(TIMINGS), path.join(TIMINGS));
        }
        Self::open(folder, path, &output, record, past.clone(), durability)
    }

    fn open(
        mut folder: RunFolder,
        path: PathBuf,
        output: &Path,
        record: RunRecord,
        mut past: Past,
        durability: Durability,
    ) -> Result<Self, RecordError> {
        let of = |name: &str| {
            let path = path.join(name);
            move |source| RecordError::Io { path, verb: "written", source }
        };
        folder.begin();
        // With the record first, a journal never stands alone; the old journal never beside a new record's meaning.
        past.closed = None;
        let session = Session {
            started: now(),
            pid: std::process::id(),
            rows_before: past.commit.mark.rows,
            ..Session::default()
        };
        let commit = past.commit.clone();
        let fresh = commit == Commit::default() && past.rows.is_empty();
        if fresh {
            match fs::remove_file(path.join(JOURNAL)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(of(JOURNAL)(error)),
                _ => {}
            }
        }
        let mut ledger_record = record;
        ledger_record.state = RunState::Running;
        ledger_record.counts = commit.counts.clone();
        ledger_record.sessions.push(session.clone());
        write_record(&path, &mut ledger_record)?;
        let failed = OpenOptions::new().write(true).create(true).truncate(false).open(path.join(FAILED));
        let cut = failed.and_then(|file| file.set_len(commit.failed_bytes).and_then(|()| file.sync_all()));
        cut.map_err(of(FAILED))?;
        let mut lines = journal::written_anew(past);
        journal::push_open(&mut lines);
        files::replace(&path.join(JOURNAL), &lines).map_err(of(JOURNAL))?;
        let syncer = Syncer::start(&path, output)?;
        let anew = fresh && path == folder.path();
        let timings = OpenOptions::new().create(true).write(true).truncate(anew).append(!anew).open(path.join(TIMINGS));
        let written = (fs::metadata(path.join(TIMINGS)).map_or(0, |metadata| metadata.len())) / 100;
        let now = Instant::now();
        Ok(Self {
            folder,
            path,
            record: ledger_record,
            durability,
            syncer,
            committed: commit.clone(),
            commit,
            behind: VecDeque::new(),
            failed: Vec::new(),
            finished: 0,
            since: now,
            started: now,
            recorded: now,
            session,
            // For looking at only: a run does not end for them.
            timings: timings.ok().map(|file| (BufWriter::new(file), MOST_TIMINGS.saturating_sub(written))),
        })
    }

    /// The first row that is not before the mark.
    pub fn first_sequence(&self) -> u64 {
        self.committed.mark.rows
    }

    /// What was counted before this session.
    pub fn counts(&self) -> &Counts {
        &self.committed.counts
    }

    /// A row finished, wherever it stands.
    pub(crate) fn row_finished(&mut self) {
        self.finished += 1;
    }

    /// Times of a row's answers.
    pub(crate) fn timed(&mut self, sequence: u64, sums: &TimingSums, first: Option<&Timings>, tiles: Option<u64>) {
        self.session.timings.answers += sums.answers;
        self.session.timings.queue += sums.queue;
        self.session.timings.prepare += sums.prepare;
        self.session.timings.first_token += sums.first_token;
        self.session.timings.total += sums.total;
        let (Some((file, left)), Some(timings)) = (&mut self.timings, first) else { return };
        if *left > 0 {
            *left -= 1;
            let end = self.started.elapsed().as_secs_f64();
            let line = RowTimings {
                sequence,
                session: self.record.sessions.len().saturating_sub(1) as u64,
                start: (end - timings.total).max(0.0),
                queue: timings.queue,
                prepare: timings.prepare,
                encode: timings.encode,
                first_token: timings.first_token,
                total: timings.total,
                tiles,
            };
            // Plain data always serialises.
            let _ = writeln!(file, "{}", serde_json::to_string(&line).unwrap_or_default());
        }
    }

    /// A row was given to the sink. `journaled`: it can be had again without the backend.
    pub(crate) fn wrote(&mut self, row: KnownRow, journaled: bool) {
        self.session.rows += 1;
        self.behind.push_back(Behind { output_rows: row.rows.len() as u64, row, journaled });
    }

    /// The sink stands at `mark`.
    pub(crate) fn settle(&mut self, mark: Mark) {
        while self.behind.front().is_some_and(|behind| behind.row.sequence < mark.rows) {
            if let Some(behind) = self.behind.pop_front() {
                let usual = self.record.rows_per_input;
                push_failed(&mut self.failed, &behind, usual);
                count(&mut self.commit.counts, &behind);
                self.commit.digest = behind.row.digest;
            }
        }
        self.commit.mark = mark;
    }

    /// Whether it is time for a commit.
    pub(crate) fn is_due(&self) -> bool {
        self.finished > 0
            && (self.since.elapsed() >= self.durability.interval
                || self.durability.rows.is_some_and(|rows| self.finished >= rows))
    }

    /// Makes durable what is finished: what the sink has, and `early` rows that wait for others. Returns before that is
    /// done unless a bound of rows asks for more.
    pub(crate) fn commit(
        &mut self,
        sink: &mut dyn RowSink,
        early: &mut dyn Iterator<Item = KnownRow>,
    ) -> Result<(), RecordError> {
        let by_rows = self.durability.rows.is_some_and(|rows| self.finished >= rows);
        if !by_rows && !self.syncer.is_idle()? {
            return Ok(());
        }
        self.submit(sink, early)?;
        if by_rows {
            self.syncer.wait()?;
        }
        if self.recorded.elapsed() >= RECORD_INTERVAL {
            self.write_record()?;
        }
        Ok(())
    }

    fn submit(&mut self, sink: &mut dyn RowSink, early: &mut dyn Iterator<Item = KnownRow>) -> Result<(), RecordError> {
        if let Some(mark) = sink.mark() {
            self.settle(mark);
        }
        let mut lines = Vec::new();
        for behind in self.behind.iter_mut().filter(|behind| !behind.journaled) {
            behind.journaled = true;
            journal::push_row(&mut lines, behind.row.clone());
        }
        early.for_each(|row| journal::push_row(&mut lines, row));
        self.commit.failed_bytes += self.failed.len() as u64;
        journal::push_commit(&mut lines, self.commit.clone());
        self.committed = self.commit.clone();
        let outputs: Vec<Arc<File>> = sink.unsynced();
        self.finished = 0;
        self.since = Instant::now();
        self.syncer.submit(Job { outputs, failed: std::mem::take(&mut self.failed), lines })
    }

    /// What was counted, with the rows behind the mark.
    pub(crate) fn all_counts(&self) -> Counts {
        let mut counts = self.commit.counts.clone();
        self.behind.iter().for_each(|behind| count(&mut counts, behind));
        counts
    }

    /// Ends the session: commits what there is; with a sink that is finished, writes down how long the output is.
    pub(crate) fn close(
        mut self,
        sink: &mut dyn RowSink,
        early: &mut dyn Iterator<Item = KnownRow>,
        finished: bool,
        state: RunState,
        fault: Option<&Fault>,
    ) -> Result<RunFolder, RecordError> {
        self.submit(sink, early)?;
        let counts = self.all_counts();
        if finished && let Some(end) = sink.end() {
            let mut lines = Vec::new();
            journal::push_closed(&mut lines, Closed { end, counts: counts.clone() });
            let mut failed = Vec::new();
            let usual = self.record.rows_per_input;
            self.behind.iter().for_each(|behind| push_failed(&mut failed, behind, usual));
            self.syncer.submit(Job { outputs: sink.unsynced(), failed, lines })?;
        }
        self.syncer.wait()?;
        self.record.state = state;
        self.record.fault = fault.cloned();
        self.session.ended = Some(now());
        self.commit.counts = counts;
        self.write_record()?;
        let Self { folder, .. } = self;
        Ok(folder)
    }

    fn write_record(&mut self) -> Result<(), RecordError> {
        self.recorded = Instant::now();
        if let Some((file, _)) = &mut self.timings {
            let _ = file.flush();
        }
        self.session.seconds = self.started.elapsed().as_secs_f64();
        self.record.counts = self.commit.counts.clone();
        if let Some(last) = self.record.sessions.last_mut() {
            *last = self.session.clone();
        }
        write_record(&self.path, &mut self.record)
    }
}

fn write_record(folder: &Path, record: &mut RunRecord) -> Result<(), RecordError> {
    record.updated = now();
    let path = folder.join(RECORD);
    let text = serde_json::to_vec_pretty(record).unwrap_or_default();
    files::replace(&path, &text).map_err(|source| RecordError::Io { path, verb: "written", source })
}

fn count(counts: &mut Counts, behind: &Behind) {
    let row = &behind.row;
    counts.rows += 1;
    counts.failed_rows += u64::from(!row.codes.is_empty());
    counts.output_rows += behind.output_rows;
    counts.input_tokens += row.input_tokens;
    counts.output_tokens += row.output_tokens;
    for code in &row.codes {
        *counts.errors.entry(code.clone()).or_default() += 1;
    }
}

fn push_failed(out: &mut Vec<u8>, behind: &Behind, usual: u64) {
    let row = &behind.row;
    if row.codes.is_empty() && behind.output_rows == usual {
        return;
    }
    let line = FailedRow {
        sequence: row.sequence,
        number: row.number,
        origin: row.origin.clone(),
        output_rows: behind.output_rows,
        codes: row.codes.clone(),
    };
    // Plain data, into memory.
    let _ = serde_json::to_writer(&mut *out, &line);
    out.push(b'\n');
}
