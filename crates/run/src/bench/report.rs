//! [`Report`]: everything that a bench found. Its JSON is the source; all else derives from it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vgen_backends::local::Work;

use super::agreement::Agreement;
use super::load::Load;
use super::memory::Told;
use super::metrics::Metric;
use super::statistics::{Quantiles, Spread};

/// The version of the report's form. Fields may be added within a version; a field that changes its meaning or goes
/// makes a new one.
pub const FORM: &str = "vgen-bench/2";

/// Everything that a bench found.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The version of this form: `vgen-bench/2`.
    pub form: String,
    /// When it began, RFC 3339.
    pub created: String,
    /// Why readings are missing; `None` if all were taken.
    pub unfinished: Option<String>,
    /// The program's version, with the commit that it was built from where that is known.
    pub program: String,
    /// Where it ran.
    pub machine: Machine,
    /// What was asked.
    pub rows: RowSet,
    /// How answers were made, as `[sampling]`.
    pub sampling: Value,
    /// Of rows, arrivals and answers.
    pub seed: u64,
    /// How often each reading was taken.
    pub repeats: u32,
    /// Rows that each backend answered before the readings; they count nowhere.
    pub warmup_rows: usize,
    /// Whether backends took turns within each repeat, instead of one after the other.
    pub interleaved: bool,
    /// What each metric is.
    pub metrics: Vec<Metric>,
    /// The backends.
    pub targets: Vec<TargetReport>,
    /// A backend under a load.
    pub cells: Vec<Cell>,
    /// Where more load brings no more.
    pub saturation: Vec<Saturation>,
    /// Whether backends give the same answers as the first one.
    pub agreement: Vec<Agreement>,
    /// What to keep in mind when reading the numbers.
    pub notes: Vec<String>,
}

/// A machine. Never its name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Machine {
    /// The processor, by its own words.
    pub processor: String,
    /// Threads that it runs at a time.
    pub cores: usize,
    /// Vector instructions that matter: `avx2`, `avx512f`, ...
    pub features: Vec<String>,
    /// Bytes of memory, where known.
    pub memory: Option<u64>,
    /// Operating system and architecture.
    pub system: String,
}

/// Rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RowSet {
    /// A workload, or the file.
    pub name: String,
    /// Rows of a reading.
    pub rows: usize,
    /// Images of a reading, repeated ones counted again; the median over readings.
    pub images: u64,
    /// Whether each reading has rows of its own, which no cache knows.
    pub drawn: bool,
    /// SHA-256 of all that was asked: equal for equal rows.
    pub digest: String,
    /// Rows of the file that can't be asked about, by the code of what is wrong with them; no reading has them.
    pub left_out: BTreeMap<String, u64>,
}

/// What answers cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prices {
    /// A million tokens of prompts.
    pub per_million_input_tokens: Option<f64>,
    /// A million tokens of answers.
    pub per_million_output_tokens: Option<f64>,
    /// A request.
    pub per_request: Option<f64>,
    /// An hour of the machine or endpoint.
    pub per_hour: Option<f64>,
}

/// What a device can do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Bytes a second that it reads from memory.
    pub bytes_per_second: Option<f64>,
    /// Floating-point operations a second.
    pub flops: Option<f64>,
    /// Whether they were measured, on this machine's processor.
    pub is_measured: bool,
    /// Where the numbers come from.
    pub source: String,
}

/// A backend.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TargetReport {
    /// What it is called.
    pub name: String,
    /// `local`, `inference-endpoints` or `mock`.
    pub kind: String,
    /// The `model_name` column.
    pub model: String,
    /// What identifies the model beyond its name, where known: revision, digest of files.
    pub model_identity: Value,
    /// Its settings that differ from the default; no secrets.
    pub settings: Map<String, Value>,
    /// Device and types, where known.
    pub device: Option<String>,
    /// Seconds until it was ready.
    pub load_seconds: f64,
    /// What its answers cost.
    pub prices: Prices,
    /// What its device can do, where known.
    pub limits: Option<Limits>,
    /// What its model takes, where known.
    pub work: Option<Work>,
    /// Where it is one of several that differ in the batch size only.
    pub sweep: Option<Sweep>,
}

/// A place in a series of batch sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sweep {
    /// What all of them are called but for the batch size.
    pub of: String,
    /// Answers computed together at most.
    pub batch_size: usize,
}

/// A backend under a load: its readings and what they come to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Cell {
    /// The backend's name.
    pub target: String,
    /// When requests are sent.
    pub load: Load,
    /// One for each repeat.
    pub runs: Vec<Run>,
    /// Median and quartiles over the repeats, by metric.
    pub summary: BTreeMap<String, Spread>,
}

/// A reading.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Which repeat, from 0.
    pub repeat: u32,
    /// Which reading of the bench, from 0, in the order in which they were taken.
    pub order: u32,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Rows asked about.
    pub rows: u64,
    /// Those of them without an answer.
    pub failed: u64,
    /// Failed rows by code.
    pub errors: BTreeMap<String, u64>,
    /// Images of the rows.
    pub images: u64,
    /// Text tokens of prompts, as the backend counted them.
    pub input_tokens: u64,
    /// Vision tokens that text could attend to; `None` where the backend doesn't tell.
    pub vision_tokens: Option<u64>,
    /// Tokens of answers, as the backend counted them.
    pub output_tokens: u64,
    /// Answered rows whose tokens the backend did not count.
    pub uncounted: u64,
    /// Requests in flight on average.
    pub mean_in_flight: f64,
    /// Seconds to the first piece of an answer.
    pub ttft: Option<Quantiles>,
    /// Seconds for each token after the first, by answer.
    pub tpot: Option<Quantiles>,
    /// Seconds between pieces of answers, all answers pooled.
    pub itl: Option<Quantiles>,
    /// Seconds from request to end of answer.
    pub e2e: Option<Quantiles>,
    /// Seconds from the moment that a request was due to the one when it was sent; of open loops only.
    pub late: Option<Quantiles>,
    /// Seconds of waiting for a place.
    pub queue: Option<Quantiles>,
    /// Seconds of fetching, decoding and tiling images and tokenising, or of making the request.
    pub prepare: Option<Quantiles>,
    /// What the backend counted meanwhile, in its own words.
    pub counters: BTreeMap<String, f64>,
    /// Most bytes of this process that were resident.
    pub peak_host_bytes: Option<Told>,
    /// Most bytes in use on devices.
    pub peak_device_bytes: Option<Told>,
    /// Energy of the processor.
    pub host_joules: Option<Told>,
    /// Energy of devices.
    pub device_joules: Option<Told>,
    /// By the prices; `None` without any, and where tokens have a price and were not counted.
    pub cost: Option<f64>,
    /// Every request.
    pub requests: Vec<RequestRecord>,
}

/// A request. Times in seconds since the reading began.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RequestRecord {
    /// The row's number.
    pub row: u64,
    /// When it was to be sent: in an open loop its random moment, else when it was sent. Times of answers count from here.
    pub due: f64,
    /// When it was sent.
    pub sent: f64,
    /// When the first piece of the answer came.
    pub first: Option<f64>,
    /// When it ended.
    pub ended: f64,
    /// Tokens of the answer.
    pub output_tokens: Option<u64>,
    /// The code of what failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Where more load brings no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Saturation {
    /// The backend's name.
    pub target: String,
    /// Most rows a second over all loads, medians of repeats.
    pub rows_per_second: f64,
    /// Fewest in flight that reach 95 % of the most of all closed loops.
    pub concurrency: Option<usize>,
    /// Whether that is the largest that was tried, so that more might bring more.
    pub at_the_edge: bool,
    /// Largest rate of an open loop that answers 95 % of its rows and whose e2e grows by at most 0.05 s a second (the slope
    /// of a line through the requests, mean over repeats, two standard errors added): there is no queue that grows.
    pub rate: Option<f64>,
    /// Rates whose readings are too short, or too scattered, to tell.
    pub too_short: Vec<f64>,
}
