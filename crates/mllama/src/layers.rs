//! The building blocks that both towers share: linear layers, norms, and the loader that finds their weights.

use candle_core::{DType, Device, Tensor};
use candle_nn::ops;
use vgen_kernels::{Epilogue, Format, PackedLinear};

use crate::attention::Path;
use crate::checkpoint::Weights;
use crate::error::Result;

/// Finds weights and puts them where and as they are needed.
pub(crate) struct Loader<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) dtype: DType,
    pub(crate) device: &'a Device,
    pub(crate) path: Path,
}

impl Loader<'_> {
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.tensor(name, shape, self.dtype, self.device)
    }

    /// A table of which only a few rows are used at a time: kept in the type of the file where the device can.
    pub(crate) fn table(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let dtype = match self.path {
            Path::Kernels => self.weights.raw(name, shape)?.dtype,
            Path::Portable => self.dtype,
        };
        self.weights.tensor(name, shape, dtype, self.device)
    }

    pub(crate) fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let name = format!("{name}.weight");
        let shape = [outputs, inputs];
        if self.path == Path::Portable {
            return Ok(Linear::Dense { weight: self.tensor(&name, &shape)?, bias: None });
        }
        let raw = self.weights.raw(&name, &shape)?;
        let weight = PackedLinear::pack_rows(Format::F32, outputs, inputs, |row, to| raw.row(row, to))?;
        Ok(Linear::Packed { weight, bias: None })
    }

    pub(crate) fn linear_with_bias(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let bias_name = format!("{name}.bias");
        Ok(match self.linear(name, outputs, inputs)? {
            Linear::Dense { weight, .. } => Linear::Dense { weight, bias: Some(self.tensor(&bias_name, &[outputs])?) },
            Linear::Packed { weight, .. } => {
                Linear::Packed { weight, bias: Some(self.weights.values(&bias_name, &[outputs])?) }
            }
        })
    }

    /// A layer whose weight has another shape in the file, `[outputs, ...]`.
    pub(crate) fn linear_of_shape(&self, name: &str, shape: &[usize]) -> Result<Linear> {
        let (outputs, inputs) = (shape[0], shape[1..].iter().product());
        Ok(match self.path {
            Path::Portable => {
                Linear::Dense { weight: self.tensor(name, shape)?.reshape((outputs, inputs))?, bias: None }
            }
            Path::Kernels => {
                let values = self.weights.values(name, shape)?;
                Linear::Packed { weight: PackedLinear::pack_f32(&values, outputs, inputs)?, bias: None }
            }
        })
    }

    pub(crate) fn rms_norm(&self, name: &str, size: usize, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: self.tensor(&format!("{name}.weight"), &[size])?, eps })
    }

    pub(crate) fn layer_norm(&self, name: &str, size: usize, eps: f64) -> Result<LayerNorm> {
        let weight = self.tensor(&format!("{name}.weight"), &[size])?;
        Ok(LayerNorm { weight, bias: self.tensor(&format!("{name}.bias"), &[size])?, eps })
    }

    /// The hyperbolic tangent of a gate, which is a scalar.
    pub(crate) fn tanh_gate(&self, name: &str) -> Result<f64> {
        let gate = self.weights.values(name, &[1])?;
        Ok(f64::from(gate[0].tanh()))
    }
}

/// `y = x Wᵀ + b`, `W` of `[outputs, inputs]`.
#[derive(Debug)]
pub(crate) enum Linear {
    /// For candle's product.
    Dense { weight: Tensor, bias: Option<Tensor> },
    /// For the CPU kernels.
    Packed { weight: PackedLinear, bias: Option<Vec<f32>> },
}

impl Linear {
    /// `[rows, inputs]` to `[rows, outputs]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Dense { weight, bias: None } => x.matmul(&weight.t()?)?,
            Self::Dense { weight, bias: Some(bias) } => x.matmul(&weight.t()?)?.broadcast_add(bias)?,
            Self::Packed { weight, bias: None } => weight.forward_tensor(x)?,
            Self::Packed { weight, bias: Some(bias) } => weight.forward_tensor_with(x, Epilogue::Bias(bias))?,
        })
    }

    /// [`Linear::forward`], then the exact GELU.
    pub(crate) fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Packed { weight, bias: Some(bias) } => Ok(weight.forward_tensor_with(x, Epilogue::BiasGelu(bias))?),
            _ => Ok(self.forward(x)?.gelu_erf()?),
        }
    }
}

/// Root-mean-square norm (Zhang & Sennrich 2019). Computed in f32 and cast back before the weight is applied, as in
/// transformers.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// Normalises the last axis of a contiguous tensor.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if x.dtype() == DType::F32 {
            return Ok(ops::rms_norm(x, &self.weight, self.eps as f32)?);
        }
        let wide = x.to_dtype(DType::F32)?;
        let variance = wide.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
        let normed = wide.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        Ok(normed.to_dtype(x.dtype())?.broadcast_mul(&self.weight)?)
    }
}

/// Layer norm (Ba et al. 2016).
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Normalises the last axis of a contiguous tensor.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.weight, &self.bias, self.eps as f32)?)
    }
}

/// `x + gate * y`.
pub(crate) fn add_gated(x: &Tensor, gate: f64, y: &Tensor) -> Result<Tensor> {
    Ok((x + (y * gate)?)?)
}
