//! The journal: how far an output is, and the finished rows that are not in it yet.
//!
//! Each line is a checksum (CRC-32, eight hexadecimal digits), a space, and a JSON object with one key:
//!
//! - `{"version": 1}` is the first line.
//! - `{"row": {...}}` is a finished row behind the mark: one that waits for an earlier row, or for its block of the
//!   output to be full.
//! - `{"commit": {"mark": {"rows", "bytes", "crc"}, "digest", "counts", "failed_bytes"}}`: the output's first `bytes`
//!   bytes hold the first `rows` rows and are on the disk; what the rows were made from had the checksum `digest`.
//! - `{"open": {}}`: a run goes on; what stands behind the mark is about to be cut off.
//! - `{"closed": {"end": {...}, "counts"}}`: a run ended in good order; the output is exactly so long.
//!
//! The last commit holds. A line whose checksum is wrong is where a crash tore the journal; it and what follows is not
//! read. When the journal has grown, a new one with the lines that still matter takes its place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};
use vgen_core::Row;
use vgen_dataset::Mark;

use super::manifest::{Counts, RECORD_VERSION};

/// A finished row as the journal keeps it, or as an old output has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KnownRow {
    /// Its place among the rows of this output, from 0.
    pub sequence: u64,
    /// Its number in the source.
    pub number: u64,
    /// Where it stands in the source.
    pub origin: String,
    /// [`vgen_dataset::SourceRow::digest`]; `None` if it is not known.
    pub digest: Option<u32>,
    /// Its output rows.
    pub rows: Vec<Row>,
    /// The codes of its errors.
    pub codes: Vec<String>,
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Answer tokens.
    pub output_tokens: u64,
}

/// How far the output is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commit {
    pub(crate) mark: Mark,
    /// Of the last row before the mark; `None` where no input was read, as of merged shards.
    pub(crate) digest: Option<u32>,
    pub(crate) counts: Counts,
    /// The length of `failed.jsonl` at the mark.
    pub(crate) failed_bytes: u64,
}

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Closed {
    pub(crate) end: Mark,
    pub(crate) counts: Counts,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Version(u64),
    Row(KnownRow),
    Commit(Commit),
    Open {},
    Closed(Closed),
}

/// What the journal of an earlier run says.
#[derive(Clone, Debug, Default)]
pub struct Past {
    pub(crate) commit: Commit,
    /// Rows behind the mark, by sequence.
    pub(crate) rows: BTreeMap<u64, KnownRow>,
    pub(crate) closed: Option<Closed>,
}

impl Past {
    /// The place from which the output goes on.
    pub fn mark(&self) -> Mark {
        self.commit.mark
    }

    /// Finished rows: those before the mark and those that are kept behind it.
    pub fn finished_rows(&self) -> u64 {
        self.commit.mark.rows + self.rows.len() as u64
    }

    /// Checksum of the input up to the last row before the mark.
    pub fn digest(&self) -> Option<u32> {
        self.commit.digest
    }

    /// What was counted, as far as it is in the output.
    pub fn counts(&self) -> &Counts {
        match &self.closed {
            Some(closed) => &closed.counts,
            None => &self.commit.counts,
        }
    }

    /// Length and checksum of the output when the run ended in good order.
    pub fn end(&self) -> Option<Mark> {
        self.closed.as_ref().map(|closed| closed.end)
    }

    /// The length of the output in rows when the run ended in good order.
    pub fn closed_rows(&self) -> Option<u64> {
        self.closed.as_ref().map(|closed| closed.end.rows)
    }
}

fn push(out: &mut Vec<u8>, line: &Line) {
    // Plain data; texts always serialise.
    let json = serde_json::to_vec(line).unwrap_or_default();
    out.extend_from_slice(format!("{:08x} ", crc32fast::hash(&json)).as_bytes());
    out.extend_from_slice(&json);
    out.push(b'\n');
}

pub(super) fn push_version(out: &mut Vec<u8>) {
    push(out, &Line::Version(RECORD_VERSION));
}

pub(super) fn push_row(out: &mut Vec<u8>, row: KnownRow) {
    push(out, &Line::Row(row));
}

pub(super) fn push_commit(out: &mut Vec<u8>, commit: Commit) {
    push(out, &Line::Commit(commit));
}

pub(super) fn push_open(out: &mut Vec<u8>) {
    push(out, &Line::Open {});
}

pub(super) fn push_closed(out: &mut Vec<u8>, closed: Closed) {
    push(out, &Line::Closed(closed));
}

/// Reads a journal up to its end or to where it is torn. `Err` inside is a version that is not known.
pub(super) fn read(path: &Path) -> io::Result<Result<Past, u64>> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut past = Past::default();
    let mut text = Vec::new();
    loop {
        text.clear();
        if reader.read_until(b'\n', &mut text)? == 0 {
            return Ok(Ok(past));
        }
        match parse(&text) {
            None => return Ok(Ok(past)),
            Some(Line::Version(version)) if version > RECORD_VERSION => return Ok(Err(version)),
            Some(Line::Version(_)) => {}
            Some(Line::Open {}) => past.closed = None,
            Some(Line::Row(row)) => {
                past.rows.insert(row.sequence, row);
            }
            Some(Line::Commit(commit)) => {
                past.rows = past.rows.split_off(&commit.mark.rows);
                past.commit = commit;
            }
            Some(Line::Closed(closed)) => past.closed = Some(closed),
        }
    }
}

fn parse(line: &[u8]) -> Option<Line> {
    let line = line.strip_suffix(b"\n")?;
    let (crc, json) = line.split_at_checked(9)?;
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?.strip_suffix(' ')?, 16).ok()?;
    (crc32fast::hash(json) == crc).then(|| serde_json::from_slice(json).ok()).flatten()
}

/// The journal that says the same as `past`, in as few lines as possible.
pub(super) fn written_anew(past: Past) -> Vec<u8> {
    let mut out = Vec::new();
    push_version(&mut out);
    push_commit(&mut out, past.commit);
    past.rows.into_values().for_each(|row| push_row(&mut out, row));
    if let Some(closed) = past.closed {
        push_closed(&mut out, closed);
    }
    out
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    fn row(sequence: u64) -> KnownRow {
        KnownRow {
            sequence,
            number: sequence,
            origin: "x".to_owned(),
            digest: Some(7),
            rows: vec![Row::from_json(r#"{"a":1e5,"b":"\u0041"}"#).unwrap()],
            codes: Vec::new(),
            input_tokens: 1,
            output_tokens: 2,
        }
    }

    fn commit(rows: u64) -> Commit {
        Commit { mark: Mark { rows, bytes: 10 * rows, crc: 1 }, digest: Some(2), ..Commit::default() }
    }

    fn past_of(bytes: &[u8]) -> Past {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        std::fs::write(&path, bytes).unwrap();
        read(&path).unwrap().unwrap()
    }

    #[test]
    fn the_last_commit_and_the_rows_behind_it_hold() {
        let mut text = Vec::new();
        push_version(&mut text);
        push_row(&mut text, row(3));
        push_row(&mut text, row(5));
        push_commit(&mut text, commit(4));
        let whole = past_of(&text);
        assert_eq!((whole.mark().rows, whole.rows.keys().copied().collect::<Vec<_>>()), (4, vec![5]));
        assert_eq!(whole.rows[&5].rows[0].to_json(), r#"{"a":1e5,"b":"\u0041"}"#);
        let again = past_of(&written_anew(whole.clone()));
        assert_eq!((again.mark(), again.rows.len(), again.closed), (whole.mark(), 1, None));
    }

    #[test]
    fn a_torn_journal_is_read_as_far_as_it_goes() {
        let mut text = Vec::new();
        push_version(&mut text);
        push_commit(&mut text, commit(1));
        let first = text.len();
        push_commit(&mut text, commit(2));
        for cut in first..text.len() {
            assert_eq!(past_of(&text[..cut]).mark().rows, 1, "{cut}");
        }
        // A flipped bit is a torn line, too.
        text[first + 20] ^= 1;
        assert_eq!(past_of(&text).mark().rows, 1);
    }
}
