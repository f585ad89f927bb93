//! Keys and values: of a sequence's own text ([`SelfKv`]), and of an image for the cross-attention layers
//! ([`CrossKv`]). For the CPU kernels each has tensors of its own, else pages of a pool.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::config::TextConfig;
use crate::error::{Error, Result};
use crate::pages::{PAGE, PagePool, PagedLayer, Pages, Places};

/// Keys and values of one sequence for the self-attention layers. Its memory is taken for as many tokens as the
/// sequence may get, and may grow.
#[derive(Debug)]
pub struct SelfKv {
    store: Store,
    len: usize,
    capacity: usize,
}

#[derive(Debug)]
enum Store {
    /// By self-attention layer, each `[capacity, kv_heads, head_dim]`.
    Own(Vec<(Tensor, Tensor)>),
    Paged(Pages),
}

impl SelfKv {
    /// Room for `capacity` tokens in tensors of its own.
    pub(crate) fn own(config: &TextConfig, capacity: usize, dtype: DType, device: &Device) -> Result<Self> {
        let shape = (capacity, config.num_key_value_heads, config.head_dim);
        let layers = (0..config.self_layers())
            .map(|_| Ok((Tensor::zeros(shape, dtype, device)?, Tensor::zeros(shape, dtype, device)?)))
            .collect::<Result<_>>()?;
        Ok(Self { store: Store::Own(layers), len: 0, capacity })
    }

    /// Room for `capacity` tokens in a pool.
    pub(crate) fn paged(pool: &Arc<PagePool>, capacity: usize) -> Result<Self> {
        Ok(Self { store: Store::Paged(Pages::new(pool, capacity)?), len: 0, capacity })
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

    /// Makes room for `capacity` tokens if there is less.
    pub fn grow(&mut self, capacity: usize) -> Result<()> {
        if capacity <= self.capacity {
            return Ok(());
        }
        match &mut self.store {
            Store::Own(_) => *self = self.prefix(self.len, capacity)?,
            Store::Paged(pages) => {
                pages.reserve(capacity)?;
                self.capacity = capacity;
            }
        }
        Ok(())
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
        let store = match &self.store {
            Store::Own(layers) => {
                Store::Own(layers.iter().map(|(k, v)| Ok((copy(k)?, copy(v)?))).collect::<Result<_>>()?)
            }
            Store::Paged(pages) => Store::Paged(pages.prefix(len, capacity)?),
        };
        Ok(Self { store, len, capacity })
    }

    /// The pages, if it has some.
    pub(crate) fn pages(&self) -> Option<&Pages> {
        match &self.store {
            Store::Paged(pages) => Some(pages),
            Store::Own(_) => None,
        }
    }

    /// Writes a layer's keys and values of new tokens, `[tokens, kv_heads, head_dim]`, behind those that are there,
    /// and returns all of them. For a store with tensors of its own.
    pub(crate) fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let Store::Own(layers) = &self.store else {
            return Err(Error::Sequence("keys and values in pages are written by the step".into()));
        };
        let tokens = k.dim(0)?;
        let (keys, values) = &layers[layer];
        keys.slice_set(k, 0, self.len)?;
        values.slice_set(v, 0, self.len)?;
        Ok((keys.narrow(0, 0, self.len + tokens)?, values.narrow(0, 0, self.len + tokens)?))
    }

    /// Counts tokens whose keys and values were appended in every layer.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Forgets the tokens behind the first `len`; the next ones are written in their place.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
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
    pub(crate) store: CrossStore,
    /// Live tiles' come first.
    pub(crate) tokens: usize,
    pub(crate) live_tokens: usize,
    /// `[tokens]`: the logarithm of how many tokens each stands for. Only where text may see unused tiles.
    pub(crate) key_bias: Option<Tensor>,
}

#[derive(Clone, Debug)]
pub(crate) enum CrossStore {
    /// By cross-attention layer, each `[tokens, kv_heads, head_dim]`.
    Own(Vec<(Tensor, Tensor)>),
    Paged(Pages),
}

/// Where an image's keys and values are read.
#[derive(Debug)]
pub(crate) enum CrossPlaces {
    /// As many from the first on.
    First(usize),
    /// In the pool's tensors.
    Paged(Places, Vec<PagedLayer>),
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
        match &self.store {
            CrossStore::Own(layers) => layers.iter().map(|(k, v)| size(k) + size(v)).sum(),
            CrossStore::Paged(pages) => (pages.capacity() / PAGE) as u64 * pages.pool().page_bytes(),
        }
    }

    /// The pages, if it has some.
    pub(crate) fn pages(&self) -> Option<&Pages> {
        match &self.store {
            CrossStore::Paged(pages) => Some(pages),
            CrossStore::Own(_) => None,
        }
    }

    /// Where the tokens lie that `unseeing` text attends to, all, or that other text sees: for all layers.
    pub(crate) fn places(&self, unseeing: bool) -> Result<CrossPlaces> {
        let tokens = if unseeing { self.tokens } else { self.live_tokens };
        match &self.store {
            CrossStore::Own(_) => Ok(CrossPlaces::First(tokens)),
            CrossStore::Paged(pages) => Ok(CrossPlaces::Paged(pages.places(tokens)?, pages.pool().layers())),
        }
    }

    /// A layer's keys and values of the tokens at `places`.
    pub(crate) fn layer(&self, layer: usize, places: &CrossPlaces) -> Result<(Tensor, Tensor)> {
        match (&self.store, places) {
            (CrossStore::Own(layers), CrossPlaces::First(tokens)) => {
                let (k, v) = &layers[layer];
                Ok((k.narrow(0, 0, *tokens)?, v.narrow(0, 0, *tokens)?))
            }
            (CrossStore::Paged(_), CrossPlaces::Paged(places, layers)) => {
                let (k, v) = &layers[layer];
                Ok((places.of(k)?, places.of(v)?))
            }
            _ => Err(Error::Image("keys and values of an image lie elsewhere".into())),
        }
    }
}
