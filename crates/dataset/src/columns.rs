//! [`Column`]: the names and types of an output with a schema, fixed before the first row.
//!
//! Columns of the input come from its own schema, or from its first rows. What a later row has besides, or what does
//! not fit, is never lost and never stops the run: it stands as JSON text in the column [`UNFIT`].

use std::fmt;
use std::str::FromStr;

use arrow_schema::DataType;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use vgen_core::Row;

/// The column of what fits in no other: a JSON object of names and values.
pub const UNFIT: &str = "vgen_unfit";

/// What a column holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// Text.
    Text,
    /// Lists of texts.
    Texts,
    /// Integers of 64 bits.
    Integer,
    /// Floating point numbers.
    Number,
    /// Truth values.
    Boolean,
    /// Anything, as JSON text.
    Json,
    /// `{code, message, hint, attempts}`
    Error,
    /// Lists of errors.
    Errors,
    /// `{bytes, path}`, as the Image feature of Hugging Face data sets.
    Image,
    /// Lists of images.
    Images,
    /// A type of the input's own schema.
    Arrow(DataType),
}

const NAMES: [(&str, ColumnType); 10] = [
    ("text", ColumnType::Text),
    ("texts", ColumnType::Texts),
    ("integer", ColumnType::Integer),
    ("number", ColumnType::Number),
    ("boolean", ColumnType::Boolean),
    ("json", ColumnType::Json),
    ("error", ColumnType::Error),
    ("errors", ColumnType::Errors),
    ("image", ColumnType::Image),
    ("images", ColumnType::Images),
];

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, NAMES.iter().find(|(_, known)| known == self)) {
            (_, Some((name, _))) => f.write_str(name),
            (Self::Arrow(inner), _) => write!(f, "arrow {inner}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for ColumnType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(inner) = text.strip_prefix("arrow ") {
            return inner.parse().map(Self::Arrow).map_err(|_| format!("{inner:?} is no type of Arrow"));
        }
        let known = NAMES.iter().find(|(name, _)| *name == text);
        known.map(|(_, known)| known.clone()).ok_or_else(|| format!("{text:?} is no type of a column"))
    }
}

impl Serialize for ColumnType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ColumnType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A column of an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it holds.
    #[serde(rename = "type")]
    pub kind: ColumnType,
    /// What Hugging Face's `datasets` calls it, if its type does not tell: names of classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feature: Option<Value>,
}

impl Column {
    /// A column.
    pub fn new(name: impl Into<String>, kind: ColumnType) -> Self {
        Self { name: name.into(), kind, feature: None }
    }
}

/// Where the images of the image column go in an output with a schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageStorage {
    /// As the input has them.
    #[default]
    Keep,
    /// Their paths or URLs only.
    Reference,
    /// Their bytes, with the path or URL that they are from.
    Embed,
}

/// The columns of rows without a schema, from some of them: the narrowest type that fits all values.
pub fn infer<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Vec<Column> {
    let mut found: indexmap::IndexMap<String, Option<ColumnType>> = indexmap::IndexMap::new();
    for row in rows {
        for (name, value) in row.iter() {
            let seen = found.entry(name.to_owned()).or_default();
            let kind = match serde_json::from_str(value.get()) {
                Ok(Value::Null) => continue,
                Ok(Value::String(_)) => ColumnType::Text,
                Ok(Value::Bool(_)) => ColumnType::Boolean,
                Ok(Value::Number(number)) if number.is_i64() => ColumnType::Integer,
                Ok(Value::Number(_)) => ColumnType::Number,
                _ => ColumnType::Json,
            };
            *seen = Some(match (seen.take(), kind) {
                (None, kind) => kind,
                (Some(old), kind) if old == kind => kind,
                (Some(ColumnType::Integer), ColumnType::Number) | (Some(ColumnType::Number), ColumnType::Integer) => {
                    ColumnType::Number
                }
                _ => ColumnType::Json,
            });
        }
    }
    // Of a column of nothing but nulls, text is the best guess.
    found.into_iter().map(|(name, kind)| Column::new(name, kind.unwrap_or(ColumnType::Text))).collect()
}

/// Sets how the image column is stored.
pub fn store_images(columns: &mut [Column], image_column: &str, storage: ImageStorage) {
    let Some(column) = columns.iter_mut().find(|column| column.name == image_column) else { return };
    let several = matches!(column.kind, ColumnType::Json | ColumnType::Texts | ColumnType::Images)
        || matches!(column.kind, ColumnType::Arrow(DataType::List(_) | DataType::LargeList(_)));
    column.kind = match (storage, several) {
        (ImageStorage::Keep, _) => return,
        (ImageStorage::Reference, false) => ColumnType::Text,
        (ImageStorage::Reference, true) => ColumnType::Texts,
        (ImageStorage::Embed, false) => ColumnType::Image,
        (ImageStorage::Embed, true) => ColumnType::Images,
    };
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    fn rows(lines: &[&str]) -> Vec<Row> {
        lines.iter().map(|line| Row::from_json(line).unwrap()).collect()
    }

    #[test]
    fn the_narrowest_type_that_fits_all_is_taken() {
        let rows = rows(&[
            r#"{"t":"a","i":1,"n":1,"b":true,"m":1,"z":null,"o":{"x":1}}"#,
            r#"{"t":null,"i":2,"n":1.5,"b":false,"m":"x","late":[1]}"#,
        ]);
        let found: Vec<_> = infer(&rows).into_iter().map(|column| format!("{} {}", column.name, column.kind)).collect();
        assert_eq!(found, ["t text", "i integer", "n number", "b boolean", "m json", "z text", "o json", "late json"]);
    }

    #[test]
    fn types_are_told_as_text_and_back() {
        for (_, kind) in &NAMES {
            assert_eq!(&kind.to_string().parse::<ColumnType>().unwrap(), kind);
        }
        let date = ColumnType::Arrow(DataType::Date32);
        assert_eq!(date.to_string().parse::<ColumnType>().unwrap(), date);
        assert!("nonsense".parse::<ColumnType>().is_err());
    }
}
