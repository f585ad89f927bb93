//! `vgen quantize`: a checkpoint as one GGUF file.

use std::path::Path;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use vgen_core::Fault;
use vgen_mllama::{Checkpoint, Config, WeightTypes, hub, quantize};

use crate::args::QuantizeCommand;
use crate::messages::Messages;
use crate::{exit, hub as hub_options};

pub(super) fn run(args: &QuantizeCommand, messages: &Messages) -> Result<u8, Fault> {
    let out = &args.out;
    if out.exists() && !args.overwrite {
        return Err(Fault::stop("output.exists", format!("{} exists", out.display()))
            .with_hint("choose another name, or replace it with --overwrite"));
    }
    let checkpoint = if Path::new(&args.model).is_file() {
        Checkpoint::gguf(&args.model)?
    } else {
        let accept = |config: &str| Config::from_json(config).map(|_| ()).map_err(Fault::from);
        let options = hub_options::options(args.revision.clone());
        Checkpoint::folder(hub::resolve(&args.model, &options, &accept, None).map_err(Fault::from)?.path)
    };
    let types = WeightTypes { all: Some(args.weight_type), overrides: args.tensor_type.clone() };
    let bar = if messages.draws() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:24} tensor {pos} of {len} {eta}") {
        bar.set_style(style);
    }
    quantize(&checkpoint, &types, out, &|done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let size = std::fs::metadata(out).map_or(0, |file| file.len());
    messages.info(format!("{} written, {}", out.display(), HumanBytes(size)));
    Ok(exit::DONE)
}
