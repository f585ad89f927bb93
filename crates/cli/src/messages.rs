//! [`Messages`]: everything that is said on standard error. Data goes to standard output, nothing else does.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use clap::ValueEnum;
use indicatif::ProgressBar;
use vgen_core::Fault;

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

/// Where messages go.
#[derive(Clone)]
pub(crate) struct Messages {
    color: bool,
    /// The progress line to step aside for, if there is one; the same for all clones.
    bar: Arc<Mutex<ProgressBar>>,
    quiet: bool,
}

impl Messages {
    pub(crate) fn new(color: Color) -> Self {
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        Self { color, bar: Arc::new(Mutex::new(ProgressBar::hidden())), quiet: false }
    }

    /// As before, but silent about everything except errors.
    pub(crate) fn quiet(mut self, quiet: bool) -> Self {
        self.quiet = quiet;
        self
    }

    /// From now on, above a progress line.
    pub(crate) fn above(self, bar: ProgressBar) -> Self {
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = bar;
        self
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    pub(crate) fn error(&self, fault: &Fault) {
        self.line("error", "1;31", &fault.message);
        if let Some(hint) = &fault.hint {
            self.line("hint", "1;36", hint);
        }
    }

    pub(crate) fn warning(&self, text: impl Display) {
        if !self.quiet {
            self.line("warning", "1;33", text);
        }
    }

    /// A plain line.
    pub(crate) fn info(&self, text: impl Display) {
        if !self.quiet {
            self.print(&text.to_string());
        }
    }

    fn line(&self, label: &str, style: &str, text: impl Display) {
        // Lines after the first are causes or details of it.
        let text = text.to_string().trim_end().replace('\n', "\n  ");
        match self.color {
            true => self.print(&format!("\x1b[{style}m{label}\x1b[0m: {text}")),
            false => self.print(&format!("{label}: {text}")),
        }
    }

    fn print(&self, text: &str) {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner).clone();
        bar.suspend(|| {
            // Nobody is left to be told if standard error is gone.
            let _ = writeln!(io::stderr(), "{text}");
        });
    }
}
