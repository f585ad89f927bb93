//! How fast a run that is only planned would be.

use std::path::PathBuf;

use clap::Args;

/// How fast to reckon.
#[derive(Debug, Args)]
pub(crate) struct SpeedFlags {
    /// The speed to reckon with, in rows a second.
    #[arg(long, value_name = "N", conflicts_with = "measured")]
    pub(crate) rows_per_second: Option<f64>,
    /// Reckon with the speeds of an earlier run with this model: the file that its --stats wrote.
    #[arg(long, value_name = "FILE")]
    pub(crate) measured: Option<PathBuf>,
}
