//! `vgen plan`.

use std::path::PathBuf;

use clap::Args;
use vgen_backends::local::DeviceModel;

use super::{Flags, ModelFlags, SpeedFlags};

/// The arguments of `vgen plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanCommand {
    /// A config file (TOML), as for vgen run.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Print the plan as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) speed: SpeedFlags,
    /// Count bytes, FLOPs and launches of each stage for a device by its data sheet, and the rows a second that its
    /// limits allow, instead of planning for this machine: h100, h200, a100, l40s, a10, l4, 4090, m3.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["rows_per_second", "measured"])]
    pub(crate) device_model: Option<DeviceModel>,
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    pub(crate) model: ModelFlags,
}
