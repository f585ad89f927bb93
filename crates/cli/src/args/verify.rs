//! `vgen verify`.

use std::path::PathBuf;

use clap::Args;

use super::{Flags, ModelFlags};

/// The arguments of `vgen verify`: the run's own settings, and what to look at. Its `--sample` is about the rows to look
/// at: which rows the run took of its input, the run's record says, or the config file.
#[derive(Debug, Args)]
#[command(mut_arg("sample", |sample| sample.help("How many rows to run again; --sample-seed decides which [default: 20]")))]
pub(crate) struct VerifyCommand {
    /// The output of the run.
    #[arg(value_name = "OUTPUT")]
    pub(crate) answers: PathBuf,
    /// The run's config file (TOML); flags that it was given are to be given here, too.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Which rows are run again: another number, other rows.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) sample_seed: u64,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    pub(crate) model: ModelFlags,
}
