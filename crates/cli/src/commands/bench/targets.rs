//! The backends of a bench, each with how to open it.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use vgen_backends::local::{Frontend, LocalOptions, MeasuredLimits, inspect};
use vgen_backends::mock::{MockBackend, VirtualTime};
use vgen_core::{Backend, Fault};
use vgen_run::bench::{Clock, Limits, Opened, Sweep, Target};

use super::entry::Entry;
use super::plan::{IN_FLIGHT, Plan};
use crate::messages::Messages;
use crate::settings::Origin;
use crate::table::{BackendTable, Config};
use crate::{backend, identity, local, recorded};

/// All backends, not yet opened.
pub(super) fn targets<'a>(plan: &Plan, messages: &'a Messages) -> Result<Vec<Target<'a>>, Fault> {
    let limits = limits(plan);
    let mut targets = Vec::new();
    for (at, entry) in plan.entries.iter().enumerate() {
        let refuse = |message: &str, hint: &str| {
            let message = format!("{}: {message}", name(entry, None, at));
            Err(Fault::stop("config.value", message).with_hint(hint.to_owned()))
        };
        let batches: Vec<Option<usize>> = match entry.extras.batch_sizes.as_slice() {
            [] => vec![None],
            _ if entry.kind() != "local" => {
                return refuse("batch_sizes are for local backends", "use concurrency for others");
            }
            _ if entry.settings.get("backend", "batch_size").is_some() => {
                return refuse("batch_size and batch_sizes exclude each other", "leave batch_size out");
            }
            sizes => sizes.iter().copied().map(Some).collect(),
        };
        for batch in batches {
            targets.push(target(plan, at, entry, batch, limits.clone(), messages)?);
        }
    }
    Ok(targets)
}

fn name(entry: &Entry, batch: Option<usize>, at: usize) -> String {
    let setting = |name: &str| entry.settings.get("backend", name).and_then(|setting| setting.value.as_str());
    let name = entry.extras.name.clone().unwrap_or_else(|| match entry.kind() {
        "local" => match setting("dtype") {
            Some(dtype) => format!("local {dtype}"),
            None => "local".to_owned(),
        },
        "mock" => setting("model_name").unwrap_or("mock").to_owned(),
        _ => {
            // What is behind the question mark may be a secret.
            let url = setting("base_url").and_then(|url| url.split('?').next());
            url.or(setting("endpoint_name")).or(setting("model_id")).unwrap_or("remote").to_owned()
        }
    });
    match batch {
        Some(batch) => format!("{name}, batch {batch}"),
        None if name.is_empty() => format!("backend {}", at + 1),
        None => name,
    }
}

fn target<'a>(
    plan: &Plan,
    at: usize,
    entry: &Entry,
    batch: Option<usize>,
    limits: Option<Limits>,
    messages: &'a Messages,
) -> Result<Target<'a>, Fault> {
    let mut plan = plan.clone();
    if let Some(batch) = batch {
        plan.entries[at].settings.set("backend", "batch_size", json!(batch), Origin::Flag("--batch-sizes"));
    }
    let settings: Map<String, Value> = plan.entries[at].settings.table("backend", &["kind"]);
    let shown = settings.iter().map(|(name, value)| (name.clone(), recorded::shown("backend", name, value))).collect();
    let config = plan.config(at)?;
    let virtual_time = entry.extras.virtual_time;
    if virtual_time && !matches!(config.backend, BackendTable::Mock(_)) {
        let message = format!("{}: only a mock has virtual time", name(entry, batch, at));
        return Err(Fault::stop("config.value", message).with_hint("leave virtual_time out"));
    }
    let asked = Asked {
        virtual_time,
        limits,
        is_compared: plan.entries.len() > 1,
        notes: held_back(&plan, at),
        // The bound that was raised for the loads is not that of a run.
        window: is_ours(&plan, at, "max_in_flight").then_some(IN_FLIGHT),
    };
    Ok(Target {
        name: name(entry, batch, at),
        kind: entry.kind().to_owned(),
        settings: shown,
        prices: entry.extras.prices,
        sweep: batch.map(|batch_size| Sweep { of: name(entry, None, at), batch_size }),
        open: Box::new(move || open(&config, &asked, messages)),
    })
}

/// Whether a key of the backend is a default of the bench's.
fn is_ours(plan: &Plan, at: usize, name: &str) -> bool {
    let setting = plan.entries[at].settings.get("backend", name);
    setting.is_some_and(|setting| setting.origin == Origin::Command("vgen bench"))
}

/// What may keep the requests of an open loop from being sent when they are due.
fn held_back(plan: &Plan, at: usize) -> Vec<String> {
    let set = |name: &str| {
        let setting = plan.entries[at].settings.get("backend", name);
        setting.is_some_and(|setting| !setting.value.is_null() && setting.value != false) && !is_ours(plan, at, name)
    };
    let bounds = ["max_in_flight", "adaptive", "requests_per_minute", "tokens_per_minute"];
    let bounds: Vec<&str> = bounds.into_iter().filter(|name| plan.is_open() && set(name)).collect();
    match bounds.as_slice() {
        [] => Vec::new(),
        bounds => vec![format!("requests of open loops may have to wait for leave to be sent: {}", bounds.join(", "))],
    }
}

/// How a backend is opened.
struct Asked {
    virtual_time: bool,
    limits: Option<Limits>,
    /// Whether answers of several backends are put beside each other.
    is_compared: bool,
    notes: Vec<String>,
    window: Option<usize>,
}

fn open(config: &Config, asked: &Asked, messages: &Messages) -> Result<Opened, Fault> {
    let (notes, none) = (asked.notes.clone(), Value::Null);
    if let (BackendTable::Mock(options), true) = (&config.backend, asked.virtual_time) {
        let time = Arc::new(VirtualTime::default());
        let backend: Arc<dyn Backend> = Arc::new(MockBackend::in_virtual_time(options.clone(), Arc::clone(&time))?);
        return Ok(Opened {
            window: backend.window(),
            backend,
            clock: Clock::Virtual(time),
            model_identity: none,
            device: Some("virtual time".to_owned()),
            limits: None,
            work: None,
            tokenize: None,
            notes,
        });
    }
    let backend = backend::open(config, None, messages)?;
    let identity = identity::model(config, backend.model_name());
    let opened = Opened {
        clock: Clock::real(),
        model_identity: serde_json::to_value(identity).unwrap_or_default(),
        device: None,
        window: asked.window.unwrap_or(backend.window()),
        limits: None,
        work: None,
        tokenize: None,
        notes,
        backend,
    };
    match &config.backend {
        BackendTable::Local(table) => Ok(with_model(opened, &local::options(table, &config.images)?, asked)),
        _ => Ok(opened),
    }
}

/// What is known of a local model beyond its answers.
fn with_model(mut opened: Opened, options: &LocalOptions, asked: &Asked) -> Opened {
    if asked.is_compared
        && let Ok(frontend) = Frontend::open(options)
    {
        opened.tokenize = Some(Box::new(move |text| frontend.text_tokens(text).ok()));
    }
    let Ok(seen) = inspect(options) else { return opened };
    match &asked.limits {
        Some(limits) if limits.is_measured && !seen.is_cpu => {
            opened.notes.push("no limits: those of the processor were measured, and it computes elsewhere".to_owned());
        }
        limits => opened.limits = limits.clone(),
    }
    Opened { device: Some(format!("{} in {}", seen.device, seen.dtype)), work: Some(seen.work), ..opened }
}

/// What the device can do, if it was said or shall be measured.
fn limits(plan: &Plan) -> Option<Limits> {
    if plan.table.measure_peaks {
        let measured = MeasuredLimits::measure()?;
        return Some(Limits {
            bytes_per_second: Some(measured.bytes_per_second),
            flops: Some(measured.flops),
            is_measured: true,
            source: "measured: reading of memory, and a large bf16 product, on all threads".to_owned(),
        });
    }
    let (bytes_per_second, flops) = (plan.table.peak_bandwidth, plan.table.peak_flops);
    (bytes_per_second.is_some() || flops.is_some()).then(|| Limits {
        bytes_per_second,
        flops,
        is_measured: false,
        source: "given".to_owned(),
    })
}
