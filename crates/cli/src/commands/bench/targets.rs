//! The backends of a bench, each with how to open it.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use vgen_backends::local::{MeasuredLimits, inspect};
use vgen_backends::mock::{MockBackend, VirtualTime};
use vgen_core::Fault;
use vgen_run::bench::{Clock, Limits, Opened, Target};

use super::plan::{Entry, Plan};
use crate::messages::Messages;
use crate::settings::Origin;
use crate::table::{BackendTable, Config};
use crate::{backend, identity, local};

/// All backends, not yet opened.
pub(super) fn targets<'a>(plan: &Plan, messages: &'a Messages) -> Result<Vec<Target<'a>>, Fault> {
    let limits = limits(plan);
    let mut targets = Vec::new();
    for (at, entry) in plan.entries.iter().enumerate() {
        let batches: Vec<Option<usize>> = match entry.extras.batch_sizes.as_slice() {
            [] => vec![None],
            sizes if entry.kind() == "local" => sizes.iter().copied().map(Some).collect(),
            _ => {
                let message = format!("{}: batch_sizes are for local backends", name(entry, None, at));
                return Err(Fault::stop("config.value", message).with_hint("use concurrency for others"));
            }
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
        _ => setting("base_url").or(setting("endpoint_name")).or(setting("model_id")).unwrap_or("remote").to_owned(),
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
    let config = plan.config(at)?;
    let virtual_time = entry.extras.virtual_time;
    if virtual_time && !matches!(config.backend, BackendTable::Mock(_)) {
        let message = format!("{}: only a mock has virtual time", name(entry, batch, at));
        return Err(Fault::stop("config.value", message).with_hint("leave virtual_time out"));
    }
    Ok(Target {
        name: name(entry, batch, at),
        kind: entry.kind().to_owned(),
        settings,
        prices: entry.extras.prices,
        open: Box::new(move || open(&config, virtual_time, limits.clone(), messages)),
    })
}

fn open(config: &Config, virtual_time: bool, limits: Option<Limits>, messages: &Messages) -> Result<Opened, Fault> {
    if let (BackendTable::Mock(options), true) = (&config.backend, virtual_time) {
        let time = Arc::new(VirtualTime::default());
        let backend = MockBackend::in_virtual_time(options.clone(), Arc::clone(&time))?;
        return Ok(Opened {
            backend: Arc::new(backend),
            clock: Clock::Virtual(time),
            model_identity: Value::Null,
            device: Some("virtual time".to_owned()),
            limits: None,
            work: None,
        });
    }
    let backend = backend::open(config, None, messages)?;
    let identity = identity::model(config, backend.model_name());
    let inspected = match &config.backend {
        BackendTable::Local(table) => inspect(&local::options(table, &config.images)?).ok(),
        _ => None,
    };
    Ok(Opened {
        clock: Clock::real(),
        model_identity: serde_json::to_value(identity).unwrap_or_default(),
        device: inspected.as_ref().map(|seen| format!("{} in {}", seen.device, seen.dtype)),
        limits: if inspected.is_some() { limits } else { None },
        work: inspected.map(|seen| seen.work),
        backend,
    })
}

/// What the device can do, if it was said or shall be measured.
fn limits(plan: &Plan) -> Option<Limits> {
    if plan.table.measure_peaks {
        let measured = MeasuredLimits::measure()?;
        return Some(Limits {
            bytes_per_second: Some(measured.bytes_per_second),
            flops: Some(measured.flops),
            source: "measured: reading of memory, and a large bf16 product, on all threads".to_owned(),
        });
    }
    let (bytes_per_second, flops) = (plan.table.peak_bandwidth, plan.table.peak_flops);
    (bytes_per_second.is_some() || flops.is_some()).then(|| Limits {
        bytes_per_second,
        flops,
        source: "given".to_owned(),
    })
}
