//! `vgen report`: an output as a page to look at.

use vgen_core::Fault;
use vgen_run::report::{ReportOptions, default_file, report};

use crate::args::ReportCommand;
use crate::exit;
use crate::messages::Messages;

/// Writes the report; says where it is.
pub(crate) fn run(args: ReportCommand, messages: &Messages) -> Result<u8, Fault> {
    let file = args.file.unwrap_or_else(|| default_file(&args.outputs));
    let options = ReportOptions {
        outputs: args.outputs,
        file: file.clone(),
        overwrite: args.overwrite,
        most_rows: args.rows as usize,
        image_size: args.image_size,
        image_column: args.image_column,
        key: args.key,
        fetch_images: args.fetch_images,
        program: format!("vgen {}", env!("CARGO_PKG_VERSION")),
    };
    let reported = report(&options)?;
    for warning in &reported.warnings {
        messages.warning(warning);
    }
    if reported.images_missing > 0 {
        messages.info(format!("{} images could not be shown; the report says why", reported.images_missing));
    }
    let megabytes = reported.bytes as f64 / 1e6;
    messages.info(format!("{}: {} rows shown, {megabytes:.1} MB", file.display(), reported.shown));
    Ok(exit::DONE)
}
