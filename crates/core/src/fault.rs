//! [`Fault`]: what every error of every crate becomes before it meets a user.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a fault means for the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultClass {
    /// This row can't be answered; the others go on.
    Row,
    /// Trying again may help.
    Retry,
    /// Nothing more may be asked, but what is asked already goes on to its end: a spend cap.
    Drain,
    /// The whole run can't go on.
    Stop,
}

/// An error with a stable code, a message that names what went wrong where, and a way out.
///
/// The message is a lowercase fragment without a full stop. Serialised, it is the `error` column of an output row:
/// `{"code", "message", "hint", "attempts"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable, dotted, e.g. `image.decode`.
    pub code: Cow<'static, str>,
    /// What went wrong, with the names needed to find it.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// How often it was tried.
    #[serde(default = "one")]
    pub attempts: u32,
    /// What it means for the run.
    #[serde(skip, default = "row_class")]
    pub class: FaultClass,
}

fn one() -> u32 {
    1
}

fn row_class() -> FaultClass {
    FaultClass::Row
}

impl Fault {
    /// A fault of the given class.
    pub fn new(class: FaultClass, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), hint: None, attempts: 1, class }
    }

    /// A fault of one row.
    pub fn row(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(FaultClass::Row, code, message)
    }

    /// A fault that may pass.
    pub fn retry(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(FaultClass::Retry, code, message)
    }

    /// A fault that ends the run.
    pub fn stop(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::new(FaultClass::Stop, code, message)
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets how often it was tried.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}
