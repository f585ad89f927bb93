//! The run record: the folder `OUT.run` beside an output, from which an interrupted run goes on.
//!
//! | file | holds |
//! |---|---|
//! | `run.json` | a [`RunRecord`]: configuration with origins, fingerprint, model, input, counts, sessions |
//! | `journal.jsonl` | how far the output is (module `journal`), and finished rows that are not in it yet |
//! | `failed.jsonl` | a [`FailedRow`] for each row with an error or with other than the usual number of output rows |
//! | `timings.jsonl` | a [`RowTimings`] a row (of the first rows of a very long run): where its time went, for looking at; not needed to go on |
//! | `lock` | held by the process that writes the output |
//! | `retry/` | the new output of `--retry-failed` until it takes the place of the old one |
//!
//! All are plain JSON. `docs/durability.md` says what is synced when, and why a crash at any instruction leaves a state
//! that the next run understands.

mod error;
mod files;
mod folder;
pub(crate) mod journal;
mod ledger;
mod manifest;
mod syncer;

pub use error::RecordError;
pub use folder::{Found, RunFolder};
pub use journal::{KnownRow, Past};
pub use ledger::{Durability, Ledger};
pub use manifest::{
    Counts, FailedRow, InputFile, InputRecord, ModelRecord, RECORD_VERSION, RowTimings, RunRecord, RunState, Session,
    SettingRecord, TimingSums, differences, failed_rows, now, row_timings,
};
