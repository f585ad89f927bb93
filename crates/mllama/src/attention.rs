//! Scaled dot-product attention in the three forms of the network: within an image, causal within a text, and of text
//! over images. Nowhere a mask wider than a block of queries.
//!
//! Each form exists twice: of plain tensor operations that every device has ([`Path::Portable`]), and as a kernel for
//! the CPU ([`Path::Kernels`]), which takes f32 queries, and text and image keys and values in f32, bf16 or f16.
//!
//! Shapes: queries `[queries, heads, d]`, keys and values `[keys, kv_heads, d]`, results like the queries.

use std::ops::Deref;

use candle_core::{DType, Layout, Storage, Tensor, WithDType};
use vgen_kernels::Element;
use vgen_kernels::attention::{CausalSequence, CrossSpan, Heads, ImageKeys, Inside};
use vgen_kernels::attention::{causal_attention, cross_attention, vision_attention};

use crate::error::Result;

/// Which of two equal ways attention and linear layers are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// candle's operations.
    Portable,
    /// The CPU kernels, with products inside the attention of images of this precision. Text keeps f32 inside: its
    /// attention is cheap, and answers hang on it.
    Kernels { inside: Inside },
}

/// An image's tokens in a flat batch.
#[derive(Debug)]
pub(crate) struct ImageTokens {
    pub(crate) start: usize,
    pub(crate) tokens: usize,
    /// The first tokens of it, which aren't padding. Padding doesn't see padding.
    pub(crate) live: usize,
    /// `[tokens]`: the logarithm of how many equal tokens each stands for, added to its scores as a key.
    pub(crate) key_bias: Vec<f32>,
}

/// New tokens of a text, and the keys and values of all its tokens so far, the new ones included.
#[derive(Debug)]
pub(crate) struct TextTokens {
    pub(crate) len: usize,
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

/// Consecutive queries and the images that they see: keys, values and what is added to their scores.
#[derive(Debug)]
pub(crate) struct SeenImages {
    pub(crate) queries: usize,
    pub(crate) images: Vec<(Tensor, Tensor)>,
    /// `[keys]`, all images' one after the other.
    pub(crate) key_bias: Option<Tensor>,
}

impl Path {
    /// Attention within each image of a flat batch, as many key as query heads.
    pub(crate) fn vision(self, q: &Tensor, k: &Tensor, v: &Tensor, images: &[ImageTokens]) -> Result<Tensor> {
        if let Path::Kernels { inside } = self {
            return vision_by_kernel(inside, q, k, v, images);
        }
        let mut parts = Vec::with_capacity(2 * images.len());
        for ImageTokens { start, tokens, live, key_bias } in images {
            let (start, tokens, live) = (*start, *tokens, *live);
            let part = |x: &Tensor, from: usize, len: usize| x.narrow(0, start + from, len);
            let bias = Tensor::new(key_bias.as_slice(), q.device())?;
            parts.push(open(&part(q, 0, live)?, &part(k, 0, tokens)?, &part(v, 0, tokens)?, Some(&bias))?);
            if tokens > live {
                parts.push(open(&part(q, live, tokens - live)?, &part(k, 0, live)?, &part(v, 0, live)?, None)?);
            }
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Causal attention of texts that lie one after the other in the queries.
    pub(crate) fn causal(self, q: &Tensor, texts: &[TextTokens]) -> Result<Tensor> {
        if let (Path::Kernels { .. }, Some(first)) = (self, texts.first()) {
            return match first.keys.dtype() {
                DType::BF16 => causal_by_kernel::<half::bf16>(q, texts),
                DType::F16 => causal_by_kernel::<half::f16>(q, texts),
                _ => causal_by_kernel::<f32>(q, texts),
            };
        }
        let mut start = 0;
        let mut parts = Vec::with_capacity(texts.len());
        for text in texts {
            let (k, v) = (text.keys.to_dtype(q.dtype())?, text.values.to_dtype(q.dtype())?);
            parts.push(causal(&q.narrow(0, start, text.len)?, &k, &v)?);
            start += text.len;
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Attention over images.
    pub(crate) fn cross(self, q: &Tensor, runs: &[SeenImages]) -> Result<Tensor> {
        let first = runs.iter().find_map(|run| run.images.first());
        if let (Path::Kernels { .. }, Some((keys, _))) = (self, first)
            && runs.iter().all(|run| run.key_bias.is_none())
        {
            return match keys.dtype() {
                DType::BF16 => cross_by_kernel::<half::bf16>(q, runs),
                DType::F16 => cross_by_kernel::<half::f16>(q, runs),
                _ => cross_by_kernel::<f32>(q, runs),
            };
        }
        let mut start = 0;
        let mut parts = Vec::with_capacity(runs.len());
        for run in runs {
            let q = q.narrow(0, start, run.queries)?;
            let (k, v): (Vec<_>, Vec<_>) = run.images.iter().map(|(k, v)| (k, v)).unzip();
            let (k, v) = (Tensor::cat(&k, 0)?.to_dtype(q.dtype())?, Tensor::cat(&v, 0)?.to_dtype(q.dtype())?);
            parts.push(open(&q, &k, &v, run.key_bias.as_ref())?);
            start += run.queries;
        }
        Ok(Tensor::cat(&parts, 0)?)
    }
}

/// Queries whose scores are held at a time: bounds the memory of scores at `heads * QUERY_BLOCK * keys` values.
const QUERY_BLOCK: usize = 256;

/// Every query sees every key.
fn open(q: &Tensor, k: &Tensor, v: &Tensor, key_bias: Option<&Tensor>) -> Result<Tensor> {
    attend(q, k, v, |scores, _, _| match key_bias {
        Some(bias) => Ok(scores.broadcast_add(bias)?),
        None => Ok(scores),
    })
}

/// Query `i` sees keys up to `keys - queries + i`.
fn causal(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (queries, keys) = (q.dim(0)?, k.dim(0)?);
    if queries == 1 {
        return open(q, k, v, None);
    }
    let past = keys - queries;
    attend(q, k, v, |scores, start, len| {
        let mask: Vec<f32> = (start..start + len)
            .flat_map(|i| (0..keys).map(move |j| if j <= past + i { 0.0 } else { f32::NEG_INFINITY }))
            .collect();
        let mask = Tensor::from_vec(mask, (len, keys), scores.device())?;
        Ok(scores.broadcast_add(&mask)?)
    })
}

/// `adjust` gets f32 scores `[kv_heads, group, block, keys]`, and where its block of queries starts and how long it is.
fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    adjust: impl Fn(Tensor, usize, usize) -> Result<Tensor>,
) -> Result<Tensor> {
    let (queries, heads, d) = q.dims3()?;
    let (keys, kv_heads, _) = k.dims3()?;
    let group = heads / kv_heads;
    let scale = 1.0 / (d as f64).sqrt();
    let k = k.permute((1, 2, 0))?.contiguous()?;
    let v = v.transpose(0, 1)?.contiguous()?;
    let mut blocks = Vec::with_capacity(queries.div_ceil(QUERY_BLOCK));
    for start in (0..queries).step_by(QUERY_BLOCK) {
        let len = QUERY_BLOCK.min(queries - start);
        let q = q.narrow(0, start, len)?.reshape((len, kv_heads, group, d))?.permute((1, 2, 0, 3))?.contiguous()?;
        let scores = (q.reshape((kv_heads, group * len, d))?.matmul(&k)? * scale)?;
        let scores = scores.to_dtype(DType::F32)?.reshape((kv_heads, group, len, keys))?;
        let weights = candle_nn::ops::softmax_last_dim(&adjust(scores, start, len)?)?.to_dtype(v.dtype())?;
        let out = weights.reshape((kv_heads, group * len, keys))?.matmul(&v)?;
        blocks.push(out.reshape((kv_heads, group, len, d))?.permute((2, 0, 1, 3))?.reshape((len, heads, d))?);
    }
    Ok(if blocks.len() == 1 { blocks.swap_remove(0) } else { Tensor::cat(&blocks, 0)? })
}

/// A contiguous tensor on the CPU, held for reading.
struct Held<'a, S>(S, &'a Layout);

fn hold(tensor: &Tensor) -> Held<'_, impl Deref<Target = Storage>> {
    let (storage, layout) = tensor.storage_and_layout();
    Held(storage, layout)
}

impl<S: Deref<Target = Storage>> Held<'_, S> {
    fn values<T: WithDType>(&self) -> Result<&[T]> {
        match (&*self.0, self.1.contiguous_offsets()) {
            (Storage::Cpu(values), Some((start, end))) => Ok(&values.as_slice::<T>()?[start..end]),
            _ => Err(candle_core::Error::Msg("the CPU kernels want contiguous tensors".into()).bt().into()),
        }
    }
}

fn heads(inside: Inside, q: &Tensor, kv_heads: usize) -> Result<Heads> {
    let (_, heads, d) = q.dims3()?;
    Ok(Heads::grouped(heads, kv_heads, d).inside(inside))
}

fn vision_by_kernel(inside: Inside, q: &Tensor, k: &Tensor, v: &Tensor, images: &[ImageTokens]) -> Result<Tensor> {
    let heads = heads(inside, q, k.dim(1)?)?;
    let row = heads.query * heads.dim;
    let (held_q, held_k, held_v) = (hold(q), hold(k), hold(v));
    let (q_values, k_values, v_values) = (held_q.values()?, held_k.values()?, held_v.values()?);
    let mut out = vec![0.0; q_values.len()];
    for image in images {
        let part = image.start * row..(image.start + image.tokens) * row;
        let padding: Vec<bool> = (0..image.tokens).map(|token| token >= image.live).collect();
        let (q, k, v) = (&q_values[part.clone()], &k_values[part.clone()], &v_values[part.clone()]);
        vision_attention(q, k, v, &heads, Some(&image.key_bias), Some(&padding), &mut out[part])?;
    }
    Ok(Tensor::from_vec(out, q.shape(), q.device())?)
}

fn causal_by_kernel<T: Element + WithDType>(q: &Tensor, texts: &[TextTokens]) -> Result<Tensor> {
    let Some(first) = texts.first() else { return Ok(q.clone()) };
    let heads = heads(Inside::F32, q, first.keys.dim(1)?)?;
    let held_q = hold(q);
    let held: Vec<_> = texts.iter().map(|text| (hold(&text.keys), hold(&text.values))).collect();
    let mut q_start = 0;
    let mut sequences = Vec::with_capacity(texts.len());
    for (text, (k, v)) in texts.iter().zip(&held) {
        let past_len = text.keys.dim(0)? - text.len;
        sequences.push(CausalSequence { q_start, q_len: text.len, past_len, k: k.values::<T>()?, v: v.values()? });
        q_start += text.len;
    }
    let q_values = held_q.values()?;
    let mut out = vec![0.0; q_values.len()];
    causal_attention(q_values, &sequences, &heads, &mut out)?;
    Ok(Tensor::from_vec(out, q.shape(), q.device())?)
}

fn cross_by_kernel<T: Element + WithDType>(q: &Tensor, runs: &[SeenImages]) -> Result<Tensor> {
    let Some((keys, _)) = runs.iter().find_map(|run| run.images.first()) else { return Ok(q.zeros_like()?) };
    let heads = heads(Inside::F32, q, keys.dim(1)?)?;
    let held_q = hold(q);
    let held: Vec<Vec<_>> =
        runs.iter().map(|run| run.images.iter().map(|(k, v)| (hold(k), hold(v))).collect()).collect();
    let images: Vec<Vec<_>> = held
        .iter()
        .map(|images| images.iter().map(|(k, v)| Ok(ImageKeys { k: k.values::<T>()?, v: v.values()? })).collect())
        .collect::<Result<_>>()?;
    let mut q_start = 0;
    let mut spans = Vec::with_capacity(runs.len());
    for (run, images) in runs.iter().zip(&images) {
        spans.push(CrossSpan { q_start, q_len: run.queries, images });
        q_start += run.queries;
    }
    let q_values = held_q.values()?;
    let mut out = vec![0.0; q_values.len()];
    cross_attention(q_values, &spans, &heads, &mut out)?;
    Ok(Tensor::from_vec(out, q.shape(), q.device())?)
}
