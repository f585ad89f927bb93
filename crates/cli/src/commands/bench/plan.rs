//! What to measure: the config file with the flags over it.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use vgen_core::{Fault, SamplingParams};
use vgen_run::bench::Load;

use super::entry::{Entry, Extras};
use crate::args::BenchCommand;
use crate::settings::{Origin, Settings};
use crate::table::Config;
use crate::{config_file, demo, resolve};

pub(super) const REPEATS: u32 = 5;
pub(super) const WARMUP: usize = 4;
/// Rows of a reading of a workload.
pub(super) const COUNT: usize = 32;
const CONCURRENCY: [usize; 3] = [1, 4, 16];
/// New tokens at most, where neither `[sampling]` nor `output_tokens` says; distilabel's default.
const MAX_NEW_TOKENS: u32 = 128;
/// Requests in flight of a remote backend by default.
pub(super) const IN_FLIGHT: usize = 32;
/// The most that a remote backend allows.
const MOST_IN_FLIGHT: usize = 65_536;
/// Answers computed together of a local backend by default.
const BATCH: usize = 8;

/// Keys of `[task]` about more than one answer to a row and about what is written.
const OF_OUTPUT: [&str; 7] = [
    "name",
    "num_generations",
    "group_generations",
    "add_raw_input",
    "add_raw_output",
    "output_mappings",
    "raw_images",
];

/// `[bench]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BenchTable {
    pub(super) workload: Option<String>,
    pub(super) count: Option<usize>,
    pub(super) concurrency: Vec<usize>,
    pub(super) rates: Vec<f64>,
    pub(super) window: bool,
    pub(super) repeats: Option<u32>,
    pub(super) warmup: Option<usize>,
    pub(super) seed: Option<u64>,
    pub(super) output_tokens: Option<u32>,
    pub(super) interleave: Option<bool>,
    pub(super) peak_bandwidth: Option<f64>,
    pub(super) peak_flops: Option<f64>,
    pub(super) measure_peaks: bool,
    pub(super) out: Option<PathBuf>,
}

/// What to measure.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) table: BenchTable,
    /// Everything but the backends.
    pub(super) settings: Settings,
    pub(super) entries: Vec<Entry>,
    pub(super) demo: bool,
    pub(super) out: PathBuf,
    pub(super) overwrite: bool,
}

impl Plan {
    /// Reads the config file, if there is one, and lays the flags over it.
    pub(super) fn new(args: BenchCommand) -> Result<Self, Fault> {
        let mut plan = match &args.config {
            Some(path) => Self::read(path)?,
            None => Self::empty(),
        };
        let BenchCommand { demo, backends, rows, readings, .. } = args;
        for (flag, kind, key, specs) in [
            ("--local", "local", "model", backends.local),
            ("--remote", "inference-endpoints", "base_url", backends.remote),
            ("--mock", "mock", "model_name", backends.mock),
        ] {
            for spec in specs {
                plan.entries.push(Entry::of_flag(flag, kind, key, &spec)?);
            }
        }
        let table = &mut plan.table;
        table.count = rows.count.or(table.count);
        table.seed = rows.seed.or(table.seed);
        table.output_tokens = rows.output_tokens.or(table.output_tokens);
        if rows.workload.is_some() {
            table.workload = rows.workload;
            plan.settings.unset_table("input");
        }
        if let Some(path) = rows.rows {
            table.workload = None;
            plan.settings.set("input", "path", json!(path), Origin::Flag("--rows"));
        }
        if !readings.concurrency.is_empty() || !readings.rates.is_empty() || readings.window {
            (table.concurrency, table.rates, table.window) = (readings.concurrency, readings.rates, readings.window);
        }
        table.repeats = readings.repeats.or(table.repeats);
        table.warmup = readings.warmup.or(table.warmup);
        table.interleave = if readings.one_by_one { Some(false) } else { table.interleave };
        if backends.measure_peaks {
            (table.measure_peaks, table.peak_bandwidth, table.peak_flops) = (true, None, None);
        }
        if backends.peak_bandwidth.is_some() || backends.peak_flops.is_some() {
            table.measure_peaks = false;
            table.peak_bandwidth = backends.peak_bandwidth.or(table.peak_bandwidth);
            table.peak_flops = backends.peak_flops.or(table.peak_flops);
        }
        plan.overwrite = readings.overwrite;
        if !backends.batch_sizes.is_empty() {
            let local = |entry: &&mut Entry| entry.kind() == "local";
            plan.entries.iter_mut().filter(local).for_each(|e| e.extras.batch_sizes = backends.batch_sizes.clone());
            if !plan.has_local() {
                return Err(ignored("--batch-sizes is for local backends, and there is none"));
            }
        }
        if demo {
            plan.set_demo();
        }
        if let Some(out) = readings.out.or(plan.table.out.take()) {
            plan.out = out;
        }
        plan.check_ignored()?;
        // Messages are the same for all backends, and Llama sees an image only from text behind it.
        if plan.settings.get("task", "image_position").is_none() {
            let command = Origin::Command("vgen bench");
            plan.settings.set("task", "image_position", json!("first"), command);
        }
        Ok(plan)
    }

    fn has_local(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind() == "local")
    }

    /// Whether the rows are drawn, and not those of a file.
    pub(super) fn is_drawn(&self) -> bool {
        !self.demo && (self.table.workload.is_some() || self.settings.get("input", "path").is_none())
    }

    /// Refuses what would change nothing.
    fn check_ignored(&self) -> Result<(), Fault> {
        let table = &self.table;
        if table.measure_peaks && (table.peak_bandwidth.is_some() || table.peak_flops.is_some()) {
            return Err(ignored("measure_peaks and peak_bandwidth or peak_flops exclude each other"));
        }
        if (table.measure_peaks || table.peak_bandwidth.is_some() || table.peak_flops.is_some())
            && !self.demo
            && !self.has_local()
        {
            return Err(ignored("the peaks are those of local backends' devices, and there is none"));
        }
        for (table, name, setting) in self.settings.iter() {
            let why = match table {
                "run" | "output" => "has no effect on a bench",
                "task" if OF_OUTPUT.contains(&name) => "has no effect on a bench, which asks for one answer a row",
                "input" | "task" if self.is_drawn() => "has no effect on rows that are drawn",
                _ => continue,
            };
            return Err(ignored(&format!("{}: [{table}] {name} {why}", setting.origin)));
        }
        Ok(())
    }

    fn empty() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            table: BenchTable::default(),
            settings: Settings::default(),
            entries: Vec::new(),
            demo: false,
            out: PathBuf::from(format!("vgen-bench-{}", now.map_or(0, |time| time.as_secs()))),
            overwrite: false,
        }
    }

    fn read(path: &Path) -> Result<Self, Fault> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Fault::stop("config.file", format!("config {} can't be read: {error}", path.display())))?;
        let mut tables = config_file::tables(&text, path)?;
        let wrong = |table: &str, error: &dyn std::fmt::Display| {
            Fault::stop("config.value", format!("config {}: [{table}]: {error}", path.display()))
        };
        let mut plan = Self::empty();
        if let Some(table) = tables.remove("bench") {
            plan.table = table.try_into().map_err(|error: toml::de::Error| wrong("bench", &error.message()))?;
        }
        let backends = match tables.remove("backend") {
            Some(toml::Value::Array(list)) => list,
            Some(one) => vec![one],
            None => Vec::new(),
        };
        for backend in backends {
            let toml::Value::Table(table) = backend else { return Err(wrong("backend", &"expected a table")) };
            plan.entries.push(Entry::of_table(table, path)?);
        }
        plan.settings = config_file::settings(tables, path)?;
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        if let (Some(out), Some(folder)) = (&mut plan.table.out, folder) {
            *out = folder.join(&*out);
        }
        Ok(plan)
    }

    fn set_demo(&mut self) {
        self.demo = true;
        let mut settings = Settings::default();
        let demo = Origin::Flag("--demo");
        settings.set("backend", "kind", json!("local"), demo.clone());
        settings.set("backend", "model", json!(demo::MODEL), demo.clone());
        // The samples are the same in each reading: their images shall be encoded each time.
        settings.set("backend", "image_cache", json!(0), demo);
        let extras = Extras { name: Some("local".to_owned()), ..Extras::default() };
        self.entries = vec![Entry { extras, settings }];
        self.table.output_tokens.get_or_insert(32);
        if self.loads_are_default() {
            self.table.concurrency = vec![1, 4, 8];
        }
        if self.out == Self::empty().out {
            self.out = PathBuf::from("vgen-bench-demo");
            self.overwrite = true;
        }
    }

    /// The demo model behind the server at `url`.
    pub(super) fn add_demo_server(&mut self, url: &str) {
        let mut settings = Settings::default();
        for (name, value) in [
            ("kind", json!("inference-endpoints")),
            ("base_url", json!(url)),
            ("model_id", json!(demo::MODEL)),
            // The dialect that has ignore_eos.
            ("dialect", json!("vllm")),
        ] {
            settings.set("backend", name, value, Origin::Flag("--demo"));
        }
        let extras = Extras { name: Some("server on loopback".to_owned()), ..Extras::default() };
        self.entries.push(Entry { extras, settings });
    }

    /// Defaults that let the loads of so many rows through: a backend shall not be slowed down by a bound that nobody
    /// asked for.
    pub(super) fn fit_backends(&mut self, rows: usize) {
        let of_load = |load: &Load| if let Load::Closed { concurrency } = load { *concurrency } else { 0 };
        let most = self.loads().iter().map(of_load).max().unwrap_or(0);
        let is_open = self.is_open();
        // An open loop sends what is due, whatever is in flight: at most all of it.
        let in_flight = if is_open { most.max(rows) } else { most };
        for entry in &mut self.entries {
            let kind = entry.kind().to_owned();
            let mut default = |name: &str, value: Value| {
                if entry.settings.get("backend", name).is_none() {
                    entry.settings.set("backend", name, value, Origin::Command("vgen bench"));
                }
            };
            match kind.as_str() {
                "local" if most > BATCH && entry.extras.batch_sizes.is_empty() => default("batch_size", json!(most)),
                "inference-endpoints" => {
                    // Without a stream nobody sees the first token.
                    default("stream", json!(true));
                    if in_flight > IN_FLIGHT {
                        default("max_in_flight", json!(in_flight.min(MOST_IN_FLIGHT)));
                    }
                    if is_open {
                        default("adaptive", json!(false));
                    }
                }
                _ => {}
            }
        }
    }

    /// Whether one of the loads is an open loop.
    pub(super) fn is_open(&self) -> bool {
        !self.table.rates.is_empty()
    }

    fn loads_are_default(&self) -> bool {
        self.table.concurrency.is_empty() && self.table.rates.is_empty() && !self.table.window
    }

    /// All loads, closed loops first.
    pub(super) fn loads(&self) -> Vec<Load> {
        let concurrency = if self.loads_are_default() { &CONCURRENCY[..] } else { &self.table.concurrency };
        let closed = concurrency.iter().map(|&concurrency| Load::Closed { concurrency });
        let open = self.table.rates.iter().map(|&rate| Load::Open { rate });
        closed.chain(open).chain(self.table.window.then_some(Load::Window)).collect()
    }

    pub(super) fn seed(&self) -> u64 {
        self.table.seed.unwrap_or_default()
    }

    /// The configuration with one of the backends.
    pub(super) fn config(&self, entry: usize) -> Result<Config, Fault> {
        let mut settings = self.settings.clone();
        settings.overlay(self.entries[entry].settings.clone());
        resolve::resolve(&settings)
    }

    /// The configuration without a backend, for the rows.
    pub(super) fn config_of_rows(&self) -> Result<Config, Fault> {
        let mut settings = self.settings.clone();
        if let Some(count) = self.table.count {
            settings.set("input", "limit", json!(count), Origin::Flag("--count"));
        }
        if let Some(seed) = self.table.seed {
            settings.set("sampling", "seed", json!(seed), Origin::Flag("--seed"));
        }
        resolve::resolve(&settings)
    }

    /// How answers are made: greedy unless `[sampling]` says otherwise, so that they can be compared.
    pub(super) fn sampling(&self) -> Result<SamplingParams, Fault> {
        let mut sampling = resolve::resolve(&self.settings)?.sampling;
        sampling.temperature.get_or_insert(0.0);
        if let Some(seed) = self.table.seed {
            sampling.seed = Some(seed);
        }
        self.fix_length(&mut sampling);
        sampling.max_new_tokens.get_or_insert(MAX_NEW_TOKENS);
        Ok(sampling)
    }

    /// Answers of exactly so many tokens, if they shall be.
    pub(super) fn fix_length(&self, sampling: &mut SamplingParams) {
        if let Some(tokens) = self.table.output_tokens {
            sampling.max_new_tokens = Some(tokens);
            sampling.ignore_eos = true;
        }
    }
}

/// The fault of what would change nothing.
fn ignored(message: &str) -> Fault {
    Fault::stop("config.bench", message).with_hint("leave it out: docs/bench.md says what a bench takes")
}
