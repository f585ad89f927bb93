//! [`KnownRows`]: rows whose output rows are known already, from the journal or from an old output.

use std::collections::{BTreeMap, HashMap};

use vgen_core::Fault;
use vgen_dataset::{RowSource, Skipped};

use crate::record::{FailedRow, KnownRow, Past, RecordError};

/// Rows that need no backend. Asked about every row of the run, in order.
pub trait KnownRows: Send {
    /// The row, if it is known. `digest` is the input's checksum up to it.
    ///
    /// # Errors
    /// `resume.input_changed`, `input.*`
    fn take(&mut self, sequence: u64, digest: u32) -> Result<Option<KnownRow>, Fault>;
}

impl<K: KnownRows + ?Sized> KnownRows for Box<K> {
    fn take(&mut self, sequence: u64, digest: u32) -> Result<Option<KnownRow>, Fault> {
        (**self).take(sequence, digest)
    }
}

impl KnownRows for () {
    fn take(&mut self, _sequence: u64, _digest: u32) -> Result<Option<KnownRow>, Fault> {
        Ok(None)
    }
}

/// Compares what was skipped with what the finished rows were made from.
///
/// # Errors
/// `resume.input_changed`
pub fn check_skipped(input: &str, past: &Past, skipped: Skipped) -> Result<(), Fault> {
    let mark = past.mark();
    let changed = |what: String| RecordError::InputChanged { input: input.to_owned(), what };
    if skipped.rows < mark.rows {
        return Err(changed(format!("{} rows are done, but it has only {}", mark.rows, skipped.rows)).into());
    }
    if mark.rows > 0 && past.digest().is_some_and(|digest| digest != skipped.digest) {
        return Err(changed(format!("its first {} rows, which are done, are not what they were", mark.rows)).into());
    }
    Ok(())
}

/// The rows that the journal kept.
pub struct JournalRows {
    rows: BTreeMap<u64, KnownRow>,
    input: String,
}

impl JournalRows {
    /// The rows behind the mark; `input` names the source in messages.
    pub fn new(past: Past, input: &str) -> Self {
        Self { rows: past.rows, input: input.to_owned() }
    }
}

impl KnownRows for JournalRows {
    fn take(&mut self, sequence: u64, digest: u32) -> Result<Option<KnownRow>, Fault> {
        let Some(row) = self.rows.remove(&sequence) else { return Ok(None) };
        check(&self.input, &row, digest)?;
        Ok(Some(row))
    }
}

fn check(input: &str, row: &KnownRow, digest: u32) -> Result<(), Fault> {
    if row.digest.is_some_and(|known| known != digest) {
        let what = format!("row {}, which is done, or one before it is not what it was", row.number);
        return Err(RecordError::InputChanged { input: input.to_owned(), what }.into());
    }
    Ok(())
}

/// The rows of an old output, but for those that failed and are to be done again.
pub struct OldRows {
    /// The old output; `None` where nothing needs to be copied.
    source: Option<Box<dyn RowSource>>,
    past: Past,
    /// The rows of this pass that were done before it was interrupted.
    again: JournalRows,
    failed: HashMap<u64, FailedRow>,
    only: Vec<String>,
    /// Output rows of an input row that did not fail as a whole.
    usual: u64,
    input: String,
    /// The next row of the old output.
    next: u64,
}

impl OldRows {
    /// `past` is of the old output, `again` of this pass. With `only`, other errors than these stay.
    pub fn new(
        source: Option<Box<dyn RowSource>>,
        past: Past,
        again: JournalRows,
        failed: Vec<FailedRow>,
        only: Vec<String>,
        usual: u64,
    ) -> Self {
        let input = again.input.clone();
        let failed = failed.into_iter().map(|row| (row.sequence, row)).collect();
        Self { source, past, again, failed, only, usual, input, next: 0 }
    }

    /// How many rows are to be done again.
    pub fn to_do(&self) -> u64 {
        self.failed.values().filter(|row| self.is_to_do(&row.codes)).count() as u64
    }

    fn is_to_do(&self, codes: &[String]) -> bool {
        let wanted = |code: &String| self.only.is_empty() || self.only.contains(code);
        codes.iter().any(wanted)
    }

    /// Passes over rows that are in the new output already.
    ///
    /// # Errors
    /// `input.*`
    pub fn skip(&mut self, rows: u64) -> Result<(), Fault> {
        while self.next < rows.min(self.past.mark().rows) {
            self.copied(self.next)?;
        }
        Ok(())
    }

    /// The rows of the old output that belong to the next input row.
    fn copied(&mut self, sequence: u64) -> Result<Vec<vgen_core::Row>, Fault> {
        let count = self.failed.get(&sequence).map_or(self.usual, |row| row.output_rows);
        self.next = sequence + 1;
        let mut rows = Vec::new();
        for _ in 0..count {
            let Some(source) = &mut self.source else { break };
            let row = source.next_row()?.map(|row| row.row).transpose()?;
            rows.push(row.ok_or_else(|| {
                Fault::stop("resume.output_changed", format!("output {} has too few rows", source.name()))
                    .with_hint("put the file back as it was, or add --overwrite to begin anew")
            })?);
        }
        Ok(rows)
    }
}

impl KnownRows for OldRows {
    fn take(&mut self, sequence: u64, digest: u32) -> Result<Option<KnownRow>, Fault> {
        let mark = self.past.mark();
        let mut row = if sequence < mark.rows {
            if sequence + 1 == mark.rows && self.past.digest().is_some_and(|known| known != digest) {
                let what = "rows that are done are not what they were".to_owned();
                return Err(RecordError::InputChanged { input: self.input.clone(), what }.into());
            }
            let rows = self.copied(sequence)?;
            let failed = self.failed.get(&sequence);
            // Tokens are known in sum only; the first row stands for all.
            let counts = if sequence == 0 { self.past.counts().clone() } else { Default::default() };
            KnownRow {
                sequence,
                number: failed.map_or(sequence, |row| row.number),
                origin: failed.map_or_else(String::new, |row| row.origin.clone()),
                digest: Some(digest),
                rows,
                codes: failed.map_or_else(Vec::new, |row| row.codes.clone()),
                input_tokens: counts.input_tokens,
                output_tokens: counts.output_tokens,
            }
        } else {
            match self.past.rows.remove(&sequence) {
                None => return self.again.take(sequence, digest),
                Some(row) => {
                    check(&self.input, &row, digest)?;
                    row
                }
            }
        };
        if self.is_to_do(&row.codes) {
            return self.again.take(sequence, digest);
        }
        row.digest = Some(digest);
        Ok(Some(row))
    }
}
