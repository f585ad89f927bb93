//! What the hub's environment variables mean, the same as in Python's `huggingface_hub` (2.4, `constants.py`): pure
//! functions of a lookup, so that only the program itself reads its environment.

use std::path::PathBuf;

/// The hub's address when none is given.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// The cache folder: `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE`, else `hub` in [`home`].
///
/// As in Python, `~` and `$NAME` in the values are expanded, a variable that is set but empty counts as set, and
/// `~user` stays as it is (Python would ask the user database).
pub fn cache_dir(var: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let cache =
        var("HF_HUB_CACHE").or_else(|| var("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| join(&hf_home(var), "hub"));
    PathBuf::from(expand(&cache, var))
}

/// The hub's own folder: `HF_HOME`, else `huggingface` in `XDG_CACHE_HOME`, else `~/.cache/huggingface`.
pub fn home(var: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    PathBuf::from(hf_home(var))
}

/// The file that `hf auth login` writes: `HF_TOKEN_PATH`, else `token` in [`home`].
pub fn token_path(var: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    let path = var("HF_TOKEN_PATH").unwrap_or_else(|| join(&hf_home(var), "token"));
    PathBuf::from(expand(&path, var))
}

/// Whether `HF_HUB_OFFLINE`, or if that is unset or empty `TRANSFORMERS_OFFLINE`, says 1, on, yes or true.
pub fn offline(var: &dyn Fn(&str) -> Option<String>) -> bool {
    let value = var("HF_HUB_OFFLINE").filter(|value| !value.is_empty()).or_else(|| var("TRANSFORMERS_OFFLINE"));
    value.is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// `HF_ENDPOINT` without slashes at the end, else [`DEFAULT_ENDPOINT`].
pub fn endpoint(var: &dyn Fn(&str) -> Option<String>) -> String {
    var("HF_ENDPOINT").map_or_else(|| DEFAULT_ENDPOINT.to_owned(), |url| url.trim_end_matches('/').to_owned())
}

fn hf_home(var: &dyn Fn(&str) -> Option<String>) -> String {
    let home = var("HF_HOME").unwrap_or_else(|| {
        let cache = var("XDG_CACHE_HOME").unwrap_or_else(|| join(&expand_user("~", var), ".cache"));
        join(&cache, "huggingface")
    });
    expand(&home, var)
}

/// `posixpath.join` for a relative second part.
fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() || folder.ends_with('/') { format!("{folder}{name}") } else { format!("{folder}/{name}") }
}

fn expand(path: &str, var: &dyn Fn(&str) -> Option<String>) -> String {
    expand_vars(&expand_user(path, var), var)
}

/// `posixpath.expanduser`.
fn expand_user(path: &str, var: &dyn Fn(&str) -> Option<String>) -> String {
    let Some(rest) = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
        return path.to_owned();
    };
    let Some(home) = var("HOME") else { return path.to_owned() };
    let expanded = format!("{}{rest}", home.trim_end_matches('/'));
    if expanded.is_empty() { "/".to_owned() } else { expanded }
}

/// `posixpath.expandvars`: `$NAME` and `${NAME}` in one pass, unknown names left alone.
fn expand_vars(path: &str, var: &dyn Fn(&str) -> Option<String>) -> String {
    let mut expanded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at..];
        let (name, length) = variable(&rest[1..]);
        match name.and_then(var) {
            Some(value) => expanded.push_str(&value),
            None => expanded.push_str(&rest[..=length]),
        }
        rest = &rest[1 + length..];
    }
    expanded.push_str(rest);
    expanded
}

/// The variable's name at the start of a text that follows a dollar sign, and how many bytes it takes.
fn variable(text: &str) -> (Option<&str>, usize) {
    if let Some(braced) = text.strip_prefix('{') {
        return match braced.find('}') {
            Some(end) => (Some(&braced[..end]), end + 2),
            None => (None, 0),
        };
    }
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    (Some(&text[..end]).filter(|name| !name.is_empty()), end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        |name| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    /// Each case was printed by huggingface_hub 2.4.0 itself (`HF_HUB_CACHE` and `HF_TOKEN_PATH` of its constants).
    #[test]
    fn folders_are_those_of_huggingface_hub() {
        type Case = (&'static [(&'static str, &'static str)], &'static str, &'static str);
        let cases: &[Case] = &include!("../../tests/fixtures/hub_env.in");
        for (vars, cache, token) in cases {
            assert_eq!(cache_dir(&with(vars)), PathBuf::from(cache), "{vars:?}");
            assert_eq!(token_path(&with(vars)), PathBuf::from(token), "{vars:?}");
        }
    }

    #[test]
    fn offline_as_in_huggingface_hub() {
        for on in ["1", "on", "YES", "True"] {
            let value = on.to_owned();
            assert!(offline(&move |name| (name == "HF_HUB_OFFLINE").then(|| value.clone())), "{on}");
        }
        assert!(!offline(&with(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")])));
        assert!(offline(&with(&[("HF_HUB_OFFLINE", ""), ("TRANSFORMERS_OFFLINE", "1")])));
        assert!(!offline(&with(&[("HF_HUB_OFFLINE", "2")])));
        assert!(!offline(&with(&[])));
    }

    #[test]
    fn endpoint_loses_its_slash() {
        assert_eq!(endpoint(&with(&[])), DEFAULT_ENDPOINT);
        assert_eq!(endpoint(&with(&[("HF_ENDPOINT", "http://mirror:8080/hub//")])), "http://mirror:8080/hub");
    }
}
