//! The kernels on candle tensors: contiguous f32 tensors in CPU memory in, new tensors out.
//!
//! Each function is the kernel of the same name on the tensors' memory, without a copy of the inputs.

use candle_core::{Device, Error, Result, Storage, Tensor};

use crate::attention::{self, CausalSequence, CrossSpan, Heads};
use crate::linear::{Element, Epilogue, PackedLinear};
use crate::{activation, norm};

/// Calls `body` with the elements of a contiguous f32 tensor in CPU memory.
///
/// # Errors
/// If the tensor is of another type or device or not contiguous, or `body` fails.
pub fn with_slice<T>(tensor: &Tensor, body: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::RequiresContiguous { op: "kernel" }.bt());
    };
    match &*storage {
        Storage::Cpu(storage) => body(&storage.as_slice::<f32>()?[start..end]),
        _ => Err(Error::Msg("the CPU kernels take tensors in CPU memory".to_owned()).bt()),
    }
}

/// A new tensor of `x`'s shape filled by `body`.
fn same_shape(x: &Tensor, body: impl FnOnce(&[f32], &mut [f32]) -> Result<()>) -> Result<Tensor> {
    let out = with_slice(x, |x| {
        let mut out = vec![0.0; x.len()];
        body(x, &mut out)?;
        Ok(out)
    })?;
    Tensor::from_vec(out, x.shape(), &Device::Cpu)
}

impl PackedLinear {
    /// `x · weightᵀ` for a tensor `[..., k_in]`; the result is `[..., n_out]`.
    ///
    /// # Errors
    /// If the tensor is no contiguous f32 tensor in CPU memory, or its last size is not `k_in`.
    pub fn forward_tensor(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_tensor_with(x, Epilogue::None)
    }

    /// As [`Self::forward_tensor`], with an epilogue.
    ///
    /// # Errors
    /// As there, and if the epilogue's vector has another length than `n_out`.
    pub fn forward_tensor_with(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        let mut dims = x.dims().to_vec();
        match dims.last_mut() {
            Some(last) if *last == self.k_in() => *last = self.n_out(),
            last => {
                let got = last.map_or(0, |last| *last);
                return Err(crate::Error::Length { what: "a row of x", got, want: self.k_in() }.into());
            }
        }
        let out = with_slice(x, |x| {
            let m = x.len() / self.k_in();
            let mut out = vec![0.0; m * self.n_out()];
            self.forward_with(x, m, &mut out, epilogue)?;
            Ok(out)
        })?;
        Tensor::from_vec(out, dims, &Device::Cpu)
    }
}

/// [`norm::rms_norm`] over the last dimension.
///
/// # Errors
/// If a tensor is no contiguous f32 tensor in CPU memory or the sizes don't fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    with_slice(weight, |weight| same_shape(x, |x, out| Ok(norm::rms_norm(x, weight, eps, out)?)))
}

/// [`norm::layer_norm`] over the last dimension.
///
/// # Errors
/// If a tensor is no contiguous f32 tensor in CPU memory or the sizes don't fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    with_slice(weight, |weight| {
        with_slice(bias, |bias| same_shape(x, |x, out| Ok(norm::layer_norm(x, weight, bias, eps, out)?)))
    })
}

/// [`norm::softmax`] over the last dimension.
///
/// # Errors
/// If the tensor is no contiguous f32 tensor in CPU memory or has no dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(candle_core::D::Minus1)?;
    same_shape(x, |x, out| {
        out.copy_from_slice(x);
        Ok(norm::softmax(out, width)?)
    })
}

/// [`activation::gelu_erf`].
///
/// # Errors
/// If the tensor is no contiguous f32 tensor in CPU memory.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    same_shape(x, |x, out| {
        out.copy_from_slice(x);
        activation::gelu_erf(out);
        Ok(())
    })
}

/// [`activation::silu_mul`].
///
/// # Errors
/// If a tensor is no contiguous f32 tensor in CPU memory or the sizes differ.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    with_slice(up, |up| same_shape(gate, |gate, out| Ok(activation::silu_mul(gate, up, out)?)))
}

/// `h + gate · x` on rows of the last dimension, except where `keep` is false: [`activation::add_gated`].
///
/// # Errors
/// If a tensor is no contiguous f32 tensor in CPU memory or the sizes don't fit.
pub fn add_gated(h: &Tensor, x: &Tensor, gate: f32, keep: Option<&[bool]>) -> Result<Tensor> {
    let width = h.dim(candle_core::D::Minus1)?;
    with_slice(x, |x| {
        same_shape(h, |h, out| {
            out.copy_from_slice(h);
            Ok(activation::add_gated(out, x, gate, width, keep)?)
        })
    })
}

/// [`crate::rope::rope`] on `[tokens, heads, d]` with tables `[positions, d / 2]`.
///
/// # Errors
/// If a tensor is no contiguous f32 tensor in CPU memory, the sizes don't fit or a position is beyond the tables.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, positions: &[u32]) -> Result<Tensor> {
    let (_, heads, d) = x.dims3()?;
    with_slice(cos, |cos| {
        with_slice(sin, |sin| {
            same_shape(x, |x, out| {
                out.copy_from_slice(x);
                Ok(crate::rope::rope(out, heads, d, cos, sin, positions)?)
            })
        })
    })
}

/// [`attention::vision_attention`] on `[tokens, heads, d]`.
///
/// # Errors
/// If a tensor is no contiguous f32 tensor in CPU memory or the sizes don't fit.
pub fn vision_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: &Heads,
    key_bias: Option<&[f32]>,
    pad: Option<&[bool]>,
) -> Result<Tensor> {
    with_slice(k, |k| {
        with_slice(v, |v| same_shape(q, |q, out| Ok(attention::vision_attention(q, k, v, heads, key_bias, pad, out)?)))
    })
}

/// [`attention::causal_attention`] on flat queries `[rows, heads, d]`.
///
/// # Errors
/// If `q` is no contiguous f32 tensor in CPU memory or the sizes don't fit.
pub fn causal_attention<T: Element>(q: &Tensor, sequences: &[CausalSequence<'_, T>], heads: &Heads) -> Result<Tensor> {
    same_shape(q, |q, out| Ok(attention::causal_attention(q, sequences, heads, out)?))
}

/// [`attention::cross_attention`] on flat queries `[rows, heads, d]`.
///
/// # Errors
/// If `q` is no contiguous f32 tensor in CPU memory or the sizes don't fit.
pub fn cross_attention<T: Element>(q: &Tensor, spans: &[CrossSpan<'_, T>], heads: &Heads) -> Result<Tensor> {
    same_shape(q, |q, out| Ok(attention::cross_attention(q, spans, heads, out)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;
    use crate::linear::tests::noise;

    fn tensor(dims: &[usize], seed: u64) -> Tensor {
        Tensor::from_vec(noise(dims.iter().product(), seed), dims, &Device::Cpu).unwrap()
    }

    fn same(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in flat(a).iter().zip(flat(b)) {
            assert!((a - b).abs() < 5e-6, "{a} against {b}");
        }
    }

    #[test]
    fn element_wise_steps_agree_with_candle() {
        let (x, y, w, b) = (tensor(&[2, 5, 24], 1), tensor(&[2, 5, 24], 2), tensor(&[24], 3), tensor(&[24], 4));
        same(&gelu_erf(&x).unwrap(), &x.gelu_erf().unwrap());
        same(&silu_mul(&x, &y).unwrap(), &(x.silu().unwrap() * &y).unwrap());
        same(&add_gated(&x, &y, 0.3, None).unwrap(), &(&x + (&y * 0.3).unwrap()).unwrap());
        let e = x.exp().unwrap();
        same(&softmax(&x).unwrap(), &e.broadcast_div(&e.sum_keepdim(2).unwrap()).unwrap());
        let mean = x.mean_keepdim(2).unwrap();
        let centred = x.broadcast_sub(&mean).unwrap();
        let norm = |x: &Tensor| {
            let factor = (x.sqr().unwrap().mean_keepdim(2).unwrap() + 1e-5).unwrap().sqrt().unwrap();
            x.broadcast_div(&factor).unwrap().broadcast_mul(&w).unwrap()
        };
        same(&rms_norm(&x, &w, 1e-5).unwrap(), &norm(&x));
        same(&layer_norm(&x, &w, &b, 1e-5).unwrap(), &norm(&centred).broadcast_add(&b).unwrap());
    }

    #[test]
    fn what_is_no_contiguous_f32_tensor_is_an_error() {
        let x = tensor(&[4, 6], 5);
        assert!(gelu_erf(&x.t().unwrap()).is_err());
        assert!(gelu_erf(&x.to_dtype(candle_core::DType::F64).unwrap()).is_err());
        // A part that starts later in its storage is fine.
        let part = x.narrow(0, 2, 2).unwrap();
        same(&gelu_erf(&part).unwrap(), &part.gelu_erf().unwrap());
    }

    #[test]
    fn attention_agrees_with_candles_products() {
        let (tokens, heads, d) = (70, 2, 20);
        let [q, k, v] = [6, 7, 8].map(|seed| tensor(&[tokens, heads, d], seed));
        let out = vision_attention(&q, &k, &v, &Heads::full(heads, d), None, None).unwrap();
        let [q, k, v] = [q, k, v].map(|t| t.transpose(0, 1).unwrap().contiguous().unwrap());
        let scores = (q.matmul(&k.t().unwrap()).unwrap() * (d as f64).powf(-0.5)).unwrap().exp().unwrap();
        let p = scores.broadcast_div(&scores.sum_keepdim(2).unwrap()).unwrap();
        same(&out, &p.matmul(&v).unwrap().transpose(0, 1).unwrap());
    }
}
