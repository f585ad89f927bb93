//! Where more load brings a backend no more.

use super::load::Load;
use super::report::{Cell, Run, Saturation};

/// Part of the most that counts as all of it.
const ENOUGH: f64 = 0.95;
/// Seconds a second by which times may grow where a rate is kept up with.
const GROWTH: f64 = 0.05;
/// Standard errors by which that must be certain.
const ERRORS: f64 = 2.0;

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
    let at_the_edge = concurrency.is_some() && concurrency == closed.last().map(|(n, _)| *n);
    let judged: Vec<(f64, Kept)> = mine()
        .filter_map(|cell| match cell.load {
            Load::Open { rate } => Some((rate, kept_up(&cell.runs))),
            _ => None,
        })
        .collect();
    let with = |kept: Kept| judged.iter().filter(move |(_, its)| *its == kept).map(|(rate, _)| *rate);
    Saturation {
        target: target.to_owned(),
        rows_per_second: mine().map(speed).fold(0.0, f64::max),
        concurrency,
        at_the_edge,
        rate: with(Kept::Up).reduce(f64::max),
        too_short: with(Kept::Unknown).collect(),
    }
}

/// Whether a rate is kept up with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Up,
    Behind,
    Unknown,
}

fn kept_up(runs: &[Run]) -> Kept {
    let (failed, rows) = runs.iter().fold((0, 0), |sum, run| (sum.0 + run.failed, sum.1 + run.rows));
    if failed as f64 > (1.0 - ENOUGH) * rows as f64 {
        return Kept::Behind;
    }
    let found: Vec<(f64, f64)> = runs.iter().filter_map(growth).collect();
    let count = found.len() as f64;
    let mean = found.iter().map(|(slope, _)| slope).sum::<f64>() / count;
    let error = found.iter().map(|(_, variance)| variance).sum::<f64>().sqrt() / count;
    if mean + ERRORS * error <= GROWTH {
        Kept::Up
    } else if mean - ERRORS * error > GROWTH {
        Kept::Behind
    } else {
        Kept::Unknown
    }
}

/// By how much e2e grows with the time at which a request is due, and the variance of that: the line with the least squares.
/// It is 0 in a queue that is in balance, however long the reading; what comes beyond what is served, in one that isn't.
/// `None` where no line can be laid.
fn growth(run: &Run) -> Option<(f64, f64)> {
    let points = || run.requests.iter().filter(|one| one.error.is_none()).map(|one| (one.due, one.ended - one.due));
    let count = points().count() as f64;
    let (x, y) = points().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count));
    let sums = points().map(|point| (point.0 - x, point.1 - y)).map(|(x, y)| (x * x, x * y, y * y));
    let (xx, xy, yy) = sums.fold((0.0, 0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2));
    let slope = xy / xx;
    let variance = (yy - slope * xy).max(0.0) / ((count - 2.0) * xx);
    (count > 2.0 && slope.is_finite() && variance.is_finite()).then_some((slope, variance))
}
