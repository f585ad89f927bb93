//! Names and shapes of all tensors that a configuration implies, as the hub's checkpoints name them.

use crate::config::{Config, TextConfig, VisionConfig};

/// A tensor that a checkpoint must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// The hub's name.
    pub name: String,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
}

/// What a tensor is for, which decides how it is held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The weight of a linear layer, `[outputs, inputs]`.
    Matrix,
    /// Rows that are looked up.
    Table,
    /// Rows that are looked up, and the output head too.
    TableAndMatrix,
    /// All else: norms, biases, gates, small embeddings.
    Vector,
}

impl Role {
    /// Whether products are taken with it.
    pub fn is_matrix(self) -> bool {
        matches!(self, Self::Matrix | Self::TableAndMatrix)
    }

    /// Whether rows of it are looked up.
    pub fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::TableAndMatrix)
    }
}

impl TensorSpec {
    /// As a matrix: the first axis, and all others together.
    pub(crate) fn matrix(&self) -> (usize, usize) {
        (self.shape[0], self.shape[1..].iter().product())
    }

    /// How many values it has.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// All tensors that a configuration implies.
pub fn expected(config: &Config) -> Vec<TensorSpec> {
    let mut list = List(Vec::new());
    list.text(&config.text);
    if let Some(vision) = &config.vision {
        list.matrix("multi_modal_projector.weight", &[config.text.hidden_size, vision.output_size()]);
        list.add("multi_modal_projector.bias", &[config.text.hidden_size]);
        list.vision(vision);
    }
    list.0
}

struct List(Vec<TensorSpec>);

impl List {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.push(name, shape, Role::Vector);
    }

    fn matrix(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.push(name, shape, Role::Matrix);
    }

    fn push(&mut self, name: impl Into<String>, shape: &[usize], role: Role) {
        self.0.push(TensorSpec { name: name.into(), shape: shape.to_vec(), role });
    }

    fn text(&mut self, c: &TextConfig) {
        let (d, f) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let embedding = if c.tie_word_embeddings { Role::TableAndMatrix } else { Role::Table };
        self.push("language_model.model.embed_tokens.weight", &[c.embedding_rows, d], embedding);
        if !c.tie_word_embeddings {
            self.matrix("language_model.lm_head.weight", &[c.vocab_size, d]);
        }
        self.add("language_model.model.norm.weight", &[d]);
        for i in 0..c.num_hidden_layers {
            let layer = format!("language_model.model.layers.{i}");
            let attention = format!("{layer}.{}", if c.is_cross(i) { "cross_attn" } else { "self_attn" });
            self.matrix(format!("{attention}.q_proj.weight"), &[q, d]);
            self.matrix(format!("{attention}.k_proj.weight"), &[kv, d]);
            self.matrix(format!("{attention}.v_proj.weight"), &[kv, d]);
            self.matrix(format!("{attention}.o_proj.weight"), &[d, q]);
            if c.is_cross(i) {
                self.add(format!("{attention}.q_norm.weight"), &[c.head_dim]);
                self.add(format!("{attention}.k_norm.weight"), &[c.head_dim]);
                self.add(format!("{layer}.cross_attn_attn_gate"), &[1]);
                self.add(format!("{layer}.cross_attn_mlp_gate"), &[1]);
            }
            self.add(format!("{layer}.input_layernorm.weight"), &[d]);
            self.add(format!("{layer}.post_attention_layernorm.weight"), &[d]);
            self.matrix(format!("{layer}.mlp.gate_proj.weight"), &[f, d]);
            self.matrix(format!("{layer}.mlp.up_proj.weight"), &[f, d]);
            self.matrix(format!("{layer}.mlp.down_proj.weight"), &[d, f]);
        }
    }

    fn vision(&mut self, c: &VisionConfig) {
        let (h, f) = (c.hidden_size, c.intermediate_size);
        let ids = c.supported_aspect_ratios.len() + 1;
        let tiles = c.max_num_tiles;
        self.add("vision_model.class_embedding", &[h]);
        self.matrix("vision_model.patch_embedding.weight", &[h, c.num_channels, c.patch_size, c.patch_size]);
        self.add("vision_model.gated_positional_embedding.embedding", &[c.patches(), h]);
        self.add("vision_model.gated_positional_embedding.gate", &[1]);
        let name = "vision_model.gated_positional_embedding.tile_embedding.weight";
        self.push(name, &[ids, tiles * c.patches() * h], Role::Table);
        for side in ["pre", "post"] {
            self.add(format!("vision_model.{side}_tile_positional_embedding.embedding.weight"), &[ids, tiles * h]);
            self.add(format!("vision_model.{side}_tile_positional_embedding.gate"), &[1]);
            self.add(format!("vision_model.layernorm_{side}.weight"), &[h]);
            self.add(format!("vision_model.layernorm_{side}.bias"), &[h]);
        }
        let stacks = [("transformer", c.num_hidden_layers, false), ("global_transformer", c.num_global_layers, true)];
        for (stack, layers, gated) in stacks {
            for i in 0..layers {
                let layer = format!("vision_model.{stack}.layers.{i}");
                for projection in ["q", "k", "v", "o"] {
                    self.matrix(format!("{layer}.self_attn.{projection}_proj.weight"), &[h, h]);
                }
                self.matrix(format!("{layer}.mlp.fc1.weight"), &[f, h]);
                self.add(format!("{layer}.mlp.fc1.bias"), &[f]);
                self.matrix(format!("{layer}.mlp.fc2.weight"), &[h, f]);
                self.add(format!("{layer}.mlp.fc2.bias"), &[h]);
                for norm in ["input_layernorm", "post_attention_layernorm"] {
                    self.add(format!("{layer}.{norm}.weight"), &[h]);
                    self.add(format!("{layer}.{norm}.bias"), &[h]);
                }
                if gated {
                    self.add(format!("{layer}.gate_attn"), &[1]);
                    self.add(format!("{layer}.gate_ffn"), &[1]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes that the released checkpoints state: 906 tensors and 10 670 220 835 parameters (11B).
    #[test]
    fn the_released_sizes_come_out() {
        let json = |d, l, heads, f, cross: Vec<usize>| {
            serde_json::json!({
                "architectures": ["MllamaForConditionalGeneration"],
                "image_token_index": 128256,
                "text_config": {
                    "hidden_size": d, "num_hidden_layers": l, "num_attention_heads": heads, "num_key_value_heads": 8,
                    "intermediate_size": f, "vocab_size": 128256, "cross_attention_layers": cross,
                    "rope_theta": 500000.0, "tie_word_embeddings": false
                },
                "vision_config": {"image_size": 560, "hidden_size": 1280, "vision_output_dim": 7680}
            })
            .to_string()
        };
        let count = |text: String| {
            let config = Config::from_json(&text).unwrap_or_else(|e| panic!("{e}"));
            let specs = expected(&config);
            (specs.len(), specs.iter().map(TensorSpec::elements).sum::<u64>())
        };
        let every_fifth = |n: usize| (3..n).step_by(5).collect::<Vec<_>>();
        assert_eq!(count(json(4096, 40, 32, 14336, every_fifth(40))), (906, 10_670_220_835));
        assert_eq!(count(json(8192, 100, 64, 28672, every_fifth(100))).1, 88_593_355_323);
    }
}
