//! From what a reading observed to the [`Run`] of a report.

use std::collections::BTreeMap;

use serde_json::Value;
use vgen_core::{Generation, Timings};

use super::agreement::Answer;
use super::drive::{Observed, Reading};
use super::energy::Spent;
use super::load::Load;
use super::memory::Told;
use super::report::{Prices, RequestRecord, Run};
use super::rows::BenchRow;
use super::statistics::Quantiles;

/// Numbers of a backend's account that are no counts.
const GAUGES: [&str; 1] = ["in_flight_limit"];

/// What was measured around a reading.
pub(super) struct Around {
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
    pub(super) spent: Spent,
    pub(super) peak_host_bytes: Told,
}

/// The first answer of a request, if it has one.
fn answer(observed: &Observed) -> Option<&Generation> {
    observed.result.as_ref().ok()?.generations.first()?.as_ref().ok()
}

fn error(observed: &Observed) -> Option<String> {
    match &observed.result {
        Err(fault) => Some(fault.code.to_string()),
        Ok(response) => match response.generations.first() {
            Some(Err(fault)) => Some(fault.code.to_string()),
            Some(Ok(_)) => None,
            None => Some("bench.no_answer".to_owned()),
        },
    }
}

/// When the first piece of the answer came: as it was seen or as the backend says, which sees also what is no text of the
/// answer, such as reasoning.
fn first(observed: &Observed) -> Option<f64> {
    let told = answer(observed).and_then(|answer| Some(observed.sent + answer.timings.first_token?));
    observed.pieces.first().copied().into_iter().chain(told).reduce(f64::min)
}

/// The answers for the comparison of backends.
pub(super) fn answers(rows: &[BenchRow], reading: &Reading) -> Vec<Option<Answer>> {
    let of = |observed: &Observed| {
        let generation = answer(observed)?;
        let text = generation.text.clone().unwrap_or_default();
        Some(Answer { row: rows[observed.at].number, text, tokens: generation.token_ids.clone() })
    };
    reading.observed.iter().map(of).collect()
}

/// The run of a report.
pub(super) fn run(rows: &[BenchRow], load: Load, reading: &Reading, prices: &Prices, around: Around) -> Run {
    let mut run = Run { seconds: reading.seconds, rows: rows.len() as u64, ..Run::default() };
    let (mut ttft, mut tpot, mut itl, mut e2e) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut queue, mut prepare, mut late) = (Vec::new(), Vec::new(), Vec::new());
    let mut vision = None;
    let mut busy = 0.0;
    for observed in &reading.observed {
        let row = &rows[observed.at];
        run.images += row.images();
        let total = observed.ended - observed.due;
        busy += total;
        if matches!(load, Load::Open { .. }) {
            late.push(observed.sent - observed.due);
        }
        let code = error(observed);
        let usage = answer(observed).and_then(|generation| generation.usage);
        let first = first(observed);
        if let Some(code) = &code {
            run.failed += 1;
            *run.errors.entry(code.clone()).or_default() += 1;
        } else {
            e2e.push(total);
            ttft.extend(first.map(|first| first - observed.due));
            run.uncounted += u64::from(usage.is_none());
            if let (Some(first), Some(tokens)) = (first, usage.map(|usage| usage.output_tokens).filter(|n| *n > 1)) {
                tpot.push((observed.ended - first) / (tokens - 1) as f64);
            }
            itl.extend(observed.pieces.windows(2).map(|pair| pair[1] - pair[0]));
            if let Some(Timings { queue: waited, prepare: prepared, .. }) = answer(observed).map(|g| g.timings) {
                queue.push(waited.max(0.0));
                prepare.push(prepared);
            }
        }
        if let Some(usage) = usage {
            run.input_tokens += usage.input_tokens;
            run.output_tokens += usage.output_tokens;
            if let Some(tokens) = usage.vision_tokens {
                *vision.get_or_insert(0) += tokens;
            }
        }
        run.requests.push(RequestRecord {
            row: row.number,
            due: observed.due,
            sent: observed.sent,
            first,
            ended: observed.ended,
            output_tokens: usage.map(|usage| usage.output_tokens),
            error: code,
        });
    }
    run.vision_tokens = vision;
    run.mean_in_flight = if reading.seconds > 0.0 { busy / reading.seconds } else { 0.0 };
    run.ttft = Quantiles::of(ttft);
    run.tpot = Quantiles::of(tpot);
    run.itl = Quantiles::of(itl);
    run.e2e = Quantiles::of(e2e);
    run.late = Quantiles::of(late);
    run.queue = Quantiles::of(queue);
    run.prepare = Quantiles::of(prepare);
    run.counters = difference(around.before.as_ref(), around.after.as_ref());
    run.cost = cost(&run, prices);
    run.peak_host_bytes = Some(around.peak_host_bytes);
    run.peak_device_bytes = Some(around.spent.device_bytes);
    run.host_joules = Some(around.spent.host);
    run.device_joules = Some(around.spent.device);
    run
}

/// What counters gained.
fn difference(before: Option<&Value>, after: Option<&Value>) -> BTreeMap<String, f64> {
    let Some(Value::Object(after)) = after else { return BTreeMap::new() };
    let counts = after.iter().filter_map(|(name, value)| Some((name, value.as_f64()?)));
    counts
        .map(|(name, value)| {
            let earlier = before.and_then(|before| before.get(name)).and_then(Value::as_f64);
            let gauge = GAUGES.contains(&name.as_str());
            (name.clone(), if gauge { value } else { value - earlier.unwrap_or_default() })
        })
        .collect()
}

/// What the prices say; `None` where nothing has a price, and where a number that has one is not known.
fn cost(run: &Run, prices: &Prices) -> Option<f64> {
    let by_token = prices.per_million_input_tokens.is_some() || prices.per_million_output_tokens.is_some();
    if by_token && run.uncounted > 0 {
        return None;
    }
    let parts = [
        prices.per_million_input_tokens.map(|price| price * run.input_tokens as f64 / 1e6),
        prices.per_million_output_tokens.map(|price| price * run.output_tokens as f64 / 1e6),
        // A repeated request may have been charged, too; servers don't say.
        prices.per_request.map(|price| price * run.rows as f64),
        prices.per_hour.map(|price| price * run.seconds / 3600.0),
    ];
    parts.iter().any(Option::is_some).then(|| parts.into_iter().flatten().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model that thinks before it answers: its first token is no text.
    #[test]
    fn the_first_piece_may_be_no_text() {
        let timings = Timings { first_token: Some(0.5), ..Timings::default() };
        let response = vgen_core::Response {
            model_name: String::new(),
            generations: vec![Ok(Generation { timings, ..Generation::default() })],
        };
        let observed = Observed { at: 0, due: 1.0, sent: 2.0, pieces: vec![4.0], ended: 5.0, result: Ok(response) };
        assert_eq!(first(&observed), Some(2.5));
        assert_eq!(first(&Observed { pieces: vec![2.25], ..observed }), Some(2.25));
    }

    #[test]
    fn cost_is_the_sum_of_what_has_a_price() {
        let run = Run { seconds: 1800.0, rows: 10, input_tokens: 2_000_000, output_tokens: 500_000, ..Run::default() };
        assert_eq!(cost(&run, &Prices::default()), None);
        let prices = Prices {
            per_million_input_tokens: Some(0.5),
            per_million_output_tokens: Some(2.0),
            per_request: Some(0.01),
            per_hour: Some(4.0),
        };
        assert_eq!(cost(&run, &prices), Some(1.0 + 1.0 + 0.1 + 2.0));
        // Tokens that nobody counted are not free.
        let run = Run { uncounted: 1, ..run };
        assert_eq!(cost(&run, &prices), None);
        assert_eq!(cost(&run, &Prices { per_hour: Some(4.0), ..Prices::default() }), Some(2.0));
    }

    #[test]
    fn counters_are_differences_and_gauges_are_not() {
        let (before, after) = (
            serde_json::json!({"retries": 3, "in_flight_limit": 8}),
            serde_json::json!({"retries": 5, "in_flight_limit": 4, "x": 1}),
        );
        let found = difference(Some(&before), Some(&after));
        assert_eq!(
            found,
            BTreeMap::from([("retries".into(), 2.0), ("in_flight_limit".into(), 4.0), ("x".into(), 1.0)])
        );
    }
}
