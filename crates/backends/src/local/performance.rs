//! What a run costs on a device, counted and not measured: bytes, FLOPs and launches of each stage, and the time that
//! the device's limits leave for them. [The page](super::performance_model) shows it for the released models.

use std::fmt::Write as _;

use serde::Serialize;
use vgen_mllama::{Config, CrossKv, SelfKv, TextConfig, VisionConfig, WeightType, expected};

use super::launches::{FIXED_ROWS, StepLaunches};
use super::{Bytes, DecodeStep, DeviceModel, LocalOptions, MemoryPlan, Precision};

/// Rows that are all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Tiles of the row's image; 0 for a row without one.
    pub tiles: u64,
    /// Tokens of its prompt.
    pub prompt: u64,
    /// Tokens of its answer.
    pub new_tokens: u64,
}

/// The cost of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Multiplications and additions.
    pub flops: f64,
    /// Bytes from and to the device's memory.
    pub bytes: f64,
    /// Operations launched.
    pub launches: f64,
}

impl Cost {
    fn times(self, factor: f64) -> Self {
        Self { flops: self.flops * factor, bytes: self.bytes * factor, launches: self.launches * factor }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            flops: self.flops + other.flops,
            bytes: self.bytes + other.bytes,
            launches: self.launches + other.launches,
        }
    }

    /// Seconds at the device's limits: whichever of the three takes longest, as they overlap.
    pub fn seconds(&self, device: &DeviceModel) -> f64 {
        (self.flops / device.flops).max(self.bytes / device.bandwidth).max(self.launches * device.launch)
    }
}

/// The stages of a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowCost {
    /// The vision tower, for one image.
    pub encode: Cost,
    /// Projector, keys and values of the image for the cross-attention layers.
    pub project: Cost,
    /// Reading the prompt.
    pub prefill: Cost,
    /// A step that continues `batch` answers by a token each, half way through them.
    pub decode_step: Cost,
    /// Answers that are continued together.
    pub batch: u64,
    /// Tokens of the answer, less the one that the prompt's last logits give.
    pub steps: u64,
}

impl RowCost {
    /// Counts a row of a plan.
    pub fn new(
        config: &Config,
        precision: &Precision,
        options: &LocalOptions,
        device: &DeviceModel,
        work: Workload,
    ) -> Self {
        let count = Count::new(config, precision, options, device, work);
        Self {
            encode: count.encode(),
            project: count.project(),
            prefill: count.prefill(),
            decode_step: count.decode_step(options.batch_size as f64),
            batch: options.batch_size as u64,
            steps: work.new_tokens.saturating_sub(1),
        }
    }

    /// Seconds of a row at the device's limits.
    pub fn seconds(&self, device: &DeviceModel) -> f64 {
        let once = self.encode.seconds(device) + self.project.seconds(device) + self.prefill.seconds(device);
        once + self.steps as f64 * self.decode_step.seconds(device) / self.batch as f64
    }

    /// The same stages as a table in Markdown.
    pub fn table(&self, device: &DeviceModel) -> String {
        let mut text = String::from("| stage | FLOPs | bytes | launches | at the limits |\n|---|---|---|---|---|\n");
        let stages = [
            ("encode an image".to_owned(), self.encode),
            ("project it, keys and values".to_owned(), self.project),
            ("read the prompt".to_owned(), self.prefill),
            (format!("continue {} answers", self.batch), self.decode_step),
        ];
        for (name, cost) in stages {
            // Writing to a string can't fail.
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {:.0} | {} |",
                scaled(cost.flops, "FLOP"),
                scaled(cost.bytes, "B"),
                cost.launches,
                duration(cost.seconds(device)),
            );
        }
        text
    }
}

/// A number with the prefix that leaves three digits.
fn scaled(number: f64, unit: &str) -> String {
    let prefixes = ["", "k", "M", "G", "T", "P"];
    let power = (0..prefixes.len() - 1).find(|&p| number < 1000f64.powi(p as i32 + 1)).unwrap_or(prefixes.len() - 1);
    format!("{:.2} {}{unit}", number / 1000f64.powi(power as i32), prefixes[power])
}

fn duration(seconds: f64) -> String {
    if seconds >= 1.0 { format!("{seconds:.2} s") } else { format!("{:.2} ms", seconds * 1e3) }
}

/// The numbers of a model from which costs are counted.
struct Count<'a> {
    text: &'a TextConfig,
    vision: Option<&'a VisionConfig>,
    work: Workload,
    /// Bytes of an activation.
    size: f64,
    /// Bytes of a weight of the text layers, and of the vision part.
    text_weight: f64,
    vision_weight: f64,
    kv_per_token: f64,
    cross_kv_per_token: f64,
    self_weights: f64,
    cross_weights: f64,
    head_weights: f64,
    /// Tokens that are computed with one reading of the weights when prompts are read.
    rows_per_read: f64,
    step_tokens: f64,
    quantised: bool,
    fixed_shapes: bool,
    reads_pages: bool,
}

impl<'a> Count<'a> {
    fn new(
        config: &'a Config,
        precision: &Precision,
        options: &LocalOptions,
        device: &DeviceModel,
        work: Workload,
    ) -> Self {
        let (text, vision) = (&config.text, config.vision.as_ref());
        let size = precision.activations.size_in_bytes() as f64;
        let bytes_per_weight = |vision: bool| {
            let (mut bytes, mut weights) = (0, 0);
            for spec in expected(config) {
                if spec.role.is_matrix() && spec.name.starts_with("language_model.") != vision {
                    weights += spec.elements();
                    bytes += precision.bytes(&spec, config.stored);
                }
            }
            if weights == 0 { 0.0 } else { bytes as f64 / weights as f64 }
        };
        let (d, f) = (text.hidden_size as f64, text.intermediate_size as f64);
        let (q, kv) =
            ((text.num_attention_heads * text.head_dim) as f64, (text.num_key_value_heads * text.head_dim) as f64);
        let cross = text.cross_attention_layers.len() as f64;
        let mlp = 3.0 * d * f;
        let kv_size = precision.kv;
        let step_tokens = options.step_tokens as f64;
        Self {
            text,
            vision,
            work,
            size,
            text_weight: bytes_per_weight(false),
            vision_weight: bytes_per_weight(true),
            kv_per_token: SelfKv::bytes_per_token(text, kv_size) as f64,
            cross_kv_per_token: CrossKv::bytes_per_token(text, kv_size) as f64,
            self_weights: text.self_layers() as f64 * (2.0 * d * q + 2.0 * d * kv + mlp),
            // Keys and values of images are projected elsewhere.
            cross_weights: cross * (2.0 * d * q + mlp),
            head_weights: d * text.vocab_size as f64,
            rows_per_read: if options.fixed_shapes { (FIXED_ROWS as f64).min(step_tokens) } else { step_tokens },
            step_tokens,
            quantised: matches!(precision.weights.all, Some(WeightType::Q8_0 | WeightType::Q4K)),
            fixed_shapes: options.fixed_shapes,
            reads_pages: device.reads_pages,
        }
    }

    fn image_tokens(&self) -> f64 {
        self.vision.map_or(0.0, |v| (self.work.tiles * v.patches() as u64) as f64)
    }

    /// The tower, with padding computed once, as released weights allow.
    fn encode(&self) -> Cost {
        let Some(v) = self.vision.filter(|_| self.work.tiles > 0) else { return Cost::default() };
        let (h, f, patches) = (v.hidden_size as f64, v.intermediate_size as f64, v.patches() as f64);
        let live_tiles = self.work.tiles.min(v.max_num_tiles as u64) as f64;
        let computed = live_tiles + if live_tiles < v.max_num_tiles as f64 { 1.0 } else { 0.0 };
        let live = live_tiles * patches;
        let padded = if v.padding_patches() > 0 { 1.0 } else { 0.0 };
        let stacks = [
            (v.num_hidden_layers as f64, computed * patches + padded),
            (v.num_global_layers as f64, computed * (patches + padded)),
        ];
        let weights = 4.0 * h * h + 2.0 * h * f;
        let pixels = (v.num_channels * v.patch_size * v.patch_size) as f64;
        let mut cost = Cost {
            flops: 2.0 * live_tiles * (patches - 1.0) * pixels * h,
            bytes: pixels * h * self.vision_weight,
            launches: 20.0,
        };
        for (layers, tokens) in stacks {
            let products = 2.0 * weights * tokens;
            let attention = 4.0 * h * (live * tokens + (tokens - live) * live);
            // Read and written by each operation: about 24 vectors of the width and 6 of the wide layer a token.
            let activations = tokens * (24.0 * h + 6.0 * f) * self.size;
            // 4 norms and sums, 8 products and biases, an activation, and attention in two parts with its joins.
            let launches = 24.0;
            let layer =
                Cost { flops: products + attention, bytes: weights * self.vision_weight + activations, launches };
            cost = cost.plus(layer.times(layers));
        }
        cost
    }

    fn project(&self) -> Cost {
        let Some(v) = self.vision.filter(|_| self.work.tiles > 0) else { return Cost::default() };
        let d = self.text.hidden_size as f64;
        let kv = (self.text.num_key_value_heads * self.text.head_dim) as f64;
        let layers = self.text.cross_attention_layers.len() as f64;
        let weights = v.output_size() as f64 * d;
        let keys_and_values = layers * 2.0 * d * kv;
        let tokens = self.image_tokens();
        Cost {
            flops: 2.0 * tokens * (weights + keys_and_values),
            bytes: weights * self.vision_weight
                + keys_and_values * self.text_weight
                + tokens * (v.output_size() as f64 + d * (1.0 + layers)) * self.size
                + tokens * self.cross_kv_per_token,
            launches: 4.0 + layers * 5.0,
        }
    }

    /// Scores and sums over keys and values of a token's text and image, all layers.
    fn attention(&self, context: f64) -> f64 {
        let q = (self.text.num_attention_heads * self.text.head_dim) as f64;
        let cross = self.text.cross_attention_layers.len() as f64;
        4.0 * q * (self.text.self_layers() as f64 * context + cross * self.image_tokens())
    }

    /// Weights that a token goes through, without the output head.
    fn weights(&self) -> f64 {
        self.self_weights + if self.work.tiles > 0 { self.cross_weights } else { 0.0 }
    }

    fn prefill(&self) -> Cost {
        let prompt = self.work.prompt as f64;
        let layers = self.text.num_hidden_layers as f64;
        let (d, f) = (self.text.hidden_size as f64, self.text.intermediate_size as f64);
        let reads = prompt / self.rows_per_read;
        // A row's share of the steps that it is in.
        let share = prompt / self.step_tokens;
        let products = self.launches(1.0) * (self.step_tokens / self.rows_per_read).max(1.0);
        Cost {
            flops: 2.0 * (self.weights() * prompt + self.head_weights) + self.attention(prompt / 2.0) * prompt,
            bytes: reads * self.weights() * self.text_weight
                + self.head_weights * self.text_weight * share
                + prompt * layers * (20.0 * d + 8.0 * f) * self.size
                + prompt * self.kv_per_token
                + self.image_tokens() * self.cross_kv_per_token,
            launches: products * share,
        }
    }

    /// Tokens of a text half way through its answer.
    fn context(&self) -> f64 {
        self.work.prompt as f64 + self.work.new_tokens as f64 / 2.0
    }

    /// Operations of a step that continues `batch` answers.
    fn launches(&self, batch: f64) -> f64 {
        let launches = StepLaunches::new(DecodeStep {
            reads_pages: self.reads_pages,
            half: self.size < 4.0,
            quantised: self.quantised,
            fixed_shapes: self.fixed_shapes,
            answers: batch as u64,
            text: self.context() as u64,
            image: self.image_tokens() as u64,
        });
        launches.total(self.text) as f64
    }

    fn decode_step(&self, batch: f64) -> Cost {
        let context = self.context();
        let blocks = (batch / FIXED_ROWS as f64).ceil().max(1.0);
        let kv = context * self.kv_per_token + self.image_tokens() * self.cross_kv_per_token;
        // Without a kernel that reads pages, keys and values are copied together first: read, written, read.
        let copies = if self.reads_pages { 1.0 } else { 3.0 };
        Cost {
            flops: batch * (2.0 * (self.weights() + self.head_weights) + self.attention(context)),
            bytes: blocks * (self.weights() + self.head_weights) * self.text_weight + batch * kv * copies,
            launches: self.launches(batch),
        }
    }
}

/// What other programs do that this one doesn't, for a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PeerCost {
    /// FLOPs of computing four tiles and all their padding for every image.
    pub four_padded_tiles: f64,
    /// FLOPs of projecting an image's keys and values again for every token.
    pub projected_again: f64,
    /// Bytes of keys and values of an image in all layers instead of the cross-attention layers.
    pub image_in_all_layers: f64,
}

impl PeerCost {
    /// For a row of a model; `None` if it has no image.
    pub fn new(config: &Config, precision: &Precision, work: Workload) -> Option<Self> {
        let v = config.vision.as_ref().filter(|_| work.tiles > 0)?;
        let text = &config.text;
        let (h, f) = (v.hidden_size as f64, v.intermediate_size as f64);
        let tokens = (v.max_num_tiles * (v.patches() + v.padding_patches())) as f64;
        let layers = (v.num_hidden_layers + v.num_global_layers) as f64;
        let (d, kv) = (text.hidden_size as f64, (text.num_key_value_heads * text.head_dim) as f64);
        let cross = text.cross_attention_layers.len() as f64;
        let all_tiles = (v.max_num_tiles * v.patches()) as f64;
        let image = all_tiles * CrossKv::bytes_per_token(text, precision.kv) as f64;
        Some(Self {
            four_padded_tiles: layers * (2.0 * tokens * (4.0 * h * h + 2.0 * h * f) + 4.0 * h * tokens * tokens),
            projected_again: work.new_tokens as f64 * cross * 4.0 * all_tiles * d * kv,
            image_in_all_layers: image / cross * text.num_hidden_layers as f64,
        })
    }
}

/// A model on a device: its plan and its cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The device.
    pub device: DeviceModel,
    /// The types of the computation, in words.
    pub dtype: String,
    /// The plan.
    pub plan: MemoryPlan,
    /// The rows.
    pub work: Workload,
    /// What a row costs.
    pub cost: RowCost,
    /// What others would spend.
    pub peers: Option<PeerCost>,
    /// Rows a second if every stage ran at the device's limits.
    pub rows_per_second_at_most: f64,
    /// Whether not even the smallest type fits.
    pub too_large: bool,
}

impl Prediction {
    /// Plans a model as a run on the device would, and counts. Batch size and types are chosen as there.
    pub fn new(config: &Config, options: &LocalOptions, device: &DeviceModel, work: Workload) -> Self {
        let stored = |_: &str| config.stored;
        let memory = device.memory.min(options.memory.unwrap_or(u64::MAX));
        let mut options = LocalOptions { memory: Some(memory), ..options.clone() };
        let precision = Precision::on_gpu(&options, config, &stored, Some(memory));
        if options.fill_device {
            options.batch_size = MemoryPlan::batch_in(config, &precision, &options, memory);
        }
        let plan = MemoryPlan::new(config, &precision, &options);
        let cost = RowCost::new(config, &precision, &options, device, work);
        Self {
            device: *device,
            dtype: precision.to_string(),
            rows_per_second_at_most: 1.0 / cost.seconds(device),
            too_large: plan.check(None).is_err(),
            peers: PeerCost::new(config, &precision, work),
            plan,
            work,
            cost,
        }
    }

    /// For people, in Markdown.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let Workload { tiles, prompt, new_tokens } = self.work;
        let _ = writeln!(
            text,
            "{}, {}: {} of weights, {} answers at a time; rows with {tiles} tiles, {prompt} tokens, {new_tokens} new ones",
            self.device.title,
            self.dtype,
            Bytes(self.plan.weights),
            self.cost.batch,
        );
        if self.too_large {
            let _ = writeln!(text, "\nThis does not fit in {}.", Bytes(self.device.memory));
            return text;
        }
        let _ = writeln!(text, "\n{}", self.cost.table(&self.device));
        let _ = writeln!(text, "At most {:.2} rows a second.", self.rows_per_second_at_most);
        if let Some(peers) = self.peers {
            let _ = writeln!(
                text,
                "Elsewhere: {} for four padded tiles, {} to project the image again for every token, {} of keys and \
                 values for an image in all layers.",
                scaled(peers.four_padded_tiles, "FLOP"),
                scaled(peers.projected_again, "FLOP"),
                Bytes(peers.image_in_all_layers as u64),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;
    use crate::local::{DEVICE_MODELS, DTypeChoice, ModelSource};

    fn config(text: &str) -> Config {
        Config::from_json(text).unwrap()
    }

    fn row(config: &Config, tiles: u64) -> RowCost {
        let mut options = LocalOptions::new(ModelSource::Named("model".into()));
        options.dtype = DTypeChoice::Bf16;
        let precision = Precision::on_gpu(&options, config, &|_| config.stored, None);
        RowCost::new(config, &precision, &options, &DEVICE_MODELS[0], Workload { tiles, prompt: 256, new_tokens: 128 })
    }

    fn close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 0.01, "{found:e} for {expected:e}");
    }

    /// Held to an independent count of the released models.
    #[test]
    fn the_released_models_cost_what_was_counted_elsewhere() {
        let small = config(include_str!("../../docs/llama-3.2-11b-vision.json"));
        for (tiles, tera) in [(1, 6.61), (2, 11.75), (3, 17.95), (4, 18.47)] {
            close(row(&small, tiles).encode.flops, tera * 1e12);
        }
        // Projector 0.40 and keys and values 0.86.
        close(row(&small, 4).project.flops, 1.26e12);
        // 18.4 GFLOP of products a token, 0.839 of attention to the image, and the text's own.
        close(row(&small, 4).decode_step.flops / 8.0, 19.30e9);
        close(row(&small, 0).decode_step.flops / 8.0, 15.05e9);
        // 18.36 GB of weights and, for 8 rows, 209.8 MB of image and 42 MB of text each.
        close(row(&small, 4).decode_step.bytes, 18.36e9 + 8.0 * (209.8e6 + 41.9e6));
        let large = config(include_str!("../../docs/llama-3.2-90b-vision.json"));
        close(row(&large, 4).project.flops, (0.81 + 4.30) * 1e12);
        close(row(&large, 0).decode_step.bytes - 8.0 * 320.0 * 1024.0 * 320.0, 139.0e9);
        let work = Workload { tiles: 1, prompt: 256, new_tokens: 128 };
        let options = LocalOptions::new(ModelSource::Named("model".into()));
        let precision = Precision::on_gpu(&options, &small, &|_| small.stored, None);
        let peers = PeerCost::new(&small, &precision, work).unwrap();
        close(peers.four_padded_tiles, 18.59e12);
        close(peers.projected_again, 128.0 * 0.86e12);
        close(peers.image_in_all_layers, 5.0 * 200.1 * 1048576.0);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let large = config(include_str!("../../docs/llama-3.2-90b-vision.json"));
        let mut options = LocalOptions::new(ModelSource::Named("model".into()));
        options.fill_device = true;
        let work = Workload { tiles: 4, prompt: 256, new_tokens: 128 };
        let on = |name: &str| Prediction::new(&large, &options, &name.parse().unwrap(), work);
        assert!(on("4090").too_large);
        assert_eq!(on("h100").dtype, "q4_k");
        assert!("b300".parse::<DeviceModel>().is_err());
    }

    /// More memory has room for more answers, and never for more than it holds.
    #[test]
    fn batches_fill_the_memory() {
        let small = config(include_str!("../../docs/llama-3.2-11b-vision.json"));
        let options = LocalOptions::new(ModelSource::Named("model".into()));
        let precision = Precision::on_gpu(&options, &small, &|_| small.stored, None);
        let mut before = 0;
        for memory in [26_000_000_000, 40_000_000_000, 80_000_000_000] {
            let batch = MemoryPlan::batch_in(&small, &precision, &options, memory);
            assert!(batch > before, "{batch} answers in {memory}");
            before = batch;
            let options = LocalOptions { batch_size: batch, memory: Some(memory), ..options.clone() };
            let plan = MemoryPlan::new(&small, &precision, &options);
            assert!(plan.fixed() + batch as u64 * plan.row(1024, 4, 1) <= memory);
        }
    }
}
