//! `vgen merge`.

use std::path::PathBuf;

use clap::Args;

/// The arguments of `vgen merge`.
#[derive(Debug, Args)]
pub(crate) struct MergeCommand {
    /// The output of each shard, its run record (the folder with .run at its end) beside it.
    #[arg(value_name = "OUTPUT", required = true)]
    pub(crate) shards: Vec<PathBuf>,
    /// Where the rows go; the extension must be that of the shards.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace an output that is there.
    #[arg(long)]
    pub(crate) overwrite: bool,
}
