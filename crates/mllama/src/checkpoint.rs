//! The files of a checkpoint in the hub's layout, in a folder or in memory, and its tensors by memory map.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorInfo};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::tensors::TensorSpec;

/// The files of a checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    files: Files,
}

#[derive(Clone, Debug)]
enum Files {
    Folder(PathBuf),
    Memory(Vec<(Cow<'static, str>, Cow<'static, [u8]>)>),
}

impl Checkpoint {
    /// A folder in the hub's layout.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self { files: Files::Folder(path.into()) }
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
                match map(&path) {
                    Ok(map) => Ok(Bytes::Map(map)),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(missing()),
                    Err(e) => Err(Error::read(path)(e)),
                }
            }
            Files::Memory(files) => {
                let (_, bytes) = files.iter().find(|(n, _)| n == name).ok_or_else(missing)?;
                Ok(Bytes::Memory(bytes.clone()))
            }
        }
    }

    /// Opens the weight files: one `model.safetensors`, or the shards that the index names.
    pub fn weights(&self) -> Result<Weights> {
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
        let shards = names.into_iter().map(|name| Shard::open(self.open(&name)?, name)).collect::<Result<Vec<_>>>()?;
        let mut index = HashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            index.extend(shard.tensors.keys().map(|name| (hub_name(name), (i, name.clone()))));
        }
        Ok(Weights { shards, index })
    }
}

/// The name that the hub's checkpoints use for a tensor, whichever version of transformers wrote it.
fn hub_name(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("model.language_model.") {
        format!("language_model.model.{rest}")
    } else if let Some(rest) = name.strip_prefix("model.vision_model.") {
        format!("vision_model.{rest}")
    } else if let Some(rest) = name.strip_prefix("model.multi_modal_projector.") {
        format!("multi_modal_projector.{rest}")
    } else if name.starts_with("model.") || name == "lm_head.weight" {
        format!("language_model.{name}")
    } else {
        name.to_owned()
    }
}

#[expect(unsafe_code, reason = "memory maps of weights are the one place where this crate needs it")]
fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: a map is only sound while nobody changes the file under it. Weights are read-only inputs of a run;
    // rewriting them in place while vgen runs is outside of what any loader of mapped weights can defend against.
    unsafe { Mmap::map(&file) }
}

enum Bytes {
    Map(Mmap),
    Memory(Cow<'static, [u8]>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Map(map) => map,
            Bytes::Memory(bytes) => bytes,
        }
    }
}

struct Shard {
    name: String,
    bytes: Bytes,
    /// Where the tensors' data starts.
    data: usize,
    tensors: HashMap<String, TensorInfo>,
}

impl Shard {
    fn open(bytes: Bytes, name: String) -> Result<Self> {
        let damaged = |reason: String| Error::Damaged { file: name.clone(), reason };
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(e.to_string()))?;
        let tensors: HashMap<_, _> = metadata.tensors().into_iter().map(|(n, info)| (n, info.clone())).collect();
        let data = header + size_of::<u64>();
        let end = tensors.values().map(|info| info.data_offsets.1).max().unwrap_or(0);
        if bytes.len() - data < end {
            let have = bytes.len() - data;
            return Err(damaged(format!("truncated: the header promises {end} bytes of tensors, the file has {have}")));
        }
        Ok(Self { bytes, data, tensors, name })
    }
}

/// The tensors of a checkpoint, read when asked for.
pub struct Weights {
    shards: Vec<Shard>,
    index: HashMap<String, (usize, String)>,
}

/// A tensor as it lies in the file: row-major little-endian values.
pub struct RawTensor<'a> {
    /// Lengths of the axes.
    pub shape: &'a [usize],
    /// Type of the values.
    pub dtype: DType,
    /// The values.
    pub bytes: &'a [u8],
}

impl Weights {
    /// Checks that every tensor is there with the right shape and a type that can be read, before any is.
    pub fn check(&self, specs: &[TensorSpec]) -> Result<()> {
        specs.iter().try_for_each(|spec| self.raw(&spec.name, &spec.shape).map(|_| ()))
    }

    /// Bytes of all tensors together, as stored.
    pub fn stored_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| (shard.bytes.len() - shard.data) as u64).sum()
    }

    /// A tensor's bytes, after checking name, shape and type.
    pub fn raw(&self, name: &str, shape: &[usize]) -> Result<RawTensor<'_>> {
        let (shard, info) = self
            .index
            .get(name)
            .and_then(|(shard, stored)| {
                let shard = &self.shards[*shard];
                shard.tensors.get(stored).map(|info| (shard, info))
            })
            .ok_or_else(|| Error::MissingTensor(name.to_owned()))?;
        let file = || shard.name.clone();
        if info.shape != shape {
            return Err(Error::Shape {
                file: file(),
                name: name.to_owned(),
                found: info.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            other => {
                return Err(Error::Dtype { file: file(), name: name.to_owned(), dtype: format!("{other:?}") });
            }
        };
        let (start, end) = info.data_offsets;
        Ok(RawTensor { shape: &info.shape, dtype, bytes: &shard.bytes[shard.data + start..shard.data + end] })
    }

    /// A tensor in the wanted type on the wanted device.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let raw = self.raw(name, shape)?;
        if dtype == DType::F32 {
            return Ok(Tensor::from_vec(raw.to_f32(), shape, device)?);
        }
        Ok(Tensor::from_raw_buffer(raw.bytes, raw.dtype, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
    }

    /// A tensor's values as f32.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.raw(name, shape)?.to_f32())
    }
}

impl RawTensor<'_> {
    /// Row `row` of a matrix, widened exactly to f32.
    pub fn row(&self, row: usize, to: &mut [f32]) {
        let size = self.dtype.size_in_bytes();
        let bytes = &self.bytes[row * to.len() * size..(row + 1) * to.len() * size];
        match self.dtype {
            DType::BF16 => {
                for (to, b) in to.iter_mut().zip(bytes.chunks_exact(2)) {
                    *to = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            DType::F16 => {
                for (to, b) in to.iter_mut().zip(bytes.chunks_exact(2)) {
                    *to = f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            _ => {
                for (to, b) in to.iter_mut().zip(bytes.chunks_exact(4)) {
                    *to = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
        }
    }

    /// The values, widened exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.bytes.len() / self.dtype.size_in_bytes()];
        self.row(0, &mut values);
        values
    }
}
