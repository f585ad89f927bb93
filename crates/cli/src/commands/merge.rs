//! `vgen merge`: the outputs of shards as one.

use vgen_core::Fault;

use crate::args::MergeCommand;
use crate::exit;
use crate::messages::Messages;

/// Merges; says what it has merged.
pub(crate) fn run(args: &MergeCommand, messages: &Messages) -> Result<u8, Fault> {
    let merged = vgen_run::merge(&args.shards, &args.output, args.overwrite)?;
    let counts = &merged.counts;
    messages.info(format!("{} shards: {} rows, {} failed", merged.shards, counts.rows, counts.failed_rows));
    Ok(if counts.failed_rows > 0 { exit::SOME_ROWS_FAILED } else { exit::DONE })
}
