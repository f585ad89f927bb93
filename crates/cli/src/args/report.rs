//! `vgen report`.

use std::path::PathBuf;

use clap::Args;

/// The arguments of `vgen report`.
#[derive(Debug, Args)]
pub(crate) struct ReportCommand {
    /// The output of a run, in any format; its run record (the folder with .run at its end) is read if it is beside it.
    /// Two outputs are shown side by side, with the rows in which they agree and differ.
    #[arg(value_name = "OUTPUT", required = true, num_args = 1..=2)]
    pub(crate) outputs: Vec<PathBuf>,
    /// The file to write; an older report there is replaced [default: OUTPUT.html].
    #[arg(long = "output", short = 'o', value_name = "FILE.html")]
    pub(crate) file: Option<PathBuf>,
    /// Replace the file even if it is no report.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Show at most so many rows: all that failed, and of the others every n-th.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rows: u32,
    /// Longest side of the images in the report, in pixels; 0 for none [default: 768 for few rows, down to 176 for
    /// many].
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(..=4096))]
    pub(crate) image_size: Option<u32>,
    /// The column of images [default: the run's].
    #[arg(long, value_name = "COLUMN")]
    pub(crate) image_column: Option<String>,
    /// Rows of two outputs with the same value in this column belong together [default: a column like id whose values
    /// all differ, else rows with equal columns of the input].
    #[arg(long, value_name = "COLUMN")]
    pub(crate) key: Option<String>,
    /// Fetch images behind URLs from the network for the report; without it they are shown as links.
    #[arg(long)]
    pub(crate) fetch_images: bool,
}
