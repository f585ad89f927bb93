//! The Llama-3.2-Vision network ("mllama") on candle: vision tower, projector, text layers with self- and
//! cross-attention, weights from safetensors. Given token ids, tiles and caches it returns logits; it knows nothing
//! of requests, queues or tokenizers.
//!
//! Sources: the Llama 3 paper (Grattafiori et al. 2024, section 7), Meta's `llama_models` (`vision/`), and
//! transformers' `models/mllama`.

mod attention;
mod checkpoint;
mod config;
mod error;
pub mod hub;
mod kv;
mod layers;
mod model;
mod reference;
mod rope;
mod tensors;
mod text;
mod vision;

pub use candle_core::{DType, Device, Tensor};
pub use checkpoint::{Checkpoint, RawTensor, Weights};
pub use config::{Config, Llama3Scaling, RopeConfig, TextConfig, VisionConfig};
pub use error::{Error, Result};
pub use kv::{CrossKv, SelfKv};
pub use model::{Counters, LoadOptions, Model};
pub use reference::Reference;
pub use tensors::{TensorSpec, expected};
pub use text::Sequence;
pub use vision::{ImageLayout, Observer, VisionTower};
