//! What can be wrong with a task before it runs, and with a row while it is rendered.

use std::fmt;

use vgen_core::{Fault, FaultClass};

/// Why a task can't be built. Everything that is wrong is found at once: see [`TaskError::all`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// A parameter that the task does not have.
    #[error("unknown parameter {name:?}")]
    UnknownParameter {
        /// As it was given.
        name: String,
        /// The nearest parameter that exists.
        nearest: Option<&'static str>,
    },
    /// A parameter with a value that it can't have.
    #[error("parameter {name:?}: {reason}")]
    InvalidParameter {
        /// Which parameter.
        name: &'static str,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A mapping of a column that the task neither reads nor writes.
    #[error("{parameter:?} maps {column:?}, a column that the task does not have")]
    UnknownMapping {
        /// `input_mappings` or `output_mappings`.
        parameter: &'static str,
        /// The name on the left.
        column: String,
        /// The names that can be mapped.
        known: Vec<String>,
    },
    /// A listed column that the template does not use.
    #[error("column {column:?} is listed in \"columns\", but the template does not use it")]
    UnusedColumn {
        /// Which column.
        column: String,
    },
    /// A variable of the template that is no listed column.
    #[error("the template uses {variable:?} (line {line}, column {position}), which \"columns\" does not list")]
    UnlistedVariable {
        /// Which variable.
        variable: String,
        /// Line of the template, from 1.
        line: usize,
        /// Character of the line, from 1.
        position: usize,
    },
    /// A mistake in the template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Several of these.
    #[error("{}", join(.0))]
    Several(Vec<TaskError>),
}

fn join(errors: &[TaskError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl TaskError {
    /// The errors one by one.
    pub fn all(&self) -> Vec<&TaskError> {
        match self {
            Self::Several(errors) => errors.iter().flat_map(TaskError::all).collect(),
            one => vec![one],
        }
    }

    /// One error out of none, one or several.
    pub(crate) fn collect(mut errors: Vec<TaskError>) -> Result<(), TaskError> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// The stable code, e.g. `task.invalid_parameter`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownParameter { .. } => "task.unknown_parameter",
            Self::InvalidParameter { .. } => "task.invalid_parameter",
            Self::UnknownMapping { .. } => "task.unknown_mapping",
            Self::UnusedColumn { .. } => "template.unused_column",
            Self::UnlistedVariable { .. } => "template.unlisted_variable",
            Self::Template(error) => error.kind.code(),
            Self::Several(_) => "task.invalid",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownParameter { nearest, .. } => nearest.map(|name| format!("did you mean {name:?}?")),
            Self::UnknownMapping { known, .. } => Some(format!("the task's columns are {}", known.join(", "))),
            Self::UnusedColumn { .. } => Some(
                "use it in the template, take it out of \"columns\", or set column_check = \"off\" if it is meant"
                    .to_owned(),
            ),
            Self::UnlistedVariable { variable, .. } => Some(format!(
                "add {variable:?} to \"columns\", guard it with default(), or set undefined = \"lenient\""
            )),
            Self::Template(error) => error.hint(),
            Self::InvalidParameter { .. } => None,
            Self::Several(errors) => {
                let hints: Vec<_> = errors.iter().filter_map(TaskError::hint).collect();
                (!hints.is_empty()).then(|| hints.join("; "))
            }
        }
    }
}

impl From<TaskError> for Fault {
    fn from(error: TaskError) -> Self {
        let mut fault = Fault::stop(error.code(), error.to_string());
        fault.hint = error.hint();
        fault
    }
}

/// What kind of mistake a template makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateErrorKind {
    /// The text is no template.
    Syntax,
    /// A filter or test that does not exist.
    UnknownFilter,
    /// A block of a name that another has.
    DuplicateBlock,
    /// A value that is not there was printed or used.
    Undefined,
    /// An operation failed.
    Runtime,
    /// The template took more steps than it may.
    Fuel,
}

impl TemplateErrorKind {
    /// The stable code, e.g. `template.syntax`.
    pub fn code(self) -> &'static str {
        match self {
            Self::Syntax => "template.syntax",
            Self::UnknownFilter => "template.unknown_filter",
            Self::DuplicateBlock => "template.duplicate_block",
            Self::Undefined => "template.undefined",
            Self::Runtime => "template.runtime",
            Self::Fuel => "template.fuel",
        }
    }
}

/// A mistake in a template, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    /// What kind of mistake.
    pub kind: TemplateErrorKind,
    /// What is wrong.
    pub message: String,
    /// Line of the template, from 1, if it is known.
    pub line: Option<usize>,
    /// Character of the line, from 1, if it is known.
    pub column: Option<usize>,
    /// The place in the template's own words.
    pub excerpt: Option<String>,
}

impl TemplateError {
    fn hint(&self) -> Option<String> {
        match self.kind {
            TemplateErrorKind::Undefined => Some(
                "give a value with default(), or set undefined = \"lenient\" to print nothing in its place".to_owned(),
            ),
            TemplateErrorKind::Fuel => Some("shorten the template's loops or raise template_fuel".to_owned()),
            TemplateErrorKind::UnknownFilter => {
                Some("the filters and tests are those of Jinja2; see its documentation".to_owned())
            }
            TemplateErrorKind::Syntax | TemplateErrorKind::DuplicateBlock | TemplateErrorKind::Runtime => None,
        }
    }

    /// The fault of a row whose rendering failed; `place` names the row.
    pub(crate) fn into_fault(self, place: &str) -> Fault {
        let mut fault = Fault::new(FaultClass::Row, self.kind.code(), format!("{place}: {self}"));
        fault.hint = self.hint();
        fault
    }
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("template")?;
        if let Some(line) = self.line {
            write!(f, " line {line}")?;
            if let Some(column) = self.column {
                write!(f, ", column {column}")?;
            }
        }
        write!(f, ": {}", self.message)?;
        if let Some(excerpt) = &self.excerpt {
            write!(f, " in `{excerpt}`")?;
        }
        Ok(())
    }
}

impl std::error::Error for TemplateError {}
