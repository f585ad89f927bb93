//! GGUF files: plain Llama models as llama.cpp's converter writes them, and both kinds of model as
//! [`quantize`](crate::quantize()) writes them.
//!
//! A file stands for a checkpoint in the hub's layout. The JSON files are made from the metadata, or lie in it whole
//! under `vgen.file.NAME`. Tensors have llama.cpp's names for Llama's layers; what llama.cpp has no name for follows
//! the same style (`blk.3.cross_attn_q.weight`, `v.blk.0.attn_q.weight`). Queries and keys of self-attention have
//! their rows interleaved as llama.cpp wants them.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use serde_json::{Value as Json, json};
use vgen_kernels::quant::BlockFormat;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::tensors::expected;
use crate::weights::{Bytes, RowOrder, Stored};

/// Metadata keys under which whole files lie.
pub(crate) const FILE_KEY: &str = "vgen.file.";

/// A GGUF file, mapped into memory.
pub(crate) struct Gguf {
    path: PathBuf,
    name: String,
    bytes: Bytes,
    content: Content,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({})", self.name)
    }
}

/// A tensor of a GGUF file by its name on the hub.
pub(crate) struct GgufTensor {
    pub(crate) name: String,
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) shape: Vec<usize>,
    pub(crate) stored: Stored,
    pub(crate) row_order: RowOrder,
}

impl Gguf {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = Bytes::map(path).map_err(Error::read(path))?;
        if !bytes.starts_with(b"GGUF") {
            return Err(Error::Damaged { file: name, reason: "is no GGUF file".to_owned() });
        }
        let content = Content::read(&mut Cursor::new(&*bytes))
            .map_err(|e| Error::Damaged { file: name.clone(), reason: first_line(&e) })?;
        Ok(Self { path: path.to_owned(), name, bytes, content })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The text of one of the hub's files, `None` if there is nothing to make it of.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>> {
        if let Some(text) = self.string(&format!("{FILE_KEY}{name}")) {
            return Ok(Some(text.to_owned()));
        }
        let json = match name {
            "config.json" => Some(self.config()?),
            "tokenizer.json" => match self.tokenizer() {
                Ok(json) => Some(json),
                // The metadata can't give it; the model's own may lie beside the file.
                Err(error) => match std::fs::read_to_string(self.path.with_file_name(name)) {
                    Ok(text) => return Ok(Some(text)),
                    Err(_) => return Err(error),
                },
            },
            "tokenizer_config.json" => Some(self.tokenizer_config()),
            "generation_config.json" => Some(self.generation_config()),
            _ => None,
        };
        Ok(json.map(|json| json.to_string()))
    }

    fn metadata(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    fn string(&self, key: &str) -> Option<&str> {
        self.metadata(key).and_then(|value| value.to_string().ok()).map(String::as_str)
    }

    fn number(&self, key: &str) -> Option<f64> {
        Some(match self.metadata(key)? {
            Value::U8(v) => f64::from(*v),
            Value::I8(v) => f64::from(*v),
            Value::U16(v) => f64::from(*v),
            Value::I16(v) => f64::from(*v),
            Value::U32(v) => f64::from(*v),
            Value::I32(v) => f64::from(*v),
            Value::U64(v) => *v as f64,
            Value::I64(v) => *v as f64,
            Value::F32(v) => f64::from(*v),
            Value::F64(v) => *v,
            _ => return None,
        })
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.metadata(key).and_then(|value| value.to_bool().ok())
    }

    fn strings(&self, key: &str) -> Option<Vec<&str>> {
        let values = self.metadata(key)?.to_vec().ok()?;
        values.iter().map(|value| value.to_string().ok().map(String::as_str)).collect()
    }

    fn damaged(&self, reason: impl Into<String>) -> Error {
        Error::Damaged { file: self.name.clone(), reason: reason.into() }
    }

    /// `config.json` of a plain Llama.
    fn config(&self) -> Result<Json> {
        let architecture = self.string("general.architecture").unwrap_or("(none)");
        if architecture != "llama" {
            return Err(Error::Architecture(format!("{architecture} (general.architecture of {})", self.name)));
        }
        let whole = |key: &str| -> Result<u64> {
            let key = format!("llama.{key}");
            self.number(&key).map(|n| n as u64).ok_or_else(|| self.damaged(format!("{key} is missing")))
        };
        let heads = whole("attention.head_count")?;
        let hidden = whole("embedding_length")?;
        let rows = match self.content.tensor_infos.get("token_embd.weight").map(|info| info.shape.dims()) {
            Some([rows, _]) => *rows,
            _ => return Err(Error::MissingTensor("token_embd.weight".to_owned())),
        };
        if let Some(scaling) = self.string("llama.rope.scaling.type")
            && scaling != "none"
        {
            return Err(Error::Config(format!("rope scaling {scaling:?} of {} is not supported", self.name)));
        }
        if self.number("llama.expert_count").is_some_and(|count| count > 0.0) {
            return Err(Error::Architecture(format!("llama with experts ({})", self.name)));
        }
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": whole("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.number("llama.attention.head_count_kv").unwrap_or(heads as f64) as u64,
            "head_dim": self.number("llama.attention.key_length").unwrap_or((hidden / heads.max(1)) as f64) as u64,
            "intermediate_size": whole("feed_forward_length")?,
            "vocab_size": rows,
            "rms_norm_eps": self.number("llama.attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
            "rope_theta": self.number("llama.rope.freq_base").unwrap_or(10_000.0),
            "max_position_embeddings": whole("context_length")?,
            "tie_word_embeddings": !self.content.tensor_infos.contains_key("output.weight"),
        });
        if let Some(info) = self.content.tensor_infos.get("rope_freqs.weight") {
            let start = self.content.tensor_data_offset.saturating_add(info.offset) as usize;
            let bytes = start.checked_add(4 * info.shape.elem_count()).and_then(|end| self.bytes.get(start..end));
            let (GgmlDType::F32, Some(bytes)) = (info.ggml_dtype, bytes) else {
                return Err(self.damaged("rope_freqs.weight can't be read"));
            };
            let factors: Vec<f32> =
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            config["rope_scaling"] = json!({ "rope_type": "factors", "factors": factors });
        }
        if let Some(eos) = self.number("tokenizer.ggml.eos_token_id") {
            config["eos_token_id"] = json!(eos as u64);
        }
        Ok(config)
    }

    /// `tokenizer.json` of a byte-level BPE.
    fn tokenizer(&self) -> Result<Json> {
        let hint = "put the model's tokenizer.json beside the file";
        let model = self.string("tokenizer.ggml.model").unwrap_or("(none)");
        if model != "gpt2" {
            return Err(self.damaged(format!("the tokenizer's kind is {model:?}, only gpt2 can be rebuilt: {hint}")));
        }
        let split = |regex: &str| {
            json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
            ]})
        };
        let byte_level =
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        let (pre_tokenizer, whole_words) = match self.string("tokenizer.ggml.pre").unwrap_or("default") {
            "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" => (split(LLAMA3_SPLIT), true),
            "qwen2" => (split(QWEN2_SPLIT), false),
            "smollm" => {
                let digits = json!({ "type": "Digits", "individual_digits": true });
                (json!({ "type": "Sequence", "pretokenizers": [digits, byte_level] }), false)
            }
            "gpt-2" | "default" => (byte_level.clone(), false),
            other => return Err(self.damaged(format!("the pre-tokenizer {other:?} is not known: {hint}"))),
        };
        let missing = |key: &str| self.damaged(format!("{key} is missing or no list of strings"));
        let tokens = self.strings("tokenizer.ggml.tokens").ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
        let merges = self.strings("tokenizer.ggml.merges").ok_or_else(|| missing("tokenizer.ggml.merges"))?;
        let vocab: serde_json::Map<String, Json> =
            tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
        let kinds = self.metadata("tokenizer.ggml.token_type").and_then(|value| value.to_vec().ok());
        let mut added = Vec::new();
        for (id, (token, kind)) in tokens.iter().zip(kinds.into_iter().flatten()).enumerate() {
            // 3 is a control token, 4 one that a user defined.
            let special = match kind {
                Value::I32(3) | Value::U32(3) => true,
                Value::I32(4) | Value::U32(4) => false,
                _ => continue,
            };
            added.push(json!({
                "id": id, "content": token, "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            }));
        }
        let bos = self.token("tokenizer.ggml.bos_token_id", &tokens);
        let post_processor = match bos {
            Some((id, bos)) if self.flag("tokenizer.ggml.add_bos_token").unwrap_or(whole_words) => {
                let text = |id: &str, kind: u8| json!({ "Sequence": { "id": id, "type_id": kind } });
                let first = |kind: u8| json!({ "SpecialToken": { "id": bos, "type_id": kind } });
                json!({
                    "type": "TemplateProcessing",
                    "single": [first(0), text("A", 0)],
                    "pair": [first(0), text("A", 0), first(1), text("B", 1)],
                    "special_tokens": { bos: { "id": bos, "ids": [id], "tokens": [bos] } },
                })
            }
            _ => json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true }),
        };
        Ok(json!({
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": post_processor,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": { "type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": whole_words },
        }))
    }

    fn token<'a>(&self, key: &str, tokens: &[&'a str]) -> Option<(usize, &'a str)> {
        let id = self.number(key)? as usize;
        Some((id, *tokens.get(id)?))
    }

    fn tokenizer_config(&self) -> Json {
        let tokens = self.strings("tokenizer.ggml.tokens").unwrap_or_default();
        let mut config = json!({});
        for (field, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")] {
            if let Some((_, token)) = self.token(&format!("tokenizer.ggml.{key}_token_id"), &tokens) {
                config[field] = json!(token);
            }
        }
        if let Some(add) = self.flag("tokenizer.ggml.add_bos_token") {
            config["add_bos_token"] = json!(add);
        }
        if let Some(template) = self.string("tokenizer.chat_template") {
            config["chat_template"] = json!(template);
        }
        config
    }

    /// Tokens that end an answer: of a text, and of a turn.
    fn generation_config(&self) -> Json {
        let mut eos: Vec<u64> = ["eos", "eot", "eom"]
            .iter()
            .filter_map(|key| self.number(&format!("tokenizer.ggml.{key}_token_id")))
            .map(|id| id as u64)
            .collect();
        eos.sort_unstable();
        eos.dedup();
        if eos.is_empty() { json!({}) } else { json!({ "eos_token_id": eos }) }
    }

    /// The tensors that the configuration implies, as far as they are there.
    pub(crate) fn tensors(&self) -> Result<Vec<GgufTensor>> {
        let text = self.text("config.json")?.unwrap_or_default();
        let config = Config::from_json(&text)?;
        let mut tensors = Vec::new();
        for spec in expected(&config) {
            let Some(info) = self.content.tensor_infos.get(&gguf_name(&spec.name)) else { continue };
            let stored = match info.ggml_dtype {
                GgmlDType::F32 => Stored::F32,
                GgmlDType::F16 => Stored::F16,
                GgmlDType::BF16 => Stored::Bf16,
                GgmlDType::Q8_0 => Stored::Block(BlockFormat::Q8_0),
                GgmlDType::Q4_0 => Stored::Block(BlockFormat::Q4_0),
                GgmlDType::Q4_1 => Stored::Block(BlockFormat::Q4_1),
                GgmlDType::Q4K => Stored::Block(BlockFormat::Q4K),
                other => Stored::Other(other),
            };
            let shape = info.shape.dims().to_vec();
            let len = stored.row_bytes(shape.iter().product());
            let start = self.content.tensor_data_offset.saturating_add(info.offset) as usize;
            if start.checked_add(len).is_none_or(|end| end > self.bytes.len()) {
                let have = self.bytes.len();
                return Err(self.damaged(format!("truncated: tensor {} ends beyond its {have} bytes", spec.name)));
            }
            let row_order = row_order(&spec.name, &config);
            tensors.push(GgufTensor { name: spec.name, start, len, shape, stored, row_order });
        }
        Ok(tensors)
    }
}

/// In which order a GGUF file has a matrix's rows.
pub(crate) fn row_order(name: &str, config: &Config) -> RowOrder {
    if !name.starts_with("language_model.") {
        RowOrder::Hub
    } else if name.ends_with("self_attn.q_proj.weight") {
        RowOrder::Interleaved { heads: config.text.num_attention_heads }
    } else if name.ends_with("self_attn.k_proj.weight") {
        RowOrder::Interleaved { heads: config.text.num_key_value_heads }
    } else {
        RowOrder::Hub
    }
}

/// The name in GGUF files of a tensor by its name on the hub.
pub(crate) fn gguf_name(hub: &str) -> String {
    // In order: a longer part before one that it contains.
    const PARTS: [(&str, &str); 25] = [
        ("language_model.model.embed_tokens.", "token_embd."),
        ("language_model.model.norm.", "output_norm."),
        ("language_model.lm_head.", "output."),
        ("language_model.model.layers.", "blk."),
        ("vision_model.global_transformer.layers.", "v.global."),
        ("vision_model.transformer.layers.", "v.blk."),
        ("vision_model.", "v."),
        ("multi_modal_projector.", "mm.0."),
        ("self_attn.q_proj.", "attn_q."),
        ("self_attn.k_proj.", "attn_k."),
        ("self_attn.v_proj.", "attn_v."),
        ("self_attn.o_proj.", "attn_output."),
        ("cross_attn.q_proj.", "cross_attn_q."),
        ("cross_attn.k_proj.", "cross_attn_k."),
        ("cross_attn.v_proj.", "cross_attn_v."),
        ("cross_attn.o_proj.", "cross_attn_output."),
        ("cross_attn.q_norm.", "cross_attn_q_norm."),
        ("cross_attn.k_norm.", "cross_attn_k_norm."),
        ("input_layernorm.", "attn_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("mlp.gate_proj.", "ffn_gate."),
        ("mlp.up_proj.", "ffn_up."),
        ("mlp.down_proj.", "ffn_down."),
        ("mlp.fc1.", "ffn_up."),
        ("mlp.fc2.", "ffn_down."),
    ];
    PARTS.iter().fold(hub.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// Errors of the tensor library carry a backtrace after their first line.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

// The expressions by which these families of tokenizers cut a text, as their tokenizer.json files state them.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_llama_cpps_and_short_enough() {
        assert_eq!(gguf_name("language_model.model.layers.3.self_attn.o_proj.weight"), "blk.3.attn_output.weight");
        assert_eq!(gguf_name("language_model.model.layers.3.post_attention_layernorm.weight"), "blk.3.ffn_norm.weight");
        assert_eq!(gguf_name("language_model.model.layers.3.cross_attn_mlp_gate"), "blk.3.cross_attn_mlp_gate");
        assert_eq!(gguf_name("vision_model.global_transformer.layers.7.mlp.fc1.bias"), "v.global.7.ffn_up.bias");
        let longest = "vision_model.gated_positional_embedding.tile_embedding.weight";
        assert!(gguf_name(longest).len() < 64);
    }
}
