//! [`Settings`]: values by key, each with its origin; later layers override earlier ones.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use vgen_core::Fault;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A flag.
    Flag(&'static str),
    /// The config file.
    File(PathBuf),
    /// The command itself, such as the backend's kind of `vgen-local`.
    Command(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Command(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A value with its origin.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// Values by table and key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    entries: BTreeMap<(String, String), Setting>,
}

impl Settings {
    /// Sets a value over what was there.
    pub(crate) fn set(&mut self, table: &str, name: &str, value: Value, origin: Origin) {
        self.entries.insert((table.to_owned(), name.to_owned()), Setting { value, origin });
    }

    /// Sets a flag's value, if it was given.
    pub(crate) fn flag<T: Serialize>(&mut self, key: (&str, &str), flag: &'static str, value: Option<T>) {
        if let Some(value) = value.and_then(|value| serde_json::to_value(value).ok()) {
            self.set(key.0, key.1, value, Origin::Flag(flag));
        }
    }

    /// As [`Settings::flag`], for flags that may be given several times.
    pub(crate) fn flags<T: Serialize>(&mut self, key: (&str, &str), flag: &'static str, values: Vec<T>) {
        self.flag(key, flag, (!values.is_empty()).then_some(values));
    }

    /// Forgets a value.
    pub(crate) fn unset(&mut self, table: &str, name: &str) {
        self.entries.remove(&(table.to_owned(), name.to_owned()));
    }

    /// Forgets all values of a table.
    pub(crate) fn unset_table(&mut self, table: &str) {
        self.entries.retain(|(its, _), _| its != table);
    }

    /// Lays another layer over this one. A backend of another kind replaces the whole table.
    pub(crate) fn overlay(&mut self, over: Settings) {
        let kind = |settings: &Settings| settings.get("backend", "kind").map(|setting| setting.value.clone());
        if let (Some(old), Some(new)) = (kind(self), kind(&over))
            && old != new
        {
            self.entries.retain(|(table, _), _| table != "backend");
        }
        self.entries.extend(over.entries);
    }

    pub(crate) fn get(&self, table: &str, name: &str) -> Option<&Setting> {
        self.entries.get(&(table.to_owned(), name.to_owned()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str, &Setting)> {
        self.entries.iter().map(|((table, name), setting)| (table.as_str(), name.as_str(), setting))
    }

    /// A value of the wanted type.
    pub(crate) fn parse<T: DeserializeOwned>(&self, table: &str, name: &str) -> Result<Option<T>, Fault> {
        self.parse_with(table, name, |value: T| Ok(value))
    }

    /// A value of the wanted type, checked or converted.
    pub(crate) fn parse_with<T: DeserializeOwned, U>(
        &self,
        table: &str,
        name: &str,
        convert: impl FnOnce(T) -> Result<U, String>,
    ) -> Result<Option<U>, Fault> {
        let Some(setting) = self.get(table, name) else { return Ok(None) };
        let value = serde_json::from_value(setting.value.clone()).map_err(|error| error.to_string());
        value.and_then(convert).map(Some).map_err(|reason| invalid(table, name, &setting.origin, &reason))
    }

    /// All values of a table but some.
    pub(crate) fn table(&self, table: &str, without: &[&str]) -> Map<String, Value> {
        let of_table = self.iter().filter(|(its, name, _)| *its == table && !without.contains(name));
        of_table.map(|(_, name, setting)| (name.to_owned(), setting.value.clone())).collect()
    }

    /// One path or a list of them, each as [`Settings::path`].
    pub(crate) fn paths(&self, table: &str, name: &str) -> Result<Vec<PathBuf>, Fault> {
        let list = self.parse_with(table, name, |value: Value| match value {
            Value::Array(list) => Ok(list),
            one => Ok(vec![one]),
        })?;
        let mut paths = Vec::new();
        for value in list.unwrap_or_default() {
            let mut one = Settings::default();
            if let Some(setting) = self.get(table, name) {
                one.set(table, name, value, setting.origin.clone());
            }
            paths.extend(one.path(table, name)?);
        }
        Ok(paths)
    }

    /// A path: as given on the command line, relative to the config file's folder in one.
    pub(crate) fn path(&self, table: &str, name: &str) -> Result<Option<PathBuf>, Fault> {
        let Some(path) = self.parse::<PathBuf>(table, name)? else { return Ok(None) };
        if path.as_os_str() == "-" {
            return Ok(Some(path));
        }
        let origin = self.get(table, name).map(|setting| &setting.origin);
        Ok(Some(match origin {
            Some(Origin::File(config)) => match config.parent() {
                Some(folder) if folder != Path::new("") => folder.join(path),
                _ => path,
            },
            _ => path,
        }))
    }
}

/// The fault of a value that can't be.
pub(crate) fn invalid(table: &str, name: &str, origin: &Origin, reason: &str) -> Fault {
    let message = match origin {
        Origin::File(path) => format!("config {}: [{table}] {name}: {reason}", path.display()),
        origin => format!("{origin}: {reason}"),
    };
    Fault::stop("config.value", message)
}
