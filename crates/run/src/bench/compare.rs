//! [`compare`](fn@compare): two reports side by side.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::load::Load;
use super::markdown::number;
use super::metrics::{Better, KNOWN};
use super::report::{Cell, Report};
use super::statistics::{Ratio, SIGNIFICANCE, Spread, Verdict};

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

/// Every metric of two cells.
pub(super) fn cells((base, a): (&Report, &Cell), (other, b): (&Report, &Cell)) -> Vec<Compared> {
    let compared = KNOWN.iter().zip(super::metrics::described()).filter_map(|(known, metric)| {
        let (first, second) = (base.readings(a, known), other.readings(b, known));
        Some(Compared {
            target: if a.target == b.target { a.target.clone() } else { format!("{} → {}", a.target, b.target) },
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
                "| {} | {} | {}{unit} | {} | {} | {:.3} | {:.3} to {:.3} | {:.3} | {} |",
                one.target,
                one.load,
                one.metric,
                number(one.base.median),
                number(one.other.median),
                one.ratio.ratio,
                one.ratio.low,
                one.ratio.high,
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
         Mann-Whitney's U over the repeats (exact, two-sided)."
    )
}
