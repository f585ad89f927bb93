//! The local engine: from `[backend]` with `kind = "local"` to a loaded model.

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::str::FromStr;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use vgen_backends::local::{LoadEvent, LocalBackend, LocalOptions, ModelSource};
use vgen_core::{Backend, Fault};
use vgen_mllama::hub::HubEvent;

use crate::demo;
use crate::hub;
use crate::messages::Messages;
use crate::table::{Images, LocalTable};

/// Loads the model; says on the way how far it is.
pub(crate) fn open(table: &LocalTable, images: &Images, messages: &Messages) -> Result<Arc<dyn Backend>, Fault> {
    let options = options(table, images)?;
    let loading = Loading::new(messages);
    Ok(Arc::new(LocalBackend::load(options, move |event| loading.show(event))?))
}

fn options(table: &LocalTable, images: &Images) -> Result<LocalOptions, Fault> {
    let model = match table.model.as_deref() {
        None => {
            return Err(Fault::stop("usage.model", "no model is named")
                .with_hint("name a folder or a repository with --model, or try --demo"));
        }
        Some(demo::MODEL) => demo::model(),
        Some(name) => ModelSource::Named(name.to_owned()),
    };
    let mut options = LocalOptions::new(model);
    options.hub = hub::options(table.revision.clone());
    set(&mut options.device, "device", table.device.as_deref())?;
    set(&mut options.dtype, "dtype", table.dtype.as_deref())?;
    set(&mut options.reference, "reference", table.reference.as_deref())?;
    options.batch_size = table.batch_size.unwrap_or(options.batch_size);
    options.step_tokens = table.step_tokens.unwrap_or(options.step_tokens);
    options.threads = table.threads;
    options.prepare_threads = table.prepare_threads.unwrap_or(options.prepare_threads);
    options.image_cache_bytes = table.image_cache.unwrap_or(options.image_cache_bytes);
    options.prepare.template_name = table.chat_template.clone();
    if let Some(date) = &table.date {
        options.prepare.date_string = Some(date.clone());
    }
    let limits = &mut options.prepare.limits;
    limits.max_bytes = images.max_bytes.map_or(limits.max_bytes, |size| usize::try_from(size).unwrap_or(usize::MAX));
    limits.max_pixels = images.max_pixels.unwrap_or(limits.max_pixels);
    limits.max_redirects = images.max_redirects.unwrap_or(limits.max_redirects);
    limits.retries = images.retries.unwrap_or(limits.retries);
    limits.connect_timeout = images.connect_timeout.unwrap_or(limits.connect_timeout);
    limits.timeout = images.timeout.unwrap_or(limits.timeout);
    limits.allow_private_addresses = images.allow_private_addresses.unwrap_or(limits.allow_private_addresses);
    Ok(options)
}

fn set<T: FromStr<Err: Display>>(option: &mut T, name: &str, text: Option<&str>) -> Result<(), Fault> {
    if let Some(text) = text {
        *option = text.parse().map_err(|error| Fault::stop("config.value", format!("[backend] {name}: {error}")))?;
    }
    Ok(())
}

/// Says how far loading is: live on a terminal, else in a few lines.
struct Loading {
    messages: Messages,
    bar: ProgressBar,
}

impl Loading {
    fn new(messages: &Messages) -> Self {
        let live = io::stderr().is_terminal() && !messages.is_quiet();
        let bar = if live { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}") {
            bar.set_style(style);
        }
        Self { messages: messages.clone().above(bar.clone()), bar }
    }

    fn show(&self, event: LoadEvent) {
        match event {
            LoadEvent::Hub(HubEvent::Plan { files, bytes }) => {
                self.messages.info(format!("downloading {files} files, {:.2} GiB", gib(bytes)));
            }
            LoadEvent::Hub(HubEvent::File { file, bytes, total }) => {
                self.bar.set_length(total);
                self.bar.set_position(bytes);
                self.bar.set_message(format!("{file}, {:.2} of {:.2} GiB", gib(bytes), gib(total)));
                if bytes == total {
                    self.messages.info(format!("downloaded {file}"));
                }
            }
            LoadEvent::Hub(HubEvent::Retry { file, reason }) => {
                self.messages.warning(format!("download of {file} starts again: {reason}"));
            }
            LoadEvent::Layers { done, total } => {
                self.bar.set_length(total as u64);
                self.bar.set_position(done as u64);
                self.bar.set_message(format!("loading layer {done} of {total}"));
            }
            LoadEvent::Ready { device, dtype, seconds } => {
                self.bar.finish_and_clear();
                self.messages.info(format!("model ready on {device} in {dtype} after {seconds:.1} s"));
            }
            // What a later engine tells is not for this program.
            _ => {}
        }
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
