//! The report as one HTML file that needs nothing else: no network, no script.

use std::fmt::Write;

use super::compare;
use super::markdown::{TABLES, about, beside_first, failures, filled, number, rate, unreadable, value};
use super::plots::plots;
use super::report::Report;

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1b1b1b;--back:#fff;--line:#d9d9d9;--soft:#f4f4f4}\
@media(prefers-color-scheme:dark){:root{--text:#e6e6e6;--back:#16181b;--line:#3a3d42;--soft:#1f2226}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--back);max-width:75rem;margin:2rem auto;\
padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}\
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.85rem}\
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}\
td.text{white-space:pre-wrap;min-width:14rem}thead th{background:var(--soft)}\
.plots{margin-top:1.5rem;display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:1.5rem}figure{margin:0}\
figcaption{font-weight:600;margin-bottom:.3rem}svg.plot{width:100%;height:auto}\
svg.plot text{fill:var(--text)}svg.plot [stroke='#000000']{stroke:var(--text)}\
svg.plot [fill='#000000']{fill:var(--text)}svg.plot rect[fill='#FFFFFF']{fill:none}";

/// Rows that differ which the page shows; the JSON has all.
const DIFFERING: usize = 50;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn table(text: &mut String, headings: &[&str], rows: impl Iterator<Item = Vec<String>>) -> std::fmt::Result {
    write!(text, "<div class=\"scroll\"><table><thead><tr>")?;
    for heading in headings {
        write!(text, "<th>{}</th>", escape(heading))?;
    }
    write!(text, "</tr></thead><tbody>")?;
    for row in rows {
        write!(text, "<tr>")?;
        for cell in row {
            let class = if cell.len() > 60 { " class=\"text\"" } else { "" };
            write!(text, "<td{class}>{}</td>", escape(&cell))?;
        }
        write!(text, "</tr>")?;
    }
    writeln!(text, "</tbody></table></div>")
}

/// The page.
pub fn html(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write(report, &mut text);
    text
}

fn write(report: &Report, text: &mut String) -> std::fmt::Result {
    let title = format!("{}: {} rows, {} images", report.rows.name, report.rows.rows, report.rows.images);
    let title = escape(&title);
    writeln!(
        text,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>vgen bench, {title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>{}</p>",
        escape(&about(report))
    )?;
    if let Some(why) = &report.unfinished {
        writeln!(text, "<p><strong>Not complete: {}.</strong></p>", escape(why))?;
    }
    let targets = report.targets.iter().map(|target| {
        let settings: Vec<String> = target.settings.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        let device = target.device.clone().unwrap_or_else(|| "–".to_owned());
        let ready = format!("{:.2} s", target.load_seconds);
        vec![target.name.clone(), target.kind.clone(), target.model.clone(), device, ready, settings.join(", ")]
    });
    table(text, &["backend", "kind", "model", "device", "ready after", "settings"], targets)?;
    writeln!(text, "<div class=\"plots\">")?;
    for (title, svg) in plots(report) {
        writeln!(text, "<figure><figcaption>{}</figcaption>{svg}</figure>", escape(&title))?;
    }
    writeln!(text, "</div>")?;
    for shown in TABLES {
        let columns = filled(report, shown);
        if columns.is_empty() {
            continue;
        }
        writeln!(text, "<h2>{}</h2>", escape(shown.title))?;
        let headings: Vec<&str> = ["backend", "load"].into_iter().chain(columns.iter().map(|c| c.0)).collect();
        let rows = report.cells.iter().map(|cell| {
            let values = columns.iter().map(|(_, metric)| value(cell, metric));
            [cell.target.clone(), cell.load.to_string()].into_iter().chain(values).collect()
        });
        table(text, &headings, rows)?;
    }
    let beside = beside_first(report);
    if !beside.is_empty() {
        writeln!(text, "<h2>Beside {}</h2>", escape(&report.targets[0].name))?;
        let rows = beside.iter().map(|one| {
            let (ratio, interval) = (one.ratio.in_words(), one.ratio.interval());
            let (name, p) = (one.second().to_owned(), format!("{:.3}", one.ratio.p));
            vec![name, one.load.to_string(), one.metric.clone(), ratio, interval, p, one.words().to_owned()]
        });
        table(text, &["backend", "load", "metric", "ratio", "95 %", "p", ""], rows)?;
        writeln!(text, "<p>{}</p>", escape(&compare::how()))?;
    }
    writeln!(text, "<h2>Saturation</h2>")?;
    let points = report.saturation.iter().map(|point| {
        let edge = if point.at_the_edge { " (the most that was tried)" } else { "" };
        let enough = point.concurrency.map_or("–".to_owned(), |n| format!("{n}{edge}"));
        vec![point.target.clone(), number(point.rows_per_second), enough, rate(point)]
    });
    table(text, &["backend", "most rows/s", "enough in flight", "rate it keeps up with"], points)?;
    for found in &report.agreement {
        let (base, target) = (escape(&found.base), escape(&found.target));
        let unit = found.counted_in.name();
        let share = |count: u64| 100.0 * count as f64 / found.compared.max(1) as f64;
        writeln!(
            text,
            "<h2>Answers of {target} beside those of {base}</h2>\n<p>{} pairs: {:.1} % exact, {:.1} % normalised, \
             similarity {:.4}; {} rows differ{}.</p>",
            found.compared,
            share(found.exact),
            share(found.normalised),
            found.similarity,
            found.differing.len(),
            found.first_difference.map_or(String::new(), |at| format!(", from {unit} {at} on (median)"))
        )?;
        let rows = found.differing.iter().take(DIFFERING).map(|row| {
            let numbers = [row.row, row.pairs, row.first_difference as u64].map(|number| number.to_string());
            numbers.into_iter().chain([row.base.clone(), row.target.clone()]).collect()
        });
        if !found.differing.is_empty() {
            table(text, &["row", "pairs", &format!("from {unit}"), &found.base, &found.target], rows)?;
        }
    }
    let failures = failures(report);
    if !failures.is_empty() {
        writeln!(text, "<h2>Errors</h2>")?;
        let lines = failures.into_iter().map(Vec::from);
        table(text, &["backend", "load", "repeat", "code", "rows"], lines)?;
    }
    writeln!(text, "<h2>Formulas</h2>")?;
    let metrics =
        report.metrics.iter().map(|metric| vec![metric.name.clone(), metric.unit.clone(), metric.formula.clone()]);
    table(text, &["metric", "unit", "is"], metrics)?;
    writeln!(text, "<h2>Notes</h2>\n<ul>")?;
    for note in report.notes.iter().cloned().chain(unreadable(report)) {
        writeln!(text, "<li>{}</li>", escape(&note))?;
    }
    writeln!(text, "<li>rows: SHA-256 {}, seed {}</li></ul></body></html>", report.rows.digest, report.seed)
}
