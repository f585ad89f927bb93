//! The command lines, exactly as typed: one module for each command; [`Flags::settings`] turns flags into settings.
//! Parsing touches no file.

mod bench;
mod check;
mod flags;
mod local;
mod merge;
mod plan;
mod quantize;
mod question;
mod render;
mod report;
mod run;
mod shell;
mod verify;

use clap::{Parser, Subcommand};

pub(crate) use self::bench::BenchCommand;
pub(crate) use self::check::CheckCommand;
pub(crate) use self::flags::{Color, Flags, LogFormat, MessageFlags, ModelFlags, SpeedFlags};
pub(crate) use self::local::{LocalArgs, LocalCommand};
pub(crate) use self::merge::MergeCommand;
pub(crate) use self::plan::PlanCommand;
pub(crate) use self::quantize::QuantizeCommand;
pub(crate) use self::question::QuestionFlags;
pub(crate) use self::render::RenderCommand;
pub(crate) use self::report::ReportCommand;
pub(crate) use self::run::RunCommand;
pub(crate) use self::shell::{CompletionsCommand, ManCommand, Program};
pub(crate) use self::verify::VerifyCommand;
use crate::remote::flags::RemoteCommand;
use crate::version;

pub(crate) const EXIT_CODES: &str = "Exit codes: 0 all rows done; 1 finished, some rows failed (see their column \"error\"); \
2 mistake in arguments, configuration or output; 3 input unreadable; 4 model missing or unsupported; \
5 does not fit in memory; 6 backend lost; 7 spend cap reached; 130 interrupted.";

/// Asks a vision model about every row of a data set, offline or through an endpoint.
#[derive(Debug, Parser)]
#[command(name = "vgen", version, long_version = version::LONG, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct VgenArgs {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) messages: MessageFlags,
}

/// What `vgen` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a model in this process; the same as the program vgen-local.
    #[command(after_help = EXIT_CODES)]
    Local(Box<LocalCommand>),
    /// Asks an endpoint or another server; the same as the program vgen-remote.
    #[command(after_help = EXIT_CODES)]
    Remote(Box<RemoteCommand>),
    /// Runs what a config file says; flags override it.
    #[command(after_help = EXIT_CODES)]
    Run(Box<RunCommand>),
    /// Does everything that a run does before its first answer: configuration, rows, images, model, output, memory, time.
    #[command(after_help = EXIT_CODES)]
    Check(Box<CheckCommand>),
    /// Says what a run of a local model takes, from its configuration and the headers of images alone.
    #[command(after_help = EXIT_CODES)]
    Plan(Box<PlanCommand>),
    /// Runs a sample of a finished local run again, alone and beside others, and compares.
    #[command(after_help = EXIT_CODES)]
    Verify(Box<VerifyCommand>),
    /// Measures backends on the same rows: which is faster, cheaper, and whether they agree.
    #[command(after_help = EXIT_CODES)]
    Bench(Box<BenchCommand>),
    /// Joins the outputs of shards, after a check that every row is there once.
    Merge(MergeCommand),
    /// Makes a page of a run to look at, or of two side by side: one file, to be opened in a browser.
    Report(ReportCommand),
    /// Writes a checkpoint as one GGUF file with weights of fewer bits, which loads in seconds.
    Quantize(QuantizeCommand),
    /// Prints the messages that would be sent, {"messages": [...]} for each row, without loading a model.
    Render(Box<RenderCommand>),
    /// Prints the completions of a shell: source <(vgen completions bash), and vgen-local and vgen-remote alike.
    Completions(CompletionsCommand),
    /// Prints the manual page, or writes the pages of all commands.
    Man(ManCommand),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::keys::{self, KEYS};
    use crate::remote::flags::RemoteArgs;

    #[test]
    fn command_lines_are_consistent() {
        VgenArgs::command().debug_assert();
        LocalArgs::command().debug_assert();
        RemoteArgs::command().debug_assert();
    }

    #[test]
    fn every_flag_sets_a_key_of_the_configuration() {
        let line = "vgen-local --input a --output b --overwrite --limit 3 --max-line-bytes 1M --system-prompt s \
            --input-format jsonl --glob g --instruction i --instruction-suffix s --skip 1 --sample 2 --shard 1/2 \
            --output-format jsonl --resume auto --retry-failed --only c --sync-seconds 1 --sync-rows 1 \
            --row-group-rows 1 --output-images keep --sidecar-suffix s --max-errors 3 \
            --template t --columns a,b --image-type url --image-column i --image-position as-given \
            --image-required=false --num-generations 2 --group-generations --no-raw-input --no-raw-output \
            --input-mapping a=b --output-mapping c=d --undefined lenient --max-new-tokens 1 --min-new-tokens 1 \
            --temperature 1 --top-p 1 --top-k 1 --min-p 0 --typical-p 1 --repetition-penalty 1 \
            --frequency-penalty -1 --presence-penalty -1 --logit-bias 3=-1.5 --bad-words x --stop y --include-stop \
            --stop-token-ids 1,2 --ignore-eos --seed 1 --logprobs --top-logprobs 2 --echo --regex r --model m \
            --revision r --devices cpu,cpu --fixed-shapes false --dtype f32 --tensor-type a=f32 --kv-dtype f32 \
            --reference hf4 --batch-size 2 --step-tokens 9 --threads 2 --prepare-threads 1 --image-cache 1GiB \
            --memory 1GiB \
            --max-image-bytes 1 --max-image-pixels 1 --image-timeout 1 --max-redirects 1 \
            --allow-private-addresses --row-timeout 1 --quiet --stats s --progress-interval 1 --progress json --lint off \
            --structured-output-column s";
        let Ok(args) = LocalArgs::try_parse_from(line.split_whitespace()) else { unreachable!("the line is valid") };
        let mut settings = args.local.flags.settings();
        args.local.model.add_to(&mut settings);
        let local = keys::backend("local").unwrap_or_default();
        for (table, name, _) in settings.iter() {
            let known = KEYS.iter().chain(local).any(|key| (key.table, key.name) == (table, name));
            assert!(known, "[{table}] {name}");
        }
        let given: Vec<_> = line.split_whitespace().filter(|word| word.starts_with("--")).collect();
        assert_eq!(settings.iter().count(), given.len());
        // What is not in the line has no key of its own, or excludes another flag of the line.
        let others = [
            "--demo",
            "--device",
            "--image",
            "--prompt",
            "--json-schema",
            "--choice",
            "--print-config",
            "--color",
            "--log-format",
        ];
        for flag in LocalArgs::command().get_arguments().filter_map(|arg| arg.get_long()) {
            let flag = format!("--{flag}");
            let seen = given.iter().any(|word| word.split('=').next() == Some(&flag));
            assert!(seen || others.contains(&flag.as_str()), "{flag}");
        }
    }
}
