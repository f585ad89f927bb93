//! [`KeyBias`]: what is added to the scores of keys, for kernels that take a bias and for those that take none.

use std::cell::OnceCell;

use candle_core::{DType, Tensor};

use crate::error::Result;

/// The logarithm of how many equal tokens each key stands for.
#[derive(Debug)]
pub(crate) struct KeyBias {
    /// `[keys]` in f32.
    values: Tensor,
    /// Made at the first call, for all layers.
    folded: OnceCell<Folded>,
}

/// What is put behind each head.
#[derive(Debug)]
struct Folded {
    /// `[1, 1, places]`, `[keys, 1, places]`, `[1, 1, places]`.
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl KeyBias {
    /// Of `values` `[keys]` in f32.
    pub(crate) fn new(values: Tensor) -> Self {
        Self { values, folded: OnceCell::new() }
    }

    /// `[keys]` in f32.
    pub(crate) fn values(&self) -> &Tensor {
        &self.values
    }

    /// Queries, keys and values whose plain attention adds the bias to the scores: `places` more a head, at least 3. The
    /// keys have the bias there as a sum of three numbers of the half type, which is as good as f32; the queries have
    /// what cancels the scale. The type, the scale and `places` are the same for all layers.
    #[cfg_attr(
        not(any(feature = "flash-attn", feature = "metal", test)),
        expect(dead_code, reason = "for their kernels")
    )]
    pub(crate) fn fold(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        scale: f64,
        places: usize,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let folded = match self.folded.get() {
            Some(folded) => folded,
            None => {
                let made = Folded::new(&self.values, q.dtype(), scale, places)?;
                self.folded.get_or_init(|| made)
            }
        };
        let of = |x: &Tensor, places: &Tensor| -> Result<Tensor> {
            let (tokens, heads, _) = x.dims3()?;
            let more = places.broadcast_as((tokens, heads, places.dim(2)?))?.contiguous()?;
            Ok(Tensor::cat(&[x, &more], 2)?)
        };
        Ok((of(q, &folded.queries)?, of(k, &folded.keys)?, of(v, &folded.values)?))
    }
}

impl Folded {
    fn new(bias: &Tensor, dtype: DType, scale: f64, places: usize) -> Result<Self> {
        let device = bias.device();
        // A power of two near 1 / scale, so that the product is exact; the rest goes to the bias.
        let power = (1.0 / scale).log2().round().exp2();
        let mut rest = (bias * (1.0 / (power * scale)))?;
        let mut parts = Vec::with_capacity(places);
        for _ in 0..3 {
            let part = rest.to_dtype(dtype)?;
            rest = (rest - part.to_dtype(DType::F32)?)?;
            parts.push(part);
        }
        parts.resize(places, bias.zeros_like()?.to_dtype(dtype)?);
        let one = (Tensor::ones((1, 1, places), DType::F32, device)? * power)?;
        Ok(Self {
            queries: one.to_dtype(dtype)?,
            keys: Tensor::stack(&parts, 1)?.unsqueeze(1)?,
            values: Tensor::zeros((1, 1, places), dtype, device)?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use candle_core::Device;

    use super::*;

    /// Scores over the widened heads are the scores with the bias: to f32 in f32, and no worse in bf16 than bf16 is.
    #[test]
    fn a_folded_bias_is_added_to_the_scores() {
        let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let (q, k, v) = (random(&[4, 2, 80]), random(&[6, 2, 80]), random(&[6, 2, 80]));
        let bias = Tensor::new(&[0f32, 0.0, 3f32.ln(), 28f32.ln(), 7f32.ln(), 21f32.ln()], &Device::Cpu).unwrap();
        let scale = 1.0 / 80f64.sqrt();
        let scores = |q: &Tensor, k: &Tensor| {
            let (q, k) = (q.to_dtype(DType::F32).unwrap(), k.to_dtype(DType::F32).unwrap());
            let (q, k) = (q.transpose(0, 1).unwrap().contiguous().unwrap(), k.permute((1, 2, 0)).unwrap());
            (q.matmul(&k.contiguous().unwrap()).unwrap() * scale).unwrap()
        };
        for (dtype, places) in [(DType::F32, 8), (DType::BF16, 8), (DType::BF16, 16)] {
            let [q, k, v] = [&q, &k, &v].map(|x| x.to_dtype(dtype).unwrap());
            let folding = KeyBias::new(bias.clone());
            // A second layer takes what the first one made.
            for _ in 0..2 {
                let (wide_q, wide_k, wide_v) = folding.fold(&q, &k, &v, scale, places).unwrap();
                assert_eq!(wide_v.dims(), [6, 2, 80 + places]);
                let expected = scores(&q, &k).broadcast_add(&bias).unwrap();
                let error = (scores(&wide_q, &wide_k) - expected).unwrap().abs().unwrap().flatten_all().unwrap();
                assert!(error.max(0).unwrap().to_scalar::<f32>().unwrap() < 1e-5, "{dtype:?}");
            }
        }
    }
}
