//! [`compare`](fn@compare): two reports side by side.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::load::Load;
use super::markdown::{cell, number};
use super::metrics::{Better, KNOWN};
use super::report::{Cell, Report};
use super::statistics::{MOST_EXACT, Ratio, SIGNIFICANCE, Spread, Verdict};

/// Between the names of two backends.
const ARROW: &str = " → ";

/// What is left out of a comparison unless it changed beyond noise.
const ALWAYS_SHOWN: [&str; 8] = [
    "rows_per_second",
    "images_per_second",
    "text_out_per_second",
    "ttft_p50",
    "tpot_p50",
    "e2e_p50",
    "peak_host_bytes",
    "cost_per_1000_rows",
];

/// A metric of two cells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compared {
    /// The backend, or both with an arrow where their names differ.
    pub target: String,
    /// The load.
    pub load: Load,
    /// The metric's name.
    pub metric: String,
    /// Its unit.
    pub unit: String,
    /// Which way is better.
    pub better: Better,
    /// In the first.
    pub base: Spread,
    /// In the second.
    pub other: Spread,
    /// The second by the first.
    pub ratio: Ratio,
}

/// Two reports side by side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// All metrics of the cells that both have.
    pub metrics: Vec<Compared>,
    /// What makes them hard to compare.
    pub notes: Vec<String>,
}

/// Compares the cells of the same backend and load.
pub fn compare(base: &Report, other: &Report) -> Comparison {
    let alone = |report: &Report| report.targets.len() == 1;
    let same_target = |a: &Cell, b: &Cell| a.target == b.target || (alone(base) && alone(other));
    let mut metrics = Vec::new();
    for a in &base.cells {
        for b in other.cells.iter().filter(|b| b.load == a.load && same_target(a, b)) {
            metrics.extend(cells((base, a), (other, b)));
        }
    }
    let mut notes = Vec::new();
    for (which, report) in [("first", base), ("second", other)] {
        notes.extend(report.unfinished.as_ref().map(|why| format!("the {which} is not complete: {why}")));
    }
    for a in &base.cells {
        for b in other.cells.iter().filter(|b| b.load == a.load && same_target(a, b)) {
            notes.extend(new_failures(a, b));
        }
    }
    if base.rows.digest != other.rows.digest {
        notes.push("the rows differ".to_owned());
    }
    if base.machine != other.machine {
        notes.push(format!("the machines differ: {} and {}", base.machine.processor, other.machine.processor));
    }
    if base.sampling != other.sampling {
        notes.push("the sampling parameters differ".to_owned());
    }
    if metrics.is_empty() {
        notes.push("no backend and load is in both".to_owned());
    }
    Comparison { metrics, notes }
}

/// Failures are too grave to be noise: a row in one reading of many moves no median.
fn new_failures(a: &Cell, b: &Cell) -> Option<String> {
    let count = |cell: &Cell| cell.runs.iter().fold((0, 0), |sum, run| (sum.0 + run.failed, sum.1 + run.rows));
    let ((before, of), (now, of_now)) = (count(a), count(b));
    let share = |failed: u64, of: u64| failed as f64 / of.max(1) as f64;
    (share(now, of_now) > share(before, of)).then(|| {
        let (target, load) = (&b.target, b.load);
        format!("more rows fail in the second: {now} of {of_now} instead of {before} of {of} ({target}, {load})")
    })
}

/// Every metric of two cells.
pub(super) fn cells((base, a): (&Report, &Cell), (other, b): (&Report, &Cell)) -> Vec<Compared> {
    let compared = KNOWN.iter().zip(super::metrics::described()).filter_map(|(known, metric)| {
        let (first, second) = (base.readings(a, known), other.readings(b, known));
        Some(Compared {
            target: if a.target == b.target { a.target.clone() } else { format!("{}{ARROW}{}", a.target, b.target) },
            load: a.load,
            metric: metric.name,
            unit: metric.unit,
            better: metric.better,
            base: Spread::of(&first)?,
            other: Spread::of(&second)?,
            ratio: Ratio::of(&first, &second)?,
        })
    });
    compared.collect()
}

impl Compared {
    /// The verdict in words.
    pub fn words(&self) -> &'static str {
        match (self.ratio.verdict, self.better) {
            (Verdict::WithinNoise, _) => "within noise",
            (Verdict::TooFewRepeats, _) => "too few repeats to tell",
            (Verdict::Larger, Better::Higher) | (Verdict::Smaller, Better::Lower) => "better",
            (Verdict::Larger, Better::Lower) | (Verdict::Smaller, Better::Higher) => "worse",
            (Verdict::Larger, Better::Neither) => "more",
            (Verdict::Smaller, Better::Neither) => "less",
        }
    }

    /// The second's backend, where the names differ.
    pub(super) fn second(&self) -> &str {
        self.target.split(ARROW).last().unwrap_or_default()
    }

    fn is_shown(&self) -> bool {
        let told = matches!(self.ratio.verdict, Verdict::Larger | Verdict::Smaller);
        ALWAYS_SHOWN.contains(&self.metric.as_str()) || (told && self.better != Better::Neither)
    }
}

impl Comparison {
    /// As a table in Markdown: the chief metrics, and all others that changed beyond noise.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| backend | load | metric | first | second | second / first | 95 % | p | |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        for one in self.metrics.iter().filter(|one| one.is_shown()) {
            let unit = if one.unit.is_empty() { String::new() } else { format!(" ({})", one.unit) };
            // Writing to a string can't fail.
            let _ = writeln!(
                text,
                "| {} | {} | {}{unit} | {} | {} | {} | {} | {:.3} | {} |",
                cell(&one.target),
                one.load,
                one.metric,
                number(one.base.median),
                number(one.other.median),
                one.ratio.in_words(),
                one.ratio.interval(),
                one.ratio.p,
                one.words(),
            );
        }
        let _ = writeln!(text, "\n{}", how());
        for note in &self.notes {
            let _ = writeln!(text, "\nNote: {note}.");
        }
        text
    }
}

/// How it is decided what is noise.
pub(super) fn how() -> String {
    format!(
        "Medians over repeats; the interval is a bootstrap of their ratio; \"within noise\" is p ≥ {SIGNIFICANCE} of \
         Mann-Whitney's U over the repeats (two-sided; exact for up to {MOST_EXACT} repeats)."
    )
}
