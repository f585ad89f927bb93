//! One question on the command line, as `vgen local` and `vgen remote` take it.

use clap::Args;

/// One question instead of a file of rows.
#[derive(Debug, Args)]
pub(crate) struct QuestionFlags {
    /// Ask about this image file or URL instead of a file of rows; several times for several images.
    #[arg(long, value_name = "FILE", requires = "prompt", conflicts_with = "input")]
    pub(crate) image: Vec<String>,
    /// Ask this; the answer is printed as it comes.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["input", "output", "limit"])]
    pub(crate) prompt: Option<String>,
}
