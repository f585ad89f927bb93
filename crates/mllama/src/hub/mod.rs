//! From `--model` to files: a folder on this machine, or a repository of the Hugging Face hub, read from its cache or
//! downloaded into it.
//!
//! Nothing heavy moves before the caller has seen `config.json`: [`resolve`] shows it to `accept` first, so that a model
//! of another architecture costs a kilobyte and not 20 GB. Only the files a run needs are fetched; of weights the
//! safetensors ones.
//!
//! The download itself, the cache's layout, Xet and retries of single requests are hf-hub's. What it leaves out is done
//! here: offline mode, one clear error for each way a hub says no, sizes compared with the repository's listing (hf-hub
//! 1.0 stores the body of a failed download as the file), another go at a transfer that broke off.

mod cache;
pub mod env;
mod error;
mod fetch;
mod files;
mod name;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vgen_core::{Fault, Secret};

pub use error::HubError;

/// Where and how to look for a model. [`mod@env`] has what the usual environment variables say.
#[derive(Clone, Debug, Default)]
pub struct HubOptions {
    /// The hub's cache folder, see [`env::cache_dir`]. `None`: where hf-hub itself puts it.
    pub cache_dir: Option<PathBuf>,
    /// Access token, if there is one.
    pub token: Option<Secret>,
    /// The hub's address; `None` is [`env::DEFAULT_ENDPOINT`].
    pub endpoint: Option<String>,
    /// Use nothing but the cache.
    pub offline: bool,
    /// Branch, tag or commit; `None` is `main`.
    pub revision: Option<String>,
}

/// What a download is doing. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubEvent {
    /// What has to come, known once `config.json` was accepted. Not sent if everything is in the cache.
    Plan {
        /// How many files.
        files: usize,
        /// How many bytes.
        bytes: u64,
    },
    /// How far a file is. A transfer that broke off starts again, so `bytes` may go back.
    File {
        /// The file's name.
        file: String,
        /// How much of it arrived.
        bytes: u64,
        /// How large it is.
        total: u64,
    },
    /// A transfer broke off and is tried again.
    Retry {
        /// The file's name.
        file: String,
        /// Why.
        reason: String,
    },
}

/// Takes [`HubEvent`]s. Called from the download's thread, often: it must not block.
pub type HubProgress = Arc<dyn Fn(HubEvent) + Send + Sync>;

/// A model's files, all in one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// `owner/name`, if it came from the hub.
    pub repo: Option<String>,
    /// The commit, if it came from the hub: 40 hexadecimal digits.
    pub revision: Option<String>,
    /// The safetensors files that hold the weights, in order of name. Empty only for a folder of one's own that has
    /// none.
    pub weights: Vec<PathBuf>,
}

/// Finds the files of `model`: a folder as it is, otherwise `owner/name` in the hub's cache or on the hub.
///
/// `accept` sees the text of `config.json` before anything large is touched; its fault comes back as
/// [`HubError::Refused`]. If the hub can't be reached but the cache holds a complete copy, that copy is used.
///
/// # Errors
/// See [`HubError`].
pub fn resolve(
    model: &str,
    options: &HubOptions,
    accept: &dyn Fn(&str) -> Result<(), Fault>,
    progress: Option<HubProgress>,
) -> Result<ModelFolder, HubError> {
    let path = Path::new(model);
    if path.is_dir() {
        return files::local(path, accept);
    }
    let repo = name::parse(model)?;
    let revision = options.revision.as_deref().unwrap_or(name::DEFAULT_REVISION);
    name::check_revision(revision)?;
    fetch::Fetch::new(repo, revision, options, progress)?.run(accept)
}
