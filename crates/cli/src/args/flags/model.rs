//! The model of the local backend.

use clap::Args;

use crate::quantity;
use crate::settings::Settings;

#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelFlags {
    /// A folder with the checkpoint, a GGUF file, or owner/name on the Hugging Face hub.
    #[arg(long, short, value_name = "DIR_OR_ID")]
    model: Option<String>,
    /// Branch, tag or commit on the hub [default: main].
    #[arg(long, value_name = "REV")]
    revision: Option<String>,
    /// Where it runs: auto, cpu, cuda, cuda:N, metal [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Several devices, each with an engine and the model of its own: cuda:0,cuda:1. The answers are those of one.
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "device")]
    devices: Vec<String>,
    /// On a GPU, let no answer depend on the rows beside it, at some cost for long prompts; see the documentation of
    /// vgen_backends::local::devices for what is promised. On the CPU it is always so [default: true].
    #[arg(long, value_name = "BOOL")]
    fixed_shapes: Option<bool>,
    /// Type of weights and activations: auto, f32, bf16, f16 (GPU), q8_0, q4_k [default: auto, the best that fits of the
    /// checkpoint's own types (on a GPU bf16, or f16 where it is too old for that), q8_0 and q4_k].
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// Type of the weights of some tensors on the CPU, by name: vision_model.*=bf16. May be repeated; the last counts.
    #[arg(long, value_name = "PATTERN=TYPE")]
    tensor_type: Vec<String>,
    /// Type of keys and values: auto, f32, bf16, f16 [default: auto, which is f32 with f32 weights, else bf16].
    #[arg(long, value_name = "TYPE")]
    kv_dtype: Option<String>,
    /// Whose numbers to reproduce: Meta's own code, or transformers before and since 4.57 [default: meta].
    #[arg(long, value_name = "WHOSE", value_parser = ["meta", "hf4", "hf5"])]
    reference: Option<String>,
    /// Answers computed together at most, by each device [default: 8, on a GPU what its free memory has room for].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Tokens computed in one step at most, those of running answers included [default: 512].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    step_tokens: Option<u32>,
    /// Threads that compute [default: one for each core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Threads that fetch, decode and tile images ahead of the model [default: 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prepare_threads: Option<u32>,
    /// Keys and values of images that are kept for later rows with the same image, in bytes [default: 1GiB].
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    image_cache: Option<u64>,
    /// Memory for weights, images and rows of each device, for example 20GiB [default: what is free, less a twentieth].
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    memory: Option<u64>,
}

impl ModelFlags {
    /// Lays what was given over the settings.
    pub(crate) fn add_to(self, settings: &mut Settings) {
        settings.flag(("backend", "model"), "--model", self.model);
        settings.flag(("backend", "revision"), "--revision", self.revision);
        settings.flag(("backend", "device"), "--device", self.device);
        settings.flag(("backend", "devices"), "--devices", (!self.devices.is_empty()).then_some(self.devices));
        settings.flag(("backend", "fixed_shapes"), "--fixed-shapes", self.fixed_shapes);
        settings.flag(("backend", "dtype"), "--dtype", self.dtype);
        let tensor_types = (!self.tensor_type.is_empty()).then_some(self.tensor_type);
        settings.flag(("backend", "tensor_types"), "--tensor-type", tensor_types);
        settings.flag(("backend", "kv_dtype"), "--kv-dtype", self.kv_dtype);
        settings.flag(("backend", "reference"), "--reference", self.reference);
        settings.flag(("backend", "batch_size"), "--batch-size", self.batch_size);
        settings.flag(("backend", "step_tokens"), "--step-tokens", self.step_tokens);
        settings.flag(("backend", "threads"), "--threads", self.threads);
        settings.flag(("backend", "prepare_threads"), "--prepare-threads", self.prepare_threads);
        settings.flag(("backend", "image_cache"), "--image-cache", self.image_cache);
        settings.flag(("backend", "memory"), "--memory", self.memory);
    }
}
