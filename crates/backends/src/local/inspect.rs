//! [`inspect`]: what a model needs, known before anything large is read or fetched.

use std::cell::RefCell;
use std::path::Path;

use vgen_core::Fault;
use vgen_mllama::{Checkpoint, Config, Device, Weights, hub};
use vgen_task::image::MllamaImageProcessor;

use super::{LocalOptions, MemoryPlan, ModelSource, Precision, Work};

/// What `config.json` and headers tell.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The numbers of the network.
    pub config: Config,
    /// What it takes with the options that were given.
    pub plan: MemoryPlan,
    /// How images become tiles; `None` for a model that reads text only.
    pub processor: Option<MllamaImageProcessor>,
    /// The device, in words.
    pub device: String,
    /// Whether that is this machine's processor.
    pub is_cpu: bool,
    /// The types of the computation, in words.
    pub dtype: String,
    /// Bytes that are free now, where that is known.
    pub free: Option<u64>,
    /// The arithmetic that it takes.
    pub work: Work,
}

/// Reads a model's `config.json` and, where they are on this machine, the headers of its weight files.
///
/// # Errors
/// A stop fault if there is no such model, it is of an unsupported kind, or there is no such device.
pub fn inspect(options: &LocalOptions) -> Result<Inspected, Fault> {
    let device = options.all_devices()[0].open()?;
    let (config_json, weights) = match &options.model {
        ModelSource::Named(name) if Path::new(name).is_file() => of(&Checkpoint::gguf(name)?)?,
        ModelSource::Named(name) if Path::new(name).is_dir() => of(&Checkpoint::folder(name))?,
        ModelSource::Named(name) => (on_the_hub(name, options)?, None),
        ModelSource::Embedded { files, .. } => of(&Checkpoint::memory(files.iter().copied()))?,
    };
    let config = Config::from_json(&config_json)?;
    let processor = match config.vision {
        // The sizes of tiles are in both files, and held to be the same when the model is loaded.
        Some(_) => Some(MllamaImageProcessor::from_json("{}", &config_json)?),
        None => None,
    };
    let free = device.free_memory();
    let stored = |name: &str| weights.as_ref().and_then(|weights| weights.stored(name)).unwrap_or(config.stored);
    let precision = Precision::choose(options, &device, &config, &stored, free)?;
    Ok(Inspected {
        plan: MemoryPlan::new(&config, &precision, options),
        work: Work::new(&config, &precision, &stored),
        config,
        processor,
        is_cpu: matches!(device.device, Device::Cpu),
        device: device.description,
        dtype: precision.to_string(),
        free,
    })
}

/// The configuration, and the headers of the weights if these are there.
fn of(checkpoint: &Checkpoint) -> Result<(String, Option<Weights>), Fault> {
    Ok((checkpoint.require("config.json")?, checkpoint.weights().ok()))
}

/// The configuration of a repository on the hub. The search is broken off once it is seen.
fn on_the_hub(name: &str, options: &LocalOptions) -> Result<String, Fault> {
    let seen = RefCell::new(None);
    let accept = |config: &str| {
        *seen.borrow_mut() = Some(config.to_owned());
        Err(Fault::stop("plan.seen", "the configuration is all that is needed"))
    };
    let found = hub::resolve(name, &options.hub, &accept, None).map_err(Fault::from);
    match (seen.into_inner(), found) {
        (Some(config), _) => Ok(config),
        (None, Err(fault)) => Err(fault),
        (None, Ok(folder)) => Ok(Checkpoint::folder(folder.path).require("config.json")?),
    }
}
