//! `vgen completions` and `vgen man`: what shells and manuals know of the command lines.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use clap_complete::Shell;

/// One of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Program {
    /// Everything.
    Vgen,
    /// The local engine.
    VgenLocal,
    /// The client of servers.
    VgenRemote,
}

/// The arguments of `vgen completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsCommand {
    /// The shell that reads them.
    #[arg(value_name = "SHELL", value_enum)]
    pub(crate) shell: Shell,
    /// The program whose arguments they complete.
    #[arg(value_name = "PROGRAM", default_value = "vgen", value_enum)]
    pub(crate) program: Program,
}

/// The arguments of `vgen man`.
#[derive(Debug, Args)]
pub(crate) struct ManCommand {
    /// The program that the page is about.
    #[arg(value_name = "PROGRAM", default_value = "vgen", value_enum, conflicts_with = "folder")]
    pub(crate) program: Program,
    /// Write the pages of all programs and commands to this folder instead, as NAME.1.
    #[arg(long, short, value_name = "FOLDER")]
    pub(crate) folder: Option<PathBuf>,
}
