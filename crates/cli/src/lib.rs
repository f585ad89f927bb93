//! The command lines `vgen`, `vgen-local` and `vgen-remote`: arguments, config file, messages, exit codes. Decides nothing else.
//!
//! What was typed (`args`) and what the config file says become `settings`, each with its origin; `resolve`
//! makes the typed configuration of them; `commands` run it.

mod args;
mod backend;
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

use args::{Command, LocalArgs, VgenArgs};
use messages::Messages;
use remote::flags::RemoteArgs;

/// The program `vgen`.
pub fn vgen(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match VgenArgs::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let messages = Messages::new(args.color);
    let outcome = match args.command {
        Command::Local(args) => commands::local(*args, &messages),
        Command::Remote(args) => commands::remote(*args, &messages),
        Command::Run(args) => commands::run(*args, &messages),
        Command::Plan(args) => commands::plan(*args, &messages),
        Command::Verify(args) => commands::verify(*args, &messages),
        Command::Bench(args) => commands::bench(*args, &messages),
        Command::Merge(args) => commands::merge(&args, &messages),
        Command::Quantize(args) => commands::quantize(&args, &messages),
        Command::Render(args) => commands::render(*args, &messages),
    };
    end(outcome, &messages)
}

/// The program `vgen-local`.
pub fn vgen_local(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match LocalArgs::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let messages = Messages::new(args.color);
    end(commands::local(*args.local, &messages), &messages)
}

/// The program `vgen-remote`.
pub fn vgen_remote(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match RemoteArgs::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let messages = Messages::new(args.color);
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

/// Prints clap's own words: help and version are data, everything else is a usage error.
fn usage(error: &clap::Error) -> ExitCode {
    // A reader that went away before the help has seen enough.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::DONE })
}
