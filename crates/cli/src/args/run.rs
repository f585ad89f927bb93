//! `vgen run`.

use std::path::PathBuf;

use clap::Args;

use super::{Flags, ModelFlags};
use crate::remote::flags::RemoteFlags;

/// The arguments of `vgen run`.
#[derive(Debug, Args)]
pub(crate) struct RunCommand {
    /// The config file (TOML). Paths in it are relative to its folder.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    pub(crate) model: ModelFlags,
    #[command(flatten)]
    pub(crate) remote: RemoteFlags,
}
