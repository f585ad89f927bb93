//! Progress on standard error: one live line on a terminal, a plain line now and then elsewhere, or JSON objects;
//! warnings about rows; the summary.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use vgen_backends::local::Bytes;
use vgen_core::Fault;
use vgen_dataset::Origin;
use vgen_run::{Observer, Progress, Summary};

use crate::messages::{Messages, Shown};

/// So many failed rows are shown; the others are in the output.
const SHOWN_FAILURES: u64 = 10;
/// So many error codes are in a line of progress; the summary has them all.
const SHOWN_CODES: usize = 3;
/// Steps of the bar.
const STEPS: u64 = 1000;

/// Tells a person, or a program, how the run goes.
pub(crate) struct Reporter {
    messages: Messages,
    shown: Shown,
    bar: ProgressBar,
    interval: Duration,
    last_line: Instant,
    failures: u64,
}

impl Reporter {
    /// A live line if standard error is a terminal and standard output is not filling it, too.
    pub(crate) fn new(messages: &Messages, rows_to_terminal: bool, interval: Duration) -> Self {
        let shown = messages.shown(rows_to_terminal);
        let bar = if shown == Shown::Live { ProgressBar::new(STEPS) } else { ProgressBar::hidden() };
        if shown == Shown::Live {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        let messages = messages.clone().above(bar.clone());
        Self { messages, shown, bar, interval, last_line: Instant::now(), failures: 0 }
    }
}

impl Observer for Reporter {
    fn progress(&mut self, progress: &Progress) {
        match self.shown {
            Shown::Live => {
                let style = match progress.share {
                    Some(_) => ProgressStyle::with_template("{bar:24} {percent:>3}% {wide_msg}"),
                    None => ProgressStyle::with_template("{spinner} {wide_msg}"),
                };
                if let Ok(style) = style {
                    self.bar.set_style(style);
                }
                self.bar.set_position((progress.share.unwrap_or(0.0) * STEPS as f64) as u64);
                self.bar.set_message(line(progress, memory()));
            }
            Shown::Plain | Shown::Json if self.last_line.elapsed() >= self.interval => {
                self.last_line = Instant::now();
                match self.shown {
                    Shown::Json => self.messages.progress(figures(progress, memory())),
                    _ => self.messages.info(line(progress, memory())),
                }
            }
            _ => {}
        }
    }

    fn row_failed(&mut self, number: u64, origin: &Origin, fault: &Fault) {
        self.failures += 1;
        if self.failures <= SHOWN_FAILURES {
            // Faults of reading and rendering name the place themselves.
            let named = fault.message.contains(&*origin.name);
            let place = if named { String::new() } else { format!("row {number} ({origin}): ") };
            let known = json!({
                "event": "row_failed", "row": number, "origin": origin.to_string(), "code": fault.code,
                "hint": fault.hint,
            });
            self.messages.warning_of(format!("{place}{} [{}]", fault.message, fault.code), known);
        } else if self.failures == SHOWN_FAILURES + 1 {
            self.messages.warning("more rows failed; see the column \"error\" of the output");
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Memory that the process holds, in bytes.
fn memory() -> Option<u64> {
    memory_stats::memory_stats().map(|stats| stats.physical_mem as u64)
}

fn line(progress: &Progress, memory: Option<u64>) -> String {
    let mut line = format!(
        "{} rows, {} failed{}, {:.1} rows/s, {:.1} tokens/s",
        progress.rows,
        progress.failed_rows,
        codes(&progress.errors),
        progress.rows_per_second(),
        progress.tokens_per_second(),
    );
    if let Some(memory) = memory {
        line.push_str(&format!(", {}", Bytes(memory)));
    }
    if let Some(eta) = left(progress) {
        line.push_str(&format!(", {} left", duration(eta)));
    }
    line
}

/// The commonest error codes.
fn codes(errors: &BTreeMap<String, u64>) -> String {
    let mut errors: Vec<_> = errors.iter().collect();
    errors.sort_by_key(|(code, count)| (std::cmp::Reverse(**count), *code));
    let more = errors.len().saturating_sub(SHOWN_CODES);
    let mut shown: Vec<_> = errors.iter().take(SHOWN_CODES).map(|(code, count)| format!("{count} {code}")).collect();
    if more > 0 {
        shown.push(format!("{more} other codes"));
    }
    if shown.is_empty() { String::new() } else { format!(" ({})", shown.join(", ")) }
}

fn left(progress: &Progress) -> Option<Duration> {
    progress.eta().filter(|_| progress.share.is_some_and(|share| share < 1.0))
}

/// Progress in numbers.
fn figures(progress: &Progress, memory: Option<u64>) -> Value {
    json!({
        "rows": progress.rows,
        "earlier_rows": progress.earlier_rows,
        "failed_rows": progress.failed_rows,
        "errors": progress.errors,
        "input_tokens": progress.input_tokens,
        "output_tokens": progress.output_tokens,
        "rows_per_second": progress.rows_per_second(),
        "tokens_per_second": progress.tokens_per_second(),
        "share": progress.share,
        "seconds": progress.elapsed.as_secs_f64(),
        "seconds_left": left(progress).map(|left| left.as_secs_f64()),
        "memory_bytes": memory,
    })
}

/// Says how a run ended.
pub(crate) fn summary(messages: &Messages, summary: &Summary) {
    let progress = summary.progress();
    let mut known = figures(&progress, memory());
    if let Some(known) = known.as_object_mut() {
        known.insert("event".to_owned(), "summary".into());
        known.insert("interrupted".to_owned(), summary.interrupted.into());
        known.insert("output_rows".to_owned(), summary.output_rows.into());
    }
    let mut text = format!(
        "{}: {} rows, {} failed, {} prompt tokens, {} answer tokens in {}: {:.1} rows/s, {:.1} tokens/s",
        if summary.interrupted { "interrupted" } else { "done" },
        summary.rows,
        summary.failed_rows,
        summary.input_tokens,
        summary.output_tokens,
        duration(summary.elapsed),
        progress.rows_per_second(),
        progress.tokens_per_second(),
    );
    for (code, count) in &summary.errors {
        text.push_str(&format!("\n  {code}: {count}"));
    }
    messages.info_of(text, known);
}

pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (seconds, text) in [(3.21, "3.2 s"), (59.9, "59 s"), (61.0, "1 min 01 s"), (7380.0, "2 h 03 min")] {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
    }

    #[test]
    fn a_line_has_the_commonest_errors_and_what_is_left() {
        let codes = [("image.decode", 2), ("row.json", 9), ("a.a", 1), ("b.b", 1), ("c.c", 1)];
        let progress = Progress {
            rows: 50,
            earlier_rows: 10,
            failed_rows: 14,
            errors: codes.map(|(code, count)| (code.to_owned(), count)).into(),
            output_tokens: 100,
            share: Some(0.5),
            elapsed: Duration::from_secs(4),
            ..Progress::default()
        };
        assert_eq!(
            line(&progress, Some(3 << 29)),
            "50 rows, 14 failed (9 row.json, 2 image.decode, 1 a.a, 2 other codes), 10.0 rows/s, 25.0 tokens/s, \
             1.5 GiB, 5.0 s left"
        );
        let figures = figures(&progress, None);
        assert_eq!((&figures["errors"]["row.json"], &figures["seconds_left"]), (&9.into(), &5.0.into()));
    }
}
