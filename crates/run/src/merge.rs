//! [`merge`]: the outputs of shards as one, in the order of an undivided run, byte for byte.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use vgen_core::{Fault, Row};
use vgen_dataset::{DatasetError, OutputFormat, RowSink, RowSource, Shard};

use crate::record::{
    Counts, Durability, FailedRow, Found, KnownRow, Ledger, RunFolder, RunRecord, RunState, differences, failed_rows,
};

/// The key of the fingerprint that tells shards apart.
const SHARD: &str = "input.shard";

/// What was merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Shards.
    pub shards: u64,
    /// What was counted in all of them.
    pub counts: Counts,
}

struct Part {
    path: PathBuf,
    /// Held for its lock.
    _folder: RunFolder,
    record: RunRecord,
    shard: Shard,
    rows: u64,
    counts: Counts,
    failed: HashMap<u64, FailedRow>,
    source: Box<dyn RowSource>,
}

fn refuse(code: &'static str, message: String, hint: &str) -> Fault {
    Fault::stop(code, message).with_hint(hint)
}

/// Writes the rows of all shards to `output`, after a check that each row is there once.
///
/// # Errors
/// `merge.record`, `merge.incomplete`, `merge.differs`, `merge.shards`, `merge.rows`, `merge.format`, `output.*`,
/// `record.*`
pub fn merge(shards: &[PathBuf], output: &Path, overwrite: bool) -> Result<Merged, Fault> {
    let mut parts = shards.iter().map(|path| part(path)).collect::<Result<Vec<_>, _>>()?;
    parts.sort_by_key(|part| part.shard.index);
    check(&parts)?;
    vgen_dataset::check_is_no_input(output, shards)?;
    let Some(first) = parts.first() else {
        return Err(refuse("merge.shards", "no shards are named".to_owned(), "name the output of each shard"));
    };
    let layout = first.record.layout.clone();
    if OutputFormat::of_path(output) != layout.format {
        let message = format!("{} can't hold what the shards are written in", output.display());
        return Err(refuse("merge.format", message, "give it the shards' extension"));
    }
    let folder = RunFolder::lock(output)?;
    let there = output.metadata().is_ok_and(|metadata| metadata.len() > 0);
    if !overwrite && (there || matches!(folder.find()?, Found::Run(..))) {
        return Err(DatasetError::OutputExists(output.to_owned()).into());
    }
    let mut counts = Counts::default();
    parts.iter().for_each(|part| counts.add(&part.counts));
    let mut ledger = Ledger::begin(folder, merged_record(&parts, output), Durability::default())?;
    let mut sink = layout.create(output)?;
    copy(&mut parts, &mut sink, &mut ledger)?;
    sink.finish()?;
    ledger.close(&mut sink, &mut std::iter::empty(), true, RunState::Complete, None)?;
    Ok(Merged { shards: parts.len() as u64, counts })
}

fn part(path: &Path) -> Result<Part, Fault> {
    let folder = RunFolder::lock(path)?;
    let Found::Run(record, past) = folder.find()? else {
        let message = format!("{} has no run record", path.display());
        return Err(refuse("merge.record", message, "copy the folder with .run at its end along with each output"));
    };
    let closed = past.closed_rows().filter(|_| record.state == RunState::Complete);
    let Some(rows) = closed else {
        let message = format!("{} is not complete: {} rows are done", path.display(), past.finished_rows());
        return Err(refuse("merge.incomplete", message, "run this shard again; it goes on where it stopped"));
    };
    let shard = record.input.shard.as_deref().and_then(|shard| shard.parse().ok());
    let Some(shard) = shard else {
        let message = format!("{} is the output of a whole run, not of a shard", path.display());
        return Err(refuse("merge.shards", message, "run each part with --shard I/N"));
    };
    if record.layout.format == OutputFormat::Sidecar {
        let message = format!("{} is a folder of text files", path.display());
        return Err(refuse("merge.format", message, "these need no merging: shards may share a folder"));
    }
    let source: Box<dyn RowSource> = match rows {
        0 => Box::new(vgen_dataset::JsonlSource::from_reader(std::io::empty(), "no rows")),
        _ => record.layout.read(path)?,
    };
    let failed = failed_rows(&folder.path().join("failed.jsonl"))?;
    Ok(Part {
        path: path.to_owned(),
        record: *record,
        shard,
        rows,
        counts: past.counts().clone(),
        failed: failed.into_iter().map(|row| (row.sequence, row)).collect(),
        source,
        _folder: folder,
    })
}

fn fingerprint(record: &RunRecord) -> BTreeMap<String, serde_json::Value> {
    let mut fingerprint = record.fingerprint.clone();
    fingerprint.remove(SHARD);
    fingerprint
}

/// Whether the parts are those of one run, each there once, and their rows add up.
fn check(parts: &[Part]) -> Result<(), Fault> {
    let Some(first) = parts.first() else { return Ok(()) };
    let count = first.shard.count;
    for part in parts {
        let different = differences(&fingerprint(&first.record), &fingerprint(&part.record));
        if !different.is_empty() {
            let message = format!(
                "{} and {} are of different runs:\n{}",
                first.path.display(),
                part.path.display(),
                different.join("\n")
            );
            return Err(refuse("merge.differs", message, "merge shards of one configuration"));
        }
        if part.shard.count != count {
            let message = format!(
                "{} is shard {}, {} is shard {}",
                first.path.display(),
                first.shard,
                part.path.display(),
                part.shard
            );
            return Err(refuse("merge.shards", message, "merge shards of one division"));
        }
    }
    for index in 1..=count {
        let with: Vec<_> = parts.iter().filter(|part| part.shard.index == index).collect();
        match with.as_slice() {
            [_] => {}
            [] => {
                let message = format!("shard {index}/{count} is missing");
                return Err(refuse("merge.shards", message, "name the outputs of all shards"));
            }
            [one, two, ..] => {
                let message =
                    format!("{} and {} are both shard {index}/{count}", one.path.display(), two.path.display());
                return Err(refuse("merge.shards", message, "name each shard once"));
            }
        }
    }
    let total: u64 = parts.iter().map(|part| part.rows).sum();
    for part in parts {
        let due = (total + count - part.shard.index) / count;
        if part.rows != due {
            let message = format!("{} has {} rows where {due} of {total} are due", part.path.display(), part.rows);
            return Err(refuse("merge.rows", message, "the shards did not see the same input; run them again on one"));
        }
    }
    Ok(())
}

fn copy(parts: &mut [Part], sink: &mut dyn RowSink, ledger: &mut Ledger) -> Result<(), Fault> {
    let total: u64 = parts.iter().map(|part| part.rows).sum();
    let count = parts.len() as u64;
    for sequence in 0..total {
        let part = &mut parts[(sequence % count) as usize];
        let own = sequence / count;
        let failed = part.failed.get(&own);
        let output_rows = failed.map_or(part.record.rows_per_input, |failed| failed.output_rows);
        let mut rows: Vec<Row> = Vec::new();
        for _ in 0..output_rows {
            rows.push(next(part)?);
        }
        sink.write(sequence, &rows)?;
        let known = KnownRow {
            sequence,
            number: part.failed.get(&own).map_or(sequence, |failed| failed.number),
            origin: part.failed.get(&own).map_or_else(String::new, |failed| failed.origin.clone()),
            digest: None,
            rows,
            codes: part.failed.get(&own).map_or_else(Vec::new, |failed| failed.codes.clone()),
            // Tokens are known in sum only; a shard's first row stands for all.
            input_tokens: if own == 0 { part.counts.input_tokens } else { 0 },
            output_tokens: if own == 0 { part.counts.output_tokens } else { 0 },
        };
        // Nothing is gained from a merge that can be gone on with: it is quickly done again.
        ledger.wrote(known, true);
        if let Some(mark) = sink.mark() {
            ledger.settle(mark);
        }
    }
    for part in parts {
        if part.source.next_row()?.is_some() {
            let message = format!("{} has more rows than its run record says", part.path.display());
            return Err(refuse("merge.rows", message, "put the file back as its run left it"));
        }
    }
    Ok(())
}

fn next(part: &mut Part) -> Result<Row, Fault> {
    match part.source.next_row()? {
        Some(row) => row.row,
        None => {
            let message = format!("{} has fewer rows than its run record says", part.path.display());
            Err(refuse("merge.rows", message, "put the file back as its run left it"))
        }
    }
}

fn merged_record(parts: &[Part], output: &Path) -> RunRecord {
    let mut record = parts[0].record.clone();
    record.output = output.to_owned();
    record.input.shard = None;
    record.fingerprint.remove(SHARD);
    record.config.remove(SHARD);
    record.sessions = parts.iter().flat_map(|part| part.record.sessions.iter().cloned()).collect();
    record
}
