//! [`Row`]: one JSON object of a data set, its columns in order and its values untouched.

use std::borrow::Cow;

use indexmap::IndexMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

/// Columns in order. Values are kept as the JSON text they came as, so that what nobody changes leaves as it came:
/// integers of any length, `100.0` apart from `100`, escapes and all.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Row {
    columns: IndexMap<String, Box<RawValue>>,
}

/// Why a text is no row, or a column not of the wanted type.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// Not a JSON object.
    #[error("not a JSON object: {0}")]
    NotAnObject(#[source] serde_json::Error),
    /// The column is missing.
    #[error("column {0:?} is missing")]
    Missing(String),
    /// The column has another type.
    #[error("column {column:?}: {source}")]
    Type {
        /// Which column.
        column: String,
        /// What serde said.
        #[source]
        source: serde_json::Error,
    },
}

impl Row {
    /// An empty row.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses a JSON object. Of a key that is there twice the last value counts, as in Python.
    pub fn from_json(text: &str) -> Result<Self, RowError> {
        serde_json::from_str(text).map_err(RowError::NotAnObject)
    }

    /// The row as one line of JSON.
    pub fn to_json(&self) -> String {
        let mut text = Vec::new();
        self.write_json(&mut text);
        // Names and values are texts, and so is what joins them.
        String::from_utf8(text).unwrap_or_default()
    }

    /// Appends the row as JSON, without a line end.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        for (at, (name, value)) in self.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            // A text always serialises, and a vector takes everything.
            let _ = serde_json::to_writer(&mut *out, name);
            out.push(b':');
            out.extend_from_slice(value.get().as_bytes());
        }
        out.push(b'}');
    }

    /// About how much memory the names and values take, in bytes.
    pub fn size(&self) -> usize {
        self.iter().map(|(name, value)| name.len() + value.get().len()).sum()
    }

    /// Column names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.keys().map(String::as_str)
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.columns.iter().map(|(k, v)| (k.as_str(), v.as_ref()))
    }

    /// How many columns there are.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether there is no column.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Whether the column is there.
    pub fn contains(&self, name: &str) -> bool {
        self.columns.contains_key(name)
    }

    /// A column's JSON text.
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        self.columns.get(name).map(AsRef::as_ref)
    }

    /// A column as a Rust value.
    pub fn parse<T: DeserializeOwned>(&self, name: &str) -> Result<T, RowError> {
        let raw = self.get(name).ok_or_else(|| RowError::Missing(name.to_owned()))?;
        serde_json::from_str(raw.get()).map_err(|source| RowError::Type { column: name.to_owned(), source })
    }

    /// A column's text, if it is a string.
    pub fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        let raw = self.get(name)?.get();
        let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
        if inner.contains('\\') { serde_json::from_str(raw).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
    }

    /// Sets a column: in its place if it exists, at the end otherwise.
    pub fn set<T: Serialize + ?Sized>(&mut self, name: impl Into<String>, value: &T) -> Result<(), RowError> {
        let name = name.into();
        match to_raw_value(value) {
            Ok(raw) => {
                self.columns.insert(name, raw);
                Ok(())
            }
            Err(source) => Err(RowError::Type { column: name, source }),
        }
    }

    /// Sets a column to a JSON text: in its place if it exists, at the end otherwise.
    pub fn set_raw(&mut self, name: impl Into<String>, value: Box<RawValue>) {
        self.columns.insert(name.into(), value);
    }

    /// Takes a column out, the others keep their order.
    pub fn remove(&mut self, name: &str) -> Option<Box<RawValue>> {
        self.columns.shift_remove(name)
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().zip(other.iter()).all(|(a, b)| a.0 == b.0 && a.1.get() == b.1.get())
    }
}

impl FromIterator<(String, Box<RawValue>)> for Row {
    fn from_iter<I: IntoIterator<Item = (String, Box<RawValue>)>>(columns: I) -> Self {
        Self { columns: columns.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_values_leave_as_they_came() {
        let text = r#"{"id":123456789012345678901234567890,"x":100.0,"e":1E+5,"s":"a\u0041","n":null}"#;
        let row = Row::from_json(text).unwrap_or_default();
        assert_eq!(row.to_json(), text);
        assert_eq!(row.text("s").as_deref(), Some("aA"));
        assert_eq!(row.text("x"), None);
    }

    #[test]
    fn set_keeps_the_place_and_remove_the_order() {
        let mut row = Row::from_json(r#"{"a":1,"b":2,"c":3}"#).unwrap_or_default();
        assert!(row.set("b", "x").is_ok());
        row.remove("a");
        assert!(row.set("d", &[1, 2]).is_ok());
        assert_eq!(row.to_json(), r#"{"b":"x","c":3,"d":[1,2]}"#);
    }
}
