//! The text layers: Llama 3's decoder with cross-attention layers in between.
//!
//! A step works on a flat list of tokens `[tokens, hidden]` of several sequences of any lengths; no token is padding.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::attention::{Path, TextTokens, causal_by_kernels};
use crate::config::TextConfig;
use crate::error::{Error, Result};
use crate::kv::{CrossKv, CrossStore, SelfKv};
use crate::layers::{Linear, Loader, Norm, RmsNorm, Table, silu_mul};
use crate::lookup::KeyHeads;
use crate::pages::{PagePool, PageShape, Pages};
use crate::reference::Reference;
use crate::rope::{Rope, rotate};
use crate::step::{CrossStep, Filled, LatestLookup, PagedTexts, Paging, Run};
use crate::transfer::to_device;
use crate::vision::{Observer, VisionStates};

/// A sequence's part in a step.
#[derive(Debug)]
pub struct Sequence<'a> {
    /// What came before; the step's tokens are appended.
    pub kv: &'a mut SelfKv,
    /// The images of the sequence.
    pub images: &'a [Arc<CrossKv>],
    /// For each of the step's tokens the images that it sees. As many as the sequence has tokens in the step.
    pub visible: &'a [Range<usize>],
}

/// The text layers with embedding and output head.
#[derive(Debug)]
pub(crate) struct TextModel {
    config: TextConfig,
    reference: Reference,
    embedding: Table,
    layers: Vec<Layer>,
    norm: RmsNorm,
    lm_head: Linear,
    rope: Rope,
    dtype: DType,
    /// Of keys and values.
    kv_dtype: DType,
    device: Device,
    path: Path,
    /// For the portable path.
    paged: Option<Paged>,
    latest_lookup: LatestLookup,
}

/// Pages of texts and of images, and what finds a key head's part of them.
#[derive(Debug)]
struct Paged {
    texts: Arc<PagePool>,
    images: Arc<PagePool>,
    heads: KeyHeads,
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

#[derive(Debug)]
struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
}

#[derive(Debug)]
enum Attention {
    /// With its place among the self-attention layers.
    SelfAttention { projections: Projections, index: usize },
    /// With its place among the cross-attention layers.
    Cross { projections: Projections, index: usize, q_norm: RmsNorm, k_norm: RmsNorm, attn_gate: f64, mlp_gate: f64 },
}

impl TextModel {
    pub(crate) fn load(
        loader: &Loader,
        config: &TextConfig,
        reference: Reference,
        kv_dtype: DType,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Self> {
        let c = config;
        let embedding = "language_model.model.embed_tokens";
        let head = if c.tie_word_embeddings { embedding } else { "language_model.lm_head" };
        let lm_head = loader.linear(head, c.vocab_size, c.hidden_size)?;
        let embedding = loader.table(&format!("{embedding}.weight"), c.embedding_rows, c.hidden_size)?;
        let (mut selves, mut crosses) = (0, 0);
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for i in 0..c.num_hidden_layers {
            let count = if c.is_cross(i) { &mut crosses } else { &mut selves };
            layers.push(Layer::load(loader, c, i, *count)?);
            *count += 1;
            progress(i + 1, c.num_hidden_layers);
        }
        let paged = match loader.path {
            Path::Portable { .. } => {
                let shape = |layers| PageShape { layers, kv_heads: c.num_key_value_heads, head_dim: c.head_dim };
                let (texts, images) = PagePool::pair([shape(selves), shape(crosses)], kv_dtype, loader.device);
                Some(Paged { texts, images, heads: KeyHeads::new(c.num_key_value_heads, loader.device)? })
            }
            Path::Kernels { .. } => None,
        };
        Ok(Self {
            embedding,
            lm_head,
            layers,
            paged,
            latest_lookup: LatestLookup::default(),
            norm: loader.rms_norm("language_model.model.norm", c.hidden_size, c.rms_norm_eps)?,
            rope: Rope::new(c),
            config: c.clone(),
            reference,
            dtype: loader.dtype,
            kv_dtype,
            device: loader.device.clone(),
            path: loader.path,
        })
    }

    /// Keys and values of an image for the cross-attention layers.
    pub(crate) fn cross_kv(&self, states: &VisionStates) -> Result<CrossKv> {
        let tokens = states.projected.dim(0)?;
        let shape = (tokens, self.config.num_key_value_heads, self.config.head_dim);
        let paged = match &self.paged {
            Some(Paged { images, .. }) => {
                let pages = Pages::new(images, tokens)?;
                Some((pages.places(tokens)?, images.layers(), pages))
            }
            None => None,
        };
        let mut layers = Vec::with_capacity(self.config.cross_attention_layers.len());
        for layer in &self.layers {
            if let Attention::Cross { projections, k_norm, index, .. } = &layer.attention {
                let [k, v] = Linear::forward_each([&projections.k, &projections.v], &states.projected)?;
                let (k, v) = (k_norm.forward(&k.reshape(shape)?)?, v.reshape(shape)?);
                let (k, v) = (k.to_dtype(self.kv_dtype)?, v.to_dtype(self.kv_dtype)?);
                match &paged {
                    Some((places, there, pages)) => pages.write(&there[*index], places, &k, &v)?,
                    None => layers.push((k, v)),
                }
            }
        }
        let key_bias = if tokens > states.live_tokens {
            let mut bias = vec![0f32; states.live_tokens];
            bias.resize(tokens, (states.unused_weight as f32).ln());
            Some(to_device(bias, tokens, &self.device)?)
        } else {
            None
        };
        let store = match paged {
            Some((_, _, pages)) => CrossStore::Paged(pages),
            None => CrossStore::Own(layers),
        };
        Ok(CrossKv { store, tokens, live_tokens: states.live_tokens, key_bias })
    }

    /// A store for a sequence of up to `capacity` tokens.
    pub(crate) fn self_kv(&self, capacity: usize) -> Result<SelfKv> {
        match &self.paged {
            Some(Paged { texts, .. }) => SelfKv::paged(texts, capacity),
            None => SelfKv::own(&self.config, capacity, self.kv_dtype, &self.device),
        }
    }

    /// Waits for the device.
    pub(crate) fn synchronize(&self) -> Result<()> {
        Ok(self.device.synchronize()?)
    }

    /// Lets keys and values of texts and images together take at most so many bytes, where they are in pages.
    pub(crate) fn limit_pages(&self, bytes: u64) {
        if let Some(Paged { texts, .. }) = &self.paged {
            texts.limit(bytes);
        }
    }

    /// What finds keys and values in pages, on the portable path.
    fn paging(&self) -> Option<Paging<'_>> {
        let Path::Portable { operations, fixed_shapes } = self.path else { return None };
        let Paged { heads, .. } = self.paged.as_ref()?;
        Some(Paging {
            operations,
            fixed_shapes,
            dtype: self.dtype,
            kv_dtype: self.kv_dtype,
            heads,
            width: self.config.num_key_value_heads * self.config.head_dim,
            device: &self.device,
        })
    }

    fn check(&self, ids: &[u32], sequences: &[Sequence]) -> Result<()> {
        let bad = |message: String| Err(Error::Sequence(message));
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.embedding_rows) {
            return bad(format!("token {id} is outside the embedding of {} rows", self.config.embedding_rows));
        }
        let tokens: usize = sequences.iter().map(|s| s.visible.len()).sum();
        if tokens != ids.len() || tokens == 0 {
            return bad(format!("{} tokens for sequences of {tokens}", ids.len()));
        }
        for sequence in sequences {
            sequence.kv.check_room(sequence.visible.len())?;
            let longest = sequence.kv.len() + sequence.visible.len();
            if longest > self.config.max_position_embeddings {
                return bad(format!("{longest} tokens, the model reads {}", self.config.max_position_embeddings));
            }
            if sequence.visible.iter().any(|images| images.end > sequence.images.len()) {
                return bad(format!("a token sees an image beyond the row's {}", sequence.images.len()));
            }
        }
        Ok(())
    }

    /// Runs a step and returns the logits of the flat tokens `wanted`, `[wanted, vocabulary]` in f32; of none on the host. An
    /// error leaves the sequences as they were.
    pub(crate) fn forward(
        &self,
        ids: &[u32],
        sequences: &mut [Sequence],
        wanted: &[u32],
        mut observer: Option<Observer>,
    ) -> Result<Tensor> {
        self.check(ids, sequences)?;
        let width = self.config.num_attention_heads * self.config.head_dim;
        let filled = Filled::new(self.path, ids.len(), width, self.dtype, &self.device)?;
        let mut observe = |name: &str, x: &Tensor| -> Result<()> {
            if let Some(observer) = observer.as_mut() {
                observer(name, &filled.tokens_of(x)?);
            }
            Ok(())
        };
        let mut positions: Vec<u32> = sequences
            .iter()
            .flat_map(|s| (s.kv.len()..s.kv.len() + s.visible.len()).map(|position| position as u32))
            .collect();
        // What fills a step up is computed like tokens, by every layer but in attention.
        let mut ids = ids.to_vec();
        positions.resize(filled.rows, 0);
        ids.resize(filled.rows, 0);
        let (cos, sin) = self.rope.tables(&positions, self.dtype, &self.device)?;
        let paging = self.paging();
        let texts = match paging {
            Some(paging) => {
                let sequences: Vec<_> = sequences.iter().map(|s| (&*s.kv, s.visible.len())).collect();
                Some(PagedTexts::new(&sequences, paging)?)
            }
            None => None,
        };
        let images = paging.map(|paging| (paging, &self.latest_lookup));
        let cross = CrossStep::new(self.runs(sequences), &filled, images, &self.device)?;
        let mut x = self.embedding.rows(&ids)?;
        observe("embed", &x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = match &layer.attention {
                Attention::SelfAttention { projections, index } => {
                    let attended = match &texts {
                        Some(texts) => {
                            let (q, k, v) = self.projected(layer, projections, &x, &cos, &sin)?;
                            texts.attend(*index, &q, &k, &v, &filled)?
                        }
                        None => self.self_attention(layer, projections, *index, &x, sequences, &cos, &sin)?,
                    };
                    let x = projections.o.forward_residual(self.path, &attended, &x, 1.0)?;
                    layer.mlp(self.path, &x, 1.0)?
                }
                Attention::Cross { .. } => self.cross_layer(layer, x, &cross, &filled)?,
            };
            observe(&format!("layer{i}"), &x)?;
        }
        drop(cross);
        if observer.is_some() {
            let normed = self.norm.forward(&x)?;
            if let Some(observer) = observer.as_mut() {
                observer("norm", &filled.tokens_of(&normed)?);
            }
        }
        let logits = if wanted.is_empty() {
            // A step that only reads a piece of a prompt. Devices refuse to compute nothing, so no operation sees this.
            Tensor::zeros((0, self.config.vocab_size), DType::F32, &Device::Cpu)?
        } else {
            let last = x.index_select(&to_device(wanted.to_vec(), wanted.len(), &self.device)?, 0)?;
            let [logits] = self.norm.then([&self.lm_head], &last)?;
            logits.to_dtype(DType::F32)?
        };
        // Only now: what fails before has written behind the sequences' ends, where the next step writes again.
        for sequence in sequences {
            sequence.kv.advance(sequence.visible.len());
        }
        Ok(logits)
    }

    /// Queries, keys and values of the tokens.
    fn projected(
        &self,
        layer: &Layer,
        projections: &Projections,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let (tokens, _) = x.dims2()?;
        let c = &self.config;
        let split = |x: Tensor, heads: usize| x.reshape((tokens, heads, c.head_dim));
        let [q, k, v] = layer.input_layernorm.then([&projections.q, &projections.k, &projections.v], x)?;
        let q = rotate(self.path, &split(q, c.num_attention_heads)?, cos, sin)?;
        let k = rotate(self.path, &split(k, c.num_key_value_heads)?, cos, sin)?;
        let v = split(v, c.num_key_value_heads)?;
        Ok((q, k.to_dtype(self.kv_dtype)?, v.to_dtype(self.kv_dtype)?))
    }

    /// What the tokens see, `[tokens, heads * d]`.
    #[allow(clippy::too_many_arguments)] // a layer, its tokens and what is the same for all layers
    fn self_attention(
        &self,
        layer: &Layer,
        projections: &Projections,
        index: usize,
        x: &Tensor,
        sequences: &[Sequence],
        cos: &Tensor,
        sin: &Tensor,
    ) -> Result<Tensor> {
        let (q, k, v) = self.projected(layer, projections, x, cos, sin)?;
        let mut start = 0;
        let mut texts = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let len = sequence.visible.len();
            let (keys, values) = sequence.kv.append(index, &k.narrow(0, start, len)?, &v.narrow(0, start, len)?)?;
            texts.push(TextTokens { len, keys, values });
            start += len;
        }
        Ok(causal_by_kernels(&q, &texts)?.flatten_from(1)?)
    }

    /// Which tokens see what, in order; tokens that a cross-attention layer leaves as they are don't appear.
    fn runs<'a>(&self, sequences: &[Sequence<'a>]) -> Vec<Run<'a>> {
        let mut runs = Vec::new();
        let mut start = 0;
        for sequence in sequences {
            let mut from = 0;
            while from < sequence.visible.len() {
                let range = sequence.visible[from].clone();
                let len = sequence.visible[from..].iter().take_while(|r| **r == range).count();
                let tokens = start + from..start + from + len;
                if !range.is_empty() {
                    runs.push(Run { tokens, images: &sequence.images[range], unseeing: false });
                } else if self.reference.unseeing_rows_attend() && !sequence.images.is_empty() {
                    runs.push(Run { tokens, images: sequence.images, unseeing: true });
                }
                from += len;
            }
            start += sequence.visible.len();
        }
        runs
    }

    /// A cross-attention layer. Tokens of sequences without an image skip it whole.
    fn cross_layer(&self, layer: &Layer, x: Tensor, step: &CrossStep, filled: &Filled) -> Result<Tensor> {
        let Attention::Cross { projections, index, q_norm, attn_gate, mlp_gate, .. } = &layer.attention else {
            return Ok(x);
        };
        if step.is_empty() {
            return Ok(x);
        }
        let c = &self.config;
        let rows = step.attending.of(&x)?;
        let [q] = layer.input_layernorm.then([&projections.q], &rows)?;
        let q = q_norm.forward(&q.reshape((step.attending.count, c.num_attention_heads, c.head_dim))?)?;
        let attended = step.attend(*index, &q, filled)?;
        let rows = projections.o.forward_residual(self.path, &attended, &rows, *attn_gate)?;
        let x = step.attending.replaced(&x, &rows)?;
        if step.seeing.count == 0 {
            return Ok(x);
        }
        let rows = step.seeing.of(&x)?;
        step.seeing.replaced(&x, &layer.mlp(self.path, &rows, *mlp_gate)?)
    }
}

impl Layer {
    fn load(loader: &Loader, c: &TextConfig, i: usize, index: usize) -> Result<Self> {
        let name = format!("language_model.model.layers.{i}");
        let d = c.hidden_size;
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let cross = c.is_cross(i);
        let attention = format!("{name}.{}", if cross { "cross_attn" } else { "self_attn" });
        let projections = Projections {
            q: loader.linear(&format!("{attention}.q_proj"), q, d)?,
            k: loader.linear(&format!("{attention}.k_proj"), kv, d)?,
            v: loader.linear(&format!("{attention}.v_proj"), kv, d)?,
            o: loader.linear(&format!("{attention}.o_proj"), d, q)?,
        };
        let attention = if cross {
            Attention::Cross {
                projections,
                index,
                q_norm: loader.rms_norm(&format!("{attention}.q_norm"), c.head_dim, c.rms_norm_eps)?,
                k_norm: loader.rms_norm(&format!("{attention}.k_norm"), c.head_dim, c.rms_norm_eps)?,
                attn_gate: loader.tanh_gate(&format!("{name}.cross_attn_attn_gate"))?,
                mlp_gate: loader.tanh_gate(&format!("{name}.cross_attn_mlp_gate"))?,
            }
        } else {
            Attention::SelfAttention { projections, index }
        };
        let norm = |n: &str| loader.rms_norm(&format!("{name}.{n}"), d, c.rms_norm_eps);
        Ok(Self {
            attention,
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            gate_proj: loader.linear(&format!("{name}.mlp.gate_proj"), c.intermediate_size, d)?,
            up_proj: loader.linear(&format!("{name}.mlp.up_proj"), c.intermediate_size, d)?,
            down_proj: loader.linear(&format!("{name}.mlp.down_proj"), d, c.intermediate_size)?,
        })
    }

    /// SwiGLU (Shazeer 2020) of the norm, and the gated residual.
    fn mlp(&self, path: Path, x: &Tensor, gate: f64) -> Result<Tensor> {
        let [gated, up] = self.post_attention_layernorm.then([&self.gate_proj, &self.up_proj], x)?;
        self.down_proj.forward_residual(path, &silu_mul(path, &gated, &up)?, x, gate)
    }
}
