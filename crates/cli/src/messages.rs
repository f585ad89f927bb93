//! [`Messages`]: everything that is said on standard error, in lines for people or in JSON. Data goes to standard
//! output, nothing else does.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use vgen_core::Fault;
use vgen_run::record::now;

use crate::args::{Color, LogFormat, MessageFlags};
use crate::table::{Progress, Run};

/// Where messages go.
#[derive(Clone)]
pub(crate) struct Messages {
    color: bool,
    format: LogFormat,
    /// The progress line to step aside for, if there is one; the same for all clones.
    bar: Arc<Mutex<ProgressBar>>,
    quiet: bool,
    progress: Progress,
}

/// How progress is shown here and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// A line that is kept up to date.
    Live,
    /// Lines of text.
    Plain,
    /// JSON objects.
    Json,
    /// Not at all.
    Nothing,
}

impl Messages {
    pub(crate) fn new(flags: MessageFlags) -> Self {
        let color = match flags.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        Self {
            color,
            format: flags.log_format,
            bar: Arc::new(Mutex::new(ProgressBar::hidden())),
            quiet: false,
            progress: Progress::default(),
        }
    }

    /// Without what only informs, if `quiet`.
    pub(crate) fn quiet(&self, quiet: bool) -> Self {
        Self { quiet: self.quiet || quiet, ..self.clone() }
    }

    /// As a run wants them.
    pub(crate) fn of_run(&self, run: &Run) -> Self {
        Self { quiet: run.quiet, progress: run.progress, ..self.clone() }
    }

    /// From now on, above a progress line.
    pub(crate) fn above(self, bar: ProgressBar) -> Self {
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = bar;
        self
    }

    /// How progress is shown; a terminal that the rows fill has no place for a line that is kept up to date.
    pub(crate) fn shown(&self, rows_to_terminal: bool) -> Shown {
        match (self.progress, self.format) {
            _ if self.quiet => Shown::Nothing,
            (Progress::None, _) => Shown::Nothing,
            (Progress::Plain, _) => Shown::Plain,
            (Progress::Json, _) | (Progress::Auto, LogFormat::Json) => Shown::Json,
            (Progress::Auto, LogFormat::Text) if io::stderr().is_terminal() && !rows_to_terminal => Shown::Live,
            (Progress::Auto, LogFormat::Text) => Shown::Plain,
        }
    }

    /// Whether bars may be drawn.
    pub(crate) fn draws(&self) -> bool {
        self.shown(false) == Shown::Live
    }

    pub(crate) fn error(&self, fault: &Fault) {
        self.fault("error", "1;31", fault);
    }

    pub(crate) fn warning(&self, text: impl Display) {
        self.warning_of(text, json!({}));
    }

    /// A warning with what else is known; its place and code are in the text, too.
    pub(crate) fn warning_of(&self, text: impl Display, known: Value) {
        if !self.quiet {
            self.line("warning", "1;33", text, known);
        }
    }

    /// A warning with a code and a hint.
    pub(crate) fn warn(&self, fault: &Fault) {
        if !self.quiet {
            let named = Fault { message: format!("{} [{}]", fault.message, fault.code), ..fault.clone() };
            self.fault("warning", "1;33", if self.format == LogFormat::Json { fault } else { &named });
        }
    }

    /// A plain line.
    pub(crate) fn info(&self, text: impl Display) {
        self.info_of(text, json!({}));
    }

    /// A plain line with what else is known.
    pub(crate) fn info_of(&self, text: impl Display, known: Value) {
        match self.format {
            _ if self.quiet => {}
            LogFormat::Text => self.print(&text.to_string()),
            LogFormat::Json => self.object("info", &text, known),
        }
    }

    /// A JSON object, whatever messages are written in.
    pub(crate) fn progress(&self, figures: Value) {
        let mut object = Map::from_iter([("time".to_owned(), now().into()), ("event".to_owned(), "progress".into())]);
        extend(&mut object, figures);
        self.print(&Value::Object(object).to_string());
    }

    fn fault(&self, label: &str, style: &str, fault: &Fault) {
        match self.format {
            LogFormat::Json => {
                let known = json!({"code": fault.code, "hint": fault.hint});
                self.object(label, &fault.message, known);
            }
            LogFormat::Text => {
                self.line(label, style, &fault.message, json!({}));
                if let Some(hint) = &fault.hint {
                    self.line("hint", "1;36", hint, json!({}));
                }
            }
        }
    }

    fn line(&self, label: &str, style: &str, text: impl Display, known: Value) {
        if self.format == LogFormat::Json {
            return self.object(label, &text, known);
        }
        // Lines after the first are causes or details of it.
        let text = text.to_string().trim_end().replace('\n', "\n  ");
        match self.color {
            true => self.print(&format!("\x1b[{style}m{label}\x1b[0m: {text}")),
            false => self.print(&format!("{label}: {text}")),
        }
    }

    fn object(&self, level: &str, text: &dyn Display, known: Value) {
        let mut object = Map::from_iter([
            ("time".to_owned(), now().into()),
            ("level".to_owned(), level.into()),
            ("message".to_owned(), text.to_string().into()),
        ]);
        extend(&mut object, known);
        self.print(&Value::Object(object).to_string());
    }

    fn print(&self, text: &str) {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner).clone();
        bar.suspend(|| {
            // Nobody is left to be told if standard error is gone.
            let _ = writeln!(io::stderr(), "{text}");
        });
    }
}

fn extend(object: &mut Map<String, Value>, known: Value) {
    if let Value::Object(known) = known {
        object.extend(known.into_iter().filter(|(_, value)| !value.is_null()));
    }
}
