//! The run itself.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::given;
use crate::settings::Settings;

#[derive(Debug, Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct RunFlags {
    /// Time for each row, in seconds; what it has by then is its answer [default: none].
    #[arg(long, value_name = "SECONDS")]
    row_timeout: Option<f64>,
    /// Stop when more rows fail than this: a number, or a share like 5% that is looked at once 100 rows are done
    /// [default: never].
    #[arg(long, value_name = "N|P%")]
    max_errors: Option<String>,
    /// What prompts that look wrong do, by a sample of the rows, and answers that were cut: nothing, a warning, or an
    /// error that ends the run before its first row [default: warn].
    #[arg(long, value_name = "WHAT", value_parser = ["off", "warn", "deny"])]
    lint: Option<String>,
    /// Say nothing but errors: no progress, no warnings, no summary.
    #[arg(long, short, action = ArgAction::SetTrue)]
    quiet: bool,
    /// Write what the run did and where its time went to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// How progress is shown on standard error: as lines now and then, as JSON objects, not at all; auto is a line that
    /// is kept up to date on a terminal, and lines elsewhere [default: auto].
    #[arg(long, value_name = "HOW", value_parser = ["auto", "plain", "json", "none"])]
    progress: Option<String>,
    /// Seconds between lines of progress where they are not kept up to date [default: 10].
    #[arg(long, value_name = "SECONDS")]
    progress_interval: Option<f64>,
}

impl RunFlags {
    pub(super) fn add_to(self, settings: &mut Settings) {
        settings.flag(("run", "row_timeout"), "--row-timeout", self.row_timeout);
        settings.flag(("run", "max_errors"), "--max-errors", self.max_errors);
        settings.flag(("run", "lint"), "--lint", self.lint);
        settings.flag(("run", "progress"), "--progress", self.progress);
        settings.flag(("run", "quiet"), "--quiet", given(self.quiet));
        settings.flag(("run", "stats"), "--stats", self.stats);
        settings.flag(("run", "progress_interval"), "--progress-interval", self.progress_interval);
    }
}
