//! Scaled dot-product attention in the three forms of the network: within an image, causal within a text, and of text
//! over images. Nowhere a mask wider than a block of queries.
//!
//! Each form exists twice: of operations that every device has ([`Path::Portable`]; what finds keys and values in pages
//! is in [`crate::step`]), and as a kernel for the CPU ([`Path::Kernels`]), which takes f32 queries, and text and image
//! keys and values in f32, bf16 or f16.
//!
//! Shapes: queries `[queries, heads, d]`, keys and values `[keys, kv_heads, d]`, results like the queries.

use std::cell::OnceCell;
use std::ops::Deref;

use candle_core::quantized::QTensor;
use candle_core::{DType, Layout, Storage, Tensor, WithDType};
use vgen_kernels::Element;
use vgen_kernels::attention::{CausalSequence, CrossSpan, Heads, ImageKeys, Inside};
use vgen_kernels::attention::{causal_attention, cross_attention};
use vgen_kernels::encoder::ImageRows;

use crate::error::Result;
use crate::key_bias::KeyBias;
use crate::operations::{Mask, Operations};
use crate::transfer::to_device;

/// Which of two equal ways attention and linear layers are computed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Path {
    /// candle's operations, keys and values in pages.
    Portable {
        /// Those that the device has one kernel for.
        operations: &'static dyn Operations,
        /// Let no row's numbers depend on the other rows of a step, by giving every product the same shape.
        fixed_shapes: bool,
    },
    /// The CPU kernels, with products inside the attention of images of this precision. Text keeps f32 inside: its
    /// attention is cheap, and answers hang on it.
    Kernels { inside: Inside },
}

/// Rows of a product with fixed shapes.
///
/// A library chooses its kernel, and with it the order of a sum, by the shapes of a product. If there is only one shape
/// there is only one order, as long as a kernel treats its rows alike.
const FIXED_ROWS: usize = 64;

/// An image's tokens in a flat batch.
#[derive(Debug)]
pub(crate) struct ImageTokens {
    pub(crate) start: usize,
    pub(crate) tokens: usize,
    /// The first tokens of it, which aren't padding. Padding doesn't see padding.
    pub(crate) live: usize,
    /// `[tokens]`: the logarithm of how many equal tokens each stands for, added to its scores as a key.
    pub(crate) key_bias: Vec<f32>,
    /// The same on the device, for the portable path.
    pub(crate) key_bias_there: OnceCell<KeyBias>,
}

impl ImageTokens {
    /// For a layer by kernel.
    pub(crate) fn rows(&self) -> ImageRows<'_> {
        ImageRows { rows: self.start..self.start + self.tokens, live: self.live, key_bias: &self.key_bias }
    }
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
pub(crate) struct SeenImages<'a> {
    pub(crate) queries: usize,
    pub(crate) images: Vec<(Tensor, Tensor)>,
    /// All images' one after the other.
    pub(crate) key_bias: Option<&'a KeyBias>,
}

impl Path {
    /// The operations of the portable path.
    pub(crate) fn operations(self) -> Option<&'static dyn Operations> {
        match self {
            Self::Portable { operations, .. } => Some(operations),
            Self::Kernels { .. } => None,
        }
    }

    /// For layers whose rows are all of one image, or whose shapes the caller fixes.
    pub(crate) fn with_free_shapes(self) -> Self {
        match self {
            Self::Portable { operations, .. } => Self::Portable { operations, fixed_shapes: false },
            kernels => kernels,
        }
    }

    /// How many rows a step of `tokens` is computed with.
    pub(crate) fn filled(self, tokens: usize) -> usize {
        match self {
            Self::Portable { fixed_shapes: true, .. } => tokens.next_multiple_of(FIXED_ROWS),
            _ => tokens,
        }
    }

    /// `x wᵀ` by candle's product, `x` `[rows, inputs]`, `w` `[outputs, inputs]`.
    pub(crate) fn product(self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let weight = weight.t()?;
        self.by_blocks(x, |x| Ok(x.matmul(&weight)?))
    }

    /// [`Path::product`] with a weight in blocks of few bits, in f32.
    pub(crate) fn quantised(self, x: &Tensor, weight: &QTensor) -> Result<Tensor> {
        match self {
            Self::Portable { operations, .. } => self.by_blocks(x, |x| operations.quantised(x, weight)),
            Self::Kernels { .. } => Err(candle_core::Error::Msg("kernels pack their weights".into()).bt().into()),
        }
    }

    /// A product of rows; with fixed shapes of [`FIXED_ROWS`] rows at a time.
    pub(crate) fn by_blocks(self, x: &Tensor, product: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        if !matches!(self, Self::Portable { fixed_shapes: true, .. }) {
            return product(x);
        }
        let rows = x.dim(0)?;
        let whole = self.filled(rows);
        let x = if whole > rows { x.pad_with_zeros(0, 0, whole - rows)? } else { x.clone() };
        let mut blocks = Vec::with_capacity(whole / FIXED_ROWS);
        for start in (0..whole).step_by(FIXED_ROWS) {
            blocks.push(product(&x.narrow(0, start, FIXED_ROWS)?)?);
        }
        let y = if blocks.len() == 1 { blocks.swap_remove(0) } else { Tensor::cat(&blocks, 0)? };
        if whole > rows { Ok(y.narrow(0, 0, rows)?) } else { Ok(y) }
    }

    /// For the attention of images by kernel.
    pub(crate) fn heads_by_kernel(self, heads: usize, d: usize) -> Option<Heads> {
        match self {
            Self::Kernels { inside } => Some(Heads::full(heads, d).inside(inside)),
            Self::Portable { .. } => None,
        }
    }

    /// Attention within each image of a flat batch, as many key as query heads.
    pub(crate) fn vision(self, q: &Tensor, k: &Tensor, v: &Tensor, images: &[ImageTokens]) -> Result<Tensor> {
        let operations = match self {
            Path::Kernels { inside } => return vision_by_kernel(inside, q, k, v, images),
            Path::Portable { operations, .. } => operations,
        };
        let mut parts = Vec::with_capacity(2 * images.len());
        for image in images {
            let (start, tokens, live) = (image.start, image.tokens, image.live);
            let part = |x: &Tensor, from: usize, len: usize| x.narrow(0, start + from, len);
            let bias = match image.key_bias_there.get() {
                Some(bias) => bias,
                None => {
                    let bias = KeyBias::new(to_device(image.key_bias.clone(), image.tokens, q.device())?);
                    image.key_bias_there.get_or_init(|| bias)
                }
            };
            let (all_k, all_v) = (part(k, 0, tokens)?, part(v, 0, tokens)?);
            parts.push(open(operations, &part(q, 0, live)?, &all_k, &all_v, Some(bias))?);
            if tokens > live {
                let (live_k, live_v) = (part(k, 0, live)?, part(v, 0, live)?);
                parts.push(open(operations, &part(q, live, tokens - live)?, &live_k, &live_v, None)?);
            }
        }
        Ok(Tensor::cat(&parts, 0)?)
    }
}

/// Causal attention of texts that lie one after the other in the queries, by kernel.
pub(crate) fn causal_by_kernels(q: &Tensor, texts: &[TextTokens]) -> Result<Tensor> {
    match texts.first().map(|text| text.keys.dtype()) {
        Some(DType::BF16) => causal_by_kernel::<half::bf16>(q, texts),
        Some(DType::F16) => causal_by_kernel::<half::f16>(q, texts),
        _ => causal_by_kernel::<f32>(q, texts),
    }
}

/// Attention over images, by kernel where nothing is added to the scores.
pub(crate) fn cross_by_kernels(q: &Tensor, runs: &[SeenImages]) -> Result<Tensor> {
    if runs.iter().all(|run| run.key_bias.is_none()) {
        return match runs.iter().find_map(|run| run.images.first()).map(|(keys, _)| keys.dtype()) {
            Some(DType::BF16) => cross_by_kernel::<half::bf16>(q, runs),
            Some(DType::F16) => cross_by_kernel::<half::f16>(q, runs),
            _ => cross_by_kernel::<f32>(q, runs),
        };
    }
    let operations = crate::operations::of(q.device(), false);
    let mut start = 0;
    let mut parts = Vec::with_capacity(runs.len());
    for run in runs {
        parts.push(run.attend(operations, &q.narrow(0, start, run.queries)?)?);
        start += run.queries;
    }
    Ok(Tensor::cat(&parts, 0)?)
}

impl SeenImages<'_> {
    /// Attention of the queries, which are those of this run.
    pub(crate) fn attend(&self, operations: &dyn Operations, q: &Tensor) -> Result<Tensor> {
        let (k, v): (Vec<_>, Vec<_>) = self.images.iter().map(|(k, v)| (k, v)).unzip();
        let joined = |x: &[&Tensor]| match x {
            [one] => one.to_dtype(q.dtype()),
            many => Tensor::cat(many, 0)?.to_dtype(q.dtype()),
        };
        open(operations, q, &joined(&k)?, &joined(&v)?, self.key_bias)
    }
}

/// Queries whose scores are held at a time: bounds the memory of scores at `heads * QUERY_BLOCK * keys` values.
const QUERY_BLOCK: usize = 256;

/// Every query sees every key.
pub(crate) fn open(
    ops: &dyn Operations,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    key_bias: Option<&KeyBias>,
) -> Result<Tensor> {
    if let Some(out) = ops.attention(q, k, v, Mask::Open(key_bias))? {
        return Ok(out);
    }
    attend(ops, q, k, v, |scores, _| match key_bias {
        Some(bias) => Ok(scores.broadcast_add(bias.values())?),
        None => Ok(scores),
    })
}

/// The queries are the last of the keys' positions. `masks` are made at the first call, for all layers of a step.
pub(crate) fn causal(
    ops: &dyn Operations,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    masks: &OnceCell<Vec<Tensor>>,
) -> Result<Tensor> {
    if let Some(out) = ops.attention(q, k, v, Mask::Causal)? {
        return Ok(out);
    }
    let masks = match masks.get() {
        Some(masks) => masks,
        None => {
            let made = causal_masks(q.dim(0)?, k.dim(0)?, q)?;
            masks.get_or_init(|| made)
        }
    };
    attend(ops, q, k, v, |scores, block| Ok(scores.broadcast_add(&masks[block])?))
}

/// For each block of queries `[block, keys]`.
fn causal_masks(queries: usize, keys: usize, like: &Tensor) -> Result<Vec<Tensor>> {
    let past = keys - queries;
    (0..queries)
        .step_by(QUERY_BLOCK)
        .map(|start| {
            let len = QUERY_BLOCK.min(queries - start);
            let mask: Vec<f32> = (start..start + len)
                .flat_map(|query| (0..keys).map(move |key| if key <= past + query { 0.0 } else { f32::NEG_INFINITY }))
                .collect();
            to_device(mask, (len, keys), like.device())
        })
        .collect()
}

/// `adjust` gets f32 scores `[kv_heads, group, block, keys]`, and which block of queries it is.
fn attend(
    ops: &dyn Operations,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    adjust: impl Fn(Tensor, usize) -> Result<Tensor>,
) -> Result<Tensor> {
    let (queries, heads, d) = q.dims3()?;
    let (keys, kv_heads, _) = k.dims3()?;
    let group = heads / kv_heads;
    let scale = 1.0 / (d as f64).sqrt();
    let k = k.permute((1, 2, 0))?.contiguous()?;
    let v = v.transpose(0, 1)?.contiguous()?;
    let mut blocks = Vec::with_capacity(queries.div_ceil(QUERY_BLOCK));
    for (block, start) in (0..queries).step_by(QUERY_BLOCK).enumerate() {
        let len = QUERY_BLOCK.min(queries - start);
        let q = q.narrow(0, start, len)?.reshape((len, kv_heads, group, d))?.permute((1, 2, 0, 3))?.contiguous()?;
        let scores = (q.reshape((kv_heads, group * len, d))?.matmul(&k)? * scale)?;
        let scores = scores.to_dtype(DType::F32)?.reshape((kv_heads, group, len, keys))?;
        let weights = ops.softmax(&adjust(scores, block)?)?.to_dtype(v.dtype())?;
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
        let (q, k, v) = (&q_values[part.clone()], &k_values[part.clone()], &v_values[part.clone()]);
        image.rows().attend(&heads, q, k, v, &mut out[part])?;
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
