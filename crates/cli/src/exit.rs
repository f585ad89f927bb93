//! Exit codes. They are part of the interface: scripts may rely on them.

use vgen_core::Fault;

/// All rows are done. Also if the reader of standard output went away: it has what it wanted.
pub const DONE: u8 = 0;
/// The run finished, some rows failed; their output rows have an `error`.
pub const SOME_ROWS_FAILED: u8 = 1;
/// A mistake in the arguments or the configuration, or an output that can't be written.
pub const USAGE: u8 = 2;
/// The input is missing, empty or can't be read.
pub const INPUT: u8 = 3;
/// The model is missing, broken or of an unsupported kind.
pub const MODEL: u8 = 4;
/// The model and its caches don't fit in the memory allowed.
pub const PLAN: u8 = 5;
/// The backend can't go on: a lost device, an endpoint that refuses every request.
pub const BACKEND: u8 = 6;
/// The spend cap is reached; what was paid for is written.
pub const SPEND_CAP: u8 = 7;
/// Interrupted by Ctrl-C or a termination signal; what was finished is written.
pub const INTERRUPTED: u8 = 130;

/// The exit code of a run that a fault ended, by the first word of the fault's code.
pub fn of_fault(fault: &Fault) -> u8 {
    match &*fault.code {
        "output.closed" => return DONE,
        "run.max_errors" => return SOME_ROWS_FAILED,
        "resume.input_changed" => return INPUT,
        _ => {}
    }
    match fault.code.as_ref() {
        "remote.spend_cap" => return SPEND_CAP,
        "remote.config" | "remote.unsupported_parameter" => return USAGE,
        _ => {}
    }
    match fault.code.split('.').next().unwrap_or_default() {
        "usage" | "config" | "task" | "template" | "sampling" | "constraint" | "device" | "output" | "row"
        | "resume" | "record" | "merge" | "lint" | "image" | "prompt" => USAGE,
        "input" => INPUT,
        "model" | "hub" | "checkpoint" | "tokenizer" | "chat" | "processor" | "weights" => MODEL,
        "plan" | "memory" => PLAN,
        _ => BACKEND,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_decide() {
        for (code, exit) in [
            ("output.closed", DONE),
            ("output.write", USAGE),
            ("config.unknown_key", USAGE),
            ("input.empty", INPUT),
            ("resume.differs", USAGE),
            ("resume.input_changed", INPUT),
            ("run.max_errors", SOME_ROWS_FAILED),
            ("hub.not_found", MODEL),
            ("plan.too_large", PLAN),
            ("backend.lost", BACKEND),
            ("remote.unauthorized", BACKEND),
            ("remote.spend_cap", SPEND_CAP),
            ("remote.unsupported_parameter", USAGE),
            ("constraint.invalid", USAGE),
        ] {
            assert_eq!(of_fault(&Fault::stop(code, "")), exit, "{code}");
        }
    }
}
