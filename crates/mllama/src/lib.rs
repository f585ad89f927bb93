//! The Llama-3.2-Vision network ("mllama") on candle: vision tower, projector, text layers with self- and
//! cross-attention, weights from safetensors. Given token ids, tiles and caches it returns logits; it knows nothing
//! of requests, queues or tokenizers.
//!
//! Sources: the Llama 3 paper (Grattafiori et al. 2024, section 7), Meta's `llama_models` (`vision/`), and
//! transformers' `models/mllama`.

mod attention;
mod checkpoint;
mod choose;
mod config;
pub mod devices;
mod error;
mod gguf;
pub mod hub;
mod key_bias;
mod kv;
mod layers;
mod lookup;
mod model;
mod operations;
mod pages;
mod quantize;
mod reference;
mod rope;
mod self_check;
mod step;
mod tensors;
mod text;
mod transfer;
mod vision;
mod weight_type;
mod weights;

pub use candle_core::{DType, Device, Tensor};
pub use checkpoint::Checkpoint;
pub use choose::{Highest, TOP, Top};
pub use config::{Config, Llama3Scaling, RopeConfig, RopeScaling, TextConfig, VisionConfig};
pub use error::{Error, Result};
pub use kv::{CrossKv, SelfKv};
pub use model::{Counters, LoadOptions, Model};
pub use quantize::quantize;
pub use reference::Reference;
pub use self_check::self_check;
pub use tensors::{Role, TensorSpec, expected};
pub use text::Sequence;
pub use vision::{ImageLayout, Observer, VisionTower};
pub use weight_type::{WeightOverride, WeightType, WeightTypes};
pub use weights::{RawTensor, Stored, Weights};
