//! What is measured: each metric with its name, unit, formula and how it comes out of a reading.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::report::{Limits, Report, Run, TargetReport};
use super::statistics::Quantiles;

/// A metric as a report states it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Metric {
    /// Its name in `summary`.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Whether more is better.
    pub better: Better,
    /// How it is computed.
    pub formula: String,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// More.
    Higher,
    /// Less.
    Lower,
    /// Neither: it says where time went.
    Neither,
}

/// What a metric is computed from.
pub(super) struct Source<'a> {
    pub(super) run: &'a Run,
    pub(super) target: &'a TargetReport,
}

type Compute = fn(&Source<'_>) -> Option<f64>;

/// A metric and how it is computed.
pub(super) struct Known {
    pub(super) name: &'static str,
    unit: &'static str,
    better: Better,
    formula: &'static str,
    pub(super) of: Compute,
}

impl Known {
    fn described(&self) -> Metric {
        Metric {
            name: self.name.to_owned(),
            unit: self.unit.to_owned(),
            better: self.better,
            formula: self.formula.to_owned(),
        }
    }
}

/// All metrics, described.
pub(super) fn described() -> Vec<Metric> {
    KNOWN.iter().map(Known::described).collect()
}

macro_rules! known {
    ($($name:literal, $unit:literal, $better:ident, $formula:literal, $of:expr;)*) => {
        &[$(Known { name: $name, unit: $unit, better: Better::$better, formula: $formula, of: $of }),*]
    };
}

/// All metrics, in the order of tables.
pub(super) const KNOWN: &[Known] = known![
    "rows_per_second", "1/s", Higher, "answered rows by seconds from the first request to the last answer",
        |s| Some(answered(s) as f64 / s.run.seconds);
    "images_per_second", "1/s", Higher, "images of answered rows by the same seconds (rows' share where some failed)",
        |s| (s.run.images > 0).then(|| s.run.images as f64 * share_answered(s) / s.run.seconds);
    "text_in_per_second", "tokens/s", Higher, "text tokens of prompts by the same seconds, as the backend counts them",
        |s| positive(s.run.input_tokens as f64 / s.run.seconds);
    "vision_in_per_second", "tokens/s", Higher, "vision tokens that text could attend to by the same seconds",
        |s| s.run.vision_tokens.map(|tokens| tokens as f64 / s.run.seconds);
    "text_out_per_second", "tokens/s", Higher, "tokens of answers by the same seconds, as the backend counts them",
        |s| positive(s.run.output_tokens as f64 / s.run.seconds);
    "mean_in_flight", "", Neither, "sum of all requests' e2e by the same seconds (Little's law)",
        |s| Some(s.run.mean_in_flight);
    "ttft_p50", "s", Lower, "TTFT: first piece of an answer, its reasoning included, minus request sent (in an open \
        loop: due); median over answers",
        |s| at(s.run.ttft, |q| q.p50);
    "ttft_p90", "s", Lower, "TTFT, 90th percentile", |s| at(s.run.ttft, |q| q.p90);
    "ttft_p99", "s", Lower, "TTFT, 99th percentile", |s| at(s.run.ttft, |q| q.p99);
    "ttft_max", "s", Lower, "TTFT, largest", |s| at(s.run.ttft, |q| q.max);
    "tpot_p50", "s", Lower, "TPOT: (e2e - TTFT) / (output tokens - 1) of an answer with at least 2; median over answers",
        |s| at(s.run.tpot, |q| q.p50);
    "tpot_p90", "s", Lower, "TPOT, 90th percentile", |s| at(s.run.tpot, |q| q.p90);
    "tpot_p99", "s", Lower, "TPOT, 99th percentile", |s| at(s.run.tpot, |q| q.p99);
    "tpot_max", "s", Lower, "TPOT, largest", |s| at(s.run.tpot, |q| q.max);
    "itl_p50", "s", Lower, "ITL: time between two pieces of an answer, gaps of all answers pooled; median",
        |s| at(s.run.itl, |q| q.p50);
    "itl_p90", "s", Lower, "ITL, 90th percentile", |s| at(s.run.itl, |q| q.p90);
    "itl_p99", "s", Lower, "ITL, 99th percentile", |s| at(s.run.itl, |q| q.p99);
    "itl_max", "s", Lower, "ITL, largest", |s| at(s.run.itl, |q| q.max);
    "e2e_p50", "s", Lower, "e2e: end of answer minus request sent (in an open loop: due); median over answers",
        |s| at(s.run.e2e, |q| q.p50);
    "e2e_p90", "s", Lower, "e2e, 90th percentile", |s| at(s.run.e2e, |q| q.p90);
    "e2e_p99", "s", Lower, "e2e, 99th percentile", |s| at(s.run.e2e, |q| q.p99);
    "e2e_max", "s", Lower, "e2e, largest", |s| at(s.run.e2e, |q| q.max);
    "queue_mean", "s", Lower, "waiting for a place in the engine, or for leave to send; mean over answers",
        |s| at(s.run.queue, |q| q.mean);
    "queue_p50", "s", Lower, "the same, median", |s| at(s.run.queue, |q| q.p50);
    "queue_p90", "s", Lower, "the same, 90th percentile", |s| at(s.run.queue, |q| q.p90);
    "queue_p99", "s", Lower, "the same, 99th percentile", |s| at(s.run.queue, |q| q.p99);
    "queue_max", "s", Lower, "the same, largest", |s| at(s.run.queue, |q| q.max);
    "late_p99", "s", Lower, "how late requests of an open loop are sent by this program, 99th percentile; in TTFT and e2e",
        |s| at(s.run.late, |q| q.p99);
    "late_max", "s", Lower, "the same, largest", |s| at(s.run.late, |q| q.max);
    "failed_share", "", Lower, "rows without an answer by all rows",
        |s| Some(s.run.failed as f64 / s.run.rows.max(1) as f64);
    "retries", "", Lower, "HTTP requests that repeated a failed one", |s| counter(s, "retries");
    "rate_limits", "", Lower, "answers 429: the server limits the rate", |s| counter(s, "rate_limits");
    "overloads", "", Lower, "answers that said the server was too busy: 429, 503 and the like",
        |s| counter(s, "overloads");
    "prepare_share", "", Neither, "seconds of preparation threads by seconds of the reading (beside the rest, may exceed 1)",
        |s| Some(counter(s, "prepare_seconds")? / s.run.seconds);
    "encode_share", "", Neither, "seconds in the vision tower by seconds of the reading",
        |s| Some(counter(s, "encode_seconds")? / s.run.seconds);
    "prefill_share", "", Neither, "seconds of steps that read prompts by seconds of the reading",
        |s| Some(counter(s, "prefill_seconds")? / s.run.seconds);
    "decode_share", "", Neither, "seconds of steps that only continue answers by seconds of the reading",
        |s| Some(counter(s, "decode_seconds")? / s.run.seconds);
    "sample_share", "", Neither, "seconds of choosing tokens by seconds of the reading",
        |s| Some(counter(s, "sample_seconds")? / s.run.seconds);
    "wait_share", "", Neither, "seconds of the engine without anything to do by seconds of the reading",
        |s| Some(counter(s, "wait_seconds")? / s.run.seconds);
    "cross_kv_bytes", "B", Neither, "keys and values made for images", |s| counter(s, "cross_kv_bytes");
    "images_encoded", "", Neither, "images that went through the vision tower", |s| counter(s, "images_encoded");
    "images_reused", "", Neither, "images whose keys and values were there already (cache hits)",
        |s| counter(s, "images_reused");
    "shared_prompt_tokens", "", Neither, "tokens of prompts that an earlier prompt had read (cache hits)",
        |s| counter(s, "shared_prompt_tokens");
    "peak_host_bytes", "B", Lower, "most bytes of this process that were resident",
        |s| s.run.peak_host_bytes.as_ref()?.value;
    "peak_device_bytes", "B", Lower, "most bytes in use on devices", |s| s.run.peak_device_bytes.as_ref()?.value;
    "joules_per_row", "J", Lower, "energy of processor packages and devices, as far as readable, by answered rows",
        |s| per_row(s, joules(s)?);
    "cost_per_1000_rows", "", Lower, "by the prices given: tokens, requests and hours, for 1000 answered rows; not known \
        where tokens have a price and the server doesn't count them",
        |s| Some(per_row(s, s.run.cost?)? * 1000.0);
    "encode_flops", "FLOP/s", Higher, "operations of the vision tower (linear layers and attention of live tiles and one \
        stand-in for the empty ones) by seconds in it", encode_flops;
    "encode_flops_limit_share", "", Higher, "the same by the device's limit",
        |s| Some(encode_flops(s)? / limits(s)?.flops?);
    "prefill_flops", "FLOP/s", Higher, "operations of the text layers on the tokens of prompts, attention aside, by \
        seconds of steps that read prompts", prefill_flops;
    "prefill_flops_limit_share", "", Higher, "the same by the device's limit",
        |s| Some(prefill_flops(s)? / limits(s)?.flops?);
    "decode_bandwidth", "B/s", Higher, "weights that steps of decoding read by seconds of these steps", decode_bandwidth;
    "decode_bandwidth_limit_share", "", Higher, "the same by the device's limit",
        |s| Some(decode_bandwidth(s)? / limits(s)?.bytes_per_second?);
];

fn answered(s: &Source<'_>) -> u64 {
    s.run.rows.saturating_sub(s.run.failed)
}

fn share_answered(s: &Source<'_>) -> f64 {
    answered(s) as f64 / s.run.rows.max(1) as f64
}

fn positive(value: f64) -> Option<f64> {
    (value > 0.0).then_some(value)
}

fn at(quantiles: Option<Quantiles>, which: fn(&Quantiles) -> f64) -> Option<f64> {
    quantiles.as_ref().map(which)
}

fn counter(s: &Source<'_>, name: &str) -> Option<f64> {
    s.run.counters.get(name).copied()
}

fn per_row(s: &Source<'_>, value: f64) -> Option<f64> {
    (answered(s) > 0).then(|| value / answered(s) as f64)
}

fn joules(s: &Source<'_>) -> Option<f64> {
    let value = |told: &Option<super::memory::Told>| told.as_ref().and_then(|told| told.value);
    match (value(&s.run.host_joules), value(&s.run.device_joules)) {
        (None, None) => None,
        (host, device) => Some(host.unwrap_or_default() + device.unwrap_or_default()),
    }
}

fn limits<'a>(s: &Source<'a>) -> Option<&'a Limits> {
    s.target.limits.as_ref()
}

fn encode_flops(s: &Source<'_>) -> Option<f64> {
    let (work, seconds) = (s.target.work?, positive(counter(s, "encode_seconds")?)?);
    let (tiles, pairs) = (counter(s, "tiles_computed")?, counter(s, "tile_pairs_computed")?);
    let tokens = work.tokens_per_tile as f64;
    let flops = tiles * tokens * work.encode_flops_per_token + pairs * tokens * tokens * work.encode_flops_per_pair;
    positive(flops / seconds)
}

fn prefill_flops(s: &Source<'_>) -> Option<f64> {
    let (work, seconds) = (s.target.work?, positive(counter(s, "prefill_seconds")?)?);
    positive(counter(s, "prompt_tokens")? * work.text_flops_per_token / seconds)
}

fn decode_bandwidth(s: &Source<'_>) -> Option<f64> {
    let (work, seconds) = (s.target.work?, positive(counter(s, "decode_seconds")?)?);
    positive(counter(s, "decode_steps")? * work.decode_bytes_per_step / seconds)
}

impl Report {
    /// A metric of every repeat, for a backend under a load.
    pub(super) fn readings(&self, cell: &super::Cell, known: &Known) -> Vec<f64> {
        let Some(target) = self.targets.iter().find(|target| target.name == cell.target) else { return Vec::new() };
        let values = cell.runs.iter().filter_map(|run| (known.of)(&Source { run, target }));
        values.filter(|value| value.is_finite()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use vgen_backends::local::Work;

    use super::*;

    fn target(work: Option<Work>) -> Option<TargetReport> {
        serde_json::from_value(json!({
            "name": "a", "kind": "local", "model": "m", "model_identity": null, "settings": {}, "device": null,
            "load_seconds": 0.0, "prices": {}, "limits": null, "work": work, "sweep": null,
        }))
        .ok()
    }

    /// An image of one tile and one of four: two tiles and four are computed, and every pair within each.
    #[test]
    fn operations_are_those_of_each_image() {
        let work = Work {
            max_tiles: 4,
            tokens_per_tile: 10,
            encode_flops_per_token: 3.0,
            encode_flops_per_pair: 1.0,
            ..Work::default()
        };
        let Some(target) = target(Some(work)) else { unreachable!("it is a target") };
        let counters = [("encode_seconds", 2.0), ("tiles_computed", 6.0), ("tile_pairs_computed", 20.0)];
        let counters = BTreeMap::from(counters.map(|(name, value)| (name.to_owned(), value)));
        let run = Run { seconds: 4.0, counters, ..Run::default() };
        assert_eq!(encode_flops(&Source { run: &run, target: &target }), Some((60.0 * 3.0 + 20.0 * 100.0) / 2.0));
    }

    /// A file that was changed by hand may say anything.
    #[test]
    fn more_failed_than_asked_is_none_answered() {
        let Some(target) = target(None) else { unreachable!("it is a target") };
        let run = Run { seconds: 1.0, rows: 2, failed: 3, ..Run::default() };
        let source = Source { run: &run, target: &target };
        assert_eq!((answered(&source), share_answered(&source)), (0, 0.0));
    }
}
