//! The config file: TOML, read into [`Settings`]. Unknown tables and keys are errors that name the nearest known one.

use std::path::Path;

use serde_json::{Map, Value};
use vgen_core::Fault;

use crate::keys::{self, BACKENDS, KEYS, TABLES};
use crate::settings::{Origin, Settings};

/// Reads a config file.
///
/// # Errors
/// `config.file`, `config.syntax`, `config.unknown_key`, `config.value`.
pub(crate) fn read(path: &Path) -> Result<Settings, Fault> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Fault::stop("config.file", format!("config {} can't be read: {error}", path.display())))?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Settings, Fault> {
    settings(tables(text, path)?, path)
}

/// The tables of a config file's text.
///
/// # Errors
/// `config.syntax`
pub(crate) fn tables(text: &str, path: &Path) -> Result<toml::Table, Fault> {
    let config = format!("config {}", path.display());
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        Fault::stop("config.syntax", format!("{config} line {line}: {}", error.message()))
    })
}

/// Settings of the tables of a file.
///
/// # Errors
/// `config.unknown_key`, `config.value`
pub(crate) fn settings(tables: toml::Table, path: &Path) -> Result<Settings, Fault> {
    let config = format!("config {}", path.display());
    let mut settings = Settings::default();
    for (table, keys) in tables {
        if !TABLES.contains(&table.as_str()) {
            return Err(unknown(&format!("{config}: unknown table [{table}]"), &table, &TABLES));
        }
        let toml::Value::Table(keys) = keys else {
            return Err(Fault::stop("config.value", format!("{config}: [{table}] is no table")));
        };
        for (name, value) in keys {
            let value = json(value)
                .map_err(|reason| Fault::stop("config.value", format!("{config}: [{table}] {name}: {reason}")))?;
            settings.set(&table, &name, value, Origin::File(path.to_owned()));
        }
    }
    check_keys(&settings, &config)?;
    Ok(settings)
}

fn check_keys(settings: &Settings, config: &str) -> Result<(), Fault> {
    for (table, name, _) in settings.iter().filter(|(table, ..)| *table != "backend") {
        let known: Vec<&str> = KEYS.iter().filter(|key| key.table == table).map(|key| key.name).collect();
        // The task tells apart what distilabel has and vgen needs not from what nobody knows.
        let known_to_task = table == "task" && vgen_task_knows(name);
        if !known.contains(&name) && !known_to_task {
            return Err(unknown(&format!("{config}: unknown key {name:?} in [{table}]"), name, &known));
        }
    }
    let backend = settings.table("backend", &["kind"]);
    let kind = match settings.parse::<String>("backend", "kind")? {
        Some(kind) => kind,
        None if backend.is_empty() => return Ok(()),
        None => {
            let message = format!("{config}: [backend] has no kind");
            return Err(Fault::stop("config.value", message)
                .with_hint(format!("write kind = \"...\", one of {}", BACKENDS.join(", "))));
        }
    };
    let Some(keys) = keys::backend(&kind) else {
        return Err(unknown(&format!("{config}: unknown kind {kind:?} in [backend]"), &kind, &BACKENDS));
    };
    let known: Vec<&str> = keys.iter().map(|key| key.name).collect();
    match backend.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => {
            let message = format!("{config}: unknown key {name:?} in [backend] of kind {kind:?}");
            Err(unknown(&message, name, &known))
        }
        None => Ok(()),
    }
}

fn vgen_task_knows(name: &str) -> bool {
    vgen_task::PARAMETERS.contains(&name)
}

fn unknown(message: &str, name: &str, known: &[&str]) -> Fault {
    let hint = match keys::nearest(name, known.iter().copied()) {
        Some(nearest) => format!("did you mean {nearest:?}?"),
        None => format!("known are {}", known.join(", ")),
    };
    Fault::stop("config.unknown_key", message).with_hint(hint)
}

fn json(value: toml::Value) -> Result<Value, &'static str> {
    Ok(match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => {
            serde_json::Number::from_f64(number).map(Value::Number).ok_or("nan and inf are no values here")?
        }
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(_) => return Err("a date is no value here"),
        toml::Value::Array(list) => Value::Array(list.into_iter().map(json).collect::<Result<_, _>>()?),
        toml::Value::Table(table) => Value::Object(
            table.into_iter().map(|(name, value)| Ok((name, json(value)?))).collect::<Result<Map<_, _>, &str>>()?,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> Fault {
        match parse(text, Path::new("run.toml")) {
            Ok(_) => Fault::stop("none", "no fault"),
            Err(fault) => fault,
        }
    }

    #[test]
    fn unknown_names_say_where_and_what_was_meant() {
        let found = fault("[sampling]\ntemprature = 1.0\n");
        assert_eq!(found.message, "config run.toml: unknown key \"temprature\" in [sampling]");
        assert_eq!(found.hint.as_deref(), Some("did you mean \"temperature\"?"));
        assert_eq!(fault("[samplings]\n").hint.as_deref(), Some("did you mean \"sampling\"?"));
        let found = fault("[backend]\nkind = \"mock\"\nanswr = \"x\"\n");
        assert_eq!(found.message, "config run.toml: unknown key \"answr\" in [backend] of kind \"mock\"");
        assert_eq!(found.hint.as_deref(), Some("did you mean \"answer\"?"));
        assert_eq!(fault("[backend]\nkind = \"moc\"\n").hint.as_deref(), Some("did you mean \"mock\"?"));
        assert_eq!(fault("[backend]\nmodel = \"x\"\n").message, "config run.toml: [backend] has no kind");
    }

    #[test]
    fn syntax_errors_name_the_line() {
        let found = fault("[input]\npath = \"x\"\n\nlimit = = 3\n");
        assert_eq!(found.code, "config.syntax");
        assert!(found.message.starts_with("config run.toml line 4: "), "{}", found.message);
    }
}
