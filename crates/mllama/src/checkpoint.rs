//! The files of a checkpoint: a folder in the hub's layout, the same in memory, or one GGUF file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::weights::{Bytes, Shard, Weights};

/// The files of a checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    files: Files,
}

#[derive(Clone, Debug)]
enum Files {
    Folder(PathBuf),
    Memory(Vec<(Cow<'static, str>, Cow<'static, [u8]>)>),
    Gguf(Arc<Gguf>),
}

impl Checkpoint {
    /// A folder in the hub's layout.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self { files: Files::Folder(path.into()) }
    }

    /// A GGUF file. It stands for the files of the hub's layout, which are made from its metadata.
    ///
    /// # Errors
    /// If the file can't be read, or its header is damaged.
    pub fn gguf(path: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self { files: Files::Gguf(Arc::new(Gguf::open(&path.into())?)) })
    }

    /// Files by name, held in memory.
    pub fn memory(files: impl IntoIterator<Item = (&'static str, &'static [u8])>) -> Self {
        Self { files: Files::Memory(files.into_iter().map(|(n, b)| (Cow::Borrowed(n), Cow::Borrowed(b))).collect()) }
    }

    /// The folder, or what stands for it in messages.
    pub fn name(&self) -> String {
        match &self.files {
            Files::Folder(path) => path.display().to_string(),
            Files::Memory(_) => "(embedded)".to_owned(),
            Files::Gguf(gguf) => gguf.name().to_owned(),
        }
    }

    /// The text of a file, `None` if there is no such file.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        match &self.files {
            Files::Folder(folder) => {
                let path = folder.join(name);
                match std::fs::read_to_string(&path) {
                    Ok(text) => Ok(Some(text)),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(Error::read(path)(e)),
                }
            }
            Files::Memory(files) => {
                let Some((_, bytes)) = files.iter().find(|(n, _)| n == name) else { return Ok(None) };
                let text = String::from_utf8(bytes.to_vec())
                    .map_err(|e| Error::Damaged { file: name.to_owned(), reason: e.to_string() })?;
                Ok(Some(text))
            }
            Files::Gguf(gguf) => gguf.text(name),
        }
    }

    /// The text of a file that must be there.
    pub fn require(&self, name: &str) -> Result<String> {
        self.text(name)?.ok_or_else(|| Error::MissingFile { folder: self.name(), file: name.to_owned() })
    }

    fn open(&self, name: &str) -> Result<Bytes> {
        let missing = || Error::MissingFile { folder: self.name(), file: name.to_owned() };
        match &self.files {
            Files::Folder(folder) => {
                let path = folder.join(name);
                match Bytes::map(&path) {
                    Ok(bytes) => Ok(bytes),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(missing()),
                    Err(e) => Err(Error::read(path)(e)),
                }
            }
            Files::Memory(files) => {
                let (_, bytes) = files.iter().find(|(n, _)| n == name).ok_or_else(missing)?;
                Ok(Bytes::Memory(bytes.clone()))
            }
            Files::Gguf(_) => Err(missing()),
        }
    }

    /// Opens the weight files: one `model.safetensors`, the shards that the index names, or the GGUF file.
    pub fn weights(&self) -> Result<Weights> {
        if let Files::Gguf(gguf) = &self.files {
            return Weights::from_gguf(Arc::clone(gguf));
        }
        #[derive(Deserialize)]
        struct Index {
            weight_map: HashMap<String, String>,
        }
        const INDEX: &str = "model.safetensors.index.json";
        let mut names = match self.text(INDEX)? {
            Some(text) => {
                let index: Index = serde_json::from_str(&text)
                    .map_err(|e| Error::Damaged { file: INDEX.into(), reason: e.to_string() })?;
                index.weight_map.into_values().collect()
            }
            None => vec!["model.safetensors".to_owned()],
        };
        names.sort_unstable();
        names.dedup();
        Weights::from_shards(names.into_iter().map(|name| Shard::open(self.open(&name)?, name)).collect::<Result<_>>()?)
    }
}
