//! The vision tower: tiles to vision states, and the projector into the text model's width.
//!
//! The reference encodes four tiles of 1608 patches for every image, however many of them are padding. Padding is
//! many times the same vector, and stays so from layer to layer, since what each copy attends to is the same. So one
//! representative of each kind is computed, and as a key it counts as often as it stands for: the logarithm of the
//! count is added to its score. This is exact.
//!
//! Sequence of an image in the local layers, where `live` are the tiles of its canvas and `slots` the unused tiles
//! (one representative of all, if their embeddings are equal):
//!
//! ```text
//! live * patches | slots * patches | one padding patch
//! ```
//!
//! and in the global layers, after the post-tile embedding has made padding patches differ by tile:
//!
//! ```text
//! live * patches | slots * patches | live padding patches | slots padding patches
//! ```
//!
//! Everything after the first part is padding: padding doesn't attend to padding, all else attends to everything.

use std::cell::OnceCell;

use candle_core::{DType, Device, Tensor};
use vgen_core::PixelTiles;
use vgen_kernels::encoder::{Affine, EncoderLayer};
use vgen_kernels::tensor::{self as kernels, InputNorm};

use crate::attention::{ImageTokens, Path};
use crate::config::VisionConfig;
use crate::error::{Error, Result};
use crate::layers::{LayerNorm, Linear, Loader, Norm, Table};
use crate::reference::Reference;
use crate::transfer::to_device;

/// Observes intermediate results by the names that the goldens use.
pub type Observer<'a> = &'a mut dyn FnMut(&str, &Tensor);

/// The vision tower and the projector.
#[derive(Debug)]
pub struct VisionTower {
    config: VisionConfig,
    reference: Reference,
    patch_embedding: Linear,
    class_embedding: Tensor,
    /// `[patches, hidden]`, times one minus the gate.
    positions: Tensor,
    /// `[ids, tiles, patches, hidden]`.
    tile_positions: TileTable,
    /// `[ids, tiles, 1, hidden]`.
    pre_tile: TileTable,
    post_tile: TileTable,
    layernorm_pre: LayerNorm,
    layernorm_post: LayerNorm,
    local: Vec<VisionLayer>,
    global: Vec<VisionLayer>,
    /// By aspect-ratio id: whether all unused tiles have the same embeddings.
    unused_tiles_equal: Vec<bool>,
    dtype: DType,
    device: Device,
    path: Path,
}

/// Embeddings by aspect-ratio id and tile, times their gate.
#[derive(Debug)]
struct TileTable {
    /// By id, `[tiles * rows * hidden]`.
    table: Table,
    tiles: usize,
    rows: usize,
    gate: f64,
}

impl TileTable {
    /// `[tiles, rows, hidden]`.
    fn of_id(&self, id: usize) -> Result<Tensor> {
        Ok(self.table.rows(&[id as u32])?.reshape((self.tiles, self.rows, ()))?)
    }

    /// Rows of `tiles` for an id, `[tiles, rows, hidden]`.
    fn rows(&self, id: usize, tiles: &[usize]) -> Result<Tensor> {
        let of_id = self.of_id(id)?;
        let rows = tiles.iter().map(|&tile| of_id.get(tile)).collect::<candle_core::Result<Vec<_>>>()?;
        Ok((Tensor::stack(&rows, 0)? * self.gate)?)
    }
}

#[derive(Debug)]
struct VisionLayer {
    input_layernorm: LayerNorm,
    post_attention_layernorm: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    fc1: Linear,
    fc2: Linear,
    gate_attn: f64,
    gate_ffn: f64,
}

/// How an image's tokens lie in the flat sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageLayout {
    aspect_ratio_id: usize,
    /// Tiles of the canvas.
    live: usize,
    /// Unused tiles that are computed, each standing for `slot_weight`.
    slots: usize,
    slot_weight: usize,
    patches: usize,
    padding: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stack {
    Local,
    Global,
}

impl ImageLayout {
    /// Tokens that text may attend to.
    pub fn live_tokens(&self) -> usize {
        self.live * self.patches
    }

    /// How many unused tiles each computed one stands for.
    pub(crate) fn unused_weight(&self) -> usize {
        self.slot_weight
    }

    /// Tokens of computed tiles, unused ones included.
    fn tile_tokens(&self) -> usize {
        (self.live + self.slots) * self.patches
    }

    fn tokens(&self, stack: Stack) -> usize {
        let padding = match (self.padding, stack) {
            (0, _) => 0,
            (_, Stack::Local) => 1,
            (_, Stack::Global) => self.live + self.slots,
        };
        self.tile_tokens() + padding
    }

    /// The logarithm of how many tokens of the reference each computed token stands for.
    fn key_bias(&self, stack: Stack) -> Vec<f32> {
        let unused = self.slots * self.slot_weight;
        let mut bias = vec![0.0; self.live_tokens()];
        bias.resize(self.tile_tokens(), (self.slot_weight as f32).ln());
        match stack {
            _ if self.padding == 0 => {}
            Stack::Local => bias.push((((self.live + unused) * self.padding) as f32).ln()),
            Stack::Global => {
                bias.resize(bias.len() + self.live, (self.padding as f32).ln());
                bias.resize(bias.len() + self.slots, ((self.padding * self.slot_weight) as f32).ln());
            }
        }
        bias
    }

    /// For each tile of the reference the computed tile that stands for it.
    fn tile_index(&self, max_tiles: usize) -> Vec<u32> {
        let computed = |tile| if tile < self.live || self.slot_weight == 1 { tile } else { self.live };
        (0..max_tiles).map(|tile| computed(tile) as u32).collect()
    }

    /// For each token of the reference's full sequence (all tiles, each with its padding patches) the computed token
    /// that stands for it.
    fn full_index(&self, max_tiles: usize, stack: Stack, with_padding: bool) -> Vec<u32> {
        let mut index = Vec::new();
        for slot in self.tile_index(max_tiles) {
            let slot = slot as usize;
            index.extend((0..self.patches).map(|p| (slot * self.patches + p) as u32));
            if with_padding {
                let pad = self.tile_tokens() + if stack == Stack::Local { 0 } else { slot };
                index.extend(std::iter::repeat_n(pad as u32, self.padding));
            }
        }
        index
    }
}

/// What the tower makes of an image: projected states.
#[derive(Clone, Debug)]
pub(crate) struct VisionStates {
    /// `[live tokens, text hidden]`, or with the unused tiles' after them where the reference lets text see those.
    pub projected: Tensor,
    /// How many of the states belong to tiles of the canvas.
    pub live_tokens: usize,
    /// How many tokens of the reference a state of an unused tile stands for.
    pub unused_weight: usize,
}

impl VisionTower {
    pub(crate) fn load(loader: &Loader, config: &VisionConfig, reference: Reference) -> Result<Self> {
        let c = config;
        let (h, ids, tiles, patches) =
            (c.hidden_size, c.supported_aspect_ratios.len() + 1, c.max_num_tiles, c.patches());
        let table = |name: &str, gate: &str, rows: usize| -> Result<TileTable> {
            let table = loader.table(&format!("vision_model.{name}.weight"), ids, tiles * rows * h)?;
            let gate = loader.tanh_gate(&format!("vision_model.{gate}.gate"))?;
            Ok(TileTable { table, tiles, rows, gate })
        };
        let kernel = [h, c.num_channels, c.patch_size, c.patch_size];
        let gate = loader.tanh_gate("vision_model.gated_positional_embedding.gate")?;
        let positions = loader.tensor("vision_model.gated_positional_embedding.embedding", &[patches, h])?;
        let gated = "gated_positional_embedding";
        let tile_positions = table(&format!("{gated}.tile_embedding"), gated, patches)?;
        let side = |side: &str| {
            let name = format!("{side}_tile_positional_embedding");
            table(&format!("{name}.embedding"), &name, 1)
        };
        let (pre_tile, post_tile) = (side("pre")?, side("post")?);
        let unused_tiles_equal = (0..ids)
            .map(|id| {
                let live = c.live_tiles(id);
                let equal = |table: &TileTable| unused_equal(&table.of_id(id)?, live);
                Ok(equal(&tile_positions)? && equal(&pre_tile)? && equal(&post_tile)?)
            })
            .collect::<Result<_>>()?;
        let stack = |name: &str, layers: usize, gated: bool| {
            (0..layers)
                .map(|i| VisionLayer::load(loader, c, &format!("vision_model.{name}.layers.{i}"), gated))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            patch_embedding: loader.linear_of_shape("vision_model.patch_embedding.weight", &kernel)?,
            class_embedding: loader.tensor("vision_model.class_embedding", &[h])?,
            positions: (positions * (1.0 - gate))?,
            tile_positions,
            pre_tile,
            post_tile,
            layernorm_pre: loader.layer_norm("vision_model.layernorm_pre", h, c.norm_eps)?,
            layernorm_post: loader.layer_norm("vision_model.layernorm_post", h, c.norm_eps)?,
            local: stack("transformer", c.num_hidden_layers, false)?,
            global: stack("global_transformer", c.num_global_layers, true)?,
            unused_tiles_equal,
            config: config.clone(),
            reference,
            dtype: loader.dtype,
            device: loader.device.clone(),
            path: loader.path,
        })
    }

    /// How the tokens of an image with this aspect-ratio id lie.
    pub fn layout(&self, aspect_ratio_id: usize) -> ImageLayout {
        let live = self.config.live_tiles(aspect_ratio_id);
        let unused = self.config.max_num_tiles - live;
        let together = unused > 0 && self.unused_tiles_equal[aspect_ratio_id];
        ImageLayout {
            aspect_ratio_id,
            live,
            slots: if together { 1 } else { unused },
            slot_weight: if together { unused } else { 1 },
            patches: self.config.patches(),
            padding: self.config.padding_patches(),
        }
    }

    fn check(&self, image: &PixelTiles) -> Result<()> {
        let c = &self.config;
        let bad = |message: String| Err(Error::Image(message));
        if image.tile_size != c.image_size {
            return bad(format!("tiles of {} pixels, the model has {}", image.tile_size, c.image_size));
        }
        if image.aspect_ratio_id > c.supported_aspect_ratios.len()
            || image.tiles() != c.live_tiles(image.aspect_ratio_id)
        {
            return bad(format!("aspect-ratio id {} with {} tiles", image.aspect_ratio_id, image.tiles()));
        }
        if image.values.len() != image.tiles() * c.num_channels * c.image_size * c.image_size {
            return bad(format!("{} values for {} tiles", image.values.len(), image.tiles()));
        }
        Ok(())
    }

    /// Final and intermediate states of some images, each `[tokens, output size]`, tokens as in the local layout
    /// without padding patches. An image's are put together when they are asked for.
    pub(crate) fn forward<'a>(
        &'a self,
        images: &[&PixelTiles],
        mut observer: Option<Observer>,
    ) -> Result<impl Iterator<Item = Result<Tensor>> + use<'a>> {
        images.iter().try_for_each(|image| self.check(image))?;
        let layouts: Vec<_> = images.iter().map(|image| self.layout(image.aspect_ratio_id)).collect();
        let mut x = self.embed(images, &layouts, observer.as_deref_mut().map(|o| o as Observer))?;
        let mut observe = |name: &str, x: &Tensor, stack: Stack| -> Result<()> {
            if let Some(observer) = observer.as_mut() {
                observer(name, &self.full(x, &layouts, stack)?);
            }
            Ok(())
        };

        let attention = BatchedAttention::new(&layouts, Stack::Local, self.path);
        let mut intermediate = Vec::with_capacity(self.config.intermediate_layers.len());
        for (i, layer) in self.local.iter().enumerate() {
            // In the order of the list, which need not be ascending. Copies: layers overwrite their input.
            let mut keep = |x: &Tensor| -> Result<()> {
                for (slot, _) in self.config.intermediate_layers.iter().enumerate().filter(|(_, l)| **l == i) {
                    intermediate.push((slot, x.copy()?));
                }
                Ok(())
            };
            if !self.reference.takes_layer_output() {
                keep(&x)?;
            }
            x = layer.forward(x, &attention, self.config.attention_heads)?;
            observe(&format!("local{i}"), &x, Stack::Local)?;
            if self.reference.takes_layer_output() {
                keep(&x)?;
            }
        }
        intermediate.sort_by_key(|(slot, _)| *slot);

        let x = self.layernorm_post.forward(&x)?;
        observe("layernorm_post", &x, Stack::Local)?;
        let mut x = self.add_post_tile(&x, &layouts)?;
        observe("after_post_tile", &x, Stack::Global)?;
        let attention = BatchedAttention::new(&layouts, Stack::Global, self.path);
        for (i, layer) in self.global.iter().enumerate() {
            x = layer.forward(x, &attention, self.config.attention_heads)?;
            observe(&format!("global{i}"), &x, Stack::Global)?;
        }

        let intermediate: Vec<_> = intermediate.into_iter().map(|(_, state)| state).collect();
        let (mut local_start, mut global_start) = (0, 0);
        Ok(layouts.into_iter().map(move |layout| {
            let tokens = self.output_tokens(&layout);
            let last = x.narrow(0, global_start, tokens)?;
            let states = intermediate.iter().map(|state| state.narrow(0, local_start, tokens));
            let states = states.collect::<candle_core::Result<Vec<_>>>()?;
            local_start += layout.tokens(Stack::Local);
            global_start += layout.tokens(Stack::Global);
            interleave(self.path, &last, &states)
        }))
    }

    /// Tokens of an image that text may come to see: unused tiles only where the reference leaks them.
    pub(crate) fn output_tokens(&self, layout: &ImageLayout) -> usize {
        if self.reference.unseeing_rows_attend() { layout.tile_tokens() } else { layout.live_tokens() }
    }

    /// Patches to the input of the local layers, of all images one after the other. Observed image by image, without
    /// padding patches: `[max tiles, patches, hidden]`.
    fn embed(&self, images: &[&PixelTiles], layouts: &[ImageLayout], mut observer: Option<Observer>) -> Result<Tensor> {
        let (h, patches) = (self.config.hidden_size, self.config.patches());
        let class = self.class_embedding.reshape((1, 1, h))?;
        let mut parts = Vec::with_capacity(images.len());
        for (image, layout) in images.iter().zip(layouts) {
            let mut observe = |name: &str, x: &Tensor| -> Result<()> {
                if let Some(observer) = observer.as_mut() {
                    let tiles = Tensor::new(layout.tile_index(self.config.max_num_tiles), &self.device)?;
                    observer(name, &x.index_select(&tiles, 0)?);
                }
                Ok(())
            };
            let width = self.config.num_channels * self.config.patch_size.pow(2);
            let pixels = to_device(self.unfold(image), (layout.live * (patches - 1), width), &self.device)?;
            let embedded = self.patch_embedding.forward(&pixels.to_dtype(self.dtype)?)?;
            let embedded = embedded.reshape((layout.live, patches - 1, h))?;
            let tiles: Vec<usize> = (0..layout.live + layout.slots).collect();
            // Unused tiles have pixels of 0 and the convolution no bias.
            let blank = Tensor::zeros((layout.slots, patches - 1, h), self.dtype, &self.device)?;
            let x = Tensor::cat(&[&embedded, &blank], 0)?;
            observe("patch_conv", &x)?;
            let x = x.broadcast_add(&self.pre_tile.rows(layout.aspect_ratio_id, &tiles)?)?;
            observe("after_pre_tile", &x)?;
            let x = Tensor::cat(&[&class.broadcast_as((tiles.len(), 1, h))?, &x], 1)?;
            let x = x.broadcast_add(&self.positions)?;
            let x = (x + self.tile_positions.rows(layout.aspect_ratio_id, &tiles)?)?;
            observe("after_pos", &x)?;
            let x = self.layernorm_pre.forward(&x)?;
            observe("layernorm_pre", &x)?;
            parts.push(x.reshape((layout.tile_tokens(), h))?);
            if layout.padding > 0 {
                // The reference pads with zeros after the norm.
                parts.push(Tensor::zeros((1, h), self.dtype, &self.device)?);
            }
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Patches of the live tiles, `[tiles * patches, channels * patch * patch]` in the order of the kernel's axes.
    fn unfold(&self, image: &PixelTiles) -> Vec<f32> {
        let (size, patch, channels) = (self.config.image_size, self.config.patch_size, self.config.num_channels);
        let side = size / patch;
        let mut out = Vec::with_capacity(image.values.len());
        for tile in image.values.chunks_exact(channels * size * size) {
            for (row, column) in (0..side).flat_map(|r| (0..side).map(move |c| (r, c))) {
                for plane in tile.chunks_exact(size * size) {
                    for y in row * patch..(row + 1) * patch {
                        let start = y * size + column * patch;
                        out.extend_from_slice(&plane[start..start + patch]);
                    }
                }
            }
        }
        out
    }

    /// Adds the post-tile embedding, which makes padding patches differ by tile: local layout in, global out.
    fn add_post_tile(&self, x: &Tensor, layouts: &[ImageLayout]) -> Result<Tensor> {
        let h = self.config.hidden_size;
        let mut start = 0;
        let mut parts = Vec::with_capacity(2 * layouts.len());
        for layout in layouts {
            let tiles: Vec<usize> = (0..layout.live + layout.slots).collect();
            let embedding = self.post_tile.rows(layout.aspect_ratio_id, &tiles)?;
            let patches = x.narrow(0, start, layout.tile_tokens())?.reshape((tiles.len(), layout.patches, h))?;
            parts.push(patches.broadcast_add(&embedding)?.reshape((layout.tile_tokens(), h))?);
            if layout.padding > 0 {
                let pad = x.narrow(0, start + layout.tile_tokens(), 1)?;
                parts.push(embedding.squeeze(1)?.broadcast_add(&pad)?);
            }
            start += layout.tokens(Stack::Local);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// Repeats representatives until every image has all tokens of the reference, `[images, tokens, hidden]`.
    fn full(&self, x: &Tensor, layouts: &[ImageLayout], stack: Stack) -> Result<Tensor> {
        let mut start = 0;
        let mut images = Vec::with_capacity(layouts.len());
        for layout in layouts {
            let index = layout.full_index(self.config.max_num_tiles, stack, true);
            let index = Tensor::new(index, &self.device)?;
            images.push(x.narrow(0, start, layout.tokens(stack))?.index_select(&index, 0)?);
            start += layout.tokens(stack);
        }
        Ok(Tensor::stack(&images, 0)?)
    }

    /// Repeats an output `[tokens, width]` until it has the tokens of all tiles, `[tiles, patches, width]`; unused
    /// tiles must be part of it.
    pub fn full_output(&self, output: &Tensor, aspect_ratio_id: usize) -> Result<Tensor> {
        let layout = self.layout(aspect_ratio_id);
        let index = layout.full_index(self.config.max_num_tiles, Stack::Local, false);
        let full = output.index_select(&Tensor::new(index, &self.device)?, 0)?;
        Ok(full.reshape((self.config.max_num_tiles, layout.patches, ()))?)
    }

    /// Whether every aspect ratio lets unused tiles be computed once.
    pub fn unused_tiles_share(&self) -> bool {
        self.unused_tiles_equal.iter().all(|equal| *equal)
    }
}

/// Feature order of the projector: the final state, then the intermediate ones interleaved.
fn interleave(path: Path, last: &Tensor, states: &[Tensor]) -> Result<Tensor> {
    match path {
        Path::Kernels { .. } => Ok(kernels::interleave(last, states)?),
        Path::Portable { .. } if states.is_empty() => Ok(last.contiguous()?),
        Path::Portable { .. } => Ok(Tensor::cat(&[last, &Tensor::stack(states, 2)?.flatten_from(1)?], 1)?),
    }
}

/// Whether rows `live..` of `[tiles, rows, hidden]` are all the same.
fn unused_equal(table: &Tensor, live: usize) -> Result<bool> {
    let tiles = table.dim(0)?;
    if tiles - live < 2 {
        return Ok(true);
    }
    let rows = table.narrow(0, live, tiles - live)?.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2::<f32>()?;
    Ok(rows.windows(2).all(|pair| pair[0] == pair[1]))
}

/// Attention within each image of a flat batch.
struct BatchedAttention {
    images: Vec<ImageTokens>,
    path: Path,
}

impl BatchedAttention {
    fn new(layouts: &[ImageLayout], stack: Stack, path: Path) -> Self {
        let mut start = 0;
        let mut images = Vec::with_capacity(layouts.len());
        for layout in layouts {
            let tokens = layout.tokens(stack);
            images.push(ImageTokens {
                start,
                tokens,
                live: layout.live_tokens(),
                key_bias: layout.key_bias(stack),
                key_bias_there: OnceCell::new(),
            });
            start += tokens;
        }
        Self { images, path }
    }
}

impl VisionLayer {
    fn load(loader: &Loader, c: &VisionConfig, name: &str, gated: bool) -> Result<Self> {
        let h = c.hidden_size;
        let projection = |p: &str| loader.linear(&format!("{name}.self_attn.{p}_proj"), h, h);
        let gate = |g: &str| if gated { loader.tanh_gate(&format!("{name}.{g}")) } else { Ok(1.0) };
        Ok(Self {
            input_layernorm: loader.layer_norm(&format!("{name}.input_layernorm"), h, c.norm_eps)?,
            post_attention_layernorm: loader.layer_norm(&format!("{name}.post_attention_layernorm"), h, c.norm_eps)?,
            q: projection("q")?,
            k: projection("k")?,
            v: projection("v")?,
            o: projection("o")?,
            fc1: loader.linear_with_bias(&format!("{name}.mlp.fc1"), c.intermediate_size, h)?,
            fc2: loader.linear_with_bias(&format!("{name}.mlp.fc2"), h, c.intermediate_size)?,
            gate_attn: gate("gate_attn")?,
            gate_ffn: gate("gate_ffn")?,
        })
    }

    /// May overwrite what shares memory with `x`.
    fn forward(&self, x: Tensor, attention: &BatchedAttention, heads: usize) -> Result<Tensor> {
        let (tokens, h) = x.dims2()?;
        if let (Some(heads), Some(layer)) = (attention.path.heads_by_kernel(heads, h / heads), self.packed()) {
            layer.forward_tensor(&heads, &attention.images.iter().map(ImageTokens::rows).collect::<Vec<_>>(), &x)?;
            return Ok(x);
        }
        let split = |x: Tensor| x.reshape((tokens, heads, h / heads));
        let [q, k, v] = self.input_layernorm.then([&self.q, &self.k, &self.v], &x)?;
        let attended = attention.path.vision(&split(q)?, &split(k)?, &split(v)?, &attention.images)?;
        let attended = attended.reshape((tokens, h))?;
        let x = self.o.forward_residual(attention.path, &attended, &x, self.gate_attn)?;
        let inner = self.post_attention_layernorm.then_gelu(&self.fc1, &x)?;
        self.fc2.forward_residual(attention.path, &inner, &x, self.gate_ffn)
    }

    /// For the CPU kernels, if all weights are packed.
    fn packed(&self) -> Option<EncoderLayer<InputNorm<'_>, Affine<'_, &Tensor>>> {
        Some(EncoderLayer {
            attention_norm: self.input_layernorm.of_input(),
            qkv: [self.q.packed()?, self.k.packed()?, self.v.packed()?],
            o: self.o.packed()?,
            attention_gate: self.gate_attn as f32,
            mlp_norm: self.post_attention_layernorm.of_input(),
            fc1: self.fc1.packed()?,
            fc2: self.fc2.packed()?,
            mlp_gate: self.gate_ffn as f32,
        })
    }
}
