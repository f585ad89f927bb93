//! Writing a checkpoint as one GGUF file, quantised tensor by tensor.
//!
//! Layout of the format: ggml's `docs/gguf.md`, version 3. Each tensor is read, quantised and written before the next,
//! so memory holds one tensor at a time.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value as Json;
use vgen_kernels::Format;
use vgen_kernels::quant::BlockFormat;

use crate::checkpoint::Checkpoint;
use crate::config::{Config, RopeScaling};
use crate::error::{Error, Result};
use crate::gguf::{FILE_KEY, gguf_name, row_order};
use crate::rope::Rope;
use crate::tensors::{Role, TensorSpec, expected};
use crate::weight_type::WeightTypes;
use crate::weights::{RowOrder, Stored, Weights};

/// The files of a checkpoint that go into the metadata whole.
const FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
];

const ALIGNMENT: u64 = 32;

/// A type of values in a GGUF file, by its number.
#[derive(Clone, Copy)]
enum GgufType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q8_0 = 8,
    Q4K = 12,
    Bf16 = 30,
}

/// A tensor's place in the file that is written.
struct Entry {
    spec: TensorSpec,
    shape: Vec<usize>,
    written: Written,
    row_order: RowOrder,
    bytes: u64,
}

#[derive(Clone, Copy)]
enum Written {
    /// As the checkpoint has it.
    Stored(Stored),
    F32,
    Bf16,
    Block(BlockFormat),
}

impl Written {
    fn gguf_type(self) -> GgufType {
        let block = |format| match format {
            BlockFormat::Q8_0 => GgufType::Q8_0,
            BlockFormat::Q4_0 => GgufType::Q4_0,
            BlockFormat::Q4_1 => GgufType::Q4_1,
            BlockFormat::Q4K => GgufType::Q4K,
        };
        match self {
            Self::F32 | Self::Stored(Stored::F32 | Stored::Other(_)) => GgufType::F32,
            Self::Stored(Stored::F16) => GgufType::F16,
            Self::Bf16 | Self::Stored(Stored::Bf16) => GgufType::Bf16,
            Self::Block(format) | Self::Stored(Stored::Block(format)) => block(format),
        }
    }

    fn row_bytes(self, len: usize) -> usize {
        match self {
            Self::F32 | Self::Stored(Stored::Other(_)) => 4 * len,
            Self::Bf16 => 2 * len,
            Self::Block(format) => format.row_bytes(len),
            Self::Stored(stored) => stored.row_bytes(len),
        }
    }
}

/// Writes a checkpoint as a GGUF file: metadata, tokenizer, text layers, and vision tower if there is one. `progress`
/// hears of the tensors done and their number. The file appears under its name only when it is whole.
///
/// # Errors
/// If the checkpoint is incomplete, or the file can't be written.
pub fn quantize(
    checkpoint: &Checkpoint,
    types: &WeightTypes,
    out: &Path,
    progress: &dyn Fn(usize, usize),
) -> Result<()> {
    let config = Config::from_json(&checkpoint.require("config.json")?)?;
    let weights = checkpoint.weights()?;
    let specs = expected(&config);
    weights.check(&specs)?;
    let entries = specs.into_iter().map(|spec| entry(spec, &config, &weights, types)).collect::<Result<Vec<_>>>()?;

    let partial = out.with_extension("gguf.partial");
    let failed = |source| Error::Write { file: out.display().to_string(), source };
    let mut file = BufWriter::with_capacity(1 << 20, File::create(&partial).map_err(failed)?);
    let factors = rope_factors(&config);
    let header = header(&metadata(checkpoint, &config)?, &entries, &factors);
    file.write_all(&header).map_err(failed)?;
    if !factors.is_empty() {
        let bytes: Vec<u8> = factors.iter().flat_map(|f| f.to_le_bytes()).collect();
        file.write_all(&padded(bytes)).map_err(failed)?;
    }
    for (i, entry) in entries.iter().enumerate() {
        file.write_all(&padded(tensor_bytes(entry, &weights)?)).map_err(failed)?;
        weights.release(&entry.spec.name);
        progress(i + 1, entries.len());
    }
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)?;
    std::fs::rename(&partial, out).map_err(failed)
}

fn entry(spec: TensorSpec, config: &Config, weights: &Weights, types: &WeightTypes) -> Result<Entry> {
    let stored = weights.stored(&spec.name).ok_or_else(|| Error::MissingTensor(spec.name.clone()))?;
    let (_, k_in) = spec.matrix();
    let format = types.format(&spec.name, stored, k_in);
    let written = match (spec.role, format) {
        (Role::Vector, _) => Written::F32,
        (Role::Table, _) => Written::Stored(stored),
        (_, Format::Block(block)) if stored == Stored::Block(block) => Written::Stored(stored),
        (_, Format::Block(block)) => Written::Block(block),
        (_, Format::Bf16 | Format::Bf16Wide) => Written::Bf16,
        (_, Format::F32) if stored == Stored::F16 => Written::Stored(stored),
        (_, Format::F32) => Written::F32,
    };
    // A convolution and a table by number are matrices here.
    let shape = if spec.role == Role::Vector { spec.shape.clone() } else { <[usize; 2]>::from(spec.matrix()).to_vec() };
    let rows: usize = if shape.len() > 1 { shape[0] } else { 1 };
    let row: usize = shape.iter().product::<usize>() / rows.max(1);
    let bytes = (rows * written.row_bytes(row)) as u64;
    Ok(Entry { row_order: row_order(&spec.name, config), shape, written, bytes, spec })
}

/// A tensor as it is written: rows in the file's order.
fn tensor_bytes(entry: &Entry, weights: &Weights) -> Result<Vec<u8>> {
    let raw = weights.raw(&entry.spec.name, &entry.spec.shape)?;
    let mut bytes = vec![0; entry.bytes as usize];
    if bytes.is_empty() {
        return Ok(bytes);
    }
    let rows = if entry.shape.len() > 1 { entry.shape[0] } else { 1 };
    let row_len = entry.shape.iter().product::<usize>() / rows;
    let size = bytes.len() / rows;
    // Row `r` of the hub's order goes to its place in the file.
    let mut source = vec![0; rows];
    for r in 0..rows {
        source[entry.row_order.stored_row(r, rows)] = r;
    }
    bytes.par_chunks_exact_mut(size).zip(source).try_for_each(|(to, r)| -> Result<()> {
        if let Written::Stored(stored) = entry.written
            && stored == raw.stored
        {
            to.copy_from_slice(raw.row_bytes(r));
            return Ok(());
        }
        let mut values = vec![0.0; row_len];
        raw.row(r, &mut values);
        match entry.written {
            Written::Block(format) => format.quantize_row(&values, to)?,
            Written::Bf16 => {
                for (to, value) in to.chunks_exact_mut(2).zip(&values) {
                    to.copy_from_slice(&half::bf16::from_f32(*value).to_le_bytes());
                }
            }
            Written::F32 | Written::Stored(_) => {
                for (to, value) in to.chunks_exact_mut(4).zip(&values) {
                    to.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        Ok(())
    })?;
    Ok(bytes)
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
    bytes
}

/// What a frequency is divided by, where the configuration scales them: llama.cpp wants a tensor of them.
fn rope_factors(config: &Config) -> Vec<f32> {
    match &config.text.rope.scaling {
        None => Vec::new(),
        Some(RopeScaling::Factors(factors)) => factors.clone(),
        Some(RopeScaling::Llama3(_)) => Rope::new(&config.text).factors(&config.text),
    }
}

enum Metadata {
    Text(String),
    Number(u32),
    Real(f32),
    Flag(bool),
    Texts(Vec<String>),
    Numbers(Vec<i32>),
}

/// What llama.cpp reads of a Llama, and the checkpoint's own files.
fn metadata(checkpoint: &Checkpoint, config: &Config) -> Result<Vec<(String, Metadata)>> {
    use Metadata::{Number, Real, Text};
    let text = &config.text;
    let arch = if config.vision.is_some() { "mllama" } else { "llama" };
    let number = |n: usize| Number(u32::try_from(n).unwrap_or(u32::MAX));
    let mut list = vec![
        ("general.architecture".to_owned(), Text(arch.to_owned())),
        ("general.name".to_owned(), Text(checkpoint.name().rsplit('/').next().unwrap_or_default().to_owned())),
        ("general.quantization_version".to_owned(), Number(2)),
    ];
    let numbers = [
        ("block_count", number(text.num_hidden_layers)),
        ("context_length", number(text.max_position_embeddings)),
        ("embedding_length", number(text.hidden_size)),
        ("feed_forward_length", number(text.intermediate_size)),
        ("attention.head_count", number(text.num_attention_heads)),
        ("attention.head_count_kv", number(text.num_key_value_heads)),
        ("attention.key_length", number(text.head_dim)),
        ("attention.value_length", number(text.head_dim)),
        ("attention.layer_norm_rms_epsilon", Real(text.rms_norm_eps as f32)),
        ("rope.freq_base", Real(text.rope.theta as f32)),
        ("rope.dimension_count", number(text.head_dim)),
        ("vocab_size", number(text.vocab_size)),
    ];
    list.extend(numbers.into_iter().map(|(key, value)| (format!("{arch}.{key}"), value)));
    if arch == "mllama" {
        let cross = text.cross_attention_layers.iter().map(|&layer| layer as i32).collect();
        list.push(("mllama.attention.cross_attention_layers".to_owned(), Metadata::Numbers(cross)));
    }
    if let Some(tokenizer) = checkpoint.text("tokenizer.json")? {
        tokenizer_metadata(&tokenizer, checkpoint, config, &mut list)?;
    }
    for file in FILES {
        if let Some(content) = checkpoint.text(file)? {
            list.push((format!("{FILE_KEY}{file}"), Text(content)));
        }
    }
    Ok(list)
}

/// The tokenizer as llama.cpp reads it, if it is a byte-level BPE.
fn tokenizer_metadata(
    tokenizer: &str,
    checkpoint: &Checkpoint,
    config: &Config,
    list: &mut Vec<(String, Metadata)>,
) -> Result<()> {
    let damaged = |reason: String| Error::Damaged { file: "tokenizer.json".to_owned(), reason };
    let json: Json = serde_json::from_str(tokenizer).map_err(|e| damaged(e.to_string()))?;
    let model = &json["model"];
    let (Some(vocab), Some(merges)) = (model["vocab"].as_object(), model["merges"].as_array()) else { return Ok(()) };
    const NORMAL: i32 = 1;
    const CONTROL: i32 = 3;
    const USER_DEFINED: i32 = 4;
    const UNUSED: i32 = 5;
    let size = config.text.vocab_size;
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; size];
    let mut put = |id: Option<u64>, token: &str, kind: i32| {
        if let Some(id) = id.map(|id| id as usize).filter(|id| *id < size) {
            tokens[id] = token.to_owned();
            kinds[id] = kind;
        }
    };
    for (token, id) in vocab {
        put(id.as_u64(), token, NORMAL);
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if token["special"].as_bool() == Some(true) { CONTROL } else { USER_DEFINED };
        put(token["id"].as_u64(), token["content"].as_str().unwrap_or_default(), kind);
    }
    let merges = merges
        .iter()
        .map(|merge| match merge {
            Json::String(pair) => pair.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap_or_default(), pair[1].as_str().unwrap_or_default()),
        })
        .collect();
    let id_of = |token: &str| tokens.iter().position(|t| t == token).map(|id| id as u32);
    let tokenizer_config: Json = match checkpoint.text("tokenizer_config.json")? {
        Some(text) => serde_json::from_str(&text).unwrap_or_default(),
        None => Json::Null,
    };
    let content = |field: &str| {
        let token = &tokenizer_config[field];
        token.as_str().or_else(|| token["content"].as_str())
    };
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let bos = content("bos_token").and_then(id_of);
    let eos = content("eos_token").and_then(id_of).or(config.eos.first().copied());
    list.push((key("model"), Metadata::Text("gpt2".to_owned())));
    list.push((key("pre"), Metadata::Text(pre_tokenizer(&json["pre_tokenizer"]).to_owned())));
    for (name, id) in [("bos_token_id", bos), ("eos_token_id", eos)] {
        list.extend(id.map(|id| (key(name), Metadata::Number(id))));
    }
    if let Some(add) = tokenizer_config["add_bos_token"].as_bool() {
        list.push((key("add_bos_token"), Metadata::Flag(add)));
    }
    if let Some(template) = tokenizer_config["chat_template"].as_str() {
        list.push(("tokenizer.chat_template".to_owned(), Metadata::Text(template.to_owned())));
    }
    list.push((key("tokens"), Metadata::Texts(tokens)));
    list.push((key("token_type"), Metadata::Numbers(kinds)));
    list.push((key("merges"), Metadata::Texts(merges)));
    Ok(())
}

/// llama.cpp's name for a way of cutting texts, by what tells them apart.
fn pre_tokenizer(json: &Json) -> &'static str {
    let text = json.to_string();
    if text.contains(r"\\p{N}{1,3}") {
        "llama-bpe"
    } else if text.contains("Digits") {
        "smollm"
    } else if text.contains(r"|\\p{N}|") {
        "qwen2"
    } else {
        "gpt-2"
    }
}

/// The file up to the tensors' data.
fn header(metadata: &[(String, Metadata)], entries: &[Entry], rope_factors: &[f32]) -> Vec<u8> {
    let mut out = Vec::new();
    let extra = usize::from(!rope_factors.is_empty());
    out.extend(b"GGUF");
    out.extend(3u32.to_le_bytes());
    out.extend(((entries.len() + extra) as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    let mut put_tensor = |out: &mut Vec<u8>, name: &str, shape: &[usize], kind: GgufType, bytes: u64| {
        put_text(out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        // The fastest axis comes first.
        for &len in shape.iter().rev() {
            out.extend((len as u64).to_le_bytes());
        }
        out.extend((kind as u32).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += bytes.next_multiple_of(ALIGNMENT);
    };
    if extra > 0 {
        let bytes = 4 * rope_factors.len() as u64;
        put_tensor(&mut out, "rope_freqs.weight", &[rope_factors.len()], GgufType::F32, bytes);
    }
    for entry in entries {
        let name = gguf_name(&entry.spec.name);
        put_tensor(&mut out, &name, &entry.shape, entry.written.gguf_type(), entry.bytes);
    }
    padded(out)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Metadata) {
    const U32: u32 = 4;
    const I32: u32 = 5;
    const F32: u32 = 6;
    const BOOL: u32 = 7;
    const STRING: u32 = 8;
    const ARRAY: u32 = 9;
    let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
        out.extend(ARRAY.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Metadata::Text(text) => {
            out.extend(STRING.to_le_bytes());
            put_text(out, text);
        }
        Metadata::Number(n) => {
            out.extend(U32.to_le_bytes());
            out.extend(n.to_le_bytes());
        }
        Metadata::Real(x) => {
            out.extend(F32.to_le_bytes());
            out.extend(x.to_le_bytes());
        }
        Metadata::Flag(flag) => {
            out.extend(BOOL.to_le_bytes());
            out.push(u8::from(*flag));
        }
        Metadata::Texts(texts) => {
            array(out, STRING, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Metadata::Numbers(numbers) => {
            array(out, I32, numbers.len());
            numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }
    }
}
