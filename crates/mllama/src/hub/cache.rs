//! The hub's cache on disk, as far as hf-hub leaves it to its callers: which commit a branch was, a copy without the
//! network, room on the disk, a damaged file.
//!
//! Layout (the same as Python's): `models--OWNER--NAME/` with `refs/REVISION` (a commit), `snapshots/COMMIT/FILE` (links)
//! and `blobs/ETAG`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vgen_core::Fault;

use super::files::{self, CONFIG, INDEX, SINGLE, Weights};
use super::name::{self, RepoName};
use super::{HubError, ModelFolder, error::Asked};

/// A repository's folder in the cache.
pub(super) fn repo_folder(cache: &Path, repo: &RepoName) -> PathBuf {
    cache.join(format!("models--{}--{}", repo.owner, repo.name))
}

/// The commit that a revision stood for when it was last seen.
fn commit(folder: &Path, revision: &str) -> Option<String> {
    if name::is_commit(revision) {
        return Some(revision.to_owned());
    }
    let text = fs::read_to_string(folder.join("refs").join(revision)).ok()?;
    Some(text.trim().to_owned()).filter(|commit| name::is_commit(commit))
}

/// Remembers which commit a revision stands for.
pub(super) fn write_ref(folder: &Path, revision: &str, commit: &str) -> io::Result<()> {
    let path = folder.join("refs").join(revision);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, commit)
}

/// The complete copy in the cache.
///
/// # Errors
/// [`HubError::Offline`] names the first file that is missing.
pub(super) fn lookup(asked: &Asked<'_>, accept: &dyn Fn(&str) -> Result<(), Fault>) -> Result<ModelFolder, HubError> {
    let folder = repo_folder(asked.cache, asked.repo);
    let missing = |file: &str| asked.offline(file.to_owned());
    let commit = commit(&folder, asked.revision).ok_or_else(|| missing(CONFIG))?;
    let path = folder.join("snapshots").join(&commit);
    let config = path.join(CONFIG);
    if !config.is_file() {
        return Err(missing(CONFIG));
    }
    accept(&files::read(&config)?)?;
    let weights = match files::weights(&path)? {
        Weights::Complete(weights) => weights,
        Weights::None => return Err(missing(&format!("{SINGLE} or {INDEX}"))),
        Weights::Missing(shard) => return Err(missing(&shard)),
    };
    Ok(ModelFolder { path, repo: Some(asked.repo.to_string()), revision: Some(commit), weights })
}

/// Sizes of the contents that the cache holds of a repository, in bytes; unfinished ones left out.
pub(super) fn blob_sizes(folder: &Path) -> BTreeSet<u64> {
    let Ok(entries) = fs::read_dir(folder.join("blobs")) else { return BTreeSet::new() };
    let finished = entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().ends_with(".incomplete"));
    finished.filter_map(|entry| Some(entry.metadata().ok()?.len())).collect()
}

/// Removes a file from the cache: the link and what it points to.
pub(super) fn discard(path: &Path) -> io::Result<()> {
    let blob = fs::canonicalize(path)?;
    fs::remove_file(path)?;
    if blob != path && blob.exists() {
        fs::remove_file(blob)?;
    }
    Ok(())
}

/// Bytes free for this user on the disk that holds the folder or its nearest existing parent.
#[cfg(unix)]
pub(super) fn free_bytes(folder: &Path) -> Option<u64> {
    let existing = folder.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// Not known on this system; a full disk shows when a write fails.
#[cfg(not(unix))]
pub(super) fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}
