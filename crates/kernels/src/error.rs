//! What can be wrong with a call: only the sizes of what was passed.

/// A kernel was called with arguments that don't fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A slice is not as long as its shape says.
    #[error("{what} has {got} elements, its shape asks for {want}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length that the shape gives.
        want: usize,
    },
    /// A size that the kernel can't take.
    #[error("{what} is {got}, must be {rule}")]
    Size {
        /// Which size.
        what: &'static str,
        /// Its value.
        got: usize,
        /// What it must satisfy.
        rule: &'static str,
    },
}

impl Error {
    /// Stable, dotted name of the error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Length { .. } => "kernel.length",
            Self::Size { .. } => "kernel.size",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Length { .. } => "the shapes of the checkpoint and of its config may disagree",
            Self::Size { .. } => "choose another weight format for this tensor",
        }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        Self::wrap(error)
    }
}

/// Result of a kernel.
pub type Result<T> = std::result::Result<T, Error>;

/// Checks the length of an argument.
pub(crate) fn check_len(what: &'static str, got: usize, want: usize) -> Result<()> {
    if got == want { Ok(()) } else { Err(Error::Length { what, got, want }) }
}
