//! The local engine.

mod constrain;
mod detokenize;
pub mod processors;
mod random;
mod sampler;
mod sampling;
mod stop;
mod vocabulary;
pub mod warpers;

pub use constrain::{ConstraintCompiler, ConstraintError, ConstraintState};
pub use detokenize::Detokenizer;
pub use random::RandomStream;
pub use sampler::{SampleError, Sampled, Sampler};
pub use sampling::{GenerationDefaults, ResolvedSampling, SamplingError, Warpers};
pub use stop::{Answer, Checked, Step, StopChecker};
pub use vocabulary::{Vocabulary, VocabularyError};
pub use warpers::Candidates;
