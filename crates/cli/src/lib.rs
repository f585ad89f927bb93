//! The command lines `vgen`, `vgen-local` and `vgen-remote`: arguments, config file, messages, exit codes. Decides nothing else.
//!
//! What was typed (`args`) and what the config file says become `settings`, each with its origin; `resolve`
//! makes the typed configuration of them; `commands` run it.

mod args;
mod backend;
#[doc = include_str!("../docs/clusters.md")]
pub mod clusters {}
mod commands;
mod config_file;
mod demo;
pub mod exit;
mod hub;
mod identity;
mod interrupt;
mod keys;
mod local;
mod messages;
mod print_config;
mod progress;
mod quantity;
mod recorded;
mod remote;
mod resolve;
mod settings;
mod table;
mod version;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use vgen_core::Fault;

use args::{Command, LocalArgs, LogFormat, MessageFlags, VgenArgs};
use messages::Messages;
use remote::flags::RemoteArgs;

/// The program `vgen`.
pub fn vgen(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: VgenArgs = match parse(arguments) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let messages = Messages::new(args.messages);
    let outcome = match args.command {
        Command::Local(args) => commands::local(*args, &messages),
        Command::Remote(args) => commands::remote(*args, &messages),
        Command::Run(args) => commands::run(*args, &messages),
        Command::Check(args) => commands::check(*args, &messages),
        Command::Plan(args) => commands::plan(*args, &messages),
        Command::Verify(args) => commands::verify(*args, &messages),
        Command::Report(args) => commands::report(args, &messages),
        Command::Bench(args) => commands::bench(*args, &messages),
        Command::Merge(args) => commands::merge(&args, &messages),
        Command::Quantize(args) => commands::quantize(&args, &messages),
        Command::Render(args) => commands::render(*args, &messages),
        Command::Completions(args) => commands::completions(&args),
        Command::Man(args) => commands::man(&args),
    };
    end(outcome, &messages)
}

/// The program `vgen-local`.
pub fn vgen_local(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: LocalArgs = match parse(arguments) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let messages = Messages::new(args.messages);
    end(commands::local(*args.local, &messages), &messages)
}

/// The program `vgen-remote`.
pub fn vgen_remote(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: RemoteArgs = match parse(arguments) {
        Ok(args) => args,
        Err(code) => return code,
    };
    let messages = Messages::new(args.messages);
    end(commands::remote(*args.remote, &messages), &messages)
}

fn end(outcome: Result<u8, Fault>, messages: &Messages) -> ExitCode {
    ExitCode::from(outcome.unwrap_or_else(|fault| {
        let code = exit::of_fault(&fault);
        if code != exit::DONE {
            messages.error(&fault);
        }
        code
    }))
}

fn parse<A: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<A, ExitCode> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    A::try_parse_from(&arguments).map_err(|error| usage(&error, &arguments))
}

/// Prints clap's own words: help and version are data, everything else is a usage error, in JSON if that was asked for
/// as far as one can tell.
fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let words: Vec<_> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let json = words.contains(&"--log-format=json") || words.windows(2).any(|two| two == ["--log-format", "json"]);
    if error.use_stderr() && json {
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
        let flags = MessageFlags { log_format: LogFormat::Json, ..MessageFlags::default() };
        Messages::new(flags).error(&Fault::stop("usage.arguments", text));
        return ExitCode::from(exit::USAGE);
    }
    // A reader that went away before the help has seen enough.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::DONE })
}
