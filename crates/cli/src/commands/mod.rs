//! The commands: each takes its arguments and returns the exit code.

mod ahead;
mod ask;
mod bench;
mod check;
mod input;
mod lint;
mod merge;
mod output;
mod plan;
mod quantize;
mod render;
mod report;
mod rows;
mod shell;
mod survey;
mod verify;

use std::io::Write;
use std::path::Path;

use vgen_core::Fault;

pub(crate) use self::shell::{completions, man};
use crate::args::{
    BenchCommand, CheckCommand, Flags, LocalCommand, MergeCommand, ModelFlags, PlanCommand, QuantizeCommand,
    QuestionFlags, RenderCommand, ReportCommand, RunCommand, VerifyCommand,
};
use crate::messages::Messages;
use crate::remote::flags::RemoteCommand;
use crate::settings::{Origin, Settings};
use crate::{config_file, demo, exit, print_config, resolve};

/// `vgen-local` and `vgen local`.
pub(crate) fn local(args: LocalCommand, messages: &Messages) -> Result<u8, Fault> {
    let LocalCommand { demo, question, flags, model } = args;
    let print = flags.print_config;
    let mut settings = flags.settings();
    model.add_to(&mut settings);
    settings.set("backend", "kind", "local".into(), Origin::Command("vgen-local"));
    if demo {
        settings.set("backend", "model", demo::MODEL.into(), Origin::Flag("--demo"));
    }
    one_command(settings, question, demo, print, messages)
}

/// `vgen-remote` and `vgen remote`.
pub(crate) fn remote(args: RemoteCommand, messages: &Messages) -> Result<u8, Fault> {
    let RemoteCommand { question, flags, remote } = args;
    let print = flags.print_config;
    let mut settings = flags.settings();
    remote.add_to(&mut settings);
    settings.set("backend", "kind", "inference-endpoints".into(), Origin::Command("vgen-remote"));
    if question.prompt.is_some() && settings.get("backend", "stream").is_none() {
        settings.set("backend", "stream", true.into(), Origin::Command("--prompt"));
    }
    one_command(settings, question, false, print, messages)
}

/// A command without a config file: one question, or rows.
fn one_command(
    mut settings: Settings,
    question: QuestionFlags,
    demo: bool,
    print: bool,
    messages: &Messages,
) -> Result<u8, Fault> {
    let QuestionFlags { image, prompt } = question;
    if prompt.is_some() && image.is_empty() && settings.get("task", "image_required").is_none() {
        // A question without an image was meant as one.
        settings.set("task", "image_required", false.into(), Origin::Command("no --image"));
    }
    if print {
        return show_config(&settings);
    }
    let config = resolve::resolve(&settings)?;
    let messages = messages.of_run(&config.run);
    match prompt {
        Some(prompt) => ask::ask(&config, &prompt, &image, &messages),
        None if demo && config.input.place.is_none() => rows::demo(config, &messages),
        None => rows::run(config, &messages),
    }
}

/// `vgen run`.
pub(crate) fn run(args: RunCommand, messages: &Messages) -> Result<u8, Fault> {
    let print = args.flags.print_config;
    let mut settings = config_file::read(&args.config)?;
    let mut flags = args.flags.settings();
    args.model.add_to(&mut flags);
    args.remote.add_to(&mut flags);
    settings.overlay(flags);
    if print {
        return show_config(&settings);
    }
    let config = resolve::resolve(&settings)?;
    let messages = messages.of_run(&config.run);
    rows::run(config, &messages)
}

/// `vgen plan`.
pub(crate) fn plan(args: PlanCommand, messages: &Messages) -> Result<u8, Fault> {
    let PlanCommand { config, json, speed, device_model, flags, model } = args;
    let config = resolve::resolve(&local_settings(config.as_deref(), flags, model, "vgen plan")?)?;
    let messages = messages.of_run(&config.run);
    if let Some(device) = device_model {
        return plan::predict(&config, &device, json, &messages);
    }
    plan::plan(&config, &speed, json, &messages)
}

/// `vgen check`.
pub(crate) fn check(args: CheckCommand, messages: &Messages) -> Result<u8, Fault> {
    let CheckCommand { config, rows, all, fetch, json, speed, flags, model, remote } = args;
    let print = flags.print_config;
    let mut settings = match &config {
        Some(config) => config_file::read(config)?,
        None => Settings::default(),
    };
    let mut flags = flags.settings();
    model.add_to(&mut flags);
    remote.add_to(&mut flags);
    settings.overlay(flags);
    if settings.get("backend", "kind").is_none() {
        // Without a config file, as vgen remote if there is a server, else as vgen local.
        let server =
            ["model_id", "endpoint_name", "base_url"].iter().any(|name| settings.get("backend", name).is_some());
        let kind = if server { "inference-endpoints" } else { "local" };
        settings.set("backend", "kind", kind.into(), Origin::Command("vgen check"));
    }
    if print {
        return show_config(&settings);
    }
    let wanted = check::Wanted { rows: (!all).then_some(rows), fetch, json, speed };
    check::check(&settings, &wanted, messages)
}

/// `vgen verify`.
pub(crate) fn verify(args: VerifyCommand, messages: &Messages) -> Result<u8, Fault> {
    let VerifyCommand { answers, config, sample_seed, json, mut flags, model } = args;
    let sample = flags.rows.sample.take().unwrap_or(verify::SAMPLE);
    let mut settings = local_settings(config.as_deref(), flags, model, "vgen verify")?;
    if settings.get("input", "sample").is_none()
        && let Some(taken) = verify::taken_sample(&answers)
    {
        settings.set("input", "sample", taken, Origin::Command("the run's record"));
    }
    let config = resolve::resolve(&settings)?;
    let wanted = verify::Wanted { answers, sample: sample as usize, seed: sample_seed, json };
    verify::verify(&config, &wanted, &messages.of_run(&config.run))
}

/// The settings of a local run: its config file, and flags over it.
fn local_settings(
    config: Option<&Path>,
    flags: Flags,
    model: ModelFlags,
    command: &'static str,
) -> Result<Settings, Fault> {
    let mut settings = match config {
        Some(config) => config_file::read(config)?,
        None => Settings::default(),
    };
    if config.is_none() {
        settings.set("backend", "kind", "local".into(), Origin::Command(command));
    }
    let mut flags = flags.settings();
    model.add_to(&mut flags);
    settings.overlay(flags);
    Ok(settings)
}

/// `vgen bench`.
pub(crate) fn bench(args: BenchCommand, messages: &Messages) -> Result<u8, Fault> {
    bench::bench(args, messages)
}

/// `vgen quantize`.
pub(crate) fn quantize(args: &QuantizeCommand, messages: &Messages) -> Result<u8, Fault> {
    quantize::run(args, messages)
}

/// `vgen render`.
pub(crate) fn render(args: RenderCommand, messages: &Messages) -> Result<u8, Fault> {
    let mut settings = Settings::default();
    match &args.config {
        Some(config) => {
            settings = config_file::read(config)?;
            // That file is for answers.
            settings.unset("output", "path");
        }
        None => settings.set("backend", "kind", "local".into(), Origin::Command("vgen render")),
    }
    settings.overlay(args.settings());
    render::render(&resolve::resolve(&settings)?, messages)
}

fn show_config(settings: &Settings) -> Result<u8, Fault> {
    // Only what can be run is worth printing.
    resolve::resolve(settings)?;
    print(&print_config::text(settings))?;
    Ok(exit::DONE)
}

fn print(text: &str) -> Result<(), Fault> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Fault::stop("output.closed", "the reader of stdout went away"),
        _ => Fault::stop("output.write", format!("writing to stdout failed: {error}")),
    })
}

/// `vgen report`.
pub(crate) fn report(args: ReportCommand, messages: &Messages) -> Result<u8, Fault> {
    report::run(args, messages)
}

/// `vgen merge`.
pub(crate) fn merge(args: &MergeCommand, messages: &Messages) -> Result<u8, Fault> {
    merge::run(args, messages)
}
