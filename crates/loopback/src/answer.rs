//! [`Answer`]: what the server does with one request.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

/// What the server does with one request: a status, headers, and a body sent in steps.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) delay: Duration,
    pub(crate) steps: Vec<Step>,
    pub(crate) reset: bool,
}

/// A step of a body.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Data(Bytes),
    Pause(Duration),
    Cut,
}

impl Answer {
    /// A status without a body.
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), delay: Duration::ZERO, steps: Vec::new(), reset: false }
    }

    /// 200 with a JSON body.
    pub fn json(value: &Value) -> Self {
        Self::status(200).with_json(value)
    }

    /// 200 with a body of the given type.
    pub fn body(content_type: &str, bytes: impl Into<Bytes>) -> Self {
        Self::status(200).header("content-type", content_type).data(bytes)
    }

    /// 200 with server-sent events, one chunk each, `gap` before each.
    pub fn events<I, S>(events: I, gap: Duration) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        let mut answer = Self::status(200).header("content-type", "text/event-stream");
        for event in events {
            answer = answer.pause(gap).data(format!("data: {}\n\n", event.as_ref()));
        }
        answer
    }

    /// Closes the connection with a TCP reset instead of answering.
    pub fn reset() -> Self {
        Self { reset: true, ..Self::status(500) }
    }

    /// Adds a JSON body.
    #[must_use]
    pub fn with_json(self, value: &Value) -> Self {
        self.header("content-type", "application/json").data(value.to_string())
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Waits before the status line.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Adds bytes to the body.
    #[must_use]
    pub fn data(mut self, bytes: impl Into<Bytes>) -> Self {
        self.steps.push(Step::Data(bytes.into()));
        self
    }

    /// Waits between two pieces of the body.
    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.steps.push(Step::Pause(pause));
        self
    }

    /// Breaks the connection off at this place of the body.
    #[must_use]
    pub fn cut(mut self) -> Self {
        self.steps.push(Step::Cut);
        self
    }
}
