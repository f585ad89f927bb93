//! [`Entry`]: a backend of a bench, from a flag's text or a `[[backend]]` of the config file.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use vgen_core::Fault;
use vgen_run::bench::Prices;

use crate::config_file;
use crate::settings::{Origin, Settings};

/// What `[[backend]]` says besides the keys of `[backend]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Extras {
    pub(super) name: Option<String>,
    pub(super) prices: Prices,
    pub(super) batch_sizes: Vec<usize>,
    pub(super) virtual_time: bool,
}

const EXTRAS: [&str; 4] = ["name", "prices", "batch_sizes", "virtual_time"];

/// A backend of the plan.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) extras: Extras,
    /// `[backend]` alone.
    pub(super) settings: Settings,
}

impl Entry {
    pub(super) fn kind(&self) -> &str {
        self.settings.get("backend", "kind").and_then(|kind| kind.value.as_str()).unwrap_or_default()
    }

    /// A `[[backend]]`.
    pub(super) fn of_table(mut table: toml::Table, path: &Path) -> Result<Self, Fault> {
        let extras: toml::Table =
            EXTRAS.iter().filter_map(|name| Some(((*name).to_owned(), table.remove(*name)?))).collect();
        let extras = extras.try_into().map_err(|error: toml::de::Error| {
            Fault::stop("config.value", format!("config {}: [backend]: {}", path.display(), error.message()))
        })?;
        let one = toml::Table::from_iter([("backend".to_owned(), toml::Value::Table(table))]);
        Ok(Self { extras, settings: config_file::settings(one, path)? })
    }

    /// A backend from a flag's text: its chief key, then `KEY=VALUE` after commas.
    pub(super) fn of_flag(flag: &'static str, kind: &str, key: &str, spec: &str) -> Result<Self, Fault> {
        let wrong = |message: String| {
            Fault::stop("usage.bench", format!("{flag} {spec}: {message}")).with_hint("write MODEL,key=value,key=value")
        };
        let (chief, mut rest) = match spec.split_once(',') {
            Some((chief, rest)) => (chief, Some(rest)),
            None => (spec, None),
        };
        let (mut settings, mut extras) = (Settings::default(), Map::new());
        settings.set("backend", "kind", json!(kind), Origin::Flag(flag));
        settings.set("backend", key, json!(chief), Origin::Flag(flag));
        while let Some(text) = rest {
            let none = || wrong(format!("{:?} has no value", text.split(',').next().unwrap_or_default()));
            let (name, text) = text.split_once('=').filter(|(name, _)| !name.contains(',')).ok_or_else(none)?;
            let (value, after) = value(text);
            rest = after;
            match name.split_once('.') {
                Some((table, name)) if EXTRAS.contains(&table) => {
                    match extras.entry(table).or_insert_with(|| json!({})) {
                        Value::Object(inner) => inner.insert(name.to_owned(), value),
                        _ => return Err(wrong(format!("{table} is a value, and {table}.{name} a part of one"))),
                    };
                }
                None if EXTRAS.contains(&name) => {
                    if extras.insert(name.to_owned(), value).is_some() {
                        return Err(wrong(format!("{name} is given twice")));
                    }
                }
                _ => settings.set("backend", name, value, Origin::Flag(flag)),
            }
        }
        let extras = serde_json::from_value(Value::Object(extras)).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { extras, settings })
    }
}

/// The value at the beginning of a text, and what is behind the comma after it. Lists, tables and texts in quotes may have
/// commas in them; what is no TOML is a text without its quotes, up to the first comma.
fn value(text: &str) -> (Value, Option<&str>) {
    let ends = text.match_indices(',').map(|(at, _)| at).chain([text.len()]);
    let parsed = ends.clone().find_map(|end| {
        let mut table = format!("value = {}", &text[..end]).parse::<toml::Table>().ok()?;
        match table.remove("value")? {
            // JSON has none of these: as texts they are read or refused by whoever they are for.
            toml::Value::Datetime(_) => None,
            toml::Value::Float(number) if !number.is_finite() => None,
            value => Some((serde_json::to_value(value).ok()?, end)),
        }
    });
    let enclosed = text.starts_with(['[', '{', '"', '\'']);
    let first = text.find(',').unwrap_or(text.len());
    let (value, end) = parsed.filter(|(_, end)| enclosed || *end == first).unwrap_or((json!(text[..first]), first));
    (value, text.get(end + 1..))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(spec: &str) -> Result<Entry, String> {
        Entry::of_flag("--mock", "mock", "model_name", spec).map_err(|fault| fault.message)
    }

    #[test]
    fn values_may_have_commas() {
        let read = entry(r#"a,refuse=["x", "y"],answer="b, c",service={mean_ms=1.0, servers=2},window=3,faults=[]"#);
        let settings = read.map(|entry| entry.settings.table("backend", &["kind"])).unwrap_or_default();
        let expected = json!({"model_name": "a", "refuse": ["x", "y"], "answer": "b, c",
            "service": {"mean_ms": 1.0, "servers": 2}, "window": 3, "faults": []});
        assert_eq!(Value::Object(settings.into_iter().collect()), expected);
        // A text without quotes ends at a comma, also where it looks like the beginning of something.
        let read = entry("a,answer=it's {prompt},name=b").map(|entry| (entry.extras.name, entry.settings));
        let answer = read.map(|(name, settings)| (name, settings.get("backend", "answer").map(|s| s.value.clone())));
        assert_eq!(answer, Ok((Some("b".to_owned()), Some(json!("it's {prompt}")))));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (spec, message) in [
            ("a,prices=1,prices.per_hour=2", "prices is a value"),
            ("a,name=b,name.c=1", "name is a value"),
            ("a,prices.per_hour=2,prices={per_hour=1}", "prices is given twice"),
            ("a,prices.per_day=2", "per_day"),
            ("a,prices.per_hour=nan", "invalid type"),
            ("a,answer", "\"answer\" has no value"),
            ("a,answer,name=b", "\"answer\" has no value"),
        ] {
            let found = entry(spec).map(|_| ());
            assert!(found.as_ref().is_err_and(|found| found.contains(message)), "{spec}: {found:?}");
        }
    }
}
