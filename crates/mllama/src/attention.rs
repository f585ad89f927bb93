//! Scaled dot-product attention in the three forms of the network, without a mask tensor wider than a block of
//! queries. Plain tensor operations that every device has.
//!
//! Shapes: queries `[queries, heads, d]`, keys and values `[keys, kv_heads, d]`, results like the queries.

use candle_core::{D, DType, Tensor};

use crate::error::Result;

/// Queries whose scores are held at a time: bounds the memory of scores at `heads * QUERY_BLOCK * keys` values.
const QUERY_BLOCK: usize = 256;

/// Every query sees every key. `key_bias` `[keys]` is added to the scores of a key: the logarithm of how many
/// identical keys it stands for.
pub(crate) fn open(q: &Tensor, k: &Tensor, v: &Tensor, key_bias: Option<&Tensor>) -> Result<Tensor> {
    attend(q, k, v, |scores, _, _| match key_bias {
        Some(bias) => Ok(scores.broadcast_add(bias)?),
        None => Ok(scores),
    })
}

/// Query `i` sees keys up to `keys - queries + i`.
pub(crate) fn causal(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
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
    debug_assert_eq!(q.dim(D::Minus1)?, d);
    Ok(if blocks.len() == 1 { blocks.swap_remove(0) } else { Tensor::cat(&blocks, 0)? })
}
