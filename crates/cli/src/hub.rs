//! What the environment says about the Hugging Face hub: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE`,
//! `HF_ENDPOINT`, with the meaning that they have in Python.

use vgen_core::Secret;
use vgen_mllama::hub::{HubOptions, env};

/// The hub as the environment describes it.
pub(crate) fn options(revision: Option<String>) -> HubOptions {
    HubOptions {
        cache_dir: Some(env::cache_dir(&var)),
        token: token(),
        endpoint: Some(endpoint()),
        offline: env::offline(&var),
        revision,
    }
}

/// The key that everybody has: `HF_TOKEN`, then the hub's token file.
pub(crate) fn token() -> Option<Secret> {
    var("HF_TOKEN").as_deref().and_then(Secret::new).or_else(|| {
        let file = std::fs::read_to_string(env::token_path(&var)).ok()?;
        Secret::new(&file)
    })
}

/// The hub's address.
pub(crate) fn endpoint() -> String {
    env::endpoint(&var)
}

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
