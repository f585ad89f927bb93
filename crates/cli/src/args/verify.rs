//! `vgen verify`.

use std::path::PathBuf;

use clap::Args;

use super::{Flags, ModelFlags};

/// The arguments of `vgen verify`: the run's own settings, and what to look at.
#[derive(Debug, Args)]
pub(crate) struct VerifyCommand {
    /// The output of the run.
    #[arg(value_name = "OUTPUT")]
    pub(crate) answers: PathBuf,
    /// The run's config file (TOML); flags that it was given are to be given here, too.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,
    /// How many rows to run again.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rows: u32,
    /// Which rows: another number, others.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) rows_seed: u64,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    pub(crate) model: ModelFlags,
}
