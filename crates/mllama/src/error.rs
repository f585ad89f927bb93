//! Why a checkpoint can't be run.

use std::path::PathBuf;

use vgen_core::{Fault, FaultClass};

/// Why a model can't be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `config.json` is not what it should be.
    #[error("config.json: {0}")]
    Config(String),
    /// The architecture is not one that this crate has.
    #[error("config.json: architecture {0} is not supported")]
    Architecture(String),
    /// A file of the checkpoint is missing.
    #[error("the checkpoint {folder} has no {file}")]
    MissingFile {
        /// The checkpoint.
        folder: String,
        /// What is missing.
        file: String,
    },
    /// A file of the checkpoint can't be read.
    #[error("{file}: {source}")]
    Read {
        /// Which file.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file can't be written.
    #[error("{file}: {source}")]
    Write {
        /// Which file.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A weight file is damaged.
    #[error("{file}: {reason}")]
    Damaged {
        /// Which file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is missing.
    #[error("the checkpoint has no tensor {0}")]
    MissingTensor(String),
    /// A tensor has another shape than config.json implies.
    #[error("{file}: tensor {name} has shape {found:?}, config.json implies {expected:?}")]
    Shape {
        /// Which file.
        file: String,
        /// Which tensor.
        name: String,
        /// What the file says.
        found: Vec<usize>,
        /// What the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor has a type that can't be read.
    #[error("{file}: tensor {name} has type {dtype}; f32, bf16 and f16 can be read")]
    Dtype {
        /// Which file.
        file: String,
        /// Which tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// An image doesn't fit the model.
    #[error("image: {0}")]
    Image(String),
    /// A sequence doesn't fit the model.
    #[error("sequence: {0}")]
    Sequence(String),
    /// Keys and values of a row have no room.
    #[error("no memory for keys and values: {0}")]
    Memory(String),
    /// The tensor library failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A CPU kernel refused its input.
    #[error("kernel: {0}")]
    Kernel(#[from] vgen_kernels::Error),
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let file = path.into().display().to_string();
        move |source| Error::Read { file, source }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let again = "download the checkpoint again, or compare its files with the hub's";
        let (class, code, hint) = match error {
            Error::Config(_) => (FaultClass::Stop, "model.config", "compare config.json with the hub's"),
            Error::Architecture(_) => (
                FaultClass::Stop,
                "model.architecture",
                "use a Llama-3.2-Vision checkpoint (MllamaForConditionalGeneration) or a Llama one (LlamaForCausalLM)",
            ),
            Error::MissingFile { .. } => (FaultClass::Stop, "model.missing_file", again),
            Error::Read { .. } => (FaultClass::Stop, "model.read", "check that the file exists and may be read"),
            Error::Write { .. } => (FaultClass::Stop, "model.write", "check the folder and the space left on its disk"),
            Error::Damaged { .. } => (FaultClass::Stop, "model.damaged", again),
            Error::MissingTensor(_) => (FaultClass::Stop, "model.missing_tensor", again),
            Error::Shape { .. } => (FaultClass::Stop, "model.shape", "config.json and weights are of different models"),
            Error::Dtype { .. } => (FaultClass::Stop, "model.dtype", "convert the checkpoint to bf16"),
            Error::Image(_) => (FaultClass::Row, "model.image", "the image was prepared for another model"),
            Error::Sequence(_) => (FaultClass::Row, "model.sequence", "shorten the prompt"),
            Error::Memory(_) => (
                FaultClass::Row,
                "row.memory",
                "allow more memory, fewer new tokens, smaller images or a smaller batch",
            ),
            Error::Tensor(_) | Error::Kernel(_) => {
                (FaultClass::Stop, "model.compute", "try a smaller batch or another device")
            }
        };
        Fault::new(class, code, message).with_hint(hint)
    }
}
