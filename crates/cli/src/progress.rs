//! Progress on standard error: one live line on a terminal, a plain line now and then elsewhere; warnings about rows;
//! the summary.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vgen_core::Fault;
use vgen_dataset::Origin;
use vgen_run::{Observer, Progress, Summary};

use crate::messages::Messages;

/// So many failed rows are shown; the others are in the output.
const SHOWN_FAILURES: u64 = 10;
/// Steps of the bar.
const STEPS: u64 = 1000;

/// Tells a person how the run goes.
pub(crate) struct Reporter {
    messages: Messages,
    bar: ProgressBar,
    interval: Duration,
    last_line: Instant,
    failures: u64,
}

impl Reporter {
    /// A live line if standard error is a terminal and standard output is not filling it, too.
    pub(crate) fn new(messages: &Messages, rows_to_terminal: bool, interval: Duration) -> Self {
        let live = io::stderr().is_terminal() && !rows_to_terminal && !messages.is_quiet();
        let bar = if live { ProgressBar::new(STEPS) } else { ProgressBar::hidden() };
        if live {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        Self { messages: messages.clone().above(bar.clone()), bar, interval, last_line: Instant::now(), failures: 0 }
    }
}

impl Observer for Reporter {
    fn progress(&mut self, progress: &Progress) {
        if !self.bar.is_hidden() {
            let style = match progress.share {
                Some(_) => ProgressStyle::with_template("{bar:24} {msg}"),
                None => ProgressStyle::with_template("{spinner} {msg}"),
            };
            if let Ok(style) = style {
                self.bar.set_style(style);
            }
            self.bar.set_position((progress.share.unwrap_or(0.0) * STEPS as f64) as u64);
            self.bar.set_message(line(progress));
        } else if self.last_line.elapsed() >= self.interval {
            self.last_line = Instant::now();
            self.messages.info(line(progress));
        }
    }

    fn row_failed(&mut self, number: u64, origin: &Origin, fault: &Fault) {
        self.failures += 1;
        if self.failures <= SHOWN_FAILURES {
            // Faults of reading and rendering name the place themselves.
            let named = fault.message.contains(&*origin.name);
            let place = if named { String::new() } else { format!("row {number} ({origin}): ") };
            self.messages.warning(format!("{place}{} [{}]", fault.message, fault.code));
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

fn line(progress: &Progress) -> String {
    let mut line = format!(
        "{} rows, {} failed, {:.1} rows/s, {:.1} tokens/s",
        progress.rows,
        progress.failed_rows,
        progress.rows_per_second(),
        progress.tokens_per_second(),
    );
    if let Some(eta) = progress.eta().filter(|_| progress.share.is_some_and(|share| share < 1.0)) {
        line.push_str(&format!(", {} left", duration(eta)));
    }
    line
}

/// Says how a run ended.
pub(crate) fn summary(messages: &Messages, summary: &Summary) {
    let progress = summary.progress();
    messages.info(format!(
        "{}: {} rows, {} failed, {} prompt tokens, {} answer tokens in {}: {:.1} rows/s, {:.1} tokens/s",
        if summary.interrupted { "interrupted" } else { "done" },
        summary.rows,
        summary.failed_rows,
        summary.input_tokens,
        summary.output_tokens,
        duration(summary.elapsed),
        progress.rows_per_second(),
        progress.tokens_per_second(),
    ));
    for (code, count) in &summary.errors {
        messages.info(format!("  {code}: {count}"));
    }
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
}
