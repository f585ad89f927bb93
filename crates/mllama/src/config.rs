//! `config.json` of a checkpoint: every number of the network. Nothing about a size is known anywhere else.
//!
//! Field names and defaults are those of transformers' `MllamaConfig`; configs written by transformers 4 and 5 both
//! load.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::weights::Stored;

/// Everything that `config.json` says about the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The text layers.
    pub text: TextConfig,
    /// The vision tower; `None` for a plain Llama.
    pub vision: Option<VisionConfig>,
    /// Id of `<|image|>`.
    pub image_token: Option<u32>,
    /// The type that it says the weights are stored in.
    pub stored: Stored,
    /// Tokens that end a generation, where `generation_config.json` doesn't say.
    pub eos: Vec<u32>,
}

/// The text layers, self- and cross-attention together.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Self- and cross-attention layers together.
    pub num_hidden_layers: usize,
    /// Which of the layers are cross-attention layers, ascending.
    pub cross_attention_layers: Vec<usize>,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Rows of the output head; the embedding may have more.
    pub vocab_size: usize,
    /// Rows of the embedding: the vocabulary and, with vision, the 8 input-only tokens.
    pub embedding_rows: usize,
    /// RMSNorm's epsilon.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
}

/// Rotary position embedding (Su et al. 2021) with Llama 3's frequency scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are changed, if they are.
    pub scaling: Option<RopeScaling>,
}

/// How rotary frequencies are changed for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Llama 3's way.
    Llama3(Llama3Scaling),
    /// A divisor for each frequency, as GGUF files state them.
    Factors(Vec<f32>),
}

/// Llama 3's stretching of long wavelengths.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3Scaling {
    /// How far low frequencies are stretched.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` are stretched fully.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context length of the pre-training.
    pub original_max_position_embeddings: f64,
}

/// The vision tower.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Heads; each has its own keys and values.
    pub attention_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Local layers.
    pub num_hidden_layers: usize,
    /// Gated global layers.
    pub num_global_layers: usize,
    /// Side of a tile in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Colour channels.
    pub num_channels: usize,
    /// Most tiles of an image.
    pub max_num_tiles: usize,
    /// LayerNorm's epsilon.
    pub norm_eps: f64,
    /// Local layers whose states join the output.
    pub intermediate_layers: Vec<usize>,
    /// `[tiles high, tiles wide]`; the aspect-ratio id is the index plus one.
    pub supported_aspect_ratios: Vec<[usize; 2]>,
}

impl VisionConfig {
    /// Patches of a tile and its class token (1601 for the released weights).
    pub fn patches(&self) -> usize {
        let side = self.image_size / self.patch_size;
        side * side + 1
    }

    /// Padding patches that the reference adds to each tile to reach a multiple of 8.
    pub fn padding_patches(&self) -> usize {
        self.patches().next_multiple_of(8) - self.patches()
    }

    /// Width of the tower's output: the final state and the intermediate ones.
    pub fn output_size(&self) -> usize {
        self.hidden_size * (1 + self.intermediate_layers.len())
    }

    /// Tiles of the canvas of an aspect-ratio id; id 0 stands for a missing image with one tile.
    pub fn live_tiles(&self, aspect_ratio_id: usize) -> usize {
        match aspect_ratio_id {
            0 => 1,
            id => self.supported_aspect_ratios.get(id - 1).map_or(0, |[high, wide]| high * wide),
        }
    }
}

#[derive(Deserialize)]
struct RawConfig {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    image_token_index: Option<u32>,
    text_config: Option<Value>,
    vision_config: Option<RawVision>,
}

#[derive(Deserialize)]
struct RawText {
    hidden_size: usize,
    num_hidden_layers: usize,
    cross_attention_layers: Option<Vec<usize>>,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
}

#[derive(Deserialize, Clone)]
struct RawRope {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    factors: Option<Vec<f32>>,
}

#[derive(Deserialize)]
struct RawVision {
    hidden_size: Option<usize>,
    #[serde(alias = "num_attention_heads")]
    attention_heads: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_global_layers: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    num_channels: Option<usize>,
    max_num_tiles: Option<usize>,
    norm_eps: Option<f64>,
    hidden_act: Option<String>,
    intermediate_layers_indices: Option<Vec<usize>>,
    supported_aspect_ratios: Option<Vec<[usize; 2]>>,
    vision_output_dim: Option<usize>,
}

const MLLAMA: &str = "MllamaForConditionalGeneration";
const LLAMA: &str = "LlamaForCausalLM";
/// Tokens that can be read but not generated, `<|image|>` among them.
const INPUT_ONLY_TOKENS: usize = 8;

impl Config {
    /// Reads `config.json` and checks that the network can be built. No weight is touched.
    pub fn from_json(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
        let raw = RawConfig::deserialize(&value).map_err(|e| Error::Config(e.to_string()))?;
        let architecture = raw.architectures.as_ref().and_then(|names| names.first()).cloned();
        let architecture = match (architecture, raw.model_type.as_deref()) {
            (Some(name), _) => name,
            (None, Some("mllama")) => MLLAMA.to_owned(),
            (None, Some("llama")) => LLAMA.to_owned(),
            (None, other) => return Err(Error::Architecture(format!("{other:?}"))),
        };
        let config = match architecture.as_str() {
            MLLAMA => {
                let text_value = raw.text_config.ok_or_else(|| Error::Config("text_config is missing".into()))?;
                let vision = raw.vision_config.ok_or_else(|| Error::Config("vision_config is missing".into()))?;
                let text = TextConfig::from_raw(&text_value, INPUT_ONLY_TOKENS)?;
                Self {
                    image_token: Some(raw.image_token_index.unwrap_or(text.vocab_size as u32)),
                    vision: Some(VisionConfig::from_raw(vision)?),
                    eos: eos(&text_value),
                    stored: stored(&[&value, &text_value]),
                    text,
                }
            }
            LLAMA => Self {
                text: TextConfig::from_raw(&value, 0)?,
                vision: None,
                image_token: None,
                eos: eos(&value),
                stored: stored(&[&value]),
            },
            _ => return Err(Error::Architecture(architecture)),
        };
        if let Some(id) = config.image_token
            && id as usize >= config.text.embedding_rows
        {
            return Err(Error::Config(format!("image_token_index {id} is outside the embedding")));
        }
        Ok(config)
    }
}

/// `dtype`, or `torch_dtype` as transformers called it before version 5; checkpoints that don't say are bf16.
fn stored(places: &[&Value]) -> Stored {
    let named = places.iter().find_map(|value| value.get("dtype").or(value.get("torch_dtype"))?.as_str());
    match named {
        Some("float32") => Stored::F32,
        Some("float16") => Stored::F16,
        _ => Stored::Bf16,
    }
}

/// One id or a list of them.
fn eos(text: &Value) -> Vec<u32> {
    let ids = match text.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.clone(),
        Some(id) => vec![id.clone()],
        None => Vec::new(),
    };
    ids.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()).collect()
}

fn check(ok: bool, message: impl FnOnce() -> String) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::Config(message())) }
}

/// Larger than any size of a real model, small enough that products of two don't overflow.
const LARGEST: usize = 1 << 24;

fn check_sizes(sizes: &[(&str, usize)]) -> Result<()> {
    for &(name, size) in sizes {
        check((1..=LARGEST).contains(&size), || format!("{name} is {size}"))?;
    }
    Ok(())
}

impl TextConfig {
    fn from_raw(value: &Value, input_only: usize) -> Result<Self> {
        let raw = RawText::deserialize(value).map_err(|e| Error::Config(e.to_string()))?;
        let act = raw.hidden_act.as_deref().unwrap_or("silu");
        check(act == "silu", || format!("hidden_act {act:?} is not supported; silu is"))?;
        let bias = raw.attention_bias.unwrap_or(false) || raw.mlp_bias.unwrap_or(false);
        check(!bias, || "biases in text layers are not supported".into())?;
        let kv = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
        check_sizes(&[
            ("hidden_size", raw.hidden_size),
            ("num_hidden_layers", raw.num_hidden_layers),
            ("num_attention_heads", raw.num_attention_heads),
            ("num_key_value_heads", kv),
            ("intermediate_size", raw.intermediate_size),
            ("vocab_size", raw.vocab_size),
        ])?;
        let head_dim = raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads);
        check(head_dim > 0 && head_dim.is_multiple_of(2), || format!("head_dim is {head_dim}, it must be even"))?;
        check(raw.num_attention_heads.is_multiple_of(kv), || {
            format!("{} attention heads can't share {kv} key-value heads", raw.num_attention_heads)
        })?;
        let mut cross = raw.cross_attention_layers.unwrap_or_default();
        cross.sort_unstable();
        cross.dedup();
        if let Some(&last) = cross.last() {
            check(last < raw.num_hidden_layers, || format!("cross_attention_layers names layer {last}"))?;
        }
        let rope = RopeConfig::from_raw(raw.rope_parameters.or(raw.rope_scaling), raw.rope_theta, input_only > 0)?;
        if let Some(RopeScaling::Factors(factors)) = &rope.scaling {
            check(factors.len() == head_dim / 2, || format!("{} rope factors for heads of {head_dim}", factors.len()))?;
        }
        Ok(Self {
            hidden_size: raw.hidden_size,
            num_hidden_layers: raw.num_hidden_layers,
            cross_attention_layers: cross,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: kv,
            head_dim,
            intermediate_size: raw.intermediate_size,
            vocab_size: raw.vocab_size,
            embedding_rows: raw.vocab_size + input_only,
            rms_norm_eps: raw.rms_norm_eps.unwrap_or(1e-5),
            rope,
            max_position_embeddings: raw.max_position_embeddings.unwrap_or(131_072),
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
        })
    }

    /// Whether the layer is a cross-attention layer.
    pub fn is_cross(&self, layer: usize) -> bool {
        self.cross_attention_layers.binary_search(&layer).is_ok()
    }

    /// How many layers attend to the text itself.
    pub fn self_layers(&self) -> usize {
        self.num_hidden_layers - self.cross_attention_layers.len()
    }
}

impl RopeConfig {
    fn from_raw(raw: Option<RawRope>, theta: Option<f64>, vision: bool) -> Result<Self> {
        let theta =
            raw.as_ref().and_then(|r| r.rope_theta).or(theta).unwrap_or(if vision { 500_000.0 } else { 10_000.0 });
        let scaling = match raw {
            None => None,
            Some(raw) => match raw.rope_type.as_deref() {
                None | Some("default") => None,
                Some("factors") => raw.factors.map(RopeScaling::Factors),
                Some("llama3") => Some(RopeScaling::Llama3(Llama3Scaling {
                    factor: raw.factor.unwrap_or(8.0),
                    low_freq_factor: raw.low_freq_factor.unwrap_or(1.0),
                    high_freq_factor: raw.high_freq_factor.unwrap_or(4.0),
                    original_max_position_embeddings: raw.original_max_position_embeddings.unwrap_or(8192.0),
                })),
                Some(other) => return Err(Error::Config(format!("rope type {other:?} is not supported"))),
            },
        };
        Ok(Self { theta, scaling })
    }
}

impl VisionConfig {
    fn from_raw(raw: RawVision) -> Result<Self> {
        let act = raw.hidden_act.as_deref().unwrap_or("gelu");
        check(act == "gelu", || format!("vision hidden_act {act:?} is not supported; gelu is"))?;
        let config = Self {
            hidden_size: raw.hidden_size.unwrap_or(1280),
            attention_heads: raw.attention_heads.unwrap_or(16),
            intermediate_size: raw.intermediate_size.unwrap_or(5120),
            num_hidden_layers: raw.num_hidden_layers.unwrap_or(32),
            num_global_layers: raw.num_global_layers.unwrap_or(8),
            image_size: raw.image_size.unwrap_or(448),
            patch_size: raw.patch_size.unwrap_or(14),
            num_channels: raw.num_channels.unwrap_or(3),
            max_num_tiles: raw.max_num_tiles.unwrap_or(4),
            norm_eps: raw.norm_eps.unwrap_or(1e-5),
            intermediate_layers: raw.intermediate_layers_indices.unwrap_or_else(|| vec![3, 7, 15, 23, 30]),
            supported_aspect_ratios: raw
                .supported_aspect_ratios
                .unwrap_or_else(|| vec![[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]),
        };
        check_sizes(&[
            ("vision hidden_size", config.hidden_size),
            ("vision attention_heads", config.attention_heads),
            ("vision intermediate_size", config.intermediate_size),
            ("vision num_hidden_layers", config.num_hidden_layers),
            ("image_size", config.image_size),
            ("patch_size", config.patch_size),
            ("max_num_tiles", config.max_num_tiles),
        ])?;
        check(config.num_channels == 3, || format!("num_channels is {}, only 3 works", config.num_channels))?;
        check(config.image_size.is_multiple_of(config.patch_size), || {
            format!("image_size {} is no multiple of patch_size {}", config.image_size, config.patch_size)
        })?;
        check(config.hidden_size.is_multiple_of(config.attention_heads), || {
            format!("vision hidden_size {} can't be cut into {} heads", config.hidden_size, config.attention_heads)
        })?;
        for &layer in &config.intermediate_layers {
            check(layer < config.num_hidden_layers, || format!("intermediate_layers_indices names layer {layer}"))?;
        }
        for [high, wide] in &config.supported_aspect_ratios {
            let tiles = high.saturating_mul(*wide);
            check((1..=config.max_num_tiles).contains(&tiles), || {
                format!("aspect ratio [{high}, {wide}] doesn't fit {} tiles", config.max_num_tiles)
            })?;
        }
        if let Some(dim) = raw.vision_output_dim {
            let implied = config.output_size();
            check(dim == implied, || format!("vision_output_dim is {dim}, the intermediate layers imply {implied}"))?;
        }
        Ok(config)
    }
}
