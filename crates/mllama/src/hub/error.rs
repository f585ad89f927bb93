//! [`HubError`]: the ways in which a model can't be had, each with its own code and way out.

use std::io;
use std::path::{Path, PathBuf};

use hf_hub::HFError;
use vgen_core::Fault;

use super::name::{DEFAULT_REVISION, RepoName};

/// Why a model's files can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The text is a path, and there is no such folder.
    #[error("model folder {} does not exist", path.display())]
    NoSuchFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The text can't be a repository's name.
    #[error("model {model:?} {reason}")]
    BadName {
        /// The text.
        model: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The text can't be a revision's name.
    #[error("{revision:?} can't be a branch, tag or commit")]
    BadRevision {
        /// The text.
        revision: String,
    },
    /// The repository is gated, and no token was sent.
    #[error("model {repo} is gated and there is no access token")]
    NoToken {
        /// `owner/name`.
        repo: String,
        /// The hub's address.
        endpoint: String,
    },
    /// The token's account has not been given access to the gated repository.
    #[error("the licence of model {repo} has not been accepted with this access token's account{}", said(message))]
    LicenceNotAccepted {
        /// `owner/name`.
        repo: String,
        /// The hub's address.
        endpoint: String,
        /// What the hub said.
        message: String,
    },
    /// The hub does not know the token.
    #[error("the hub refused the access token for model {repo}{}", said(message))]
    TokenRejected {
        /// `owner/name`.
        repo: String,
        /// What the hub said.
        message: String,
    },
    /// The token is valid and not allowed to do this.
    #[error("the access token may not read model {repo}{}", said(message))]
    Forbidden {
        /// `owner/name`.
        repo: String,
        /// What the hub said.
        message: String,
    },
    /// There is no such repository, or it is private.
    #[error("model {repo} does not exist on {endpoint}, or is private")]
    NotFound {
        /// `owner/name`.
        repo: String,
        /// The hub's address.
        endpoint: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error("model {repo} has no revision {revision:?}")]
    RevisionNotFound {
        /// `owner/name`.
        repo: String,
        /// The branch, tag or commit.
        revision: String,
    },
    /// The hub took the repository down.
    #[error("model {repo} was disabled by the hub")]
    Disabled {
        /// `owner/name`.
        repo: String,
    },
    /// A file that a run needs is not in the model.
    #[error("model {model} has no {file}")]
    NoFile {
        /// `owner/name` or folder.
        model: String,
        /// The file.
        file: String,
    },
    /// A file of the model can't mean anything.
    #[error("{}: {reason}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Offline, and the cache lacks a file.
    #[error("model {repo} at {revision} is not complete in the cache {}: {file} is missing", cache.display())]
    Offline {
        /// `owner/name`.
        repo: String,
        /// The branch, tag or commit.
        revision: String,
        /// The first file that is missing.
        file: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// The hub asks for patience.
    #[error("the hub limits the rate of requests for model {repo}")]
    RateLimited {
        /// `owner/name`.
        repo: String,
        /// How many seconds it asks for.
        retry_after: Option<u64>,
    },
    /// No connection, or it broke off.
    #[error("model {repo}: {what}: {reason}")]
    Network {
        /// `owner/name`.
        repo: String,
        /// What was being done.
        what: String,
        /// What went wrong.
        reason: String,
    },
    /// The hub answered with a status that says nothing of the above.
    #[error("model {repo}: {what}: the hub answered {status}{}", said(message))]
    Status {
        /// `owner/name`.
        repo: String,
        /// What was being done.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What the hub said.
        message: String,
    },
    /// A file arrived with another size than the repository lists.
    #[error("model {repo}: {file} arrived with {got} bytes instead of {expected}")]
    Incomplete {
        /// `owner/name`.
        repo: String,
        /// The file.
        file: String,
        /// Bytes on disk.
        got: u64,
        /// Bytes listed.
        expected: u64,
    },
    /// There is not enough room for the download.
    #[error("no room for {needed} bytes in {}{}", dir.display(), available.map(|n| format!(", {n} are free")).unwrap_or_default())]
    DiskFull {
        /// The cache folder.
        dir: PathBuf,
        /// Bytes still to come.
        needed: u64,
        /// Bytes free, if known.
        available: Option<u64>,
    },
    /// Another process has been downloading the same file for long.
    #[error("another process holds {}", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The caller does not want this model, having seen its `config.json`.
    #[error(transparent)]
    Refused(#[from] Fault),
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": the hub says {message:?}") }
}

impl HubError {
    /// The error's stable code.
    pub fn code(&self) -> &str {
        match self {
            Self::NoSuchFolder { .. } => "hub.no_such_folder",
            Self::BadName { .. } => "hub.bad_name",
            Self::BadRevision { .. } => "hub.bad_revision",
            Self::NoToken { .. } => "hub.no_token",
            Self::LicenceNotAccepted { .. } => "hub.licence_not_accepted",
            Self::TokenRejected { .. } => "hub.token_rejected",
            Self::Forbidden { .. } => "hub.forbidden",
            Self::NotFound { .. } => "hub.not_found",
            Self::RevisionNotFound { .. } => "hub.revision_not_found",
            Self::Disabled { .. } => "hub.disabled",
            Self::NoFile { .. } => "hub.no_file",
            Self::BadFile { .. } => "hub.bad_file",
            Self::Offline { .. } => "hub.offline",
            Self::RateLimited { .. } => "hub.rate_limited",
            Self::Network { .. } => "hub.network",
            Self::Status { .. } => "hub.status",
            Self::Incomplete { .. } => "hub.incomplete",
            Self::DiskFull { .. } => "hub.disk_full",
            Self::Locked { .. } => "hub.locked",
            Self::Io { .. } => "hub.io",
            Self::Refused(fault) => &fault.code,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoSuchFolder { .. } => "give an existing folder, or owner/name of a model on the hub".to_owned(),
            Self::BadName { .. } => {
                "a model is a folder or owner/name, for example meta-llama/Llama-3.2-11B-Vision-Instruct".to_owned()
            }
            Self::BadRevision { .. } => "leave the revision out for the newest version".to_owned(),
            Self::NoToken { repo, endpoint } => format!(
                "accept the licence at {endpoint}/{repo}, then set HF_TOKEN to a token from {endpoint}/settings/tokens"
            ),
            Self::LicenceNotAccepted { repo, endpoint, .. } => {
                format!("accept the licence at {endpoint}/{repo} with the same account, wait for approval, run again")
            }
            Self::TokenRejected { .. } => "the token is mistyped, expired or revoked: make a new one".to_owned(),
            Self::Forbidden { .. } => {
                "a fine-grained token needs the permission to read public gated repositories".to_owned()
            }
            Self::NotFound { with_token: true, .. } => {
                "check the spelling; for a private model the token's account needs access".to_owned()
            }
            Self::NotFound { with_token: false, .. } => {
                "check the spelling; for a private model set HF_TOKEN".to_owned()
            }
            Self::RevisionNotFound { .. } => "give a branch, tag or full commit hash of this model".to_owned(),
            Self::NoFile { .. } => "a model in safetensors form with its config.json is needed".to_owned(),
            Self::BadFile { .. } => "delete the file and download it again".to_owned(),
            Self::Offline { .. } => "run once without offline mode (HF_HUB_OFFLINE) to download it".to_owned(),
            Self::RateLimited { retry_after: Some(seconds), .. } => format!("try again in {seconds} s"),
            Self::RateLimited { retry_after: None, .. } => {
                "try again later, or set HF_TOKEN for a higher limit".to_owned()
            }
            Self::Network { .. } | Self::Incomplete { .. } => {
                "run again: files that arrived are kept; HF_ENDPOINT names another hub or mirror".to_owned()
            }
            Self::Status { .. } => "run again later: files that arrived are kept".to_owned(),
            Self::DiskFull { .. } => "free some room, or set HF_HUB_CACHE to a folder on a larger disk".to_owned(),
            Self::Locked { .. } => "wait for the other download to end, then run again".to_owned(),
            Self::Io { .. } => "check the folder's owner and permissions, or set HF_HUB_CACHE".to_owned(),
            Self::Disabled { .. } | Self::Refused(_) => return None,
        })
    }

    /// Whether the hub could not be asked at all, so that a copy in the cache may stand in.
    pub(super) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Status { status: 500..=599, .. })
    }
}

impl From<HubError> for Fault {
    fn from(error: HubError) -> Self {
        if let HubError::Refused(fault) = error {
            return fault;
        }
        let fault = Fault::stop(error.code().to_owned(), error.to_string());
        match error.hint() {
            Some(hint) => fault.with_hint(hint),
            None => fault,
        }
    }
}

/// What was asked of which hub: all that an error needs to say.
pub(super) struct Asked<'a> {
    pub(super) repo: &'a RepoName,
    pub(super) revision: &'a str,
    pub(super) endpoint: &'a str,
    pub(super) with_token: bool,
    pub(super) cache: &'a Path,
}

impl Asked<'_> {
    /// Names a failure of hf-hub. `what` says what was being done, e.g. `downloading config.json`.
    pub(super) fn explain(&self, error: HFError, what: &str) -> HubError {
        let repo = self.repo.to_string();
        let what = what.to_owned();
        match error {
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context }
            | HFError::RepoNotFound { context: Some(context), .. }
            | HFError::RevisionNotFound { context: Some(context), .. }
            | HFError::EntryNotFound { context: Some(context), .. } => {
                let message = short(context.server_message.as_deref().unwrap_or_default());
                self.status(context.status.as_u16(), context.error_code.as_deref(), message, what)
            }
            HFError::RateLimited { retry_after, .. } => {
                HubError::RateLimited { repo, retry_after: retry_after.map(|wait| wait.as_secs()) }
            }
            HFError::RepoNotFound { .. } => self.not_found(),
            HFError::RevisionNotFound { .. } => self.revision_not_found(),
            HFError::EntryNotFound { path, .. } => HubError::NoFile { model: repo, file: path },
            HFError::LocalEntryNotFound { path } => self.offline(path),
            HFError::CacheLockTimeout { path } => HubError::Locked { path },
            HFError::Io(source) => self.io(source),
            HFError::Request { source, .. } => {
                let kind = if source.is_connect() {
                    "no connection"
                } else if source.is_timeout() {
                    "no answer in time"
                } else {
                    "the transfer broke off"
                };
                // The innermost cause only: the outer ones print URLs, and those may carry signatures.
                HubError::Network { repo, what, reason: format!("{kind} ({})", innermost(&source)) }
            }
            other => {
                let reason = innermost(&other);
                if reason.contains("No space left on device") {
                    return self.io(io::ErrorKind::StorageFull.into());
                }
                HubError::Network { repo, what, reason: short(&reason) }
            }
        }
    }

    fn status(&self, status: u16, code: Option<&str>, message: String, what: String) -> HubError {
        let repo = self.repo.to_string();
        // The same decisions as in Python's `hf_raise_for_status`.
        match (code, status) {
            (Some("GatedRepo"), _) if !self.with_token => {
                HubError::NoToken { repo, endpoint: self.endpoint.to_owned() }
            }
            (Some("GatedRepo"), 403) => {
                HubError::LicenceNotAccepted { repo, endpoint: self.endpoint.to_owned(), message }
            }
            (Some("GatedRepo"), _) => HubError::TokenRejected { repo, message },
            (Some("RevisionNotFound"), _) => self.revision_not_found(),
            (Some("RepoNotFound"), _) => self.not_found(),
            _ if message == "Access to this resource is disabled." => HubError::Disabled { repo },
            (_, 401) if message.starts_with("Invalid credentials") || message.starts_with("Invalid user") => {
                HubError::TokenRejected { repo, message }
            }
            (_, 401) => self.not_found(),
            (_, 403) => HubError::Forbidden { repo, message },
            (_, 404) if self.revision == DEFAULT_REVISION => self.not_found(),
            (_, 404) => self.revision_not_found(),
            (_, 429) => HubError::RateLimited { repo, retry_after: None },
            _ => HubError::Status { repo, what, status, message },
        }
    }

    fn not_found(&self) -> HubError {
        HubError::NotFound {
            repo: self.repo.to_string(),
            endpoint: self.endpoint.to_owned(),
            with_token: self.with_token,
        }
    }

    fn revision_not_found(&self) -> HubError {
        HubError::RevisionNotFound { repo: self.repo.to_string(), revision: self.revision.to_owned() }
    }

    /// A file is not in the cache and must not be fetched.
    pub(super) fn offline(&self, file: String) -> HubError {
        HubError::Offline {
            repo: self.repo.to_string(),
            revision: self.revision.to_owned(),
            file,
            cache: self.cache.to_owned(),
        }
    }

    /// The cache can't be written.
    pub(super) fn io(&self, source: io::Error) -> HubError {
        if source.kind() == io::ErrorKind::StorageFull || source.kind() == io::ErrorKind::QuotaExceeded {
            return HubError::DiskFull { dir: self.cache.to_owned(), needed: 0, available: None };
        }
        HubError::Io { path: self.cache.to_owned(), source }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A server's message, fit for one line.
fn short(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
