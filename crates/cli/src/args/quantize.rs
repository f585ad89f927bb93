//! `vgen quantize`.

use std::path::PathBuf;

use clap::Args;
use vgen_mllama::{WeightOverride, WeightType};

/// The arguments of `vgen quantize`.
#[derive(Debug, Args)]
pub(crate) struct QuantizeCommand {
    /// A folder with the checkpoint, a GGUF file, or owner/name on the Hugging Face hub.
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// The file to write.
    #[arg(value_name = "OUT.gguf")]
    pub(crate) out: PathBuf,
    /// Type of the large matrices: f32, bf16, q8_0, q4_k. With q4_k the vision tower, the projector and the output
    /// head take q8_0.
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_k")]
    pub(crate) weight_type: WeightType,
    /// Type of some tensors by name: vision_model.*=bf16. May be repeated; the last counts.
    #[arg(long, value_name = "PATTERN=TYPE")]
    pub(crate) tensor_type: Vec<WeightOverride>,
    /// Branch, tag or commit on the hub [default: main].
    #[arg(long, value_name = "REV")]
    pub(crate) revision: Option<String>,
    /// Replace the file if it exists.
    #[arg(long)]
    pub(crate) overwrite: bool,
}
