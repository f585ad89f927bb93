//! [`Model`]: a checkpoint ready to run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Shape, Tensor, WithDType};
use vgen_core::PixelTiles;
use vgen_kernels::attention::Inside;

use crate::attention::Path;
use crate::checkpoint::Checkpoint;
use crate::choose::Chooser;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::kv::{CrossKv, SelfKv};
use crate::layers::{Linear, Loader};
use crate::operations;
use crate::reference::Reference;
use crate::tensors;
use crate::text::{Sequence, TextModel};
use crate::transfer::{copies_to_device, to_device};
use crate::vision::{Observer, VisionStates, VisionTower};
use crate::weight_type::{WeightType, WeightTypes};

/// Where and how a model computes.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where.
    pub device: Device,
    /// Type of activations; of weights too, except by kernels for the CPU.
    pub dtype: DType,
    /// Types of weights for the kernels of the CPU.
    pub weights: WeightTypes,
    /// Leave bf16 matrices in the memory map of their file, and pack them part by part whenever they are used: slow,
    /// but the model needn't fit in memory.
    pub in_place: bool,
    /// Type of keys and values.
    pub kv_dtype: DType,
    /// Which reference to follow.
    pub reference: Reference,
    /// Use only operations that every device has, also where there are kernels for the CPU.
    pub portable: bool,
    /// With these operations, give every product of the text layers the same number of rows, so that no row's numbers
    /// depend on the other rows of a step. The kernels for the CPU need no such thing.
    pub fixed_shapes: bool,
    /// With these operations, most bytes of keys and values of texts and images together.
    pub kv_memory: Option<u64>,
    /// With these operations on the CPU, attend over pages as a GPU's one kernel for it does, sequence by sequence: slow,
    /// to test what is around that kernel.
    pub read_pages: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            weights: WeightType::F32.into(),
            in_place: false,
            kv_dtype: DType::F32,
            reference: Reference::default(),
            portable: false,
            fixed_shapes: true,
            kv_memory: None,
            read_pages: false,
        }
    }
}

/// What a model has done so far.
#[derive(Debug, Default)]
pub struct Counters {
    images_encoded: AtomicU64,
    image_projections: AtomicU64,
    tokens: AtomicU64,
    pub(crate) copies_to_host: AtomicU64,
    copies_to_device: AtomicU64,
}

impl Counters {
    /// Results that were copied from the device.
    pub fn copies_to_host(&self) -> u64 {
        self.copies_to_host.load(Ordering::Relaxed)
    }

    /// Copies to the device after loading: ids, positions, places and pixels.
    pub fn copies_to_device(&self) -> u64 {
        self.copies_to_device.load(Ordering::Relaxed)
    }

    /// Images that went through the vision tower.
    pub fn images_encoded(&self) -> u64 {
        self.images_encoded.load(Ordering::Relaxed)
    }

    /// Images whose cross-attention keys and values were computed.
    pub fn image_projections(&self) -> u64 {
        self.image_projections.load(Ordering::Relaxed)
    }

    /// Text tokens that went through the layers.
    pub fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }
}

/// Counts copies to the device until it is dropped.
struct Counting<'a> {
    counters: &'a Counters,
    before: u64,
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.counters.copies_to_device.fetch_add(copies_to_device() - self.before, Ordering::Relaxed);
    }
}

/// A checkpoint ready to run: Llama-3.2-Vision, or a plain Llama without the vision part.
#[derive(Debug)]
pub struct Model {
    config: Config,
    text: TextModel,
    vision: Option<(VisionTower, Projector)>,
    pub(crate) counters: Counters,
    pub(crate) chooser: Chooser,
    portable: bool,
}

#[derive(Debug)]
struct Projector {
    linear: Linear,
}

impl Model {
    /// Loads a checkpoint. `config.json`, names, shapes and types of all tensors are checked before any weight is
    /// read. `progress` hears of the layers done and their number.
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions, progress: &dyn Fn(usize, usize)) -> Result<Self> {
        let config = Config::from_json(&checkpoint.require("config.json")?)?;
        let weights = Arc::new(checkpoint.weights()?);
        weights.check(&tensors::expected(&config))?;
        let path = if !options.device.is_cpu() || options.dtype != DType::F32 || options.portable {
            let operations = operations::of(&options.device, options.read_pages);
            Path::Portable { operations, fixed_shapes: options.fixed_shapes }
        } else if options.weights.all == Some(WeightType::F32) {
            Path::Kernels { inside: Inside::F32 }
        } else {
            Path::Kernels { inside: Inside::Bf16 }
        };
        let loader = Loader {
            weights: &weights,
            types: &options.weights,
            in_place: options.in_place,
            dtype: options.dtype,
            device: &options.device,
            path,
        };
        let text = TextModel::load(&loader, &config.text, options.reference, options.kv_dtype, progress)?;
        let vision = match &config.vision {
            Some(vision) => {
                // An image's numbers of rows are its own.
                let loader = Loader { path: path.with_free_shapes(), ..loader };
                let tower = VisionTower::load(&loader, vision, options.reference)?;
                let width = config.text.hidden_size;
                let linear = loader.linear_with_bias("multi_modal_projector", width, vision.output_size())?;
                Some((tower, Projector { linear }))
            }
            None => None,
        };
        if let Some(bytes) = options.kv_memory {
            text.limit_pages(bytes);
        }
        let chooser = Chooser::new(config.text.vocab_size, &options.device)?;
        // Weights are copied by this thread's stream, and used by that of the thread that runs the model.
        text.synchronize()?;
        let (counters, portable) = (Counters::default(), path.operations().is_some());
        Ok(Self { config, text, vision, counters, chooser, portable })
    }

    /// The numbers of the network.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether it computes by operations that every device has, and not by the kernels of the CPU.
    pub fn is_portable(&self) -> bool {
        self.portable
    }

    /// What was computed so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts the copies to the device that this thread makes from now on.
    fn counting(&self) -> Counting<'_> {
        Counting { counters: &self.counters, before: copies_to_device() }
    }

    /// `values` as a tensor on the device of `like`.
    pub(crate) fn to_device<T: WithDType>(
        &self,
        values: Vec<T>,
        shape: impl Into<Shape>,
        like: &Tensor,
    ) -> Result<Tensor> {
        let _counting = self.counting();
        to_device(values, shape, like.device())
    }

    /// Waits until the device has done what it was told.
    ///
    /// # Errors
    /// The device's.
    pub fn synchronize(&self) -> Result<()> {
        self.text.synchronize()
    }

    /// The vision tower, if the model has one.
    pub fn vision(&self) -> Option<&VisionTower> {
        self.vision.as_ref().map(|(tower, _)| tower)
    }

    /// Encodes images and computes their keys and values for the cross-attention layers.
    pub fn encode(&self, images: &[&PixelTiles]) -> Result<Vec<CrossKv>> {
        self.encode_observed(images, None)
    }

    /// [`Model::encode`], with a look at the intermediate results: `local{i}`, `global{i}`, `output`, `projected`, ...
    pub fn encode_observed(&self, images: &[&PixelTiles], mut observer: Option<Observer>) -> Result<Vec<CrossKv>> {
        let Some((tower, projector)) = &self.vision else {
            return Err(Error::Image("the model is text-only, its rows can't have images".into()));
        };
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let _counting = self.counting();
        let outputs = tower.forward(images, observer.as_deref_mut().map(|o| o as Observer))?;
        self.counters.images_encoded.fetch_add(images.len() as u64, Ordering::Relaxed);
        let mut encoded = Vec::with_capacity(images.len());
        for (image, output) in images.iter().zip(outputs) {
            let (output, layout) = (output?, tower.layout(image.aspect_ratio_id));
            let projected = projector.linear.forward(&output)?;
            if let Some(observer) = observer.as_deref_mut() {
                observer("output", &output);
                observer("projected", &projected);
            }
            drop(output);
            let states =
                VisionStates { projected, live_tokens: layout.live_tokens(), unused_weight: layout.unused_weight() };
            encoded.push(self.text.cross_kv(&states)?);
            self.counters.image_projections.fetch_add(1, Ordering::Relaxed);
        }
        Ok(encoded)
    }

    /// A store for a sequence of up to `capacity` tokens.
    pub fn self_kv(&self, capacity: usize) -> Result<SelfKv> {
        self.text.self_kv(capacity)
    }

    /// Runs a step over flat tokens of several sequences and returns the logits of the tokens `wanted`,
    /// `[wanted, vocabulary]` in f32; of none, where a step only reads pieces of prompts, an empty tensor on the host. An
    /// error, or a panic, leaves the sequences as they were.
    pub fn forward(&self, ids: &[u32], sequences: &mut [Sequence], wanted: &[u32]) -> Result<Tensor> {
        self.forward_observed(ids, sequences, wanted, None)
    }

    /// [`Model::forward`], with a look at the intermediate results: `embed`, `layer{i}`, `norm`.
    pub fn forward_observed(
        &self,
        ids: &[u32],
        sequences: &mut [Sequence],
        wanted: &[u32],
        observer: Option<Observer>,
    ) -> Result<Tensor> {
        self.counters.tokens.fetch_add(ids.len() as u64, Ordering::Relaxed);
        let _counting = self.counting();
        self.text.forward(ids, sequences, wanted, observer)
    }
}
