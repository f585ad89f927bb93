//! [`StoredImages`]: a sink whose rows have their images as references, or as the bytes of their files.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use vgen_core::{Fault, Row};

use crate::{DatasetError, ImageStorage, Mark, RowSink};

/// Longer texts are no paths.
const LONGEST_PATH: usize = 1024;

/// Gets the bytes of a URL on the network; `None` if they can't be had.
pub type FetchImage = Arc<dyn Fn(&str) -> Option<Arc<[u8]>> + Send + Sync>;

/// How the images of a column are stored, and where their bytes come from.
#[derive(Clone)]
pub struct ImageColumn {
    /// The column's name.
    pub column: String,
    /// How.
    pub storage: ImageStorage,
    /// What relative paths are relative to.
    pub folder: Option<PathBuf>,
    /// For URLs; without it they stay as they are.
    pub fetch: Option<FetchImage>,
}

/// Changes the image column of every row before it goes to another sink.
pub struct StoredImages<S> {
    sink: S,
    images: ImageColumn,
}

impl<S: RowSink> StoredImages<S> {
    /// In front of `sink`.
    pub fn new(sink: S, images: ImageColumn) -> Self {
        Self { sink, images }
    }
}

impl ImageColumn {
    /// The row as it is stored.
    fn stored(&self, row: &Row) -> Result<Option<Row>, Fault> {
        let Some(value) = row.get(&self.column) else { return Ok(None) };
        let Ok(value) = serde_json::from_str(value.get()) else { return Ok(None) };
        let one = |value| match self.storage {
            ImageStorage::Keep => value,
            ImageStorage::Reference => reference(value),
            ImageStorage::Embed => self.embedded(value),
        };
        let value = match value {
            Value::Array(items) => Value::Array(items.into_iter().map(one).collect()),
            value => one(value),
        };
        let mut row = row.clone();
        row.set(self.column.as_str(), &value)
            .map_err(|error| DatasetError::OutputRow { name: self.column.clone(), what: error.to_string() })?;
        Ok(Some(row))
    }

    /// `{bytes, path}`. An image whose bytes can't be had stays as it was: the row's error says why.
    fn embedded(&self, value: Value) -> Value {
        let given = match &value {
            Value::String(text) => text,
            Value::Object(object) if object.get("bytes").is_none_or(Value::is_null) => {
                match object.get("path").or_else(|| object.get("url")).and_then(Value::as_str) {
                    Some(text) => text,
                    None => return value,
                }
            }
            _ => return value,
        };
        if let Some((_, encoded)) = given.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
            return json!({"bytes": encoded, "path": null});
        }
        match self.bytes(given) {
            Some(bytes) => json!({"bytes": STANDARD.encode(bytes), "path": given}),
            None if given.len() > LONGEST_PATH => json!({"bytes": given, "path": null}),
            None => value,
        }
    }

    fn bytes(&self, given: &str) -> Option<Arc<[u8]>> {
        if given.contains("://") {
            return self.fetch.as_ref()?(given);
        }
        if given.len() > LONGEST_PATH {
            return None;
        }
        let path = self.folder.as_ref().map_or_else(|| PathBuf::from(given), |folder| folder.join(given));
        std::fs::read(path).ok().map(Arc::from)
    }
}

/// What was given, without bytes.
fn reference(value: Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("data:") || text.len() > LONGEST_PATH => Value::Null,
        Value::String(text) => Value::String(text),
        Value::Object(mut object) => object.remove("path").or_else(|| object.remove("url")).unwrap_or(Value::Null),
        _ => Value::Null,
    }
}

impl<S: RowSink> RowSink for StoredImages<S> {
    fn write(&mut self, number: u64, rows: &[Row]) -> Result<(), Fault> {
        let mut stored = Vec::with_capacity(rows.len());
        for row in rows {
            stored.push(self.images.stored(row)?.unwrap_or_else(|| row.clone()));
        }
        self.sink.write(number, &stored)
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.sink.flush()
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.sink.finish()
    }

    fn mark(&self) -> Option<Mark> {
        self.sink.mark()
    }

    fn end(&self) -> Option<Mark> {
        self.sink.end()
    }

    fn unsynced(&mut self) -> Vec<Arc<File>> {
        self.sink.unsynced()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    fn stored(storage: ImageStorage, value: Value) -> Value {
        let fetch: FetchImage = Arc::new(|url| (url == "https://a/b.png").then(|| Arc::from(&b"net"[..])));
        let folder = Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")));
        let images = ImageColumn { column: "image".to_owned(), storage, folder, fetch: Some(fetch) };
        let mut row = Row::new();
        row.set("image", &value).unwrap();
        images.stored(&row).unwrap().unwrap().parse("image").unwrap()
    }

    #[test]
    fn images_become_bytes_or_references() {
        let embed = |value| stored(ImageStorage::Embed, value);
        let net = json!({"bytes": "bmV0", "path": "https://a/b.png"});
        assert_eq!(embed(json!("https://a/b.png")), net);
        assert_eq!(embed(json!({"bytes": null, "path": "https://a/b.png"})), net);
        assert_eq!(
            embed(json!([{"url": "https://a/b.png"}, "https://a/none.png"])),
            json!([net, "https://a/none.png"])
        );
        assert_eq!(embed(net.clone()), net);
        assert_eq!(embed(json!("data:image/png;base64,AAAA")), json!({"bytes": "AAAA", "path": null}));
        let file = embed(json!("Cargo.toml"));
        assert_eq!(file["path"], "Cargo.toml");
        assert!(file["bytes"].as_str().unwrap().len() > 100);
        assert_eq!(embed(json!("none.png")), json!("none.png"));
        assert_eq!(embed(Value::Null), Value::Null);

        let reference = |value| stored(ImageStorage::Reference, value);
        assert_eq!(reference(net), json!("https://a/b.png"));
        assert_eq!(reference(json!(["a.png", "data:image/png;base64,AAAA"])), json!(["a.png", null]));
    }
}
