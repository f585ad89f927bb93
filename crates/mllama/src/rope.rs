//! Rotary positions: RoFormer (Su et al. 2021), rotate-half layout, with Llama 3's stretched wavelengths.

use candle_core::{DType, Device, Tensor};

use crate::attention::Path;
use crate::config::{RopeConfig, RopeScaling, TextConfig};
use crate::error::Result;
use crate::transfer::to_device;

/// Cosines and sines by position, computed in f32 as transformers does.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    inverse_frequencies: Vec<f32>,
}

impl Rope {
    /// The frequencies of a model.
    pub(crate) fn new(config: &TextConfig) -> Self {
        Self { inverse_frequencies: inverse_frequencies(&config.rope, config.head_dim) }
    }

    /// What each frequency is divided by.
    pub(crate) fn factors(&self, config: &TextConfig) -> Vec<f32> {
        let plain = inverse_frequencies(&RopeConfig { scaling: None, ..config.rope.clone() }, config.head_dim);
        plain.iter().zip(&self.inverse_frequencies).map(|(plain, scaled)| plain / scaled).collect()
    }

    /// Cosines and sines of the given positions, each `[positions, head_dim / 2]`.
    pub(crate) fn tables(&self, positions: &[u32], dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        let half = self.inverse_frequencies.len();
        let mut cos = Vec::with_capacity(positions.len() * half);
        let mut sin = Vec::with_capacity(positions.len() * half);
        for &position in positions {
            for &frequency in &self.inverse_frequencies {
                let (s, c) = (position as f32 * frequency).sin_cos();
                cos.push(c);
                sin.push(s);
            }
        }
        let shape = (positions.len(), half);
        let cos = to_device(cos, shape, device)?.to_dtype(dtype)?;
        let sin = to_device(sin, shape, device)?.to_dtype(dtype)?;
        Ok((cos, sin))
    }
}

fn inverse_frequencies(rope: &RopeConfig, head_dim: usize) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|j| {
            // f32 at each step, like torch.
            let inverse = 1.0 / (rope.theta as f32).powf(2.0 * j as f32 / head_dim as f32);
            let scaling = match &rope.scaling {
                None => return inverse,
                Some(RopeScaling::Factors(factors)) => return inverse / factors[j],
                Some(RopeScaling::Llama3(scaling)) => scaling,
            };
            let (low, high) = (scaling.low_freq_factor as f32, scaling.high_freq_factor as f32);
            let original = scaling.original_max_position_embeddings as f32;
            let factor = scaling.factor as f32;
            let wavelength = 2.0 * std::f32::consts::PI / inverse;
            if wavelength < original / high {
                inverse
            } else if wavelength > original / low {
                inverse / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * inverse / factor + smooth * inverse
            }
        })
        .collect()
}

/// Rotates `x` `[tokens, heads, head_dim]` by tables of `[tokens, head_dim / 2]`.
pub(crate) fn rotate(path: Path, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    match path {
        Path::Kernels { .. } => {
            let positions: Vec<u32> = (0..x.dim(0)? as u32).collect();
            Ok(vgen_kernels::tensor::rope(x, cos, sin, &positions)?)
        }
        Path::Portable { operations, .. } => operations.rope(x, cos, sin),
    }
}
