//! [`RecordError`]: why a run can't be begun or gone on with.

use std::io;
use std::path::PathBuf;

use vgen_core::Fault;

/// Why a run can't be begun or gone on with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Another process holds the lock.
    #[error("output {} is being written by another run{who}", output.display())]
    Locked {
        /// The output.
        output: PathBuf,
        /// Which run, as far as it is known.
        who: String,
    },
    /// A file of the record can't be read or written.
    #[error("the run record {} can't be {verb}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Read or written.
        verb: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the record is not what it should be.
    #[error("the run record {} is broken: {what}", path.display())]
    Broken {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The record is of a later program.
    #[error("the run record {} has version {found}; this program knows versions up to {known}", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The last known one.
        known: u64,
    },
    /// The run asked for is not the one that was begun.
    #[error("output {} was begun by a run that differs:\n{}", output.display(), differences.join("\n"))]
    Differs {
        /// The output.
        output: PathBuf,
        /// One line for each difference.
        differences: Vec<String>,
    },
    /// There is nothing to go on with.
    #[error("there is no run to go on with at {}", .0.display())]
    Nothing(PathBuf),
    /// The output is not as the run left it.
    #[error("output {} is not as its run left it: {what}", output.display())]
    OutputChanged {
        /// The output.
        output: PathBuf,
        /// How it differs.
        what: String,
    },
    /// The input is not as the run saw it.
    #[error("input {input} changed since the run was begun: {what}")]
    InputChanged {
        /// The input.
        input: String,
        /// How it differs.
        what: String,
    },
    /// Too many rows fail.
    #[error("{failed} of {rows} rows failed, more than --max-errors {allowed} allows; most often: {most}")]
    MaxErrors {
        /// Failed rows of this session.
        failed: u64,
        /// All rows of this session.
        rows: u64,
        /// What is allowed.
        allowed: String,
        /// The commonest code.
        most: String,
    },
}

impl RecordError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "output.locked",
            Self::Io { .. } => "record.io",
            Self::Broken { .. } => "record.broken",
            Self::Version { .. } => "record.version",
            Self::Differs { .. } => "resume.differs",
            Self::Nothing(_) => "resume.nothing",
            Self::OutputChanged { .. } => "resume.output_changed",
            Self::InputChanged { .. } => "resume.input_changed",
            Self::MaxErrors { .. } => "run.max_errors",
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "wait for the other run, or name another file",
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "the disk is full; make space and run again to go on from there"
            }
            Self::Io { .. } => "the folder of the output must be writable, and its file system have room",
            Self::Broken { .. } => "add --overwrite to begin anew, or name another file",
            Self::Version { .. } => "go on with the program that wrote it, or add --overwrite to begin anew",
            Self::Differs { .. } => {
                "run with the old values to go on, add --overwrite to begin anew, or name another file"
            }
            Self::Nothing(_) => "leave out --resume require to begin a run",
            Self::OutputChanged { .. } => "put the file back as it was, or add --overwrite to begin anew",
            Self::InputChanged { .. } => {
                "answers to the old rows are in the output: put the input back, or add --overwrite to begin anew"
            }
            Self::MaxErrors { .. } => {
                "see the column \"error\"; mend the cause, then run again with --retry-failed, which does these rows again"
            }
        }
    }
}

impl From<RecordError> for Fault {
    fn from(error: RecordError) -> Self {
        Fault::stop(error.code(), error.to_string()).with_hint(error.hint())
    }
}
