//! `--print-config`: the configuration that holds, as a config file, with the origin of each value.

use std::fmt::Write;

use serde_json::Value;

use crate::keys::{self, KEYS, Key, TABLES};
use crate::settings::Settings;

/// Where the origins stand, if the values leave room for it.
const ORIGIN_COLUMN: usize = 48;

/// The configuration as TOML. What depends on model or machine is a comment.
pub(crate) fn text(settings: &Settings) -> String {
    let kind = settings.get("backend", "kind").and_then(|setting| setting.value.as_str());
    let backend = kind.and_then(keys::backend).unwrap_or_default();
    let mut text = String::new();
    for table in TABLES {
        let keys: Vec<&Key> = KEYS.iter().chain(backend).filter(|key| key.table == table).collect();
        if keys.is_empty() {
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        let _ = writeln!(text, "[{table}]");
        for key in keys {
            let line = match settings.get(table, key.name) {
                Some(setting) => commented(&format!("{} = {}", key.name, toml(&setting.value)), &setting.origin),
                None => match key.default.strip_prefix('<') {
                    Some(words) => format!("# {}: {}", key.name, words.trim_end_matches('>')),
                    None => commented(&format!("{} = {}", key.name, key.default), &"default"),
                },
            };
            text.push_str(&line);
            text.push('\n');
        }
    }
    text
}

fn commented(line: &str, origin: &impl std::fmt::Display) -> String {
    format!("{line:ORIGIN_COLUMN$} # {origin}")
}

fn toml(value: &Value) -> String {
    match value {
        // JSON's escapes are TOML's, but for the slash that serde_json does not escape.
        Value::String(_) | Value::Bool(_) | Value::Number(_) | Value::Null => value.to_string(),
        Value::Array(list) => format!("[{}]", list.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<_> = map.iter().map(|(name, value)| format!("{} = {}", quoted(name), toml(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
    }
}

fn quoted(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { name.to_owned() } else { Value::from(name).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Origin;

    #[test]
    fn what_is_printed_is_a_config_file_with_the_same_values() {
        let mut settings = Settings::default();
        for (table, name, value) in [
            ("task", "template", serde_json::json!("a \"b\"\n\u{7}{{ x }}")),
            ("task", "input_mappings", serde_json::json!({"a b": "c"})),
            ("sampling", "stop", serde_json::json!(["x", "y"])),
            ("backend", "kind", serde_json::json!("mock")),
        ] {
            settings.set(table, name, value, Origin::Flag("--flag"));
        }
        let text = text(&settings);
        let read: toml::Table = text.parse().unwrap_or_default();
        assert_eq!(read["task"]["template"].as_str(), Some("a \"b\"\n\u{7}{{ x }}"));
        assert_eq!(read["task"]["input_mappings"]["a b"].as_str(), Some("c"));
        assert_eq!(read["sampling"]["stop"].as_array().map(Vec::len), Some(2));
        assert_eq!(read["backend"]["window"].as_integer(), Some(16));
        assert!(text.contains("kind = \"mock\"                                    # --flag"), "{text}");
    }
}
