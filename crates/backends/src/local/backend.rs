//! [`LocalBackend`]: loading, preparation ahead of the engine, and the engine's thread.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::Value;
use vgen_core::{
    Backend, Constraint, Fault, FaultClass, MAX_NUM_GENERATIONS, Message, Reply, Request, SamplingParams, catch_panic,
    image_spans,
};
use vgen_mllama::hub::HubProgress;
use vgen_mllama::{Checkpoint, Config, LoadOptions, Model, hub};
use vgen_task::prepare::{EncodedPrompt, ModelFiles, Prepared, Preprocessor};

use super::devices;
use super::engine::Engine;
use super::planned::Planned;
use super::prepared::PreparedImages;
use super::queue::{JobQueue, Producer};
use super::row::{Job, RowImage, given_up, given_up_fault};
use super::stats::{EngineStats, add};
use super::{
    ConstraintCompiler, ConstraintState, GenerationDefaults, LoadEvent, LocalOptions, ModelSource, ResolvedSampling,
    Vocabulary,
};

/// New tokens of an answer if neither the request nor the model says (distilabel's default).
pub const DEFAULT_MAX_NEW_TOKENS: u32 = 128;

/// Llama-3.2-Vision in this process.
///
/// Requests are prepared (images fetched, decoded and tiled, text tokenised) on threads of their own, ahead of the
/// engines: one thread for each device, which owns the model there.
#[derive(Debug)]
pub struct LocalBackend {
    model_name: String,
    /// `None` only while being dropped.
    requests: Option<Sender<Submitted>>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    window: usize,
    stats: Arc<EngineStats>,
    /// How often the engines are to have dropped what they keep of earlier rows.
    forgetting: Arc<AtomicU64>,
}

struct Submitted {
    request: Request,
    reply: Box<dyn Reply>,
    at: Instant,
}

/// What preparation needs to know of the model.
#[derive(Debug)]
struct Shared {
    preprocessor: Preprocessor,
    defaults: GenerationDefaults,
    eos: Vec<u32>,
    vocab_size: usize,
    image_token: u32,
    longest: usize,
    vocabulary: Arc<Vocabulary>,
    compiler: OnceLock<Result<ConstraintCompiler, Fault>>,
}

impl LocalBackend {
    /// Finds, checks and loads the model, then starts the engine. Blocks; `progress` hears how far it is.
    ///
    /// # Errors
    /// A stop fault that names what is missing or wrong. What `config.json` can tell is told before weights are
    /// downloaded or read, what is wrong with [`LocalOptions::sampling`] before they are read.
    pub fn load(options: LocalOptions, progress: impl Fn(LoadEvent) + Send + Sync + 'static) -> Result<Self, Fault> {
        let start = Instant::now();
        let progress = Arc::new(progress);
        let choices = options.all_devices();
        let devices = devices::open_all(&choices)?;
        let checkpoint = match &options.model {
            ModelSource::Named(name) if Path::new(name).is_file() => Checkpoint::gguf(name)?,
            ModelSource::Named(name) => {
                let hub_progress: HubProgress = {
                    let progress = Arc::clone(&progress);
                    Arc::new(move |event| progress(LoadEvent::Hub(event)))
                };
                let accept = |config: &str| Config::from_json(config).map(|_| ()).map_err(Fault::from);
                let folder = hub::resolve(name, &options.hub, &accept, Some(hub_progress)).map_err(Fault::from)?;
                Checkpoint::folder(folder.path)
            }
            ModelSource::Embedded { files, .. } => Checkpoint::memory(files.iter().copied()),
        };
        let plans = Planned::each(&checkpoint, &options, &devices, &|planned| {
            let (plan, free, batch_size) = (planned.plan.clone(), planned.free, planned.options.batch_size);
            progress(LoadEvent::Plan { plan, free, batch_size });
        })?;
        let shared = Arc::new(Shared::new(&checkpoint, &options)?);
        shared.check(&options.sampling)?;
        if let Some(threads) = options.threads {
            // An error means that the pool runs already: its size stands, the limit below still holds.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build_global();
            vgen_kernels::threads::set_limit(threads.max(1));
        }
        let dtype = plans.first().map(|planned| planned.precision.to_string()).unwrap_or_default();
        let batch_size: usize = plans.iter().map(|planned| planned.options.batch_size.max(1)).sum();
        let stats = Arc::new(EngineStats::default());
        let forgetting = Arc::new(AtomicU64::new(0));
        // The pipeline's window bounds requests; these bound what is prepared ahead, in rows and in bytes.
        let queue = JobQueue::new(batch_size.max(2));
        let images =
            PreparedImages::new(plans.iter().map(|planned| planned.plan.waiting_images_of(&planned.options)).sum());
        // Before any engine looks for rows: without a producer the queue is closed.
        let producers: Vec<Producer> = (0..options.prepare_threads.max(1)).map(|_| queue.producer()).collect();
        let mut threads = Vec::with_capacity(plans.len() + producers.len());
        for (number, (planned, open)) in plans.into_iter().zip(&devices).enumerate() {
            let Planned { options, precision, plan, .. } = planned;
            let load = LoadOptions {
                device: open.device.clone(),
                dtype: precision.activations,
                weights: precision.weights,
                in_place: precision.in_place,
                kv_dtype: precision.kv,
                reference: options.reference,
                portable: options.portable,
                fixed_shapes: options.fixed_shapes,
                kv_memory: plan.pages(options.batch_size),
                read_pages: false,
            };
            let layers = |done, total| progress(LoadEvent::Layers { done, total });
            let model = Model::load(&checkpoint, &load, &layers)?;
            let vocabulary = Arc::clone(&shared.vocabulary);
            let (jobs, stats) = (queue.consumer(number), Arc::clone(&stats));
            let engine = Engine::new(model, vocabulary, jobs, &options, plan, stats, Arc::clone(&forgetting));
            threads.push(spawn("vgen-engine", move || engine.run())?);
        }
        progress(LoadEvent::Ready {
            device: devices.iter().map(|device| device.description.as_str()).collect::<Vec<_>>().join(", "),
            dtype,
            seconds: start.elapsed().as_secs_f64(),
        });

        let model_name = options.model.name().to_owned();
        // `submit` never blocks: whoever submits is held back by `window`, and what waits here is not prepared yet.
        let (requests, incoming) = unbounded::<Submitted>();
        for jobs in producers {
            let (shared, incoming) = (Arc::clone(&shared), incoming.clone());
            let (stats, images) = (Arc::clone(&stats), Arc::clone(&images));
            threads.push(spawn("vgen-prepare", move || shared.prepare_all(&incoming, &jobs, &images, &stats))?);
        }
        let window = 2 * batch_size + options.prepare_threads;
        Ok(Self { model_name, requests: Some(requests), threads, shared, window, stats, forgetting })
    }

    /// What the engine did and where its time went.
    pub fn stats(&self) -> &EngineStats {
        &self.stats
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Fault> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|e| Fault::stop("engine.thread", format!("thread {name} can't be started: {e}")))
}

impl Backend for LocalBackend {
    fn model_name(&self) -> &str {
        &self.model_name
    }

    fn check(&self, sampling: &SamplingParams, num_generations: u32) -> Result<(), Fault> {
        generations(num_generations).map_err(|what| Fault::stop("task.invalid_parameter", what))?;
        self.shared.check(sampling)
    }

    fn reads_images(&self) -> bool {
        self.shared.preprocessor.image_processor().is_some()
    }

    fn statistics(&self) -> Option<Value> {
        serde_json::to_value(self.stats.report()).ok()
    }

    fn window(&self) -> usize {
        self.window
    }

    fn forget(&self) {
        self.forgetting.fetch_add(1, Ordering::AcqRel);
    }

    fn submit(&self, request: Request, reply: Box<dyn Reply>) {
        let submitted = Submitted { request, reply, at: Instant::now() };
        let lost = match &self.requests {
            Some(requests) => requests.send(submitted).err().map(|e| e.0),
            None => Some(submitted),
        };
        if let Some(lost) = lost {
            lost.reply.done(Err(Fault::stop("backend.lost", "the engine is gone")));
        }
    }
}

/// A local model without its weights: what can be said of parameters and prompts before these are loaded.
#[derive(Debug)]
pub struct Frontend(Shared);

impl Frontend {
    /// Reads the model's files but its weights. Downloads nothing.
    ///
    /// # Errors
    /// As [`LocalBackend::load`]; `hub.offline` and others of the hub if the files are not on this machine.
    pub fn open(options: &LocalOptions) -> Result<Self, Fault> {
        let checkpoint = match &options.model {
            ModelSource::Named(name) if Path::new(name).is_file() => Checkpoint::gguf(name)?,
            ModelSource::Named(name) => {
                let hub = hub::HubOptions { offline: true, ..options.hub.clone() };
                Checkpoint::folder(hub::resolve(name, &hub, &|_| Ok(()), None).map_err(Fault::from)?.path)
            }
            ModelSource::Embedded { files, .. } => Checkpoint::memory(files.iter().copied()),
        };
        Ok(Self(Shared::new(&checkpoint, options)?))
    }

    /// As [`LocalBackend`]'s check.
    ///
    /// # Errors
    /// `sampling.*`, `constraint.*`
    pub fn check(&self, sampling: &SamplingParams) -> Result<(), Fault> {
        self.0.check(sampling)
    }

    /// How many tokens the prompt of `messages` has, an image being one.
    ///
    /// # Errors
    /// Those of a row: `prompt.*`, `tokenizer.failed`.
    pub fn prompt_tokens(&self, messages: &[Message]) -> Result<u64, Fault> {
        let prompt = self.0.preprocessor.encode_messages(messages).map_err(Fault::from)?;
        self.0.fits(prompt.ids.len())?;
        Ok(prompt.ids.len() as u64)
    }

    /// The tokens of a text as it stands, without any around it.
    ///
    /// # Errors
    /// `tokenizer.failed`
    pub fn text_tokens(&self, text: &str) -> Result<Vec<u32>, Fault> {
        Ok(self.0.preprocessor.tokenizer().encode_plain(text)?)
    }
}

/// Preparation of a row, with a panic as an error: it must not end the run.
fn guarded<T>(row: u64, call: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_panic(call).unwrap_or_else(|said| {
        let message = format!("row {row}: its prompt or an image can't be prepared: {said}");
        Err(Fault::row("prompt.panic", message).with_hint("report this with the row and the model"))
    })
}

/// What a checkpoint says of parameters that a request doesn't have.
pub(crate) fn defaults(checkpoint: &Checkpoint) -> Result<GenerationDefaults, Fault> {
    let mut defaults = match checkpoint.text("generation_config.json")? {
        Some(text) => GenerationDefaults::from_json(&text)?,
        None => GenerationDefaults::default(),
    };
    defaults.max_new_tokens.get_or_insert(DEFAULT_MAX_NEW_TOKENS);
    Ok(defaults)
}

/// Whether so many answers may be asked for; if not, a message.
fn generations(count: u32) -> Result<(), String> {
    match count {
        1..=MAX_NUM_GENERATIONS => Ok(()),
        _ => Err(format!("num_generations is {count}, it can be 1 to {MAX_NUM_GENERATIONS}")),
    }
}

fn stop(mut fault: Fault) -> Fault {
    fault.class = FaultClass::Stop;
    fault
}

impl Drop for LocalBackend {
    /// Answers what was submitted, then ends the threads.
    fn drop(&mut self) {
        self.requests = None;
        for thread in self.threads.drain(..) {
            // A panic of a thread was seen by those who waited for its answers.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn new(checkpoint: &Checkpoint, options: &LocalOptions) -> Result<Self, Fault> {
        let config_json = checkpoint.require("config.json")?;
        let config = Config::from_json(&config_json)?;
        let preprocessor_config = match config.vision {
            Some(_) => Some(checkpoint.require("preprocessor_config.json")?),
            None => None,
        };
        let tokenizer = checkpoint.require("tokenizer.json")?;
        let tokenizer_config = checkpoint.text("tokenizer_config.json")?;
        let chat_template = match checkpoint.text("chat_template.json")? {
            Some(text) => Some(text),
            None => checkpoint.text("chat_template.jinja")?,
        };
        let files = ModelFiles {
            config: &config_json,
            preprocessor_config: preprocessor_config.as_deref(),
            tokenizer: tokenizer.as_bytes(),
            tokenizer_config: tokenizer_config.as_deref(),
            chat_template: chat_template.as_deref(),
        };
        let preprocessor = Preprocessor::from_files(&files, options.prepare.clone()).map_err(Fault::from)?;
        let defaults = defaults(checkpoint)?;
        let vocabulary = Arc::new(Vocabulary::new(preprocessor.tokenizer().inner()).map_err(Fault::from)?);
        let named = || preprocessor.eos_token().filter(|&id| (id as usize) < config.text.vocab_size);
        let eos = match (&defaults.eos_token_id[..], &config.eos[..]) {
            ([], []) => named().into_iter().collect(),
            ([], ids) | (ids, _) => ids.to_vec(),
        };
        Ok(Self {
            preprocessor,
            defaults,
            eos,
            vocab_size: config.text.vocab_size,
            image_token: config.image_token.unwrap_or(u32::MAX),
            longest: config.text.max_position_embeddings,
            vocabulary,
            compiler: OnceLock::new(),
        })
    }

    fn resolve(&self, sampling: &SamplingParams) -> Result<ResolvedSampling, Fault> {
        let tokenizer = self.preprocessor.tokenizer().inner();
        Ok(ResolvedSampling::resolve(sampling, &self.defaults, &self.eos, self.vocab_size, tokenizer)?)
    }

    fn check(&self, sampling: &SamplingParams) -> Result<(), Fault> {
        self.resolve(sampling).map(|_| ()).map_err(stop)?;
        match &sampling.constraint {
            Some(constraint) => self.constraint(constraint).map(|_| ()).map_err(stop),
            None => Ok(()),
        }
    }

    fn fits(&self, tokens: usize) -> Result<(), Fault> {
        if tokens < self.longest {
            return Ok(());
        }
        let message = format!("the prompt has {tokens} tokens, the model reads {}", self.longest);
        Err(Fault::row("prompt.too_long", message).with_hint("shorten the instruction"))
    }

    fn constraint(&self, constraint: &Constraint) -> Result<ConstraintState, Fault> {
        let compiler = self.compiler.get_or_init(|| {
            let tokenizer = self.preprocessor.tokenizer().inner();
            ConstraintCompiler::new(tokenizer, &self.vocabulary, self.vocab_size, &self.eos).map_err(Fault::from)
        });
        match compiler {
            Ok(compiler) => Ok(compiler.start(constraint)?),
            Err(fault) => Err(fault.clone()),
        }
    }

    /// Body of a preparation thread: runs until the queue is closed.
    fn prepare_all(
        &self,
        incoming: &Receiver<Submitted>,
        jobs: &Producer,
        kept: &Arc<PreparedImages>,
        stats: &EngineStats,
    ) {
        for Submitted { request, reply, at } in incoming {
            if let Some(reason) = given_up(&request.cancel, request.deadline) {
                reply.done(Err(given_up_fault(request.row, reason)));
                continue;
            }
            let start = Instant::now();
            let prepared = guarded(request.row, || self.prepare(&request));
            let prepare = start.elapsed();
            add(&stats.prepare, prepare.as_nanos() as u64);
            match prepared {
                Ok((prompt, visible, sampling, constraint)) => {
                    let Prepared { ids, images, text, .. } = prompt;
                    let images = kept.keep(images);
                    let job = Job {
                        row: request.row,
                        num_generations: request.num_generations,
                        prompt: EncodedPrompt { text, ids },
                        images: images.into_iter().map(RowImage::from).collect(),
                        visible,
                        sampling: Arc::new(sampling),
                        constraint,
                        deadline: request.deadline,
                        cancel: request.cancel,
                        submitted: at,
                        prepare: prepare.as_secs_f64(),
                        overtaken: 0,
                        reply,
                    };
                    jobs.push(job);
                }
                Err(fault) => {
                    let reason = given_up(&request.cancel, request.deadline);
                    reply.done(Err(reason.map_or(fault, |reason| given_up_fault(request.row, reason))));
                }
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "parts of a job, named where they are put together")]
    fn prepare(
        &self,
        request: &Request,
    ) -> Result<(Prepared, Vec<std::ops::Range<usize>>, ResolvedSampling, Option<ConstraintState>), Fault> {
        generations(request.num_generations).map_err(|what| Fault::row("task.invalid_parameter", what))?;
        // The run's own were checked before it began: what is wrong here is a row's.
        let of_row = |fault| Fault { class: FaultClass::Row, ..fault };
        let sampling = self.resolve(&request.sampling).map_err(of_row)?;
        let constraint =
            request.sampling.constraint.as_ref().map(|c| self.constraint(c)).transpose().map_err(of_row)?;
        let nobody_waits = || given_up(&request.cancel, request.deadline).is_some();
        let prompt = self.preprocessor.prepare_unless(&request.messages, &nobody_waits).map_err(Fault::from)?;
        self.fits(prompt.ids.len())?;
        let visible = image_spans(&prompt.ids, self.image_token);
        Ok((prompt, visible, sampling, constraint))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;

    #[test]
    fn a_panic_of_preparation_is_a_fault_of_its_row() {
        let fault = guarded::<()>(7, || panic!("{} tiles", 5)).unwrap_err();
        assert_eq!((&*fault.code, fault.class), ("prompt.panic", FaultClass::Row));
        assert_eq!(fault.message, "row 7: its prompt or an image can't be prepared: 5 tiles");
        assert_eq!(guarded(7, || Ok(1)).unwrap(), 1);
    }
}
