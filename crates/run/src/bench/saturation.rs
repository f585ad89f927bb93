//! Where more load brings a backend no more.

use super::load::Load;
use super::report::{Cell, Saturation};

/// Part of the most that counts as all of it.
const ENOUGH: f64 = 0.95;

/// A backend's point of saturation, from its cells.
pub(super) fn of(target: &str, cells: &[Cell]) -> Saturation {
    let speed = |cell: &Cell| cell.summary.get("rows_per_second").map_or(0.0, |spread| spread.median);
    let mine = || cells.iter().filter(|cell| cell.target == target);
    let mut closed: Vec<(usize, f64)> = mine()
        .filter_map(|cell| match cell.load {
            Load::Closed { concurrency } => Some((concurrency, speed(cell))),
            _ => None,
        })
        .collect();
    closed.sort_by_key(|(concurrency, _)| *concurrency);
    let most = closed.iter().map(|(_, speed)| *speed).fold(0.0, f64::max);
    let concurrency = closed.iter().find(|(_, speed)| *speed >= ENOUGH * most && most > 0.0).map(|(n, _)| *n);
    let at_the_edge = closed.len() > 1 && concurrency == closed.last().map(|(n, _)| *n);
    let answered = mine().filter_map(|cell| match cell.load {
        Load::Open { rate } => {
            let shares: Vec<f64> = cell.runs.iter().map(kept_up).collect();
            let share = super::statistics::Spread::of(&shares)?.median;
            (share >= ENOUGH).then_some(rate)
        }
        _ => None,
    });
    Saturation {
        target: target.to_owned(),
        rows_per_second: mine().map(speed).fold(0.0, f64::max),
        concurrency,
        at_the_edge,
        rate: answered.reduce(f64::max),
    }
}

/// The share of rows that were answered in time: before the last row arrived, or as fast as 9 of 10 of the first half
/// were. A queue that grows leaves its late rows beyond both.
fn kept_up(run: &super::Run) -> f64 {
    let last = run.requests.iter().map(|request| request.sent).fold(0.0, f64::max);
    let early = &run.requests[..run.requests.len() / 2];
    let usual = super::statistics::Quantiles::of(early.iter().map(|request| request.ended - request.sent).collect());
    let margin = usual.map_or(0.0, |quantiles| quantiles.p90);
    let kept = run.requests.iter().filter(|r| r.error.is_none() && (r.ended <= last || r.ended - r.sent <= margin));
    kept.count() as f64 / run.requests.len().max(1) as f64
}
