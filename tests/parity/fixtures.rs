//! Where the goldens are and what is in them.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use vgen_task::prepare::{ModelFiles, PrepareOptions, Preprocessor};

/// The folder with `cases.json`, `images/`, `goldens/`.
pub(crate) fn goldens() -> PathBuf {
    folder("VGEN_GOLDENS", "public")
}

/// The folder with the folders of the checkpoints.
pub(crate) fn checkpoints() -> PathBuf {
    folder("VGEN_CHECKPOINTS", "")
}

fn folder(variable: &str, default: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mllama").join(default),
        PathBuf::from,
    );
    assert!(path.is_dir(), "{} is not a folder; see {variable}", path.display());
    path
}

/// The contents of a file.
pub(crate) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A JSON file; an empty list if the folder lacks it.
pub(crate) fn json_list<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    if path.exists() {
        serde_json::from_slice(&read(path)).expect("a list of the form of the fixtures")
    } else {
        Vec::new()
    }
}

/// A prompt with its images: a case of `cases.json` or a row of `batches.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Case {
    /// Name of the case, or of the batch with the row's number.
    #[serde(default)]
    pub name: String,
    /// In the form of transformers; `None` for a raw prompt.
    pub messages: Option<Json>,
    /// For the chat template.
    #[serde(default)]
    pub tools: Option<Json>,
    /// The prompt.
    pub text: String,
    /// Its images in order.
    pub images: Vec<CaseImage>,
    /// The prompt's ids; rows of batches don't have them here.
    #[serde(default)]
    pub input_ids: Option<Vec<u32>>,
}

/// An image of a case.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct CaseImage {
    /// Name in `images/`.
    pub file: String,
    /// Upright size.
    pub size_wh: (u32, u32),
    /// Size on the canvas.
    pub resized_hw: (usize, usize),
    /// Tiles of the canvas.
    pub tiles_hw: (usize, usize),
}

/// A batch of `batches.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Batch {
    /// Name of the batch.
    pub name: String,
    /// `left` or `right`.
    pub padding_side: String,
    /// Its rows.
    pub rows: Vec<Case>,
}

/// The cases of `cases.json`.
pub(crate) fn cases() -> Vec<Case> {
    json_list(&goldens().join("cases.json"))
}

/// The batches of `batches.json`.
pub(crate) fn batches() -> Vec<Batch> {
    json_list(&goldens().join("batches.json"))
}

/// The tensors recorded for a case, if there are any.
pub(crate) struct Golden {
    bytes: Vec<u8>,
}

impl Golden {
    /// The recording of `case` with `checkpoint`.
    pub(crate) fn of(checkpoint: &str, case: &str) -> Option<Self> {
        let path = goldens().join("goldens").join(checkpoint).join(format!("{case}.safetensors"));
        path.exists().then(|| Self { bytes: read(&path) })
    }

    /// Shape and values of a tensor, of the given type.
    fn tensor<T, const N: usize>(
        &self,
        key: &str,
        dtype: Dtype,
        value: fn([u8; N]) -> T,
    ) -> Option<(Vec<usize>, Vec<T>)> {
        let tensors = SafeTensors::deserialize(&self.bytes).unwrap();
        let tensor = tensors.tensor(key).ok()?;
        assert_eq!(tensor.dtype(), dtype, "{key}");
        let (values, _) = tensor.data().as_chunks::<N>();
        Some((tensor.shape().to_vec(), values.iter().map(|&bytes| value(bytes)).collect()))
    }

    /// Shape and values of a float32 tensor.
    pub(crate) fn f32(&self, key: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        self.tensor(key, Dtype::F32, f32::from_le_bytes)
    }

    /// Shape and values of an int64 tensor.
    pub(crate) fn i64(&self, key: &str) -> Option<(Vec<usize>, Vec<i64>)> {
        self.tensor(key, Dtype::I64, i64::from_le_bytes)
    }

    /// Shape and values of a uint8 tensor.
    pub(crate) fn u8(&self, key: &str) -> Option<(Vec<usize>, Vec<u8>)> {
        self.tensor(key, Dtype::U8, |[byte]| byte)
    }
}

/// The input half of a checkpoint.
pub(crate) fn preprocessor(checkpoint: &str) -> Preprocessor {
    preprocessor_with(checkpoint, true)
}

/// The input half of a checkpoint as if it had no chat template.
pub(crate) fn preprocessor_without_chat(checkpoint: &str) -> Preprocessor {
    preprocessor_with(checkpoint, false)
}

fn preprocessor_with(checkpoint: &str, chat: bool) -> Preprocessor {
    let folder = checkpoints().join(checkpoint);
    let text = |name: &str| String::from_utf8(read(&folder.join(name))).unwrap();
    let (tokenizer_config, chat_template) = (text("tokenizer_config.json"), text("chat_template.json"));
    let files = ModelFiles {
        config: &text("config.json"),
        preprocessor_config: Some(&text("preprocessor_config.json")),
        tokenizer: &read(&folder.join("tokenizer.json")),
        tokenizer_config: chat.then_some(&tokenizer_config),
        chat_template: chat.then_some(&chat_template),
    };
    Preprocessor::from_files(&files, PrepareOptions::default()).unwrap()
}

/// The names of the checkpoints there are.
pub(crate) fn checkpoint_names() -> Vec<String> {
    let folders = fs::read_dir(checkpoints()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = folders
        .filter(|folder| folder.join("config.json").exists())
        .map(|folder| folder.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert!(!names.is_empty(), "no checkpoint in {}", checkpoints().display());
    names.sort();
    names
}
