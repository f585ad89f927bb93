//! [`RemoteError`]: what goes wrong with a server, each with its code, its class and whether another attempt may help.

use std::borrow::Cow;
use std::time::Duration;

use vgen_core::{Fault, FaultClass};

/// What went wrong with a server.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The config can't be meant.
    #[error("{field} {reason}")]
    Config {
        /// Which field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Parameters that the protocol can't carry.
    #[error("{} can't be sent: {}", protocol, parameters.join(", "))]
    Unsupported {
        /// Names of the parameters.
        parameters: Vec<&'static str>,
        /// Which protocol it is.
        protocol: &'static str,
    },
    /// The form that answers should have can't be meant.
    #[error("the constraint can't be used: {reason}")]
    BadForm {
        /// What is wrong with it.
        reason: String,
    },
    /// An answer that does not have the form that was asked for.
    #[error("the answer does not have the form that was asked for: {reason}")]
    Form {
        /// What is wrong with it.
        reason: String,
        /// Whether it was cut before its end.
        cut: bool,
    },
    /// The request can't be made from this row.
    #[error("{reason}")]
    Row {
        /// The code, below `remote.`.
        code: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The row's image can't be had, says the one that fetches.
    #[error("{0}")]
    Image(Fault),
    /// The endpoint can't be used.
    #[error("endpoint {name} {reason}")]
    Endpoint {
        /// The code, below `remote.`.
        code: &'static str,
        /// `namespace/name`.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server refused or failed with a status.
    #[error("the server answered {status}{}{}", reason(*status), said(message))]
    Status {
        /// The HTTP status.
        status: u16,
        /// What the server said, shortened.
        message: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// A success that holds an error.
    #[error("the server answered 200 with an error{}", said(message))]
    ErrorObject {
        /// What the server said, shortened.
        message: String,
        /// Whether it says that it has too much to do.
        overloaded: bool,
    },
    /// An answer without a generation.
    #[error("the server's answer has no choices")]
    NoChoices,
    /// An answer that can't be read.
    #[error("the server's answer is not what it should be: {reason}")]
    BadAnswer {
        /// What is wrong with it.
        reason: String,
    },
    /// A larger answer than allowed.
    #[error("the server's answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The server sends requests elsewhere.
    #[error("the server redirects to {location}")]
    Redirect {
        /// Where to.
        location: String,
    },
    /// Too slow.
    #[error("{phase} took longer than {} s", limit.as_secs_f64())]
    Timeout {
        /// What took so long.
        phase: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// No connection.
    #[error("no connection: {reason}")]
    Connect {
        /// Why.
        reason: String,
    },
    /// No trust.
    #[error("no secure connection: {reason}")]
    Tls {
        /// Why.
        reason: String,
    },
    /// The connection broke off.
    #[error("the connection broke off: {reason}")]
    Broken {
        /// Why.
        reason: String,
    },
    /// The spend cap is reached.
    #[error("the spend cap of {cap} {what} is reached")]
    SpendCap {
        /// Requests or tokens.
        what: &'static str,
        /// The cap.
        cap: u64,
    },
    /// The caller gave the row up.
    #[error("the row was cancelled")]
    Cancelled,
    /// The row's deadline passed.
    #[error("the row's deadline passed")]
    Deadline,
    /// The client can't be set up.
    #[error("the client can't be set up: {reason}")]
    Setup {
        /// Why.
        reason: String,
    },
}

fn reason(status: u16) -> String {
    let known = reqwest::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    known.map(|reason| format!(" ({reason})")).unwrap_or_default()
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl RemoteError {
    /// The error's stable code.
    pub fn code(&self) -> Cow<'static, str> {
        let code = match self {
            Self::Config { .. } => "remote.config",
            Self::Unsupported { .. } => "remote.unsupported_parameter",
            // As the local engine's.
            Self::BadForm { .. } => "constraint.invalid",
            Self::Form { cut: true, .. } => "constraint.incomplete",
            Self::Form { .. } => "constraint.violated",
            Self::Image(fault) => return fault.code.clone(),
            Self::Row { code, .. } | Self::Endpoint { code, .. } => return format!("remote.{code}").into(),
            Self::Status { status, .. } => match status {
                401 => "remote.unauthorized",
                402 => "remote.payment_required",
                403 => "remote.forbidden",
                404 | 405 | 410 => "remote.not_found",
                408 | 504 => "remote.timeout",
                413 => "remote.too_large",
                429 => "remote.rate_limited",
                503 => "remote.overloaded",
                500..=599 => "remote.server_error",
                _ => "remote.refused",
            },
            Self::ErrorObject { overloaded: true, .. } => "remote.overloaded",
            Self::ErrorObject { .. } => "remote.server_error",
            Self::NoChoices => "remote.no_choices",
            Self::BadAnswer { .. } => "remote.bad_answer",
            Self::TooLarge { .. } => "remote.answer_too_large",
            Self::Redirect { .. } => "remote.redirect",
            Self::Timeout { .. } => "remote.timeout",
            Self::Connect { .. } => "remote.connect",
            Self::Tls { .. } => "remote.tls",
            Self::Broken { .. } => "remote.broken",
            Self::SpendCap { .. } => "remote.spend_cap",
            Self::Cancelled => "remote.cancelled",
            Self::Deadline => "remote.deadline",
            Self::Setup { .. } => "remote.setup",
        };
        Cow::Borrowed(code)
    }

    /// Whether another attempt may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599) && *status != 501,
            Self::ErrorObject { .. }
            | Self::NoChoices
            | Self::BadAnswer { .. }
            | Self::Timeout { .. }
            | Self::Connect { .. }
            | Self::Broken { .. } => true,
            _ => false,
        }
    }

    /// Whether it says that the server has too much to do.
    pub(super) fn is_overload(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 503 | 504),
            Self::ErrorObject { overloaded, .. } => *overloaded,
            Self::Timeout { .. } => true,
            _ => false,
        }
    }

    /// Whether it says that requests come too fast.
    pub(super) fn is_rate_limit(&self) -> bool {
        matches!(self, Self::Status { status: 429, .. })
    }

    /// How long the server asks to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// What it means for the run. `had_success`: whether the server has answered anything well before.
    pub(super) fn class(&self, had_success: bool) -> FaultClass {
        match self {
            Self::Config { .. }
            | Self::Unsupported { .. }
            | Self::BadForm { .. }
            | Self::Endpoint { .. }
            | Self::Setup { .. }
            | Self::Status { status: 401 | 402, .. } => FaultClass::Stop,
            Self::SpendCap { .. } => FaultClass::Drain,
            // Later, the same may be about one row: a filter, say.
            Self::Status { status: 403 | 404 | 405 | 410, .. } | Self::Tls { .. } | Self::Redirect { .. }
                if !had_success =>
            {
                FaultClass::Stop
            }
            _ => FaultClass::Row,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Config { .. } => "correct the [backend] table",
            Self::Unsupported { .. } => {
                "leave the parameter out, set dialect to the server's, or pass the server's own name for it in extra_body"
            }
            Self::BadForm { .. } => "correct the constraint, nothing was sent with it",
            Self::Form { cut: true, .. } => "raise max_new_tokens, or bound strings and arrays in the schema",
            Self::Form { .. } => "the server may ignore this form: set dialect to the server's",
            Self::Endpoint { code: "endpoint_paused", .. } => "set resume_endpoint, or start the endpoint by hand",
            Self::Endpoint { code: "endpoint_timeout", .. } => "raise endpoint_timeout, or look at the endpoint's logs",
            Self::Endpoint { code: "endpoint_failed", .. } => "look at the endpoint's logs",
            Self::Endpoint { .. } => "check endpoint_name, endpoint_namespace and the key's permissions",
            Self::Status { status: 401, .. } => "check the API key",
            Self::Status { status: 402, .. } => "the account has no credit left",
            Self::Status { status: 403, .. } => "the API key may not use this model",
            Self::Status { status: 404 | 405 | 410, .. } => "check model_id and base_url",
            Self::Status { status: 413, .. } => "set shrink_to_pixels to send smaller images",
            Self::Status { status: 429, .. } => "lower max_in_flight or set requests_per_minute",
            Self::Redirect { .. } => "set base_url to where the server really is",
            Self::Tls { .. } => "check that base_url's scheme, name and certificate belong together",
            Self::Connect { .. } => "check that the server runs and base_url is right",
            Self::TooLarge { .. } => "raise max_response_bytes",
            Self::SpendCap { .. } => "raise the cap and run again: finished rows are kept",
            _ => return None,
        })
    }

    /// The error as everybody sees it.
    pub(super) fn into_fault(self, had_success: bool, attempts: u32) -> Fault {
        if let Self::Image(fault) = self {
            return fault;
        }
        let fault = Fault::new(self.class(had_success), self.code(), self.to_string()).with_attempts(attempts);
        match self.hint() {
            Some(hint) => fault.with_hint(hint),
            None => fault,
        }
    }
}

impl From<RemoteError> for Fault {
    fn from(error: RemoteError) -> Self {
        error.into_fault(false, 1)
    }
}

/// A server's words, fit for one line.
pub(super) fn short(message: &str) -> String {
    let mut line = String::new();
    // Not the whole text: it may be a page of megabytes.
    for word in message.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > 500 {
            break;
        }
    }
    match line.char_indices().nth(500) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
