//! Which files of a model a run needs, and a model's folder read as it is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vgen_core::Fault;

use super::{HubError, ModelFolder, name};

/// What decides whether the model can run at all.
pub(super) const CONFIG: &str = "config.json";

/// Small files besides [`CONFIG`]; each may be missing.
pub(super) const SMALL: [&str; 7] = [
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
];

/// All weights in one file; looked at before [`INDEX`], as transformers does.
pub(super) const SINGLE: &str = "model.safetensors";

/// Which shard holds which tensor.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A folder of one's own, used as it is.
pub(super) fn local(folder: &Path, accept: &dyn Fn(&str) -> Result<(), Fault>) -> Result<ModelFolder, HubError> {
    let config = folder.join(CONFIG);
    if !config.is_file() {
        return Err(HubError::NoFile { model: folder.display().to_string(), file: CONFIG.to_owned() });
    }
    accept(&read(&config)?)?;
    let weights = match weights(folder)? {
        Weights::Complete(weights) => weights,
        Weights::None => Vec::new(),
        Weights::Missing(file) => return Err(HubError::NoFile { model: folder.display().to_string(), file }),
    };
    Ok(ModelFolder { path: folder.to_owned(), repo: None, revision: None, weights })
}

/// What a folder holds of a model's weights.
pub(super) enum Weights {
    /// All of them.
    Complete(Vec<PathBuf>),
    /// Neither weights nor an index.
    None,
    /// An index, and a shard that is not there.
    Missing(String),
}

/// Looks for a model's weights in a folder.
pub(super) fn weights(folder: &Path) -> Result<Weights, HubError> {
    let single = folder.join(SINGLE);
    if single.is_file() {
        return Ok(Weights::Complete(vec![single]));
    }
    let index = folder.join(INDEX);
    if !index.is_file() {
        return Ok(Weights::None);
    }
    let mut paths = Vec::new();
    for shard in shards(&index)? {
        let path = folder.join(&shard);
        if !path.is_file() {
            return Ok(Weights::Missing(shard));
        }
        paths.push(path);
    }
    Ok(Weights::Complete(paths))
}

/// The shards that an index names, each once, in order of name.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let bad = |reason: String| HubError::BadFile { path: index.to_owned(), reason };
    let parsed: Index = serde_json::from_str(&read(index)?).map_err(|error| bad(error.to_string()))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    match shards.iter().find(|shard| !name::is_shard(shard)) {
        Some(odd) => Err(bad(format!("names {odd:?} as a shard"))),
        None if shards.is_empty() => Err(bad("names no shard".to_owned())),
        None => Ok(shards),
    }
}

/// A small text file.
pub(super) fn read(path: &Path) -> Result<String, HubError> {
    std::fs::read_to_string(path).map_err(|source| HubError::Io { path: path.to_owned(), source })
}
