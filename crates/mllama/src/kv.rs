//! Keys and values: of a sequence's own text ([`SelfKv`]), and of an image for the cross-attention layers
//! ([`CrossKv`]).

use candle_core::{DType, Device, Tensor};

use crate::config::TextConfig;
use crate::error::{Error, Result};

/// Keys and values of one sequence for the self-attention layers. Its memory is taken once, for as many tokens as the
/// sequence may get.
#[derive(Debug)]
pub struct SelfKv {
    /// By self-attention layer, each `[capacity, kv_heads, head_dim]`.
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
    capacity: usize,
}

impl SelfKv {
    /// Room for `capacity` tokens.
    pub fn new(config: &TextConfig, capacity: usize, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (capacity, config.num_key_value_heads, config.head_dim);
        let layers = (0..config.self_layers())
            .map(|_| Ok((Tensor::zeros(shape, dtype, device)?, Tensor::zeros(shape, dtype, device)?)))
            .collect::<Result<_>>()?;
        Ok(Self { layers, len: 0, capacity })
    }

    /// Bytes that a token takes.
    pub fn bytes_per_token(config: &TextConfig, dtype: DType) -> u64 {
        (2 * config.self_layers() * config.num_key_value_heads * config.head_dim * dtype.size_in_bytes()) as u64
    }

    /// Tokens that are in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no token.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// A copy that may grow on its own: the prompt is computed once for all samples of a row.
    pub fn fork(&self) -> Result<Self> {
        self.prefix(self.len, self.capacity)
    }

    /// A copy of the first `len` tokens with another capacity.
    pub fn prefix(&self, len: usize, capacity: usize) -> Result<Self> {
        let copy = |x: &Tensor| -> Result<Tensor> {
            let (_, heads, head_dim) = x.dims3()?;
            let fresh = Tensor::zeros((capacity, heads, head_dim), x.dtype(), x.device())?;
            if len > 0 {
                fresh.slice_set(&x.narrow(0, 0, len)?, 0, 0)?;
            }
            Ok(fresh)
        };
        let layers = self.layers.iter().map(|(k, v)| Ok((copy(k)?, copy(v)?))).collect::<Result<_>>()?;
        Ok(Self { layers, len, capacity })
    }

    /// Writes a layer's keys and values of new tokens, `[tokens, kv_heads, head_dim]`, behind those that are there,
    /// and returns all of them.
    pub(crate) fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let tokens = k.dim(0)?;
        let (keys, values) = &self.layers[layer];
        keys.slice_set(k, 0, self.len)?;
        values.slice_set(v, 0, self.len)?;
        Ok((keys.narrow(0, 0, self.len + tokens)?, values.narrow(0, 0, self.len + tokens)?))
    }

    /// Counts tokens whose keys and values were appended in every layer.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    pub(crate) fn check_room(&self, tokens: usize) -> Result<()> {
        if self.len + tokens > self.capacity {
            let wanted = self.len + tokens;
            return Err(Error::Sequence(format!("{wanted} tokens don't fit a store for {}", self.capacity)));
        }
        Ok(())
    }
}

/// Keys and values of one image for the cross-attention layers: computed once, shared by every row, sample and step
/// that uses the image.
#[derive(Clone, Debug)]
pub struct CrossKv {
    /// By cross-attention layer, each `[tokens, kv_heads, head_dim]`; live tiles first.
    pub(crate) layers: Vec<(Tensor, Tensor)>,
    pub(crate) live_tokens: usize,
    /// `[tokens]`: the logarithm of how many tokens each stands for. Only where text may see unused tiles.
    pub(crate) key_bias: Option<Tensor>,
}

impl CrossKv {
    /// Vision tokens that text may attend to.
    pub fn live_tokens(&self) -> usize {
        self.live_tokens
    }

    /// Bytes that a vision token takes.
    pub fn bytes_per_token(config: &TextConfig, dtype: DType) -> u64 {
        let layers = config.cross_attention_layers.len();
        (2 * layers * config.num_key_value_heads * config.head_dim * dtype.size_in_bytes()) as u64
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        let size = |x: &Tensor| (x.elem_count() * x.dtype().size_in_bytes()) as u64;
        self.layers.iter().map(|(k, v)| size(k) + size(v)).sum()
    }

    pub(crate) fn live(&self, layer: usize) -> Result<(Tensor, Tensor)> {
        let (k, v) = &self.layers[layer];
        Ok((k.narrow(0, 0, self.live_tokens)?, v.narrow(0, 0, self.live_tokens)?))
    }
}
