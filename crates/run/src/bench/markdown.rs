//! The report as Markdown.

use std::fmt::Write;

use super::compare::{self, Compared};
use super::report::{Cell, Report, Run, Saturation};

/// Characters of an answer, and rows that differ, which the tables show; the JSON has all.
const ANSWER: usize = 120;
const DIFFERING: usize = 10;

/// A number with three digits that matter.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value == 0.0 { "0".to_owned() } else { "–".to_owned() };
    }
    let magnitude = value.abs().log10().floor();
    match magnitude {
        m if m >= 15.0 => format!("{value:.2e}"),
        m if m >= 12.0 => format!("{:.2} T", value / 1e12),
        m if m >= 9.0 => format!("{:.2} G", value / 1e9),
        m if m >= 6.0 => format!("{:.2} M", value / 1e6),
        m if m >= 3.0 => format!("{value:.0}"),
        m if m >= -4.0 => format!("{value:.*}", (2.0 - m).max(0.0) as usize),
        _ => format!("{value:.2e}"),
    }
}

/// A text as a cell of a table.
pub(super) fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// The first characters of a text as a cell.
fn short(text: &str) -> String {
    cell(&text.chars().take(ANSWER).collect::<String>())
}

/// A table of the report: a title, columns as (heading, metric), and why it is there.
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) columns: &'static [(&'static str, &'static str)],
}

/// The tables, in order.
pub(super) const TABLES: &[Table] = &[
    Table {
        title: "Throughput",
        columns: &[
            ("rows/s", "rows_per_second"),
            ("images/s", "images_per_second"),
            ("text in, tokens/s", "text_in_per_second"),
            ("vision in, tokens/s", "vision_in_per_second"),
            ("text out, tokens/s", "text_out_per_second"),
            ("in flight", "mean_in_flight"),
            ("failed", "failed_share"),
        ],
    },
    Table {
        title: "Latency, seconds",
        columns: &[
            ("TTFT p50", "ttft_p50"),
            ("p90", "ttft_p90"),
            ("p99", "ttft_p99"),
            ("max", "ttft_max"),
            ("TPOT p50", "tpot_p50"),
            ("p90", "tpot_p90"),
            ("p99", "tpot_p99"),
            ("max", "tpot_max"),
            ("ITL p50", "itl_p50"),
            ("p90", "itl_p90"),
            ("p99", "itl_p99"),
            ("max", "itl_max"),
            ("e2e p50", "e2e_p50"),
            ("p90", "e2e_p90"),
            ("p99", "e2e_p99"),
            ("max", "e2e_max"),
        ],
    },
    Table {
        title: "Where the time goes, shares of the reading",
        columns: &[
            ("prepare", "prepare_share"),
            ("encode", "encode_share"),
            ("prefill", "prefill_share"),
            ("decode", "decode_share"),
            ("sample", "sample_share"),
            ("idle", "wait_share"),
        ],
    },
    Table {
        title: "Waiting and trying again",
        columns: &[
            ("queue mean, s", "queue_mean"),
            ("p50", "queue_p50"),
            ("p90", "queue_p90"),
            ("p99", "queue_p99"),
            ("max", "queue_max"),
            ("sent late p99, s", "late_p99"),
            ("max", "late_max"),
            ("retries", "retries"),
            ("429", "rate_limits"),
            ("429, 503 and the like", "overloads"),
        ],
    },
    Table {
        title: "Caches, memory, cost, energy",
        columns: &[
            ("cross-KV made, B", "cross_kv_bytes"),
            ("images encoded", "images_encoded"),
            ("images reused", "images_reused"),
            ("prompt tokens shared", "shared_prompt_tokens"),
            ("peak memory, B", "peak_host_bytes"),
            ("peak device, B", "peak_device_bytes"),
            ("cost of 1000 rows", "cost_per_1000_rows"),
            ("J/row", "joules_per_row"),
        ],
    },
    Table {
        title: "Against the device's limits",
        columns: &[
            ("encode, FLOP/s", "encode_flops"),
            ("of the limit", "encode_flops_limit_share"),
            ("prefill, FLOP/s", "prefill_flops"),
            ("of the limit", "prefill_flops_limit_share"),
            ("decode, B/s", "decode_bandwidth"),
            ("of the limit", "decode_bandwidth_limit_share"),
        ],
    },
];

/// The columns of a table that any cell has a value for.
pub(super) fn filled<'a>(report: &Report, table: &'a Table) -> Vec<&'a (&'static str, &'static str)> {
    let has = |metric: &str| report.cells.iter().any(|cell| cell.summary.contains_key(metric));
    table.columns.iter().filter(|(_, metric)| has(metric)).collect()
}

/// A value with its quartiles.
pub(super) fn value(cell: &Cell, metric: &str) -> String {
    match cell.summary.get(metric) {
        None => "–".to_owned(),
        Some(spread) if spread.q1 == spread.q3 => number(spread.median),
        Some(spread) => format!("{} ({}–{})", number(spread.median), number(spread.q1), number(spread.q3)),
    }
}

/// The other backends beside the first, under the same load.
pub(super) fn beside_first(report: &Report) -> Vec<Compared> {
    let Some(first) = report.targets.first() else { return Vec::new() };
    let mut all = Vec::new();
    for a in report.cells.iter().filter(|cell| cell.target == first.name) {
        for b in report.cells.iter().filter(|cell| cell.target != first.name && cell.load == a.load) {
            let compared = compare::cells((report, a), (report, b));
            let wanted = ["rows_per_second", "text_out_per_second", "ttft_p50", "e2e_p50", "cost_per_1000_rows"];
            all.extend(compared.into_iter().filter(|one| wanted.contains(&one.metric.as_str())));
        }
    }
    all
}

/// The report.
pub fn markdown(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write(report, &mut text);
    text
}

fn write(report: &Report, text: &mut String) -> std::fmt::Result {
    let rows = &report.rows;
    writeln!(text, "# {}: {} rows, {} images\n", rows.name, rows.rows, rows.images)?;
    writeln!(text, "{}\n", about(report))?;
    if let Some(why) = &report.unfinished {
        writeln!(text, "**Not complete: {why}.**\n")?;
    }
    writeln!(text, "| backend | kind | model | device | ready after |\n|---|---|---|---|---|")?;
    for target in &report.targets {
        let (name, model) = (cell(&target.name), cell(&target.model));
        let device = cell(target.device.as_deref().unwrap_or("–"));
        writeln!(text, "| {name} | {} | {model} | {device} | {:.2} s |", target.kind, target.load_seconds)?;
    }
    for table in TABLES {
        let columns = filled(report, table);
        if columns.is_empty() {
            continue;
        }
        let headings: Vec<&str> = columns.iter().map(|(heading, _)| *heading).collect();
        writeln!(text, "\n## {}\n\n| backend | load | {} |", table.title, headings.join(" | "))?;
        writeln!(text, "|---|---|{}", "---|".repeat(columns.len()))?;
        for of in &report.cells {
            let values: Vec<String> = columns.iter().map(|(_, metric)| value(of, metric)).collect();
            writeln!(text, "| {} | {} | {} |", cell(&of.target), of.load, values.join(" | "))?;
        }
    }
    let beside = beside_first(report);
    if !beside.is_empty() {
        writeln!(text, "\n## Beside {}\n", report.targets[0].name)?;
        writeln!(text, "| backend | load | metric | ratio | 95 % | p | |\n|---|---|---|---|---|---|---|")?;
        for one in &beside {
            let (ratio, interval, p) = (one.ratio.in_words(), one.ratio.interval(), one.ratio.p);
            let (name, words) = (cell(one.second()), one.words());
            writeln!(text, "| {name} | {} | {} | {ratio} | {interval} | {p:.3} | {words} |", one.load, one.metric)?;
        }
        writeln!(text, "\n{}", compare::how())?;
    }
    writeln!(
        text,
        "\n## Saturation\n\n| backend | most rows/s | enough in flight | rate it keeps up with |\n|---|---|---|---|"
    )?;
    for point in &report.saturation {
        let enough = point.concurrency.map_or("–".to_owned(), |n| n.to_string());
        let edge = if point.at_the_edge { " (the most that was tried)" } else { "" };
        let rate = rate(point);
        let (target, most) = (cell(&point.target), number(point.rows_per_second));
        writeln!(text, "| {target} | {most} | {enough}{edge} | {rate} |")?;
    }
    agreement(report, text)?;
    errors(report, text)?;
    writeln!(text, "\n## Notes\n")?;
    for note in &report.notes {
        writeln!(text, "- {note}")?;
    }
    for told in unreadable(report) {
        writeln!(text, "- {told}")?;
    }
    writeln!(text, "- rows: SHA-256 {}, seed {}", rows.digest, report.seed)
}

/// Program, machine and how it was measured, in a sentence.
pub(super) fn about(report: &Report) -> String {
    let machine = &report.machine;
    let order = if report.interleaved { ", in turns" } else { "" };
    format!(
        "vgen {}, {}, {} on {} cores{}, {} repeats{order}; medians with quartiles.",
        report.program,
        report.created,
        machine.processor,
        machine.cores,
        if machine.features.is_empty() { String::new() } else { format!(" ({})", machine.features.join(", ")) },
        report.repeats,
    )
}

fn agreement(report: &Report, text: &mut String) -> std::fmt::Result {
    for found in &report.agreement {
        let share = |count: u64| format!("{:.1} %", 100.0 * count as f64 / found.compared.max(1) as f64);
        writeln!(text, "\n## Answers of {} beside those of {}\n", found.target, found.base)?;
        let unit = found.counted_in.name();
        writeln!(
            text,
            "| pairs | exact | normalised | similarity | first differing {unit}, median | rows that differ |\n\
             |---|---|---|---|---|---|"
        )?;
        let first = found.first_difference.map_or("–".to_owned(), |at| format!("{at}"));
        let (exact, normalised, similarity) = (share(found.exact), share(found.normalised), found.similarity);
        let differing = found.differing.len();
        writeln!(text, "| {} | {exact} | {normalised} | {similarity:.4} | {first} | {differing} |", found.compared)?;
        if differing > 0 {
            let (base, target) = (cell(&found.base), cell(&found.target));
            writeln!(text, "\n| row | pairs | from {unit} | {base} | {target} |\n|---|---|---|---|---|")?;
            for row in found.differing.iter().take(DIFFERING) {
                let (pairs, from, base, target) =
                    (row.pairs, row.first_difference, short(&row.base), short(&row.target));
                writeln!(text, "| {} | {pairs} | {from} | {base} | {target} |", row.row)?;
            }
        }
    }
    Ok(())
}

/// The rate that a backend keeps up with, in words.
pub(super) fn rate(point: &Saturation) -> String {
    let rate = point.rate.map_or("–".to_owned(), |rate| format!("{rate}/s"));
    if point.too_short.is_empty() {
        return rate;
    }
    let rates: Vec<String> = point.too_short.iter().map(|rate| format!("{rate}/s")).collect();
    format!("{rate} (too few rows to tell: {})", rates.join(", "))
}

/// Failed rows: backend, load, repeat, code, how many.
pub(super) fn failures(report: &Report) -> Vec<[String; 5]> {
    let runs = report.cells.iter().flat_map(|cell| cell.runs.iter().map(move |run| (cell, run)));
    let of_run = |(cell, run): (&Cell, &Run)| {
        let line = |(code, count): (&String, &u64)| {
            let repeat = (u64::from(run.repeat) + 1).to_string();
            [cell.target.clone(), cell.load.to_string(), repeat, code.clone(), count.to_string()]
        };
        run.errors.iter().map(line).collect::<Vec<_>>()
    };
    runs.flat_map(of_run).collect()
}

fn errors(report: &Report, text: &mut String) -> std::fmt::Result {
    let failures = failures(report);
    if failures.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n## Errors\n\n| backend | load | repeat | code | rows |\n|---|---|---|---|---|")?;
    for line in failures {
        writeln!(text, "| {} |", line.map(|field| cell(&field)).join(" | "))?;
    }
    Ok(())
}

/// What could not be read, once each.
pub(super) fn unreadable(report: &Report) -> Vec<String> {
    let run = report.cells.iter().flat_map(|cell| &cell.runs).next();
    let Some(run) = run else { return Vec::new() };
    let told = [
        ("energy of the processor", &run.host_joules),
        ("energy of devices", &run.device_joules),
        ("memory of devices", &run.peak_device_bytes),
        ("memory of this process", &run.peak_host_bytes),
    ];
    let missing = told.iter().filter_map(|(what, told)| told.as_ref().filter(|t| t.value.is_none()).map(|t| (what, t)));
    missing.map(|(what, told)| format!("{what}: {}", told.source)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let found = [0.0, 0.00123, 0.5, 12.345, 1234.5, 4_567_890.0, 2.5e9, 1e-7].map(number);
        assert_eq!(found, ["0", "0.00123", "0.500", "12.3", "1234", "4.57 M", "2.50 G", "1.00e-7"]);
    }

    #[test]
    fn a_cell_is_one_cell() {
        assert_eq!(cell("a|b\nc"), "a\\|b c");
    }
}
