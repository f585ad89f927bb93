//! [`Work`]: the arithmetic and the reading of memory that a model takes, from its configuration alone; and what this
//! machine can do of both, measured in a second.

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vgen_kernels::{Format, PackedLinear, threads};
use vgen_mllama::{Config, Role, Stored, expected};

use super::Precision;

/// What a model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Work {
    /// Patches of a tile, its class token included.
    pub tokens_per_tile: u64,
    /// Tiles that an image has room for.
    pub max_tiles: u64,
    /// Operations of vision tower, projector and cross-attention's keys and values on a token, attention aside.
    pub encode_flops_per_token: f64,
    /// Operations of the tower's attention on a pair of tokens of an image.
    pub encode_flops_per_pair: f64,
    /// Operations of the text layers on a token, attention aside.
    pub text_flops_per_token: f64,
    /// Bytes of weights that a step of decoding reads.
    pub decode_bytes_per_step: f64,
}

impl Work {
    /// Of a model whose tensors `stored` knows.
    pub fn new(config: &Config, precision: &Precision, stored: &dyn Fn(&str) -> Stored) -> Self {
        let mut work = Self::default();
        for spec in expected(config) {
            let name = spec.name.as_str();
            let of_text = name.starts_with("language_model.");
            let of_image = name.contains("cross_attn.k_proj") || name.contains("cross_attn.v_proj");
            if !matches!(spec.role, Role::Matrix | Role::TableAndMatrix) {
                continue;
            }
            let flops = 2.0 * spec.elements() as f64;
            if !of_text || of_image {
                work.encode_flops_per_token += flops;
                continue;
            }
            // Of a prompt's tokens only the last one has logits.
            if !name.contains("lm_head") && !name.contains("embed_tokens") {
                work.text_flops_per_token += flops;
            }
            let bytes = match (precision.portable, precision.weights.block_bytes(&spec, stored(name))) {
                (true, None) => spec.elements() * precision.activations.size_in_bytes() as u64,
                (true, Some(bytes)) => bytes,
                (false, _) => precision.weights.bytes(&spec, stored(name)),
            };
            work.decode_bytes_per_step += bytes as f64;
        }
        if let Some(vision) = &config.vision {
            work.tokens_per_tile = vision.patches() as u64;
            work.max_tiles = vision.max_num_tiles as u64;
            let layers = vision.num_hidden_layers + vision.num_global_layers;
            // Scores and their sum, both a product of two numbers for each of the layer's width.
            work.encode_flops_per_pair = (4 * vision.hidden_size * layers) as f64;
        }
        work
    }
}

/// What this machine's processor does, as the kernels get it: a figure to compare with, no more exact than a second of
/// measuring makes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeasuredLimits {
    /// Bytes a second read from memory by all threads.
    pub bytes_per_second: f64,
    /// Operations a second of a large bf16 product on all threads.
    pub flops: f64,
}

/// Time for each of the two measurements.
const TIME: Duration = Duration::from_millis(600);

/// The best of several goes within [`TIME`], in seconds.
fn best(mut go: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed() < TIME || best.is_infinite() {
        let start = Instant::now();
        go();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

impl MeasuredLimits {
    /// Measures. The machine should have nothing else to do. `None` if there is no kernel to measure with.
    pub fn measure() -> Option<Self> {
        // Larger than any cache.
        let data = vec![1u64; 64 << 20];
        let part = data.len().div_ceil(threads::limit());
        let read = best(|| {
            data.par_chunks(part).for_each(|part| {
                let mut sums = [0u64; 32];
                for chunk in part.chunks_exact(32) {
                    sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
                }
                black_box(sums);
            });
        });
        let (rows, from, to) = (1024, 1280, 5120);
        let weights = vec![0.5f32; to * from];
        let linear = PackedLinear::pack(Format::Bf16, &weights, to, from).ok()?;
        let input = vec![1.0f32; rows * from];
        let mut output = vec![0.0f32; rows * to];
        let product = best(|| {
            // The lengths fit, so it can't fail.
            let _ = linear.forward(black_box(&input), rows, black_box(&mut output), None);
        });
        Some(Self {
            bytes_per_second: (data.len() * 8) as f64 / read,
            flops: 2.0 * (rows * from * to) as f64 / product,
        })
    }
}
