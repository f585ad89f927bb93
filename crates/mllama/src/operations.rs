//! [`Operations`]: what candle has a fused kernel for on some device, with the plain formula beside it.
//!
//! Which operation exists where is in the [table](crate::devices).

use std::cell::OnceCell;
use std::fmt::Debug;

use candle_core::quantized::QTensor;
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{ops, rotary_emb};

use crate::attention::{causal, open};
use crate::error::Result;
use crate::key_bias::KeyBias;
use crate::lookup::PageTables;

/// Operations that a device may have one kernel for. What is not overridden is made of plain operations, which every
/// device has. Shapes as in [`crate::attention`].
pub(crate) trait Operations: Debug + Sync {
    /// Root-mean-square norm over the last axis (Zhang & Sennrich 2019): in f32, and cast back before the weight is
    /// applied, as in transformers.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let variance = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = wide.broadcast_div(&(variance + eps)?.sqrt()?)?;
        Ok(normed.to_dtype(x.dtype())?.broadcast_mul(weight)?)
    }

    /// Layer norm over the last axis (Ba et al. 2016).
    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let wide = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
        let variance = wide.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = wide.broadcast_div(&(variance + eps)?.sqrt()?)?;
        Ok(normed.to_dtype(x.dtype())?.broadcast_mul(weight)?.broadcast_add(bias)?)
    }

    /// Rotates `x` `[tokens, heads, d]`, halves apart, by tables of `[tokens, d / 2]`.
    fn rope(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let half = x.dim(2)? / 2;
        let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Ok(Tensor::cat(&[first, second], 2)?)
    }

    /// Softmax over the last axis.
    fn softmax(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::softmax(x, D::Minus1)?)
    }

    /// `x wᵀ` in f32 with a weight in blocks of few bits, `x` `[rows, inputs]` in f32.
    fn quantised(&self, x: &Tensor, weight: &QTensor) -> Result<Tensor> {
        Ok(x.matmul(&weight.dequantize(x.device())?.t()?)?)
    }

    /// Attention of one sequence. `None` if there is no kernel for it.
    fn attention(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: Mask) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Whether [`Operations::paged`] takes queries, keys and values of these types.
    fn reads_pages(&self, _: DType, _: DType) -> bool {
        false
    }

    /// Attention of many sequences over keys and values in pages, in one kernel.
    fn paged(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: &PageTables, _causal: bool) -> Result<Tensor> {
        Err(candle_core::Error::Msg("no kernel reads pages here".into()).bt().into())
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mask<'a> {
    /// All, with what is added to their scores.
    Open(
        #[cfg_attr(
            not(any(feature = "flash-attn", feature = "metal")),
            expect(dead_code, reason = "for their kernels")
        )]
        Option<&'a KeyBias>,
    ),
    /// Those before it; the last query sees all.
    Causal,
}

/// The operations of a device. On the CPU, with those that read pages on request.
pub(crate) fn of(device: &Device, read_pages: bool) -> &'static dyn Operations {
    match device {
        Device::Cpu if read_pages => &Paged,
        Device::Cpu => &Candle,
        #[cfg(feature = "flash-attn")]
        Device::Cuda(_) => &flash::Flash,
        #[cfg(not(feature = "flash-attn"))]
        Device::Cuda(_) => &Candle,
        #[cfg(feature = "metal")]
        Device::Metal(_) => &sdpa::Sdpa,
        #[cfg(not(feature = "metal"))]
        Device::Metal(_) => &Candle,
    }
}

/// Everything of plain operations: what the fused ones are compared with.
#[cfg(test)]
#[derive(Debug)]
struct Plain;

#[cfg(test)]
impl Operations for Plain {}

/// The kernels that candle has for every device. The norms of half types round once, after the weight.
#[derive(Debug)]
struct Candle;

impl Operations for Candle {
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        Ok(ops::rms_norm(x, weight, eps as f32)?)
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        Ok(ops::layer_norm(x, weight, bias, eps as f32)?)
    }

    fn rope(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        Ok(rotary_emb::rope_thd(&x.unsqueeze(0)?, cos, sin)?.squeeze(0)?)
    }

    fn softmax(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::softmax_last_dim(x)?)
    }

    fn quantised(&self, x: &Tensor, weight: &QTensor) -> Result<Tensor> {
        Ok(x.apply_op1_no_bwd(weight)?)
    }
}

/// The other operations of a device with its own attention.
macro_rules! as_candle {
    () => {
        fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
            Candle.rms_norm(x, weight, eps)
        }

        fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
            Candle.layer_norm(x, weight, bias, eps)
        }

        fn rope(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
            Candle.rope(x, cos, sin)
        }

        fn softmax(&self, x: &Tensor) -> Result<Tensor> {
            Candle.softmax(x)
        }

        fn quantised(&self, x: &Tensor, weight: &QTensor) -> Result<Tensor> {
            Candle.quantised(x, weight)
        }
    };
}

/// The operations of every device with the formula of attention over pages: sequence by sequence, with a look at the
/// tables. What is around the kernels that read pages is tested with it.
#[derive(Debug)]
struct Paged;

impl Operations for Paged {
    as_candle!();

    fn reads_pages(&self, _: DType, _: DType) -> bool {
        true
    }

    fn paged(&self, q: &Tensor, k: &Tensor, v: &Tensor, tables: &PageTables, is_causal: bool) -> Result<Tensor> {
        let (query_ends, key_ends) = (tables.query_ends.to_vec1::<u32>()?, tables.key_ends.to_vec1::<u32>()?);
        let mut parts = Vec::with_capacity(query_ends.len());
        for (sequence, (queries, keys)) in query_ends.windows(2).zip(key_ends.windows(2)).enumerate() {
            let pages = tables.pages.get(sequence)?;
            let of = |x: &Tensor| -> Result<Tensor> {
                let read = x.index_select(&pages, 0)?.flatten(0, 1)?;
                Ok(read.narrow(0, 0, (keys[1] - keys[0]) as usize)?.to_dtype(q.dtype())?)
            };
            let q = q.narrow(0, queries[0] as usize, (queries[1] - queries[0]) as usize)?;
            // One query is the last and sees all.
            parts.push(match is_causal && q.dim(0)? > 1 {
                true => causal(self, &q, &of(k)?, &of(v)?, &OnceCell::new())?,
                false => open(self, &q, &of(k)?, &of(v)?, None)?,
            });
        }
        Ok(Tensor::cat(&parts, 0)?)
    }
}

/// Flash attention (Dao 2023) on CUDA: for f16 and bf16, from compute capability 8.0.
#[cfg(feature = "flash-attn")]
mod flash {
    use super::*;
    use crate::pages::PAGE;

    #[derive(Debug)]
    pub(super) struct Flash;

    impl Flash {
        fn takes(q: DType, kv: DType) -> bool {
            matches!(q, DType::BF16 | DType::F16) && q == kv
        }
    }

    impl Operations for Flash {
        as_candle!();

        fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<Option<Tensor>> {
            let head_dim = q.dim(2)?;
            if !Self::takes(q.dtype(), k.dtype()) || head_dim % 8 != 0 {
                return Ok(None);
            }
            let scale = 1.0 / (head_dim as f64).sqrt();
            let (q, k, v) = match mask {
                Mask::Open(Some(bias)) => bias.fold(q, k, v, scale, 8)?,
                _ => (q.clone(), k.clone(), v.clone()),
            };
            let [q, k, v] = [q.unsqueeze(0)?, k.unsqueeze(0)?, v.unsqueeze(0)?];
            let causal = matches!(mask, Mask::Causal);
            let out = candle_flash_attn::flash_attn(&q, &k, &v, scale as f32, causal)?.squeeze(0)?;
            Ok(Some(out.narrow(2, 0, head_dim)?.contiguous()?))
        }

        fn reads_pages(&self, q: DType, kv: DType) -> bool {
            Self::takes(q, kv)
        }

        fn paged(&self, q: &Tensor, k: &Tensor, v: &Tensor, tables: &PageTables, causal: bool) -> Result<Tensor> {
            let scale = 1.0 / (q.dim(2)? as f64).sqrt();
            Ok(candle_flash_attn::flash_attn_varlen_paged_windowed(
                q,
                k,
                v,
                &tables.query_ends,
                &tables.key_ends,
                &tables.pages,
                None,
                tables.most_queries,
                tables.most_keys,
                scale as f32,
                None,
                causal.then_some(0),
                PAGE,
                None,
            )?)
        }
    }
}

/// The head size with which Metal's `sdpa` takes attention of one sequence, with room for a folded bias; `None` if it
/// has no kernel for it. One query takes the vector kernels, which are there for fewer sizes.
#[cfg(any(feature = "metal", test))]
fn sdpa_head(queries: usize, keys: usize, head_dim: usize, biased: bool) -> Option<usize> {
    const FULL: [usize; 7] = [32, 64, 72, 80, 96, 128, 256];
    const VECTOR: [usize; 5] = [32, 64, 96, 128, 256];
    let sizes = if queries == 1 { &VECTOR[..] } else { &FULL[..] };
    let found = match biased {
        true => sizes.iter().find(|size| **size >= head_dim + 3),
        false => sizes.iter().find(|size| **size == head_dim),
    };
    found.copied().filter(|_| queries <= keys)
}

/// `scaled_dot_product_attention` of Metal: for the head sizes that it has.
#[cfg(feature = "metal")]
mod sdpa {
    use super::*;

    #[derive(Debug)]
    pub(super) struct Sdpa;

    impl Operations for Sdpa {
        as_candle!();

        fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<Option<Tensor>> {
            let (queries, _, head_dim) = q.dims3()?;
            let biased = matches!(mask, Mask::Open(Some(_)));
            let Some(size) = sdpa_head(queries, k.dim(0)?, head_dim, biased) else { return Ok(None) };
            if q.dtype() != k.dtype() {
                return Ok(None);
            }
            let scale = 1.0 / (head_dim as f32).sqrt();
            // Its masks are of the type of the queries, too coarse for a count of padding.
            let (q, k, v) = match mask {
                Mask::Open(Some(bias)) => bias.fold(q, k, v, f64::from(scale), size - head_dim)?,
                _ => (q.clone(), k.clone(), v.clone()),
            };
            let by_head = |x: &Tensor| x.transpose(0, 1)?.unsqueeze(0)?.contiguous();
            let causal = matches!(mask, Mask::Causal) && queries > 1;
            let out = ops::sdpa(&by_head(&q)?, &by_head(&k)?, &by_head(&v)?, None, causal, scale, 1.0)?;
            let out = out.narrow(3, 0, head_dim)?;
            Ok(Some(out.squeeze(0)?.transpose(0, 1)?.contiguous()?))
        }
    }
}

#[cfg(test)]
mod tests;
