//! [`Planned`]: types, batch size and memory of an engine, from the options, its device and the model's configuration.

use vgen_core::Fault;
use vgen_mllama::{Checkpoint, Config, Stored};

use super::{LocalOptions, MemoryPlan, OpenDevice, Precision};

/// What an engine will be like.
pub(crate) struct Planned {
    /// With the batch size and the limit that it has.
    pub(crate) options: LocalOptions,
    pub(crate) precision: Precision,
    pub(crate) plan: MemoryPlan,
    /// Bytes that are free for it now, where that is known.
    pub(crate) free: Option<u64>,
}

impl Planned {
    /// For a device that so many `engines` share.
    ///
    /// # Errors
    /// A stop fault if the device can't compute so.
    pub(crate) fn new(
        options: &LocalOptions,
        device: &OpenDevice,
        engines: u64,
        config: &Config,
        stored: &dyn Fn(&str) -> Stored,
    ) -> Result<Self, Fault> {
        let free = device.free_memory().map(|free| free / engines);
        let mut options = options.clone();
        options.memory = options.memory.map(|memory| memory / engines);
        if !device.device.is_cpu() {
            // What a driver and a library keep for themselves is not known beforehand.
            let usable = free.map(|free| free - free / 20);
            options.memory = options.memory.into_iter().chain(usable).min();
        }
        let precision = Precision::choose(&options, device, config, stored, free)?;
        if options.fill_device
            && !device.device.is_cpu()
            && let Some(memory) = options.memory
        {
            options.batch_size = MemoryPlan::batch_in(config, &precision, &options, memory);
        }
        let plan = MemoryPlan::new(config, &precision, &options).within(free);
        Ok(Self { options, precision, plan, free })
    }

    /// For each device; those that are the same share its memory. `say` hears of the first.
    ///
    /// # Errors
    /// As [`Planned::new`]; `plan.memory` if the model doesn't fit.
    pub(crate) fn each(
        checkpoint: &Checkpoint,
        options: &LocalOptions,
        devices: &[OpenDevice],
        say: &dyn Fn(&Self),
    ) -> Result<Vec<Self>, Fault> {
        let config = Config::from_json(&checkpoint.require("config.json")?)?;
        let header = checkpoint.weights()?;
        let stored = |name: &str| header.stored(name).unwrap_or(Stored::F32);
        let mut all = Vec::with_capacity(devices.len());
        for (number, device) in devices.iter().enumerate() {
            let engines = devices.iter().filter(|other| other.device.same_device(&device.device)).count() as u64;
            let planned = Self::new(options, device, engines, &config, &stored)?;
            if number == 0 {
                say(&planned);
            }
            planned.plan.check(planned.free)?;
            all.push(planned);
        }
        Ok(all)
    }
}
