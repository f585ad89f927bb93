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
        let place = Place::new(options, device, engines);
        let precision = Precision::choose(&place.options, device, config, stored, place.free)?;
        Ok(place.planned(config, precision))
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
        let same = |device: &OpenDevice| {
            devices.iter().filter(|other| other.device.location() == device.device.location()).count() as u64
        };
        let places: Vec<Place> = devices.iter().map(|device| Place::new(options, device, same(device))).collect();
        // One for all, that fits the smallest and that the oldest can compute in: a row's answer must not depend on the
        // device that takes it.
        let oldest = devices.iter().min_by_key(|device| device.compute_capability);
        let oldest = oldest.ok_or_else(|| Fault::stop("device.none", "there is no device to compute on"))?;
        let smallest =
            LocalOptions { memory: places.iter().filter_map(|place| place.options.memory).min(), ..options.clone() };
        let least_free = places.iter().filter_map(|place| place.free).min();
        let precision = Precision::choose(&smallest, oldest, &config, &stored, least_free)?;
        let mut all = Vec::with_capacity(devices.len());
        for (number, place) in places.into_iter().enumerate() {
            let planned = place.planned(&config, precision.clone());
            if number == 0 {
                say(&planned);
            }
            planned.plan.check(planned.free)?;
            all.push(planned);
        }
        Ok(all)
    }
}

/// A device's part for one engine.
struct Place<'a> {
    device: &'a OpenDevice,
    options: LocalOptions,
    free: Option<u64>,
}

impl<'a> Place<'a> {
    /// On a device that so many `engines` share.
    fn new(options: &LocalOptions, device: &'a OpenDevice, engines: u64) -> Self {
        let free = device.free_memory().map(|free| free / engines);
        let mut options = options.clone();
        options.memory = options.memory.map(|memory| memory / engines);
        if !device.device.is_cpu() {
            // What a driver and a library keep for themselves is not known beforehand.
            let usable = free.map(|free| free - free / 20);
            options.memory = options.memory.into_iter().chain(usable).min();
        }
        Self { device, options, free }
    }

    fn planned(self, config: &Config, precision: Precision) -> Planned {
        let Self { device, mut options, free } = self;
        if options.fill_device
            && !device.device.is_cpu()
            && let Some(memory) = options.memory
        {
            options.batch_size = MemoryPlan::batch_in(config, &precision, &options, memory);
        }
        let plan = MemoryPlan::new(config, &precision, &options).within(free);
        Planned { options, precision, plan, free }
    }
}
