//! What may be asked of a hub: repository names, revisions, file names. Each becomes part of a path on this machine, so
//! each is checked first.

use std::fmt;

use super::HubError;

/// The revision when none is given.
pub(super) const DEFAULT_REVISION: &str = "main";

/// The hub's limit for each half of a repository's name.
const MAX_NAME: usize = 96;

/// `owner/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RepoName {
    pub(super) owner: String,
    pub(super) name: String,
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// Takes a repository's name apart; what looks like a path is reported as a missing folder.
pub(super) fn parse(model: &str) -> Result<RepoName, HubError> {
    let looks_like_path = model.starts_with(['.', '/', '~']) || model.ends_with('/') || model.contains('\\');
    if looks_like_path || model.matches('/').count() > 1 {
        return Err(HubError::NoSuchFolder { path: model.into() });
    }
    let bad = |reason| HubError::BadName { model: model.to_owned(), reason };
    let (owner, name) = model.split_once('/').ok_or_else(|| bad("is neither a folder nor owner/name"))?;
    for half in [owner, name] {
        if half.is_empty() || half.len() > MAX_NAME {
            return Err(bad("has an empty or too long part"));
        }
        if !half.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            return Err(bad("has characters besides letters, digits, '-', '_' and '.'"));
        }
        if half.starts_with(['-', '.']) || half.ends_with(['-', '.']) || half.contains("--") || half.contains("..") {
            return Err(bad("has '-' or '.' at an end or twice in a row"));
        }
    }
    if name.ends_with(".git") {
        return Err(bad("ends in .git"));
    }
    Ok(RepoName { owner: owner.to_owned(), name: name.to_owned() })
}

/// Refuses what can't be a branch, tag or commit.
pub(super) fn check_revision(revision: &str) -> Result<(), HubError> {
    let plain =
        |c: char| !(c.is_control() || c.is_whitespace() || matches!(c, '\\' | '~' | '^' | ':' | '?' | '*' | '['));
    let parts_ok = revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.'));
    if parts_ok && revision.chars().all(plain) && !revision.contains("..") && !revision.starts_with('-') {
        Ok(())
    } else {
        Err(HubError::BadRevision { revision: revision.to_owned() })
    }
}

/// Whether the revision is a full commit hash, which never changes what it means.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a shard's name, as an index file gives it, is a plain file name that stays in its folder.
pub(super) fn is_shard(file: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    file.ends_with(".safetensors") && !file.starts_with('.') && file.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_the_hub_accepts() {
        for good in ["meta-llama/Llama-3.2-11B-Vision-Instruct", "a/b", "A_1/b.c", "o/x_-y"] {
            assert_eq!(parse(good).map(|repo| repo.to_string()).ok().as_deref(), Some(good));
        }
        for bad in
            ["gpt2", "", "a/", "/b", "a/b c", "a/b..c", "a/b--c", "-a/b", "a/b.", "a/b.git", "ä/b", "a/..", "../b"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&format!("a/{}", "x".repeat(97))).is_err());
        for path in ["./model", "/models/x", "~/x", "a/b/c", "models\\x", "x/"] {
            assert!(matches!(parse(path), Err(HubError::NoSuchFolder { .. })), "{path}");
        }
    }

    #[test]
    fn revisions_stay_inside_their_folder() {
        for good in ["main", "v1.0", "refs/pr/1", "feature/x", &"a".repeat(40)] {
            assert!(check_revision(good).is_ok(), "{good}");
        }
        for bad in ["", "..", "a/../b", "/etc", "a//b", "a\nb", ".hidden", "-x", "a b"] {
            assert!(check_revision(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shards_stay_inside_their_folder() {
        assert!(is_shard("model-00001-of-00005.safetensors"));
        for bad in
            ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "x.bin", ".safetensors", "a\\b.safetensors"]
        {
            assert!(!is_shard(bad), "{bad}");
        }
    }
}
