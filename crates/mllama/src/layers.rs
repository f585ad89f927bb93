//! The building blocks that both towers share: linear layers, tables, norms, and the loader that finds their weights.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use vgen_kernels::encoder::Affine;
use vgen_kernels::quant::BlockFormat;
use vgen_kernels::tensor::{self as kernels, After, InputNorm, Layer};
use vgen_kernels::{Format, PackedLinear};

use crate::attention::Path;
use crate::error::Result;
use crate::transfer::to_device;
use crate::weight_type::WeightTypes;
use crate::weights::{Stored, Weights};

/// Finds weights and puts them where and as they are needed.
pub(crate) struct Loader<'a> {
    pub(crate) weights: &'a Arc<Weights>,
    pub(crate) types: &'a WeightTypes,
    /// Leave bf16 matrices in the memory map.
    pub(crate) in_place: bool,
    pub(crate) dtype: DType,
    pub(crate) device: &'a Device,
    pub(crate) path: Path,
}

impl Loader<'_> {
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.tensor(name, shape, self.dtype, self.device)
    }

    /// A table `[rows, width]` of which only a few rows are used at a time.
    pub(crate) fn table(&self, name: &str, rows: usize, width: usize) -> Result<Table> {
        let shape = [rows, width];
        let in_map = matches!(self.path, Path::Kernels { .. })
            && !matches!(self.weights.stored(name), Some(Stored::Other(_)) | None);
        let rows = if in_map {
            TableRows::InMap { weights: Arc::clone(self.weights), name: name.to_owned(), shape }
        } else {
            TableRows::Tensor(self.tensor(name, &shape)?)
        };
        Ok(Table { rows, dtype: self.dtype, device: self.device.clone() })
    }

    pub(crate) fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        self.linear_of_shape(&format!("{name}.weight"), &[outputs, inputs])
    }

    pub(crate) fn linear_with_bias(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let mut linear = self.linear(name, outputs, inputs)?;
        linear.bias = Some(self.tensor(&format!("{name}.bias"), &[outputs])?);
        Ok(linear)
    }

    /// A layer whose weight has another shape in the file, `[outputs, ...]`.
    pub(crate) fn linear_of_shape(&self, name: &str, shape: &[usize]) -> Result<Linear> {
        let (outputs, inputs) = (shape[0], shape[1..].iter().product());
        if let Path::Portable { .. } = self.path {
            let weight = self.portable(name, shape, outputs, inputs)?;
            return Ok(Linear { weight, bias: None });
        }
        let raw = self.weights.raw(name, shape)?;
        let stored = self.weights.stored(name).unwrap_or(raw.stored);
        let format = self.types.format(name, stored, inputs);
        let weight = match (format, raw.stored) {
            (Format::Bf16, Stored::Bf16) if self.in_place => {
                let (weights, name) = (Arc::clone(self.weights), name.to_owned());
                Weight::InMap { weights, name, shape: shape.to_vec() }
            }
            (Format::Block(format), Stored::Block(stored)) if format == stored => {
                Weight::Packed(PackedLinear::pack_blocks(format, outputs, inputs, |row| raw.row_bytes(row))?)
            }
            _ => Weight::Packed(PackedLinear::pack_rows(format, outputs, inputs, |row, to| raw.row(row, to))?),
        };
        self.weights.release(name);
        Ok(Linear { weight, bias: None })
    }

    /// A weight for candle's product: quantised if the types say so, else in the type of the activations.
    fn portable(&self, name: &str, shape: &[usize], outputs: usize, inputs: usize) -> Result<Weight> {
        let stored = self.weights.stored(name).unwrap_or(Stored::F32);
        let ggml = match self.types.format(name, stored, inputs) {
            Format::Block(block) if self.types.all.is_some() => ggml_type(block),
            _ => None,
        };
        let Some(ggml) = ggml else {
            return Ok(Weight::Dense(self.tensor(name, shape)?.reshape((outputs, inputs))?, self.path));
        };
        let wide = self.weights.tensor(name, shape, DType::F32, &Device::Cpu)?.reshape((outputs, inputs))?;
        let blocks = QTensor::quantize_onto(&wide, ggml, self.device)?;
        self.weights.release(name);
        Ok(Weight::Quantised(blocks, self.path))
    }

    pub(crate) fn rms_norm(&self, name: &str, size: usize, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: self.tensor(&format!("{name}.weight"), &[size])?, eps, path: self.path })
    }

    pub(crate) fn layer_norm(&self, name: &str, size: usize, eps: f64) -> Result<LayerNorm> {
        let weight = self.tensor(&format!("{name}.weight"), &[size])?;
        Ok(LayerNorm { weight, bias: self.tensor(&format!("{name}.bias"), &[size])?, eps, path: self.path })
    }

    /// The hyperbolic tangent of a gate, which is a scalar.
    pub(crate) fn tanh_gate(&self, name: &str) -> Result<f64> {
        let gate = self.weights.values(name, &[1])?;
        Ok(f64::from(gate[0].tanh()))
    }
}

/// Rows that are looked up.
#[derive(Debug)]
pub(crate) struct Table {
    rows: TableRows,
    dtype: DType,
    device: Device,
}

#[derive(Debug)]
enum TableRows {
    Tensor(Tensor),
    /// Read from the file's memory map.
    InMap {
        weights: Arc<Weights>,
        name: String,
        shape: [usize; 2],
    },
}

impl Table {
    /// The given rows, `[rows, width]`.
    pub(crate) fn rows(&self, rows: &[u32]) -> Result<Tensor> {
        match &self.rows {
            TableRows::Tensor(table) => {
                Ok(table.index_select(&to_device(rows.to_vec(), rows.len(), &self.device)?, 0)?)
            }
            TableRows::InMap { weights, name, shape } => {
                let raw = weights.raw(name, shape)?;
                let width = shape[1];
                let mut values = vec![0.0; rows.len() * width];
                for (row, to) in rows.iter().zip(values.chunks_exact_mut(width)) {
                    if *row as usize >= shape[0] {
                        let message = format!("row {row} of {name}, which has {}", shape[0]);
                        return Err(candle_core::Error::Msg(message).bt().into());
                    }
                    raw.row(*row as usize, to);
                }
                Ok(Tensor::from_vec(values, (rows.len(), width), &self.device)?.to_dtype(self.dtype)?)
            }
        }
    }
}

/// `y = x Wᵀ + b`, `W` of `[outputs, inputs]`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum Weight {
    /// For candle's product.
    Dense(Tensor, Path),
    /// For candle's product with blocks of few bits, which takes and gives f32.
    Quantised(QTensor, Path),
    /// For the CPU kernels.
    Packed(PackedLinear),
    /// In the file's memory map; packed part by part whenever it is used.
    InMap { weights: Arc<Weights>, name: String, shape: Vec<usize> },
}

/// Outputs of a mapped weight that are packed at a time.
const MAPPED_OUTPUTS: usize = 256;

impl Linear {
    /// `[rows, inputs]` to `[rows, outputs]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [y] = Self::forward_each([self], x)?;
        Ok(y)
    }

    /// Several layers of the same input, which the CPU kernels round or quantise once for all.
    pub(crate) fn forward_each<const N: usize>(layers: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        products(None, layers, After::Nothing, x)
    }

    /// `h + gate * forward(x)`.
    pub(crate) fn forward_residual(&self, path: Path, x: &Tensor, h: &Tensor, gate: f64) -> Result<Tensor> {
        match self.packed_with(After::Residual { h, gate: gate as f32 }) {
            Some(layer) => Ok(kernels::linear_each(x, None, &[layer])?.swap_remove(0)),
            None => add_gated(path, h, gate, &self.forward(x)?),
        }
    }

    /// For the CPU kernels, if the weight is packed.
    pub(crate) fn packed(&self) -> Option<Affine<'_, &Tensor>> {
        match &self.weight {
            Weight::Packed(linear) => Some(Affine { linear, bias: self.bias.as_ref() }),
            _ => None,
        }
    }

    /// The same, with what comes then.
    fn packed_with<'a>(&'a self, after: After<'a>) -> Option<Layer<'a>> {
        self.packed().map(|Affine { linear, bias }| Layer { linear, bias, after })
    }

    /// `wide` is `x` in f32, where other layers need it too.
    fn alone(&self, x: &Tensor, wide: Option<&Tensor>) -> Result<Tensor> {
        let y = match &self.weight {
            Weight::Packed(weight) => weight.forward_tensor(x)?,
            Weight::Dense(weight, path) => path.product(x, weight)?,
            Weight::Quantised(weight, path) => {
                let wide = wide.map_or_else(|| x.to_dtype(DType::F32), |wide| Ok(wide.clone()))?;
                path.quantised(&wide, weight)?.to_dtype(x.dtype())?
            }
            Weight::InMap { .. } => return self.mapped(x, After::Nothing),
        };
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(bias)?),
            None => Ok(y),
        }
    }

    /// From the memory map, some outputs at a time: the same bits as with the weight packed whole. `after` is no residual.
    fn mapped(&self, x: &Tensor, after: After<'_>) -> Result<Tensor> {
        let Weight::InMap { weights, name, shape } = &self.weight else { return self.alone(x, None) };
        let raw = weights.raw(name, shape)?;
        let (outputs, inputs) = (shape[0], shape[1..].iter().product());
        let rows = x.dim(0)?;
        let mut y = vec![0.0; rows * outputs];
        for first in (0..outputs).step_by(MAPPED_OUTPUTS) {
            let here = MAPPED_OUTPUTS.min(outputs - first);
            let linear = &PackedLinear::pack_rows(Format::Bf16, here, inputs, |row, to| raw.row(first + row, to))?;
            let bias = self.bias.as_ref().map(|bias| bias.narrow(0, first, here)).transpose()?;
            let part = kernels::linear_each(x, None, &[Layer { linear, bias: bias.as_ref(), after }])?.swap_remove(0);
            kernels::with_slice(&part, |part| {
                for (y, part) in y.chunks_exact_mut(outputs).zip(part.chunks_exact(here)) {
                    y[first..first + here].copy_from_slice(part);
                }
                Ok(())
            })?;
        }
        Ok(Tensor::from_vec(y, (rows, outputs), x.device())?)
    }
}

/// Several layers of the same input, after its norm; `after` is no residual.
fn products<const N: usize>(
    norm: Option<&dyn Norm>,
    layers: [&Linear; N],
    after: After<'_>,
    x: &Tensor,
) -> Result<[Tensor; N]> {
    let packed: Option<Vec<Layer<'_>>> = layers.iter().map(|layer| layer.packed_with(after)).collect();
    let outs = match packed {
        Some(packed) => kernels::linear_each(x, norm.map(Norm::of_input), &packed)?,
        None => {
            let normed = norm.map(|norm| norm.forward(x)).transpose()?;
            let x = normed.as_ref().unwrap_or(x);
            let wide = match layers.iter().any(|layer| matches!(layer.weight, Weight::Quantised(..))) {
                true => Some(x.to_dtype(DType::F32)?),
                false => None,
            };
            let alone = |layer: &&Linear| match (after, &layer.weight) {
                (After::Gelu, Weight::Dense(..) | Weight::Quantised(..)) => {
                    Ok(layer.alone(x, wide.as_ref())?.gelu_erf()?)
                }
                (after, Weight::InMap { .. }) => layer.mapped(x, after),
                (After::Gelu, _) => Ok(kernels::gelu_erf(&layer.alone(x, None)?)?),
                _ => layer.alone(x, wide.as_ref()),
            };
            layers.iter().map(alone).collect::<Result<Vec<_>>>()?
        }
    };
    let wrong = |outs: Vec<Tensor>| candle_core::Error::Msg(format!("{} products of {N}", outs.len())).bt().into();
    outs.try_into().map_err(wrong)
}

/// candle's name of blocks that its product takes.
fn ggml_type(block: BlockFormat) -> Option<GgmlDType> {
    match block {
        BlockFormat::Q8_0 => Some(GgmlDType::Q8_0),
        BlockFormat::Q4K => Some(GgmlDType::Q4K),
        BlockFormat::Q4_1 => Some(GgmlDType::Q4_1),
        _ => None,
    }
}

/// A norm of the last axis of a contiguous tensor.
pub(crate) trait Norm {
    /// Of the tensor.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// As the CPU kernels take it of a product's input.
    fn of_input(&self) -> InputNorm<'_>;

    /// Layers of the norm of `x`.
    fn then<const N: usize>(&self, layers: [&Linear; N], x: &Tensor) -> Result<[Tensor; N]>
    where
        Self: Sized,
    {
        products(Some(self), layers, After::Nothing, x)
    }

    /// A layer of the norm of `x`, then the exact GELU.
    fn then_gelu(&self, layer: &Linear, x: &Tensor) -> Result<Tensor>
    where
        Self: Sized,
    {
        let [y] = products(Some(self), [layer], After::Gelu, x)?;
        Ok(y)
    }
}

/// Root-mean-square norm (Zhang & Sennrich 2019).
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f64,
    path: Path,
}

impl Norm for RmsNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.path {
            Path::Kernels { .. } => Ok(kernels::rms_norm(x, &self.weight, self.eps as f32)?),
            Path::Portable { operations, .. } => operations.rms_norm(x, &self.weight, self.eps),
        }
    }

    fn of_input(&self) -> InputNorm<'_> {
        InputNorm::Rms { weight: &self.weight, eps: self.eps as f32 }
    }
}

/// Layer norm (Ba et al. 2016).
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    path: Path,
}

impl Norm for LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.path {
            Path::Kernels { .. } => Ok(kernels::layer_norm(x, &self.weight, &self.bias, self.eps as f32)?),
            Path::Portable { operations, .. } => operations.layer_norm(x, &self.weight, &self.bias, self.eps),
        }
    }

    fn of_input(&self) -> InputNorm<'_> {
        InputNorm::Layer { weight: &self.weight, bias: &self.bias, eps: self.eps as f32 }
    }
}

/// `x + gate * y`.
fn add_gated(path: Path, x: &Tensor, gate: f64, y: &Tensor) -> Result<Tensor> {
    match path {
        Path::Kernels { .. } => Ok(kernels::add_gated(x, y, gate as f32, None)?),
        Path::Portable { .. } if gate == 1.0 => Ok((x + y)?),
        Path::Portable { .. } => Ok((x + (y * gate)?)?),
    }
}

/// `silu(gate) * up`.
pub(crate) fn silu_mul(path: Path, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match path {
        Path::Kernels { .. } => Ok(kernels::silu_mul(gate, up)?),
        Path::Portable { .. } => Ok((candle_nn::ops::silu(gate)? * up)?),
    }
}
