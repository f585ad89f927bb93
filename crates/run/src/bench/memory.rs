//! The most memory that this process took.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A number that not every machine tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Told {
    /// The number, in the unit that the field's name states.
    pub value: Option<f64>,
    /// Where it comes from, or why there is none.
    pub source: String,
}

/// Begins anew with the process's peak, where the system lets it; so that a reading's peak is its own.
pub(super) fn begin() -> bool {
    // 5 resets the peak resident set size: proc(5).
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Most bytes resident since `begin`.
pub(super) fn peak(begun: bool) -> Told {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
    let source = match (kib, begun) {
        (None, _) => "not readable: /proc/self/status has no VmHWM",
        (_, true) => "VmHWM of /proc/self/status, begun anew for the reading",
        (_, false) => "VmHWM of /proc/self/status since the process began",
    };
    Told { value: kib.map(|kib| kib * 1024.0), source: source.to_owned() }
}
