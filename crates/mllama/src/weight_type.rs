//! How the weights of matrix products are held in CPU memory.
//!
//! The policy of a quantised model: every large matrix of the text layers, cross-attention included, takes the type
//! that was asked for. Where that type has 4 bits, the output head, the projector and the vision tower take 8: they are
//! few and answers depend on each of them. The patch embedding is small and its rows fill no blocks: bf16. Embeddings
//! stay as the file has them, since a step reads single rows of them; vectors are f32.

use std::fmt;
use std::str::FromStr;

use globset::{Glob, GlobMatcher};
use vgen_kernels::Format;
use vgen_kernels::quant::BlockFormat;

use crate::tensors::{Role, TensorSpec};
use crate::weights::Stored;

/// A type of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// 32-bit floats, activations too.
    F32,
    /// bfloat16, activations rounded to it.
    Bf16,
    /// 8 bits a weight in blocks of 32, activations likewise.
    Q8_0,
    /// 4 bits a weight in blocks of 256 (of 32 where rows don't fill those), activations of 8 bits.
    Q4K,
}

impl WeightType {
    fn format(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::Bf16 => Format::Bf16,
            Self::Q8_0 => Format::Block(BlockFormat::Q8_0),
            Self::Q4K => Format::Block(BlockFormat::Q4K),
        }
    }
}

impl FromStr for WeightType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "q8_0" => Ok(Self::Q8_0),
            "q4_k" => Ok(Self::Q4K),
            _ => Err(format!("{text:?} is no type of weights: f32, bf16, q8_0 and q4_k are")),
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        })
    }
}

/// A type for the tensors whose names match a pattern: `vision_model.*=bf16`.
#[derive(Clone, Debug)]
pub struct WeightOverride {
    matcher: GlobMatcher,
    weight_type: WeightType,
}

impl WeightOverride {
    /// The type that it asks for.
    pub fn weight_type(&self) -> WeightType {
        self.weight_type
    }
}

impl PartialEq for WeightOverride {
    fn eq(&self, other: &Self) -> bool {
        self.matcher.glob() == other.matcher.glob() && self.weight_type == other.weight_type
    }
}

impl FromStr for WeightOverride {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, weight_type) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not PATTERN=TYPE, as in vision_model.*=bf16"))?;
        let matcher = Glob::new(pattern).map_err(|e| e.to_string())?.compile_matcher();
        Ok(Self { matcher, weight_type: weight_type.parse()? })
    }
}

impl fmt::Display for WeightOverride {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.matcher.glob(), self.weight_type)
    }
}

/// Which type each matrix of a model takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightTypes {
    /// For all that no override names; `None` takes what the file has: bf16 and quantised weights as they are, f16 and
    /// f32 as f32, block formats without a kernel as q8_0.
    pub all: Option<WeightType>,
    /// For some tensors by name; the last that matches counts.
    pub overrides: Vec<WeightOverride>,
}

impl From<WeightType> for WeightTypes {
    fn from(weight_type: WeightType) -> Self {
        Self { all: Some(weight_type), overrides: Vec::new() }
    }
}

impl WeightTypes {
    /// How a matrix with rows of `k_in` is held.
    pub(crate) fn format(&self, name: &str, stored: Stored, k_in: usize) -> Format {
        let named = self.overrides.iter().rev().find(|o| o.matcher.is_match(name)).map(|o| o.weight_type);
        let wanted = match (named, self.all) {
            (Some(named), _) => named.format(),
            (None, Some(all)) => by_policy(name, all).format(),
            (None, None) => match stored {
                Stored::F32 | Stored::F16 => Format::F32,
                Stored::Bf16 => Format::Bf16,
                Stored::Block(format) => Format::Block(format),
                Stored::Other(_) => Format::Block(BlockFormat::Q8_0),
            },
        };
        match wanted {
            Format::Block(block) if !k_in.is_multiple_of(block.block_len()) => {
                // Rows that fill no block of 256: blocks of 32 with as many bits.
                let small = if block == BlockFormat::Q4K { BlockFormat::Q4_1 } else { block };
                if k_in.is_multiple_of(small.block_len()) { Format::Block(small) } else { Format::Bf16 }
            }
            format => format,
        }
    }

    /// Bytes of a matrix that is held in blocks of few bits; `None` if it isn't.
    pub fn block_bytes(&self, spec: &TensorSpec, stored: Stored) -> Option<u64> {
        let (rows, k_in) = spec.matrix();
        match self.format(&spec.name, stored, k_in) {
            Format::Block(block) if spec.role.is_matrix() => Some((rows * block.row_bytes(k_in)) as u64),
            _ => None,
        }
    }

    /// Bytes that a tensor takes in memory if the file has it as `stored`.
    pub fn bytes(&self, spec: &TensorSpec, stored: Stored) -> u64 {
        let elements = spec.elements();
        let as_stored = match stored {
            Stored::Bf16 | Stored::F16 => 2,
            _ => 4,
        };
        let table = if spec.role.is_table() { elements * as_stored } else { 0 };
        let (rows, k_in) = spec.matrix();
        let matrix = match (spec.role.is_matrix(), self.format(&spec.name, stored, k_in)) {
            (false, _) => 0,
            (true, Format::F32) => elements * 4,
            (true, Format::Bf16 | Format::Bf16Wide) => elements * 2,
            (true, Format::Block(block)) => (rows * block.row_bytes(k_in)) as u64,
        };
        if spec.role == Role::Vector { elements * 4 } else { table + matrix }
    }
}

fn by_policy(name: &str, all: WeightType) -> WeightType {
    if all == WeightType::Q4K
        && (name.starts_with("vision_model.")
            || name.starts_with("multi_modal_projector.")
            || name == "language_model.lm_head.weight"
            || name == "language_model.model.embed_tokens.weight")
    {
        return WeightType::Q8_0;
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;

    #[test]
    fn the_policy_and_its_overrides() {
        let q4: WeightTypes = WeightType::Q4K.into();
        let block = Format::Block;
        let text = "language_model.model.layers.3.cross_attn.q_proj.weight";
        assert_eq!(q4.format(text, Stored::Bf16, 4096), block(BlockFormat::Q4K));
        assert_eq!(q4.format("language_model.lm_head.weight", Stored::Bf16, 4096), block(BlockFormat::Q8_0));
        assert_eq!(q4.format("vision_model.patch_embedding.weight", Stored::Bf16, 588), Format::Bf16);
        assert_eq!(q4.format(text, Stored::Bf16, 160), block(BlockFormat::Q4_1));
        let overrides = vec!["*.layers.3.*=bf16".parse().unwrap(), "*.cross_attn.*=f32".parse().unwrap()];
        let types = WeightTypes { overrides, ..q4 };
        assert_eq!(types.format(text, Stored::Bf16, 4096), Format::F32);
        assert_eq!(types.format("language_model.model.layers.3.mlp.up_proj.weight", Stored::F16, 256), Format::Bf16);
        let stored = WeightTypes::default();
        assert_eq!(stored.format(text, Stored::Block(BlockFormat::Q4_1), 576), block(BlockFormat::Q4_1));
        assert_eq!(stored.format(text, Stored::Bf16, 576), Format::Bf16);
        assert_eq!(stored.format(text, Stored::F16, 576), Format::F32);
        assert!("vision_model.*".parse::<WeightOverride>().is_err());
        assert!("a=q5_0".parse::<WeightOverride>().is_err());
    }
}
