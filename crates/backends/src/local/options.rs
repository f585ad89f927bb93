//! What to load and how to run it.

use std::fmt;
use std::str::FromStr;

use vgen_core::Fault;
use vgen_mllama::hub::{HubEvent, HubOptions};
use vgen_mllama::{Device, Reference, WeightOverride};
use vgen_task::prepare::PrepareOptions;

use super::{DTypeChoice, KvDTypeChoice, MemoryPlan};

/// Which model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder in the hub's layout, a GGUF file, or `owner/name` on the hub.
    Named(String),
    /// Files held in memory, by name, and what to call the model.
    Embedded {
        /// The `model_name` column.
        name: &'static str,
        /// Names and contents of the files.
        files: Vec<(&'static str, &'static [u8])>,
    },
}

impl ModelSource {
    /// The `model_name` column.
    pub fn name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Embedded { name, .. } => name,
        }
    }
}

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best device that this build has and that works.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU by number.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// A stop fault if this build or machine doesn't have it.
    pub fn open(self) -> Result<Device, Fault> {
        let unavailable = |what: &str, error: &dyn fmt::Display| {
            Fault::stop("device.unavailable", format!("{what} can't be used: {error}"))
                .with_hint("use --device cpu, or a build with the device's feature on a machine that has one")
        };
        match self {
            Self::Auto => {
                if candle_core::utils::cuda_is_available()
                    && let Ok(device) = Device::new_cuda(0)
                {
                    return Ok(device);
                }
                if candle_core::utils::metal_is_available()
                    && let Ok(device) = Device::new_metal(0)
                {
                    return Ok(device);
                }
                Ok(Device::Cpu)
            }
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => {
                Device::new_cuda(number).map_err(|e| unavailable(&format!("CUDA device {number}"), &e))
            }
            Self::Metal => Device::new_metal(0).map_err(|e| unavailable("the Metal device", &e)),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "0")) {
            ("auto", "0") => Ok(Self::Auto),
            ("cpu", "0") => Ok(Self::Cpu),
            ("metal", "0") => Ok(Self::Metal),
            ("cuda", number) if number.parse::<usize>().is_ok() => Ok(Self::Cuda(number.parse().unwrap_or(0))),
            _ => Err(format!("{text:?} is no device: auto, cpu, cuda, cuda:1 and metal are")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

/// How to load a model and run its engine.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// Which model.
    pub model: ModelSource,
    /// Where and how to find it, if it is named.
    pub hub: HubOptions,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Type of weights and activations.
    pub dtype: DTypeChoice,
    /// Types of single tensors' weights on the CPU.
    pub weight_overrides: Vec<WeightOverride>,
    /// Type of keys and values.
    pub kv_dtype: KvDTypeChoice,
    /// Which reference to follow.
    pub reference: Reference,
    /// Use only operations that every device has, also where there are kernels for the CPU.
    pub portable: bool,
    /// Most answers in the making at a time.
    pub batch_size: usize,
    /// Most tokens in a step, the new tokens of running answers included.
    pub step_tokens: usize,
    /// Threads for computing; `None` uses all cores.
    pub threads: Option<usize>,
    /// Threads that fetch, decode and tile images ahead of the engine.
    pub prepare_threads: usize,
    /// Most bytes of keys and values of images that are kept for later rows.
    pub image_cache_bytes: u64,
    /// Most bytes for weights, workspace, kept images and rows; `None` leaves it to the batch size.
    pub memory: Option<u64>,
    /// How messages become prompts.
    pub prepare: PrepareOptions,
}

impl LocalOptions {
    /// The defaults for a model.
    pub fn new(model: ModelSource) -> Self {
        Self {
            model,
            hub: HubOptions::default(),
            device: DeviceChoice::default(),
            dtype: DTypeChoice::default(),
            weight_overrides: Vec::new(),
            kv_dtype: KvDTypeChoice::default(),
            reference: Reference::default(),
            portable: false,
            batch_size: 8,
            step_tokens: 512,
            threads: None,
            prepare_threads: 2,
            image_cache_bytes: 1 << 30,
            memory: None,
            prepare: PrepareOptions::default(),
        }
    }
}

/// What loading is doing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum LoadEvent {
    /// A download.
    Hub(HubEvent),
    /// What the model and its rows will take, before anything large is read.
    Plan {
        /// In bytes.
        plan: MemoryPlan,
        /// Bytes that are free now, where that is known.
        free: Option<u64>,
    },
    /// Text layers that are loaded, of how many.
    Layers {
        /// Loaded.
        done: usize,
        /// Of how many.
        total: usize,
    },
    /// Ready, on this device, in this type.
    Ready {
        /// The device.
        device: String,
        /// The type of weights and activations.
        dtype: String,
        /// Seconds since loading began.
        seconds: f64,
    },
}
