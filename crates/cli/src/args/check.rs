//! `vgen check`.

use std::path::PathBuf;

use clap::Args;

use super::{Flags, ModelFlags, SpeedFlags};
use crate::remote::flags::RemoteFlags;

/// The arguments of `vgen check`.
#[derive(Debug, Args)]
pub(crate) struct CheckCommand {
    /// A config file (TOML), as for vgen run.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,
    /// How many rows to look at.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rows: u64,
    /// Look at all rows.
    #[arg(long, conflicts_with = "rows")]
    pub(crate) all: bool,
    /// Fetch images in the network, too; without it they are taken as the largest.
    #[arg(long)]
    pub(crate) fetch: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) speed: SpeedFlags,
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    pub(crate) model: ModelFlags,
    #[command(flatten)]
    pub(crate) remote: RemoteFlags,
}
