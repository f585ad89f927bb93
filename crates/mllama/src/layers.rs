//! The building blocks that both towers share: linear layers, norms, and the loader that finds their weights.

use candle_core::{DType, Device, Tensor};
use candle_nn::ops;

use crate::checkpoint::Weights;
use crate::error::Result;

/// Finds weights and puts them where and as they are needed.
pub(crate) struct Loader<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) dtype: DType,
    pub(crate) device: &'a Device,
}

impl Loader<'_> {
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.tensor(name, shape, self.dtype, self.device)
    }

    pub(crate) fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        Ok(Linear { weight: self.tensor(&format!("{name}.weight"), &[outputs, inputs])?, bias: None })
    }

    pub(crate) fn linear_with_bias(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let bias = Some(self.tensor(&format!("{name}.bias"), &[outputs])?);
        Ok(Linear { bias, ..self.linear(name, outputs, inputs)? })
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
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(weight: Tensor) -> Self {
        Self { weight, bias: None }
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
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
