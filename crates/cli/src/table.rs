//! The typed tables of the configuration that no other crate has a type for.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use vgen_backends::mock::MockOptions;
use vgen_core::SamplingParams;
use vgen_dataset::{ImageStorage, InputFormat, OutputFormat, Shard};
use vgen_run::MaxErrors;
use vgen_run::record::Durability;
use vgen_task::TaskConfig;

use crate::recorded::Recorded;
use crate::remote::table::RemoteTable;

/// A file, or standard input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Standard input or standard output.
    Standard,
    /// A file.
    File(PathBuf),
}

/// The configuration of a command, typed and checked key by key.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) input: Input,
    pub(crate) output: Output,
    pub(crate) task: TaskConfig,
    pub(crate) sampling: SamplingParams,
    pub(crate) images: Images,
    pub(crate) run: Run,
    pub(crate) backend: BackendTable,
    pub(crate) recorded: Recorded,
}

/// `[input]`
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) place: Option<Place>,
    /// Files, patterns and folders, as they were named.
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) format: Option<InputFormat>,
    /// The rows are requests of an OpenAI batch file, for sure; else the first row tells.
    pub(crate) batch: bool,
    pub(crate) globs: Vec<String>,
    pub(crate) instruction: Option<String>,
    pub(crate) instruction_suffix: Option<String>,
    pub(crate) skip: u64,
    pub(crate) sample: Option<u64>,
    pub(crate) limit: Option<u64>,
    pub(crate) shard: Option<Shard>,
    pub(crate) max_line_bytes: u64,
}

/// `[output]`
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) place: Place,
    pub(crate) format: Option<OutputFormat>,
    pub(crate) overwrite: bool,
    pub(crate) resume: Resume,
    pub(crate) retry_failed: bool,
    pub(crate) only: Vec<String>,
    pub(crate) durability: Durability,
    pub(crate) row_group_rows: usize,
    pub(crate) images: ImageStorage,
    pub(crate) suffix: String,
}

/// Whether an earlier run is gone on with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Resume {
    /// If there is one.
    #[default]
    Auto,
    /// In no case.
    Never,
    /// In any case: else it is an error.
    Require,
}

/// `[images]`; what is `None` has the fetcher's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Images {
    pub(crate) max_bytes: Option<u64>,
    pub(crate) max_pixels: Option<u64>,
    pub(crate) max_redirects: Option<usize>,
    pub(crate) retries: Option<u32>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) allow_private_addresses: Option<bool>,
}

/// `[run]`
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) row_timeout: Option<Duration>,
    pub(crate) window: Option<usize>,
    pub(crate) max_errors: Option<MaxErrors>,
    pub(crate) quiet: bool,
    pub(crate) stats: Option<PathBuf>,
    pub(crate) progress: Progress,
    pub(crate) progress_interval: Duration,
    pub(crate) lint: Lint,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Progress {
    /// A live line on a terminal, lines of text elsewhere; objects where messages are JSON.
    #[default]
    Auto,
    /// Lines of text.
    Plain,
    /// JSON objects.
    Json,
    /// Not at all.
    None,
}

/// What comes of prompts that look wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Lint {
    /// Nobody looks.
    Off,
    /// Warnings.
    #[default]
    Warn,
    /// The run does not begin.
    Deny,
}

/// `[backend]`, by its kind.
#[derive(Clone, Debug)]
pub(crate) enum BackendTable {
    /// No backend was named: only commands that need none get along with it.
    None,
    /// `kind = "local"`
    Local(Box<LocalTable>),
    /// `kind = "inference-endpoints"`
    Remote(Box<RemoteTable>),
    /// `kind = "mock"`
    Mock(MockOptions),
}

/// `[backend]` with `kind = "local"`; what is `None` has the engine's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LocalTable {
    pub(crate) model: Option<String>,
    pub(crate) revision: Option<String>,
    pub(crate) device: Option<String>,
    pub(crate) devices: Vec<String>,
    pub(crate) fixed_shapes: Option<bool>,
    pub(crate) dtype: Option<String>,
    pub(crate) tensor_types: Vec<String>,
    pub(crate) kv_dtype: Option<String>,
    pub(crate) reference: Option<String>,
    pub(crate) batch_size: Option<usize>,
    pub(crate) step_tokens: Option<usize>,
    pub(crate) threads: Option<usize>,
    pub(crate) prepare_threads: Option<usize>,
    pub(crate) image_cache: Option<u64>,
    pub(crate) memory: Option<u64>,
    pub(crate) chat_template: Option<String>,
    pub(crate) date: Option<String>,
}
