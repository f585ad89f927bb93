//! How what is said on standard error looks. Not part of the configuration: mistakes in that are said, too.

use clap::{Args, ValueEnum};

/// When messages are coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What messages are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON object a line: time, level, message, and what else there is to say.
    Json,
}

#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Messages")]
pub(crate) struct MessageFlags {
    /// When messages are coloured; NO_COLOR is honoured.
    #[arg(long, value_name = "WHEN", default_value = "auto", value_enum, global = true)]
    pub(crate) color: Color,
    /// What messages on standard error are written in: lines for people, or a JSON object a line.
    #[arg(long, value_name = "FORMAT", default_value = "text", value_enum, global = true)]
    pub(crate) log_format: LogFormat,
}
