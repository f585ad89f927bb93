//! What the run record says of the configuration, and what of it must stay the same for a run to be gone on with.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};
use vgen_run::record::SettingRecord;

use crate::keys::{self, KEYS};
use crate::settings::Settings;

/// Keys that change no row: how fast, how loud, how far, where.
const FREE: [&str; 53] = [
    "input.path",
    "input.limit",
    "output.path",
    "output.overwrite",
    "output.resume",
    "output.retry_failed",
    "output.only",
    "output.sync_seconds",
    "output.sync_rows",
    "images.max_redirects",
    "images.retries",
    "images.connect_timeout",
    "images.timeout",
    "run.row_timeout",
    "run.window",
    "run.quiet",
    "run.stats",
    "run.progress",
    "run.progress_interval",
    "run.lint",
    "run.max_errors",
    "backend.batch_size",
    "backend.devices",
    "backend.step_tokens",
    "backend.threads",
    "backend.prepare_threads",
    "backend.image_cache",
    "backend.memory",
    "backend.delays_ms",
    "backend.window",
    "backend.faults",
    "backend.ignores_cancel",
    "backend.api_key",
    "backend.headers",
    "backend.resume_endpoint",
    "backend.endpoint_timeout",
    "backend.endpoint_poll",
    "backend.http_version",
    "backend.stream",
    "backend.max_response_bytes",
    "backend.max_in_flight",
    "backend.adaptive",
    "backend.requests_per_minute",
    "backend.tokens_per_minute",
    "backend.max_attempts",
    "backend.max_elapsed",
    "backend.backoff_base",
    "backend.backoff_max",
    "backend.connect_timeout",
    "backend.first_byte_timeout",
    "backend.idle_timeout",
    "backend.total_timeout",
    "backend.spend_requests",
];
/// As [`FREE`], by the beginning of the key.
const FREE_PREFIX: &str = "backend.spend_";
/// May hold secrets: their values stay out of what is written.
const SECRET: [&str; 3] = ["backend.api_key", "backend.headers", "backend.extra_body"];
/// Stands for them.
const HIDDEN: &str = "<not recorded>";

/// A value as others may see it: without secrets, be it as a whole or in the query of an address.
pub(crate) fn shown(table: &str, name: &str, value: &Value) -> Value {
    if SECRET.contains(&format!("{table}.{name}").as_str()) {
        return Value::from(HIDDEN);
    }
    match (name.ends_with("_url"), value.as_str().and_then(|url| url.split_once('?'))) {
        (true, Some((address, _))) => Value::from(format!("{address}?{HIDDEN}")),
        _ => value.clone(),
    }
}

/// A value that only tells whether it is the same.
fn digest(value: &Value) -> Value {
    let digest = Sha256::digest(value.to_string().as_bytes());
    let digits: Vec<String> = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Value::from(format!("sha256:{}", digits.concat()))
}

/// The configuration in the words of the run record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) config: BTreeMap<String, SettingRecord>,
    pub(crate) fingerprint: BTreeMap<String, Value>,
}

impl Recorded {
    /// Of every key, set or not.
    pub(crate) fn of(settings: &Settings) -> Self {
        let kind = settings.get("backend", "kind").and_then(|setting| setting.value.as_str());
        let backend = kind.and_then(keys::backend).unwrap_or_default();
        let mut recorded = Self::default();
        for key in KEYS.iter().chain(backend) {
            let name = format!("{}.{}", key.table, key.name);
            let (value, origin) = match settings.get(key.table, key.name) {
                Some(setting) => (setting.value.clone(), setting.origin.to_string()),
                None => (default(key.default), "default".to_owned()),
            };
            let free = FREE.contains(&name.as_str()) || name.starts_with(FREE_PREFIX);
            let shown = shown(key.table, key.name, &value);
            if !free && !is_open(&value) {
                let hidden = shown != value && value != default(key.default);
                let kept = if hidden { digest(&value) } else { value };
                recorded.fingerprint.insert(name.clone(), kept);
            }
            recorded.config.insert(name, SettingRecord { value: shown, origin });
        }
        // A schema is its content, whatever file it is in.
        if let Ok(Some(path)) = settings.path("sampling", "json_schema")
            && let Ok(text) = std::fs::read_to_string(path)
        {
            let schema = serde_json::from_str(&text).unwrap_or(Value::Null);
            recorded.fingerprint.insert("sampling.json_schema".to_owned(), schema);
        }
        recorded
    }
}

/// A default as a value; in angle brackets what depends on model or machine.
fn default(text: &str) -> Value {
    if text.starts_with('<') {
        return Value::from(text);
    }
    let parsed = format!("x = {text}").parse::<toml::Table>().ok().and_then(|table| table.get("x").cloned());
    parsed.and_then(|value| serde_json::to_value(value).ok()).unwrap_or(Value::Null)
}

fn is_open(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.starts_with('<') && text.ends_with('>'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::settings::Origin;

    #[test]
    fn secrets_tell_only_whether_they_are_the_same() {
        let recorded = |body: &str| {
            let mut settings = Settings::default();
            let mut set = |name: &str, value: Value| settings.set("backend", name, value, Origin::Command("test"));
            set("kind", json!("inference-endpoints"));
            set("extra_body", json!({"key": body}));
            set("base_url", json!(format!("http://h/v1?key={body}")));
            Recorded::of(&settings)
        };
        let (first, again, other) = (recorded("s3cret"), recorded("s3cret"), recorded("s4cret"));
        assert_eq!(first.fingerprint, again.fingerprint);
        assert_ne!(first.fingerprint["backend.extra_body"], other.fingerprint["backend.extra_body"]);
        let values: Vec<String> = first.config.values().map(|setting| setting.value.to_string()).collect();
        for written in [values.concat(), json!(first.fingerprint).to_string()] {
            assert!(!written.contains("s3cret"), "{written}");
        }
        assert_eq!(first.config["backend.base_url"].value, "http://h/v1?<not recorded>");
    }
}
