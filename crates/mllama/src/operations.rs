//! [`Operations`]: what candle has a fused kernel for on some device, with the plain formula beside it.
//!
//! Which operation exists where is in the [table](crate::devices).

use std::fmt::Debug;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{ops, rotary_emb};

use crate::error::Result;
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

    /// Attention of one sequence; `key_bias` `[keys]` is added to the scores. `None` if there is no kernel for it.
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
    /// All, with what is added to their scores, `[keys]` in f32.
    Open(
        #[cfg_attr(
            not(any(feature = "flash-attn", feature = "metal")),
            expect(dead_code, reason = "for their kernels")
        )]
        Option<&'a Tensor>,
    ),
    /// Those before it; the last query sees all.
    Causal,
}

/// The operations of a device.
pub(crate) fn of(device: &Device) -> &'static dyn Operations {
    match device {
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
}

/// The other operations of a device with its own attention.
#[cfg(any(feature = "flash-attn", feature = "metal"))]
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
    };
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
            let (queries, _, head_dim) = q.dims3()?;
            if !Self::takes(q.dtype(), k.dtype()) || head_dim % 8 != 0 {
                return Ok(None);
            }
            let scale = 1.0 / (head_dim as f64).sqrt();
            let (q, k, v) = match mask {
                Mask::Open(Some(bias)) => fold_bias(q, k, v, bias, scale)?,
                _ => (q.clone(), k.clone(), v.clone()),
            };
            let ends = |count: usize| Tensor::new(&[0u32, count as u32], q.device());
            let keys = k.dim(0)?;
            let causal = matches!(mask, Mask::Causal);
            let out = candle_flash_attn::flash_attn_varlen(
                &q,
                &k,
                &v,
                &ends(queries)?,
                &ends(keys)?,
                queries,
                keys,
                scale as f32,
                causal,
            )?;
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

/// `scaled_dot_product_attention` of Metal: for the head sizes that it has.
#[cfg(feature = "metal")]
mod sdpa {
    use super::*;

    #[derive(Debug)]
    pub(super) struct Sdpa;

    impl Operations for Sdpa {
        as_candle!();

        fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Mask) -> Result<Option<Tensor>> {
            let (queries, heads, head_dim) = q.dims3()?;
            let keys = k.dim(0)?;
            let sizes = [32, 64, 72, 80, 96, 128, 256];
            // One query takes the vector kernel, which reads no mask.
            let biased = matches!(mask, Mask::Open(Some(_)));
            if q.dtype() != k.dtype() || !sizes.contains(&head_dim) || queries > keys || (queries == 1 && biased) {
                return Ok(None);
            }
            let by_head = |x: &Tensor| x.transpose(0, 1)?.unsqueeze(0)?.contiguous();
            let bias = match mask {
                Mask::Open(Some(bias)) => {
                    Some(bias.to_dtype(q.dtype())?.reshape((1, 1, 1, keys))?.broadcast_as((1, heads, queries, keys))?)
                }
                _ => None,
            };
            let causal = matches!(mask, Mask::Causal) && queries > 1;
            let scale = 1.0 / (head_dim as f32).sqrt();
            let out = ops::sdpa(&by_head(q)?, &by_head(k)?, &by_head(v)?, bias.as_ref(), causal, scale, 1.0)?;
            Ok(Some(out.squeeze(0)?.transpose(0, 1)?.contiguous()?))
        }
    }
}

/// Queries, keys and values whose plain attention adds `bias` `[keys]` to the scores, for kernels that take no bias:
/// eight more places a head (kernels want multiples of 8). The keys have the bias there as a sum of three numbers of
/// the half type, which is as good as f32; the queries have what cancels the scale.
#[cfg(any(feature = "flash-attn", test))]
fn fold_bias(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor, scale: f64) -> Result<(Tensor, Tensor, Tensor)> {
    const PLACES: usize = 8;
    let dtype = q.dtype();
    // A power of two near 1 / scale, so that the product is exact; the rest goes to the bias.
    let power = (1.0 / scale).log2().round().exp2();
    let mut rest = (bias.to_dtype(DType::F32)? * (1.0 / (power * scale)))?;
    let mut parts = Vec::with_capacity(PLACES);
    for _ in 0..3 {
        let part = rest.to_dtype(dtype)?;
        rest = (rest - part.to_dtype(DType::F32)?)?;
        parts.push(part);
    }
    parts.resize(PLACES, bias.zeros_like()?.to_dtype(dtype)?);
    let keys = Tensor::stack(&parts, 1)?.unsqueeze(1)?;
    let of = |x: &Tensor, places: &Tensor| -> Result<Tensor> {
        let (tokens, heads, _) = x.dims3()?;
        Ok(Tensor::cat(&[x, &places.broadcast_as((tokens, heads, PLACES))?.contiguous()?], 2)?)
    };
    let one = (Tensor::ones((1, 1, PLACES), DType::F32, q.device())? * power)?.to_dtype(dtype)?;
    let nothing = Tensor::zeros((1, 1, PLACES), dtype, q.device())?;
    Ok((of(q, &one)?, of(k, &keys)?, of(v, &nothing)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;

    fn random(shape: &[usize]) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    fn assert_close(a: &Tensor, b: &Tensor, tolerance: f32) {
        assert_eq!(a.dims(), b.dims());
        let error = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(error < tolerance, "off by {error}");
    }

    #[test]
    fn the_fused_operations_are_the_plain_ones() {
        let (x, w, b) = (random(&[5, 3, 16]), random(&[16]), random(&[16]));
        assert_close(&Candle.rms_norm(&x, &w, 1e-5).unwrap(), &Plain.rms_norm(&x, &w, 1e-5).unwrap(), 1e-5);
        let (fused, plain) = (Candle.layer_norm(&x, &w, &b, 1e-5), Plain.layer_norm(&x, &w, &b, 1e-5));
        assert_close(&fused.unwrap(), &plain.unwrap(), 1e-5);
        let (cos, sin) = (random(&[5, 8]), random(&[5, 8]));
        assert_close(&Candle.rope(&x, &cos, &sin).unwrap(), &Plain.rope(&x, &cos, &sin).unwrap(), 1e-5);
        assert_close(&Candle.softmax(&x).unwrap(), &Plain.softmax(&x).unwrap(), 1e-6);
    }

    /// Scores over the widened heads are the scores with the bias: to f32 in f32, and no worse in bf16 than bf16 is.
    #[test]
    fn a_folded_bias_is_added_to_the_scores() {
        let (q, k, v) = (random(&[4, 2, 80]), random(&[6, 2, 80]), random(&[6, 2, 80]));
        let bias = Tensor::new(&[0f32, 0.0, 3f32.ln(), 28f32.ln(), 7f32.ln(), 21f32.ln()], &Device::Cpu).unwrap();
        let scale = 1.0 / 80f64.sqrt();
        let scores = |q: &Tensor, k: &Tensor| {
            let (q, k) = (q.to_dtype(DType::F32).unwrap(), k.to_dtype(DType::F32).unwrap());
            let (q, k) = (q.transpose(0, 1).unwrap().contiguous().unwrap(), k.permute((1, 2, 0)).unwrap());
            (q.matmul(&k.contiguous().unwrap()).unwrap() * scale).unwrap()
        };
        for dtype in [DType::F32, DType::BF16] {
            let [q, k, v] = [&q, &k, &v].map(|x| x.to_dtype(dtype).unwrap());
            let (wide_q, wide_k, wide_v) = fold_bias(&q, &k, &v, &bias, scale).unwrap();
            assert_eq!(wide_v.dims(), [6, 2, 88]);
            let expected = scores(&q, &k).broadcast_add(&bias).unwrap();
            assert_close(&scores(&wide_q, &wide_k), &expected, 1e-5);
        }
    }
}
