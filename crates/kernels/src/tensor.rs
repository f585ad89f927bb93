//! The kernels on candle tensors: contiguous f32 tensors in CPU memory in, new tensors out.
//!
//! Each function is the kernel of the same name on the tensors' memory, without a copy of the inputs.

use std::cell::Cell;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, Error, InplaceOp1, Layout, Result, Storage, Tensor};

use crate::activation;
use crate::attention::{self, CausalSequence, CrossSpan, Heads};
use crate::encoder::{self, Affine, EncoderLayer, ImageRows};
use crate::epilogue::Epilogue;
use crate::linear::{Element, PackedLinear, Product};
use crate::norm::{self, Norm};

/// The elements of a contiguous f32 tensor in CPU memory.
struct Values<G> {
    storage: G,
    range: Range<usize>,
}

/// Holds the tensor's storage.
fn values(tensor: &Tensor) -> Result<Values<impl Deref<Target = Storage> + '_>> {
    let (storage, layout) = tensor.storage_and_layout();
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(Values { storage, range: start..end }),
        None => Err(Error::RequiresContiguous { op: "kernel" }.bt()),
    }
}

impl<G: Deref<Target = Storage>> Values<G> {
    fn get(&self) -> Result<&[f32]> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(&storage.as_slice::<f32>()?[self.range.clone()]),
            _ => Err(Error::Msg("the CPU kernels take tensors in CPU memory".to_owned()).bt()),
        }
    }
}

/// Holds tensors where there are some.
fn hold<'a, const N: usize>(
    tensors: [Option<&'a Tensor>; N],
) -> Result<[Option<Values<impl Deref<Target = Storage> + 'a>>; N]> {
    let mut held = [const { None }; N];
    for (held, tensor) in held.iter_mut().zip(tensors) {
        *held = tensor.map(values).transpose()?;
    }
    Ok(held)
}

/// The elements of tensors, none where there is no tensor.
fn elements<const N: usize, G: Deref<Target = Storage>>(held: &[Option<Values<G>>; N]) -> Result<[&[f32]; N]> {
    let mut elements = [&[][..]; N];
    for (elements, held) in elements.iter_mut().zip(held) {
        *elements = held.as_ref().map_or(Ok(&[][..]), Values::get)?;
    }
    Ok(elements)
}

/// Calls `body` with the elements of a contiguous f32 tensor in CPU memory.
///
/// # Errors
/// If the tensor is of another type or device or not contiguous, or `body` fails.
pub fn with_slice<T>(tensor: &Tensor, body: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    body(values(tensor)?.get()?)
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

/// A step that overwrites a tensor's elements.
struct Overwrite<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Overwrite<F> {
    fn name(&self) -> &'static str {
        "overwrite"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (storage, layout.contiguous_offsets(), self.0.take()) {
            (CpuStorage::F32(values), Some((start, end)), Some(step)) => step(&mut values[start..end]),
            _ => Err(Error::RequiresContiguous { op: "kernel" }.bt()),
        }
    }
}

/// A norm of a product's input.
#[derive(Clone, Copy, Debug)]
pub enum InputNorm<'a> {
    /// [`rms_norm`].
    Rms {
        /// Factors.
        weight: &'a Tensor,
        /// Added to the mean square.
        eps: f32,
    },
    /// [`layer_norm`].
    Layer {
        /// Factors.
        weight: &'a Tensor,
        /// Added last.
        bias: &'a Tensor,
        /// Added to the variance.
        eps: f32,
    },
}

impl<'a> InputNorm<'a> {
    /// What it multiplies by and adds.
    fn tensors(self) -> [Option<&'a Tensor>; 2] {
        match self {
            Self::Rms { weight, .. } => [Some(weight), None],
            Self::Layer { weight, bias, .. } => [Some(weight), Some(bias)],
        }
    }

    /// With the elements of [`Self::tensors`].
    fn with<'v>(self, [weight, bias]: [&'v [f32]; 2]) -> Norm<'v> {
        match self {
            Self::Rms { eps, .. } => Norm::Rms { weight, eps },
            Self::Layer { eps, .. } => Norm::Layer { weight, bias, eps },
        }
    }
}

/// What is done to a product after its bias.
#[derive(Clone, Copy, Debug)]
pub enum After<'a> {
    /// Nothing.
    Nothing,
    /// Gelu with the error function.
    Gelu,
    /// `h + gate · product`.
    Residual {
        /// Of the product's shape.
        h: &'a Tensor,
        /// A factor for all of it.
        gate: f32,
    },
}

/// A product with an input that others may share.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// The weights.
    pub linear: &'a PackedLinear,
    /// Added to every row.
    pub bias: Option<&'a Tensor>,
    /// What comes then.
    pub after: After<'a>,
}

/// [`crate::forward_each`] on a tensor `[..., k_in]`; the results are `[..., n_out]`.
///
/// # Errors
/// If a tensor is no contiguous f32 tensor in CPU memory or the sizes don't fit.
pub fn linear_each(x: &Tensor, norm: Option<InputNorm<'_>>, layers: &[Layer<'_>]) -> Result<Vec<Tensor>> {
    let (lead, k_in) = match x.dims() {
        [] => return Err(Error::Msg("a product of a tensor without dimensions".to_owned()).bt()),
        [lead @ .., k_in] => (lead, *k_in),
    };
    let m = lead.iter().product::<usize>();
    let held = norm.map_or(Ok([None, None]), |norm| hold(norm.tensors()))?;
    let factors = elements(&held)?;
    let norm = norm.map(|norm| norm.with(factors));
    let mut guards = Vec::with_capacity(layers.len());
    for layer in layers {
        if layer.linear.k_in() != k_in {
            return Err(crate::Error::Length { what: "a row of x", got: k_in, want: layer.linear.k_in() }.into());
        }
        let h = match layer.after {
            After::Residual { h, .. } => Some(h),
            _ => None,
        };
        guards.push((layer.bias.map(values).transpose()?, h.map(values).transpose()?));
    }
    let mut outs: Vec<Vec<f32>> = layers.iter().map(|layer| vec![0.0; m * layer.linear.n_out()]).collect();
    let mut products = Vec::with_capacity(layers.len());
    for ((layer, (bias, h)), out) in layers.iter().zip(&guards).zip(&mut outs) {
        let bias = bias.as_ref().map(|values| values.get()).transpose()?;
        let epilogue = match (layer.after, h) {
            (After::Residual { gate, .. }, Some(h)) => Epilogue::Residual { bias, h: h.get()?, gate },
            (After::Gelu, _) => Epilogue::Gelu { bias },
            _ => bias.map_or(Epilogue::None, Epilogue::Bias),
        };
        products.push(Product { linear: layer.linear, out, epilogue });
    }
    let x = values(x)?;
    crate::forward_each(x.get()?, m, norm, &mut products)?;
    drop(products);
    outs.into_iter()
        .zip(layers)
        .map(|(out, layer)| Tensor::from_vec(out, [lead, &[layer.linear.n_out()]].concat(), &Device::Cpu))
        .collect()
}

impl EncoderLayer<InputNorm<'_>, Affine<'_, &Tensor>> {
    /// [`EncoderLayer::forward`] on `x`, `[rows, heads · d]`, and on all tensors that share its memory.
    ///
    /// # Errors
    /// If a tensor is no contiguous f32 tensor in CPU memory or the sizes don't fit.
    pub fn forward_tensor(&self, heads: &Heads, images: &[ImageRows<'_>], x: &Tensor) -> Result<()> {
        let [q, k, v] = self.qkv;
        let all = [q, k, v, self.o, self.fc1, self.fc2];
        let held = hold(all.map(|affine| affine.bias))?;
        let (attention_norm, mlp_norm) = (hold(self.attention_norm.tensors())?, hold(self.mlp_norm.tensors())?);
        let mut biases = elements(&held)?.into_iter();
        let [q, k, v, o, fc1, fc2] = all.map(|Affine { linear, bias }| {
            let elements = biases.next().unwrap_or_default();
            Affine { linear, bias: bias.map(|_| elements) }
        });
        let layer = EncoderLayer {
            attention_norm: self.attention_norm.with(elements(&attention_norm)?),
            qkv: [q, k, v],
            o,
            attention_gate: self.attention_gate,
            mlp_norm: self.mlp_norm.with(elements(&mlp_norm)?),
            fc1,
            fc2,
            mlp_gate: self.mlp_gate,
        };
        x.inplace_op1(&Overwrite(Cell::new(Some(|x: &mut [f32]| Ok(layer.forward(heads, images, x)?)))))
    }
}

/// [`encoder::interleave`] on tensors `[rows, width]`.
///
/// # Errors
/// If a tensor is no contiguous f32 tensor in CPU memory or the sizes differ.
pub fn interleave(last: &Tensor, states: &[Tensor]) -> Result<Tensor> {
    let (rows, width) = last.dims2()?;
    let wide = width * (1 + states.len());
    let held = states.iter().map(values).collect::<Result<Vec<_>>>()?;
    let states = held.iter().map(Values::get).collect::<Result<Vec<_>>>()?;
    let mut out = vec![0.0; rows * wide];
    with_slice(last, |last| Ok(encoder::interleave(last, &states, width, &mut out)?))?;
    Tensor::from_vec(out, (rows, wide), &Device::Cpu)
}

impl PackedLinear {
    /// `x · weightᵀ` for a tensor `[..., k_in]`; the result is `[..., n_out]`.
    ///
    /// # Errors
    /// As [`linear_each`].
    pub fn forward_tensor(&self, x: &Tensor) -> Result<Tensor> {
        let layer = Layer { linear: self, bias: None, after: After::Nothing };
        Ok(linear_each(x, None, &[layer])?.swap_remove(0))
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
