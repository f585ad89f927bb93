//! What to load and how to run it.

use vgen_core::SamplingParams;
use vgen_mllama::hub::{HubEvent, HubOptions};
use vgen_mllama::{Reference, WeightOverride};
use vgen_task::prepare::PrepareOptions;

use super::{DTypeChoice, DeviceChoice, KvDTypeChoice, MemoryPlan};

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

/// How to load a model and run its engine.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// Which model.
    pub model: ModelSource,
    /// Where and how to find it, if it is named.
    pub hub: HubOptions,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Several devices, each with an engine of its own; none means the one above.
    pub devices: Vec<DeviceChoice>,
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
    /// With these operations, let no row's numbers depend on its neighbours, by giving every product of the text layers
    /// the same shape. See [`super::devices`] for what is promised.
    pub fixed_shapes: bool,
    /// Most answers in the making at a time, of each engine.
    pub batch_size: usize,
    /// On a GPU, as many answers as its free memory has room for instead.
    pub fill_device: bool,
    /// Most tokens in a step, the new tokens of running answers included.
    pub step_tokens: usize,
    /// Threads for computing; `None` uses all cores.
    pub threads: Option<usize>,
    /// Threads that fetch, decode and tile images ahead of the engine.
    pub prepare_threads: usize,
    /// Most bytes of keys and values of images that are kept for later rows.
    pub image_cache_bytes: u64,
    /// Most bytes for weights, workspace, kept and prepared images and rows, of each device; `None` takes what is free when
    /// the model is loaded, but for a twentieth.
    pub memory: Option<u64>,
    /// How messages become prompts.
    pub prepare: PrepareOptions,
    /// How the run will choose tokens, to be checked before weights are read.
    pub sampling: SamplingParams,
}

impl LocalOptions {
    /// Every engine's device.
    pub fn all_devices(&self) -> Vec<DeviceChoice> {
        if self.devices.is_empty() { vec![self.device] } else { self.devices.clone() }
    }

    /// The defaults for a model.
    pub fn new(model: ModelSource) -> Self {
        Self {
            model,
            hub: HubOptions::default(),
            device: DeviceChoice::default(),
            devices: Vec::new(),
            dtype: DTypeChoice::default(),
            weight_overrides: Vec::new(),
            kv_dtype: KvDTypeChoice::default(),
            reference: Reference::default(),
            portable: false,
            fixed_shapes: true,
            batch_size: 8,
            fill_device: false,
            step_tokens: 512,
            threads: None,
            prepare_threads: 2,
            image_cache_bytes: 1 << 30,
            memory: None,
            prepare: PrepareOptions::default(),
            sampling: SamplingParams::default(),
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
        /// Most answers in the making at a time.
        batch_size: usize,
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
