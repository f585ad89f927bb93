//! The readings as CSV: a line for each, a column for each metric.

use super::load::Load;
use super::metrics::{KNOWN, Source};
use super::report::Report;

/// All readings of a report.
pub fn csv(report: &Report) -> String {
    let mut writer = ::csv::Writer::from_writer(Vec::new());
    let fixed = ["target", "load", "concurrency", "rate", "repeat", "order", "seconds", "rows", "failed", "errors"];
    let metrics = KNOWN.iter().map(|known| known.name);
    // Writing into memory can't fail, and all lines have the same length.
    let _ = writer.write_record(fixed.into_iter().chain(metrics));
    for cell in &report.cells {
        let Some(target) = report.targets.iter().find(|target| target.name == cell.target) else { continue };
        let (kind, concurrency, rate) = match cell.load {
            Load::Closed { concurrency } => ("closed", concurrency.to_string(), String::new()),
            Load::Open { rate } => ("open", String::new(), rate.to_string()),
            Load::Window => ("window", String::new(), String::new()),
        };
        for run in &cell.runs {
            let mut line = vec![cell.target.clone(), kind.to_owned(), concurrency.clone(), rate.clone()];
            line.extend([run.repeat, run.order].map(|n| n.to_string()));
            line.push(run.seconds.to_string());
            line.extend([run.rows, run.failed].map(|n| n.to_string()));
            let errors: Vec<String> = run.errors.iter().map(|(code, count)| format!("{code}={count}")).collect();
            line.push(errors.join(" "));
            let value = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
            line.extend(KNOWN.iter().map(|known| value((known.of)(&Source { run, target }))));
            let _ = writer.write_record(line);
        }
    }
    String::from_utf8(writer.into_inner().unwrap_or_default()).unwrap_or_default()
}
