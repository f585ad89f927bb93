//! `vgen render`.

use std::path::PathBuf;

use clap::Args;

use super::flags::{RowFlags, TaskFlags};
use crate::settings::Settings;

/// The arguments of `vgen render`.
#[derive(Debug, Args)]
pub(crate) struct RenderCommand {
    /// A config file (TOML), as for vgen run; its backend only decides defaults.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) rows: RowFlags,
    #[command(flatten)]
    pub(crate) task: TaskFlags,
}

impl RenderCommand {
    /// What was given, as settings.
    pub(crate) fn settings(self) -> Settings {
        let mut settings = Settings::default();
        self.rows.add_to(&mut settings);
        self.task.add_to(&mut settings);
        settings
    }
}
