//! Measures backends on the same rows: which is faster, cheaper, and whether they agree.
//!
//! A [`Bench`] asks each [`Target`] about the [`Rows`] under each [`Load`], several times, and makes a [`Report`]: one
//! JSON, from which [`markdown`], [`csv`](fn@csv) and [`html`](fn@html) derive. [`compare`](fn@compare) puts two reports side by side.

mod agreement;
mod clock;
mod compare;
mod drive;
mod energy;
mod html;
mod load;
mod machine;
mod markdown;
mod memory;
mod metrics;
mod plots;
mod random;
mod reading;
mod report;
mod rows;
mod runner;
mod saturation;
pub mod serve;
mod statistics;
mod table;
mod taken;
mod workload;

pub use agreement::{Agreement, CountedIn, Differing, Tokenize};
pub use clock::Clock;
pub use compare::{Compared, Comparison, compare};
pub use html::html;
pub use load::Load;
pub use machine::machine;
pub use markdown::markdown;
pub use memory::Told;
pub use metrics::{Better, Metric};
pub use report::{
    Cell, FORM, Limits, Machine, Prices, Report, RequestRecord, RowSet, Run, Saturation, Sweep, TargetReport,
};
pub use rows::{BenchRow, Rows};
pub use runner::{Bench, BenchError, Opened, Step, Target};
pub use statistics::{Quantiles, Ratio, SIGNIFICANCE, Spread, Verdict};
pub use table::csv;
pub use workload::Workload;

/// The JSON schema of [`Report`].
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(Report).to_value()
}
