//! [`inspect`]: what a model needs, known before anything large is read or fetched.

use std::cell::RefCell;
use std::path::Path;

use vgen_core::Fault;
use vgen_mllama::{Checkpoint, Config, Device, Weights, hub};
use vgen_task::image::MllamaImageProcessor;

use super::backend::defaults;
use super::planned::Planned;
use super::{DEFAULT_MAX_NEW_TOKENS, LocalOptions, MemoryPlan, ModelSource, Work};

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
    /// Bytes that are free now, where that is known; of one of several engines on a device its share.
    pub free: Option<u64>,
    /// Most answers in the making at a time.
    pub batch_size: usize,
    /// New tokens of an answer to a request that doesn't say, where the model's files are on this machine.
    pub max_new_tokens: u32,
    /// The arithmetic that it takes.
    pub work: Work,
}

/// Reads a model's `config.json` and, where they are on this machine, the headers of its weight files.
///
/// # Errors
/// A stop fault if there is no such model, it is of an unsupported kind, or there is no such device.
pub fn inspect(options: &LocalOptions) -> Result<Inspected, Fault> {
    let choices = options.all_devices();
    let device = choices[0].open()?;
    let engines = choices.iter().filter(|choice| **choice == choices[0]).count() as u64;
    let Read { config, weights, max_new_tokens } = match &options.model {
        ModelSource::Named(name) if Path::new(name).is_file() => Read::of(&Checkpoint::gguf(name)?)?,
        ModelSource::Named(name) if Path::new(name).is_dir() => Read::of(&Checkpoint::folder(name))?,
        ModelSource::Named(name) => on_the_hub(name, options)?,
        ModelSource::Embedded { files, .. } => Read::of(&Checkpoint::memory(files.iter().copied()))?,
    };
    let config_json = config;
    let config = Config::from_json(&config_json)?;
    let processor = match config.vision {
        // The sizes of tiles are in both files, and held to be the same when the model is loaded.
        Some(_) => Some(MllamaImageProcessor::from_json("{}", &config_json)?),
        None => None,
    };
    let stored = |name: &str| weights.as_ref().and_then(|weights| weights.stored(name)).unwrap_or(config.stored);
    let Planned { options, precision, plan, free } = Planned::new(options, &device, engines, &config, &stored)?;
    Ok(Inspected {
        plan,
        work: Work::new(&config, &precision, &stored),
        config,
        processor,
        is_cpu: matches!(device.device, Device::Cpu),
        device: device.description,
        dtype: precision.to_string(),
        free,
        batch_size: options.batch_size,
        max_new_tokens,
    })
}

/// What is read of a model.
struct Read {
    config: String,
    /// The headers of the weights, if these are there.
    weights: Option<Weights>,
    max_new_tokens: u32,
}

impl Read {
    fn of(checkpoint: &Checkpoint) -> Result<Self, Fault> {
        let max_new_tokens = defaults(checkpoint)?.max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS);
        Ok(Self { config: checkpoint.require("config.json")?, weights: checkpoint.weights().ok(), max_new_tokens })
    }
}

/// The configuration of a repository on the hub. The search is broken off once it is seen; the rest is read if a copy of
/// it is on this machine.
fn on_the_hub(name: &str, options: &LocalOptions) -> Result<Read, Fault> {
    let seen = RefCell::new(None);
    let accept = |config: &str| {
        *seen.borrow_mut() = Some(config.to_owned());
        Err(Fault::stop("plan.seen", "the configuration is all that is needed"))
    };
    let found = hub::resolve(name, &options.hub, &accept, None).map_err(Fault::from);
    let config = match (seen.into_inner(), found) {
        (Some(config), _) => config,
        (None, Err(fault)) => return Err(fault),
        (None, Ok(folder)) => Checkpoint::folder(folder.path).require("config.json")?,
    };
    let offline = hub::HubOptions { offline: true, ..options.hub.clone() };
    match hub::resolve(name, &offline, &|_| Ok(()), None) {
        Ok(copy) => Ok(Read { config, ..Read::of(&Checkpoint::folder(copy.path))? }),
        Err(_) => Ok(Read { config, weights: None, max_new_tokens: DEFAULT_MAX_NEW_TOKENS }),
    }
}
