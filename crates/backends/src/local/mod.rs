//! The local engine: Llama-3.2-Vision in this process.
//!
//! [`LocalBackend`] loads a model and answers requests; the rest are its parts: choosing tokens ([`Sampler`]), holding
//! answers to a form ([`ConstraintCompiler`]), turning tokens into text ([`Detokenizer`], [`Answer`]).

mod backend;
mod constrain;
mod detokenize;
mod device_models;
pub mod devices;
mod engine;
mod free_memory;
mod generation_config;
mod image_cache;
mod inspect;
mod launches;
mod options;
mod performance;
#[doc = include_str!("../../docs/performance-model.md")]
pub mod performance_model {}
mod plan;
mod planned;
mod precision;
mod prepared;
pub mod processors;
mod queue;
mod random;
mod row;
mod sampler;
mod sampling;
#[cfg(test)]
mod sampling_tests;
mod schema_place;
mod shortlist;
mod stats;
mod stop;
mod vocabulary;
pub mod warpers;
mod work;

pub use backend::{DEFAULT_MAX_NEW_TOKENS, Frontend, LocalBackend};
pub use constrain::{ConstraintCompiler, ConstraintError, ConstraintState};
pub use detokenize::Detokenizer;
pub use device_models::{DEVICE_MODELS, DeviceModel};
pub use devices::{DeviceChoice, OpenDevice};
pub use free_memory::free_memory;
pub use generation_config::{GenerationDefaults, UNSUPPORTED, Unsupported};
pub use inspect::{Inspected, inspect};
pub use launches::{DecodeStep, StepLaunches};
pub use options::{LoadEvent, LocalOptions, ModelSource};
pub use performance::{Cost, PeerCost, Prediction, RowCost, Workload};
pub use plan::{Bytes, MemoryPlan};
pub use precision::{DTypeChoice, KvDTypeChoice, Precision};
pub use random::RandomStream;
pub use sampler::{SampleError, Sampled, Sampler};
pub use sampling::{ResolvedSampling, SamplingError, Warpers};
pub use stats::{EngineReport, EngineStats};
pub use stop::{Answer, Checked, Step, StopChecker};
pub use vocabulary::{Vocabulary, VocabularyError};
pub use warpers::Candidates;
pub use work::{MeasuredLimits, Work};
