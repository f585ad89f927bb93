//! `vgen local`, which is also `vgen-local`.

use clap::{Args, Parser};

use super::{EXIT_CODES, Flags, MessageFlags, ModelFlags, QuestionFlags};
use crate::version;

/// Runs Llama-3.2-Vision in this process, over the rows of a file or for one question.
#[derive(Debug, Parser)]
#[command(name = "vgen-local", version, long_version = version::LONG, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct LocalArgs {
    #[command(flatten)]
    pub(crate) local: Box<LocalCommand>,
    #[command(flatten)]
    pub(crate) messages: MessageFlags,
}

/// The arguments of `vgen local`.
#[derive(Debug, Args)]
pub(crate) struct LocalCommand {
    /// Run the small model that is part of this program, on its sample images unless told otherwise. Needs no network.
    #[arg(long, conflicts_with_all = ["model", "revision"])]
    pub(crate) demo: bool,
    #[command(flatten)]
    pub(crate) question: QuestionFlags,
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    pub(crate) model: ModelFlags,
}
