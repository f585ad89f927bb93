//! The tensors of a checkpoint, by memory map.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorInfo};
use vgen_kernels::quant::BlockFormat;

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::tensors::TensorSpec;

/// How a file holds a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks that there are kernels for.
    Block(BlockFormat),
    /// Other blocks of GGUF files: they are read as f32.
    Other(GgmlDType),
}

impl Stored {
    /// Values that belong together.
    pub(crate) fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Block(format) => format.block_len(),
            Self::Other(dtype) => dtype.block_size(),
        }
    }

    /// Bytes of a row of `len` values, a multiple of the block.
    pub(crate) fn row_bytes(self, len: usize) -> usize {
        match self {
            Self::F32 => 4 * len,
            Self::F16 | Self::Bf16 => 2 * len,
            Self::Block(format) => format.row_bytes(len),
            Self::Other(dtype) => len / dtype.block_size() * dtype.type_size(),
        }
    }
}

/// The bytes of a file.
pub(crate) enum Bytes {
    Map(Mmap),
    Memory(Cow<'static, [u8]>),
}

impl Bytes {
    #[expect(unsafe_code, reason = "memory maps of weights are the one place where this crate needs it")]
    pub(crate) fn map(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: a map is only sound while nobody changes the file under it. Weights are read-only inputs of a run;
        // rewriting them in place while vgen runs is outside of what any loader of mapped weights can defend against.
        unsafe { Mmap::map(&file) }.map(Self::Map)
    }

    /// Says that a part won't be needed soon: its pages needn't stay in memory.
    #[expect(unsafe_code, reason = "as for the map itself")]
    fn release(&self, start: usize, len: usize) {
        if let Self::Map(map) = self {
            // SAFETY: the map is of a file and read only, so dropped pages come back from the file as they were.
            // A system that can't do it keeps the pages, which is no error.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
        }
    }
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

/// A safetensors file.
pub(crate) struct Shard {
    name: String,
    bytes: Bytes,
    tensors: HashMap<String, TensorInfo>,
    /// Where the tensors' data starts.
    data: usize,
}

impl Shard {
    pub(crate) fn open(bytes: Bytes, name: String) -> Result<Self> {
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

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Place {
    file: usize,
    start: usize,
    len: usize,
    shape: Vec<usize>,
    /// An error names the type that can't be read.
    stored: Result<Stored, String>,
    row_order: RowOrder,
}

/// In which order a file has the rows of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As the hub's checkpoints.
    Hub,
    /// The two halves of each of so many heads interleaved, as llama.cpp's converter leaves queries and keys.
    Interleaved { heads: usize },
}

impl RowOrder {
    /// The file's row that holds row `row` of `rows`.
    pub(crate) fn stored_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Hub => row,
            Self::Interleaved { heads } => {
                let d = rows / heads;
                let (head, half, i) = (row / d, row % d / (d / 2), row % (d / 2));
                head * d + 2 * i + half
            }
        }
    }
}

/// The tensors of a checkpoint, read when asked for.
pub struct Weights {
    files: Vec<(String, Source)>,
    index: HashMap<String, Place>,
}

enum Source {
    Shard(Bytes),
    Gguf(Arc<Gguf>),
}

impl Source {
    fn bytes(&self) -> &Bytes {
        match self {
            Self::Shard(bytes) => bytes,
            Self::Gguf(gguf) => gguf.bytes(),
        }
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({} tensors in {} files)", self.index.len(), self.files.len())
    }
}

/// A tensor as it lies in the file: row-major little-endian values or blocks of them.
pub struct RawTensor<'a> {
    /// Lengths of the axes.
    pub shape: &'a [usize],
    /// How values are held.
    pub stored: Stored,
    /// The values.
    pub bytes: Cow<'a, [u8]>,
    row_order: RowOrder,
    rows: usize,
}

impl Weights {
    pub(crate) fn from_shards(shards: Vec<Shard>) -> Result<Self> {
        let mut index = HashMap::new();
        for (file, shard) in shards.iter().enumerate() {
            for (name, info) in &shard.tensors {
                let (start, end) = info.data_offsets;
                let stored = match info.dtype {
                    Dtype::F32 => Ok(Stored::F32),
                    Dtype::BF16 => Ok(Stored::Bf16),
                    Dtype::F16 => Ok(Stored::F16),
                    other => Err(format!("{other:?}")),
                };
                let place = Place {
                    file,
                    start: shard.data + start,
                    len: end - start,
                    shape: info.shape.clone(),
                    stored,
                    row_order: RowOrder::Hub,
                };
                index.insert(hub_name(name), place);
            }
        }
        Ok(Self { files: shards.into_iter().map(|shard| (shard.name, Source::Shard(shard.bytes))).collect(), index })
    }

    pub(crate) fn from_gguf(gguf: Arc<Gguf>) -> Result<Self> {
        let index = gguf
            .tensors()?
            .into_iter()
            .map(|tensor| {
                let place = Place {
                    file: 0,
                    start: tensor.start,
                    len: tensor.len,
                    shape: tensor.shape,
                    stored: Ok(tensor.stored),
                    row_order: tensor.row_order,
                };
                (tensor.name, place)
            })
            .collect();
        Ok(Self { files: vec![(gguf.name().to_owned(), Source::Gguf(gguf))], index })
    }

    /// Checks that every tensor is there with the right shape and a type that can be read, before any is.
    pub fn check(&self, specs: &[TensorSpec]) -> Result<()> {
        specs.iter().try_for_each(|spec| self.find(&spec.name, &spec.shape).map(|_| ()))
    }

    /// How the file holds a tensor, if it has it.
    pub fn stored(&self, name: &str) -> Option<Stored> {
        self.index.get(name).and_then(|place| place.stored.clone().ok())
    }

    /// A tensor's place, after checking name, shape, type and length.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(&Place, Stored)> {
        let place = self.index.get(name).ok_or_else(|| Error::MissingTensor(name.to_owned()))?;
        let file = || self.files[place.file].0.clone();
        // GGUF files drop axes of length 1 and join those of a convolution; safetensors must agree exactly.
        let same = match self.files[place.file].1 {
            Source::Shard(_) => place.shape == shape,
            Source::Gguf(_) => place.shape.iter().product::<usize>() == shape.iter().product::<usize>(),
        };
        if !same {
            let (found, expected) = (place.shape.clone(), shape.to_vec());
            return Err(Error::Shape { file: file(), name: name.to_owned(), found, expected });
        }
        let stored = match &place.stored {
            Ok(stored) => *stored,
            Err(dtype) => return Err(Error::Dtype { file: file(), name: name.to_owned(), dtype: dtype.clone() }),
        };
        let row: usize = if shape.len() > 1 { shape[1..].iter().product() } else { shape.iter().product() };
        let rows = if shape.len() > 1 { shape[0] } else { 1 };
        if !row.is_multiple_of(stored.block_len()) || rows * stored.row_bytes(row) != place.len {
            let reason = format!("tensor {name} of {stored:?} {shape:?} has {} bytes", place.len);
            return Err(Error::Damaged { file: file(), reason });
        }
        Ok((place, stored))
    }

    /// A tensor's bytes, after checking name, shape and type. Blocks without a kernel come as f32.
    pub fn raw<'a>(&'a self, name: &str, shape: &'a [usize]) -> Result<RawTensor<'a>> {
        let (place, stored) = self.find(name, shape)?;
        let bytes = &self.files[place.file].1.bytes()[place.start..place.start + place.len];
        let rows = if shape.len() > 1 { shape[0] } else { 1 };
        let (stored, bytes) = match stored {
            Stored::Other(dtype) => {
                let values = qtensor_from_ggml(dtype, bytes, shape.to_vec(), &Device::Cpu)?.dequantize(&Device::Cpu)?;
                let values = values.flatten_all()?.to_vec1::<f32>()?;
                (Stored::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
            stored => (stored, Cow::Borrowed(bytes)),
        };
        Ok(RawTensor { shape, stored, bytes, row_order: place.row_order, rows })
    }

    /// Says that a tensor was copied and its pages needn't stay in memory.
    pub(crate) fn release(&self, name: &str) {
        if let Some(place) = self.index.get(name) {
            self.files[place.file].1.bytes().release(place.start, place.len);
        }
    }

    /// A tensor in the wanted type on the wanted device.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let raw = self.raw(name, shape)?;
        let stored = match raw.stored {
            Stored::Bf16 => DType::BF16,
            Stored::F16 => DType::F16,
            _ => return Ok(Tensor::from_vec(raw.to_f32(), shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?),
        };
        if dtype == DType::F32 || raw.row_order != RowOrder::Hub {
            return Ok(Tensor::from_vec(raw.to_f32(), shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?);
        }
        Ok(Tensor::from_raw_buffer(&raw.bytes, stored, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
    }

    /// A tensor's values as f32.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.raw(name, shape)?.to_f32())
    }
}

impl RawTensor<'_> {
    /// Bytes of row `row` of `[rows, ...]`, as stored.
    pub(crate) fn row_bytes(&self, row: usize) -> &[u8] {
        let size = self.bytes.len() / self.rows.max(1);
        let row = self.row_order.stored_row(row, self.rows);
        &self.bytes[row * size..(row + 1) * size]
    }

    /// Row `row` of `[rows, ...]`, widened exactly to f32.
    pub fn row(&self, row: usize, to: &mut [f32]) {
        let bytes = self.row_bytes(row);
        match self.stored {
            Stored::Bf16 => {
                for (to, b) in to.iter_mut().zip(bytes.chunks_exact(2)) {
                    *to = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Stored::F16 => {
                for (to, b) in to.iter_mut().zip(bytes.chunks_exact(2)) {
                    *to = f16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
            Stored::Block(format) => {
                // Lengths were checked when the tensor was found.
                let whole = format.dequantize_row(bytes, to);
                debug_assert!(whole.is_ok());
            }
            Stored::F32 | Stored::Other(_) => {
                for (to, b) in to.iter_mut().zip(bytes.chunks_exact(4)) {
                    *to = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
        }
    }

    /// The values, widened exactly.
    pub fn to_f32(&self) -> Vec<f32> {
        let len: usize = self.shape.iter().product();
        let mut values = vec![0.0; len];
        if self.rows > 0 && len > 0 {
            for (row, to) in values.chunks_exact_mut(len / self.rows).enumerate() {
                self.row(row, to);
            }
        }
        values
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

#[cfg(test)]
mod tests {
    use super::*;

    /// llama.cpp's `permute`: `[heads, 2, d / 2]` becomes `[heads, d / 2, 2]`.
    #[test]
    fn interleaved_rows_are_found() {
        let order = RowOrder::Interleaved { heads: 2 };
        let stored: Vec<_> = (0..8).map(|row| order.stored_row(row, 8)).collect();
        assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
