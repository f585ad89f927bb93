//! What to measure: the config file with the flags over it.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use vgen_core::{Fault, SamplingParams};
use vgen_run::bench::{Load, Prices};

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
const IN_FLIGHT: usize = 32;
/// Answers computed together of a local backend by default.
const BATCH: usize = 8;

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

/// What `[[backend]]` says besides the keys of `[backend]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Extras {
    pub(super) name: Option<String>,
    pub(super) prices: Prices,
    pub(super) batch_sizes: Vec<usize>,
    pub(super) virtual_time: bool,
}

const EXTRAS: [&str; 4] = ["name", "prices", "batch_sizes", "virtual_time"];

/// A backend of the plan.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) extras: Extras,
    /// `[backend]` alone.
    pub(super) settings: Settings,
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
    overwrite: bool,
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
                plan.entries.push(entry_of(flag, kind, key, &spec)?);
            }
        }
        let table = &mut plan.table;
        table.count = rows.count.or(table.count);
        table.seed = rows.seed.or(table.seed);
        table.output_tokens = rows.output_tokens.or(table.output_tokens);
        if rows.workload.is_some() {
            table.workload = rows.workload;
            plan.settings.unset("input", "path");
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
        table.peak_bandwidth = backends.peak_bandwidth.or(table.peak_bandwidth);
        table.peak_flops = backends.peak_flops.or(table.peak_flops);
        table.measure_peaks |= backends.measure_peaks;
        plan.overwrite = readings.overwrite;
        if !backends.batch_sizes.is_empty() {
            let local = |entry: &&mut Entry| entry.kind() == "local";
            plan.entries.iter_mut().filter(local).for_each(|e| e.extras.batch_sizes = backends.batch_sizes.clone());
        }
        if demo {
            plan.set_demo();
        }
        if let Some(out) = readings.out.or(plan.table.out.take()) {
            plan.out = out;
        }
        // Messages are the same for all backends, and Llama sees an image only from text behind it.
        for (name, value) in [("image_position", json!("first")), ("image_required", json!(false))] {
            if plan.settings.get("task", name).is_none() {
                plan.settings.set("task", name, value, Origin::Command("vgen bench"));
            }
        }
        plan.fit_backends();
        Ok(plan)
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
            let toml::Value::Table(mut table) = backend else { return Err(wrong("backend", &"expected a table")) };
            let extras: toml::Table =
                EXTRAS.iter().filter_map(|name| Some(((*name).to_owned(), table.remove(*name)?))).collect();
            let extras = extras.try_into().map_err(|error: toml::de::Error| wrong("backend", &error.message()))?;
            let one = toml::Table::from_iter([("backend".to_owned(), toml::Value::Table(table))]);
            plan.entries.push(Entry { extras, settings: config_file::settings(one, path)? });
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
        self.fit_backends();
    }

    /// Defaults that let the loads through: a backend shall not be slowed down by a bound that nobody asked for.
    fn fit_backends(&mut self) {
        let most = self
            .loads()
            .iter()
            .map(|load| if let Load::Closed { concurrency } = load { *concurrency } else { 0 })
            .max();
        let most = most.unwrap_or(0);
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
                    if most > IN_FLIGHT {
                        default("max_in_flight", json!(most));
                    }
                }
                _ => {}
            }
        }
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
        resolve::resolve(&settings)
    }

    /// How answers are made: greedy unless `[sampling]` says otherwise, so that they can be compared.
    pub(super) fn sampling(&self) -> Result<SamplingParams, Fault> {
        let mut sampling = resolve::resolve(&self.settings)?.sampling;
        sampling.temperature.get_or_insert(0.0);
        if let Some(seed) = self.table.seed {
            sampling.seed = Some(seed);
        }
        if let Some(tokens) = self.table.output_tokens {
            sampling.max_new_tokens = Some(tokens);
            sampling.ignore_eos = true;
        }
        sampling.max_new_tokens.get_or_insert(MAX_NEW_TOKENS);
        Ok(sampling)
    }

    /// Refuses to replace results that are there, before anything is measured.
    pub(super) fn check_files(&self) -> Result<(), Fault> {
        let there = |ending: &&str| super::with_ending(&self.out, ending).exists();
        match [".json", ".md", ".csv", ".html"].into_iter().find(there) {
            Some(ending) if !self.overwrite => {
                let path = super::with_ending(&self.out, ending);
                Err(Fault::stop("output.exists", format!("{} is there already", path.display()))
                    .with_hint("choose another --out, or replace it with --overwrite"))
            }
            _ => Ok(()),
        }
    }
}

impl Entry {
    pub(super) fn kind(&self) -> &str {
        self.settings.get("backend", "kind").and_then(|kind| kind.value.as_str()).unwrap_or_default()
    }
}

/// A backend from a flag's text: its chief key, then `KEY=VALUE` after commas.
fn entry_of(flag: &'static str, kind: &str, key: &str, spec: &str) -> Result<Entry, Fault> {
    let wrong = |message: String| {
        Fault::stop("usage.bench", format!("{flag} {spec}: {message}")).with_hint("write MODEL,key=value,key=value")
    };
    let mut parts = spec.split(',');
    let chief = parts.next().unwrap_or_default();
    let (mut settings, mut extras) = (Settings::default(), Map::new());
    settings.set("backend", "kind", json!(kind), Origin::Flag(flag));
    settings.set("backend", key, json!(chief), Origin::Flag(flag));
    for part in parts {
        let (name, text) = part.split_once('=').ok_or_else(|| wrong(format!("{part:?} has no value")))?;
        // What is no TOML is a text without its quotes.
        let parsed = format!("value = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
        let value = match parsed.map(serde_json::to_value) {
            Some(Ok(value)) => value,
            _ => json!(text),
        };
        match name.split_once('.') {
            Some((table, name)) if EXTRAS.contains(&table) => {
                let inner = extras.entry(table).or_insert_with(|| json!({}));
                inner[name] = value;
            }
            None if EXTRAS.contains(&name) => {
                extras.insert(name.to_owned(), value);
            }
            _ => settings.set("backend", name, value, Origin::Flag(flag)),
        }
    }
    let extras = serde_json::from_value(Value::Object(extras)).map_err(|error| wrong(error.to_string()))?;
    Ok(Entry { extras, settings })
}
