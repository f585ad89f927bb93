//! `[backend]` with `kind = "inference-endpoints"`, typed and checked.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use vgen_backends::remote::{ApiKeySource, RemoteConfig, RemoteError};
use vgen_core::Fault;

use crate::quantity;
use crate::settings::{Origin, Settings, invalid};

/// Keys that are read here; the others are the backend's own.
const READ_HERE: [&str; 5] = ["kind", "api_key", "tools", "max_response_bytes", "chat_template"];

/// The table.
#[derive(Clone, Debug)]
pub(crate) struct RemoteTable {
    pub(crate) config: RemoteConfig,
    /// Where the chat template of the text-generation protocol is.
    pub(crate) chat_template: Option<PathBuf>,
}

/// Resolves the table. The key itself is not read here.
///
/// # Errors
/// `config.value`.
pub(crate) fn resolve(settings: &Settings) -> Result<RemoteTable, Fault> {
    let table = settings.table("backend", &READ_HERE);
    for name in table.keys() {
        settings.parse_with("backend", name, |value: Value| {
            serde_json::from_value::<RemoteConfig>(Value::Object(Map::from_iter([(name.clone(), value)])))
                .map_err(|error| error.to_string())
        })?;
    }
    let mut config: RemoteConfig = serde_json::from_value(Value::Object(table))
        .map_err(|error| Fault::stop("config.value", format!("[backend]: {error}")))?;
    config.api_key = settings.parse_with("backend", "api_key", key_source)?.map(|source| match source {
        ApiKeySource::File(path) => ApiKeySource::File(relative(settings, "api_key", path)),
        source => source,
    });
    if let Some(tools) = tools(settings)? {
        config.tools = tools;
    }
    let bytes = settings.parse_with("backend", "max_response_bytes", |value: Value| match &value {
        Value::String(text) => quantity::bytes(text),
        value => value.as_u64().ok_or_else(|| format!("expected a size in bytes, got {value}")),
    })?;
    if let Some(bytes) = bytes {
        config.max_response_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    }
    let chat_template = settings.path("backend", "chat_template")?;
    config.validate().map_err(|error| match &error {
        RemoteError::Config { field, reason } => match settings.get("backend", field) {
            Some(setting) => invalid("backend", field, &setting.origin, reason),
            None => Fault::stop("config.value", format!("[backend]: {field} {reason}")),
        },
        _ => error.into(),
    })?;
    Ok(RemoteTable { config, chat_template })
}

/// Where the key is. A value of another form may be the key itself, so it is never repeated.
fn key_source(value: Value) -> Result<ApiKeySource, String> {
    let place = value.as_object().filter(|object| object.len() == 1).and_then(|object| object.iter().next());
    match place {
        Some((kind, Value::String(name))) if kind == "env" => Ok(ApiKeySource::Env(name.clone())),
        Some((kind, Value::String(path))) if kind == "file" => Ok(ApiKeySource::File(path.into())),
        _ => {
            Err("expected { env = \"NAME\" } or { file = \"PATH\" }; the key itself has no place in a config"
                .to_owned())
        }
    }
}

/// A list of tools, or the path of a JSON file that holds it.
fn tools(settings: &Settings) -> Result<Option<Vec<Value>>, Fault> {
    let Some(setting) = settings.get("backend", "tools") else { return Ok(None) };
    if !setting.value.is_string() {
        return settings.parse("backend", "tools");
    }
    let Some(path) = settings.path("backend", "tools")? else { return Ok(None) };
    let read = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    let read = read.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
    read.map(Some).map_err(|reason| {
        invalid("backend", "tools", &setting.origin, &format!("{} can't be read: {reason}", path.display()))
    })
}

/// A path within a value: relative to the config file's folder if it stands in one.
fn relative(settings: &Settings, name: &str, path: PathBuf) -> PathBuf {
    match settings.get("backend", name).map(|setting| &setting.origin) {
        Some(Origin::File(config)) => config.parent().unwrap_or(Path::new("")).join(path),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(name: &str, value: Value) -> Result<RemoteTable, Fault> {
        let mut settings = Settings::default();
        settings.set("backend", "base_url", "http://localhost:1".into(), Origin::Flag("--base-url"));
        settings.set("backend", name, value, Origin::File("runs/run.toml".into()));
        resolve(&settings)
    }

    fn key(value: Value) -> Option<ApiKeySource> {
        with("api_key", value).ok().and_then(|table| table.config.api_key)
    }

    #[test]
    fn a_key_is_named_and_never_repeated() {
        assert_eq!(key(json!({"env": "KEY"})), Some(ApiKeySource::Env("KEY".to_owned())));
        assert_eq!(key(json!({"file": "key.txt"})), Some(ApiKeySource::File("runs/key.txt".into())));
        for value in [json!("hf_sesame"), json!({"key": "hf_sesame"}), json!({"hf_sesame": "x"}), json!(["hf_sesame"])]
        {
            let Err(fault) = with("api_key", value) else { unreachable!("no place for a key") };
            assert!(fault.message.contains("[backend] api_key") && !format!("{fault:?}").contains("sesame"), "{fault}");
        }
    }

    #[test]
    fn mistakes_name_the_key() {
        for (name, value, expected) in [
            ("max_in_flight", json!(0), "config runs/run.toml: [backend] max_in_flight: is 0"),
            ("protocol", json!("telepathy"), "config runs/run.toml: [backend] protocol: unknown variant"),
            ("max_response_bytes", json!("2 elephants"), "[backend] max_response_bytes: "),
            ("tools", json!("missing.json"), "[backend] tools: runs/missing.json can't be read"),
        ] {
            let Err(fault) = with(name, value) else { unreachable!("{name} is wrong") };
            assert!(fault.message.contains(expected), "{fault}");
        }
        let bytes = with("max_response_bytes", json!("1MiB")).map(|table| table.config.max_response_bytes);
        assert_eq!(bytes, Ok(1 << 20));
    }
}
