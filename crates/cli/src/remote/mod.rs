//! The remote backend: from `[backend]` with `kind = "inference-endpoints"` to a client of a server.

pub(crate) mod flags;
mod progress;
pub(crate) mod table;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use vgen_backends::remote::{
    ApiKeySource, Protocol, RemoteBackend, RemoteConfig, RemoteHooks, RemoteSecrets, RenderPrompt,
};
use vgen_core::{Backend, Fault, Secret};
use vgen_task::chat::{ChatTemplate, template_messages};
use vgen_task::image::{ImageFetcher, KeptImages};

use crate::messages::Messages;
use crate::table::Images;
use crate::{hub, local};
use progress::Waiting;
use table::RemoteTable;

const NO_KEY: &str = "no API key: set HF_TOKEN, or name one with api_key";

/// Sets the client up; waits for an endpoint that has to wake.
pub(crate) fn open(
    table: &RemoteTable,
    images: &Images,
    kept: Option<&Arc<KeptImages>>,
    interval: Duration,
    messages: &Messages,
) -> Result<Arc<dyn Backend>, Fault> {
    let mut config = table.config.clone();
    if config.hub_url == RemoteConfig::default().hub_url {
        config.hub_url = hub::endpoint();
    }
    let api_key = api_key(&config)?;
    if api_key.is_none() && config.base_url.is_none() {
        messages.warning(NO_KEY);
    }
    let fetcher = ImageFetcher::new(local::limits(images)).keeping(kept.cloned());
    let waiting = Arc::new(Waiting::new(messages, interval));
    let shown = Arc::clone(&waiting);
    let hooks = RemoteHooks {
        fetch: Some(Arc::new(move |image| fetcher.fetch(image).map_err(Into::into))),
        render: render(&config, table.chat_template.as_deref())?,
        progress: Some(Arc::new(move |event| shown.show(event))),
    };
    let backend = RemoteBackend::connect(config, RemoteSecrets { api_key }, hooks);
    waiting.connected();
    Ok(Arc::new(backend?))
}

/// Sets the client up as far as nobody has to be asked; `None` for an endpoint, which would be woken.
pub(crate) fn dry(
    table: &RemoteTable,
    images: &Images,
    interval: Duration,
    messages: &Messages,
) -> Result<Option<Arc<dyn Backend>>, Fault> {
    if table.config.endpoint_name.is_none() {
        return open(table, images, None, interval, messages).map(Some);
    }
    table.config.validate()?;
    render(&table.config, table.chat_template.as_deref())?;
    if api_key(&table.config)?.is_none() {
        messages.warning(NO_KEY);
    }
    Ok(None)
}

/// The key that the config names, else the one that everybody has.
fn api_key(config: &RemoteConfig) -> Result<Option<Secret>, Fault> {
    let missing = |message: String| {
        Fault::stop("config.api_key", message).with_hint("leave api_key out for a server that needs none")
    };
    match &config.api_key {
        None if config.wants_default_key() => Ok(hub::token()),
        None => Ok(None),
        Some(ApiKeySource::Env(name)) => {
            let key = std::env::var(name).ok().as_deref().and_then(Secret::new);
            // A name that looks like a key is one, in the wrong place.
            let name = if name.starts_with("hf_") || name.starts_with("sk-") { "that api_key names" } else { name };
            key.map(Some).ok_or_else(|| missing(format!("the environment variable {name} is not set")))
        }
        Some(ApiKeySource::File(path)) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| missing(format!("api_key: {} can't be read: {error}", path.display())))?;
            Secret::new(&text).map(Some).ok_or_else(|| missing(format!("api_key: {} is empty", path.display())))
        }
    }
}

/// Renders prompts for the text-generation protocol.
fn render(config: &RemoteConfig, path: Option<&Path>) -> Result<Option<RenderPrompt>, Fault> {
    let Some(path) = path else { return Ok(None) };
    if config.protocol != Protocol::TextGeneration {
        let message = "[backend]: chat_template needs protocol = \"text-generation\"";
        return Err(
            Fault::stop("config.value", message).with_hint("over the chat protocol the server has the template")
        );
    }
    let read = |path: &Path| {
        std::fs::read_to_string(path).map_err(|error| {
            Fault::stop("config.value", format!("[backend] chat_template: {} can't be read: {error}", path.display()))
        })
    };
    let (template, tokenizer) = if path.is_dir() {
        let files = ["chat_template.jinja", "chat_template.json"].map(|name| path.join(name));
        let template = files.iter().find(|file| file.is_file()).map(|file| read(file)).transpose()?;
        let tokenizer = path.join("tokenizer_config.json");
        (template, tokenizer.is_file().then(|| read(&tokenizer)).transpose()?)
    } else {
        let text = read(path)?;
        (Some(text.clone()), Some(text))
    };
    let template = ChatTemplate::from_files(template.as_deref(), tokenizer.as_deref(), None)?;
    let mut template = template
        .ok_or_else(|| Fault::stop("config.value", format!("[backend] chat_template: {} has none", path.display())))?;
    let names: Map<String, Value> =
        tokenizer.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    for name in ["bos_token", "eos_token"] {
        let token = names.get(name).map(|token| token.get("content").unwrap_or(token));
        template.set_global(name, token.and_then(Value::as_str).unwrap_or_default());
    }
    let variables = Map::from_iter([("add_generation_prompt".to_owned(), Value::Bool(true))]);
    Ok(Some(Arc::new(move |messages| {
        Ok(template.render(&template_messages(messages), &variables, &|text| text.to_owned())?)
    })))
}
