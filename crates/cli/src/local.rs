//! The local engine: from `[backend]` with `kind = "local"` to a loaded model.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use vgen_backends::local::{Bytes, LoadEvent, LocalBackend, LocalOptions, ModelSource};
use vgen_core::{Backend, Fault, SamplingParams};
use vgen_mllama::hub::HubEvent;
use vgen_task::image::{ImageLimits, KeptImages};

use crate::messages::Messages;
use crate::table::{Images, LocalTable};
use crate::{demo, hub};

/// Loads the model, once it can honour `sampling`; says on the way how far it is.
pub(crate) fn open(
    table: &LocalTable,
    images: &Images,
    sampling: &SamplingParams,
    kept: Option<&Arc<KeptImages>>,
    messages: &Messages,
) -> Result<Arc<dyn Backend>, Fault> {
    let mut options = options(table, images)?;
    options.prepare.kept = kept.cloned();
    options.sampling = sampling.clone();
    let loading = Loading::new(messages);
    let backend = LocalBackend::load(options, move |event| loading.show(event))?;
    Ok(Arc::new(backend))
}

/// The engine's options as the configuration gives them.
pub(crate) fn options(table: &LocalTable, images: &Images) -> Result<LocalOptions, Fault> {
    let Some(model) = &table.model else {
        return Err(Fault::stop("usage.model", "no model is named")
            .with_hint("name a folder or a repository with --model, or try --demo"));
    };
    let source = match model.as_str() {
        demo::MODEL => ModelSource::Embedded { name: demo::MODEL, files: demo::model_files() },
        name => ModelSource::Named(name.to_owned()),
    };
    let mut options = LocalOptions::new(source);
    options.hub = hub::options(table.revision.clone());
    set(&mut options.device, "device", &table.device)?;
    for text in &table.devices {
        let parsed =
            text.parse().map_err(|error| Fault::stop("config.value", format!("[backend] devices: {error}")))?;
        options.devices.push(parsed);
    }
    options.fixed_shapes = table.fixed_shapes.unwrap_or(options.fixed_shapes);
    set(&mut options.dtype, "dtype", &table.dtype)?;
    set(&mut options.kv_dtype, "kv_dtype", &table.kv_dtype)?;
    for text in &table.tensor_types {
        let parsed =
            text.parse().map_err(|error| Fault::stop("config.value", format!("[backend] tensor_types: {error}")))?;
        options.weight_overrides.push(parsed);
    }
    set(&mut options.reference, "reference", &table.reference)?;
    options.batch_size = table.batch_size.unwrap_or(options.batch_size);
    options.fill_device = table.batch_size.is_none();
    options.step_tokens = table.step_tokens.unwrap_or(options.step_tokens);
    options.threads = table.threads;
    options.prepare_threads = table.prepare_threads.unwrap_or(options.prepare_threads);
    options.image_cache_bytes = table.image_cache.unwrap_or(options.image_cache_bytes);
    options.memory = table.memory;
    options.prepare.template_name = table.chat_template.clone();
    if let Some(date) = &table.date {
        options.prepare.date_string = Some(date.clone());
    }
    options.prepare.limits = limits(images);
    Ok(options)
}

fn set<T: FromStr<Err: Display>>(option: &mut T, name: &str, text: &Option<String>) -> Result<(), Fault> {
    if let Some(text) = text {
        *option = text.parse().map_err(|error| Fault::stop("config.value", format!("[backend] {name}: {error}")))?;
    }
    Ok(())
}

/// The limits of images as the configuration gives them.
pub(crate) fn limits(images: &Images) -> ImageLimits {
    let default = ImageLimits::default();
    ImageLimits {
        max_bytes: images.max_bytes.map_or(default.max_bytes, |n| usize::try_from(n).unwrap_or(usize::MAX)),
        max_pixels: images.max_pixels.unwrap_or(default.max_pixels),
        max_redirects: images.max_redirects.unwrap_or(default.max_redirects),
        retries: images.retries.unwrap_or(default.retries),
        connect_timeout: images.connect_timeout.unwrap_or(default.connect_timeout),
        timeout: images.timeout.unwrap_or(default.timeout),
        allow_private_addresses: images.allow_private_addresses.unwrap_or(default.allow_private_addresses),
    }
}

/// Shows how far a download is: a bar on a terminal, a line when it begins elsewhere.
struct Loading {
    messages: Messages,
    bar: ProgressBar,
    files: Mutex<HashMap<String, u64>>,
}

impl Loading {
    fn new(messages: &Messages) -> Self {
        let bar = if messages.draws() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        Self { messages: messages.clone().above(bar.clone()), bar, files: Mutex::default() }
    }

    fn show(&self, event: LoadEvent) {
        match event {
            LoadEvent::Hub(HubEvent::Plan { files, bytes }) => {
                self.messages.info(format!("downloading {files} files, {}", HumanBytes(bytes)));
                if let Ok(style) = ProgressStyle::with_template("{bar:24} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
                {
                    self.bar.set_style(style);
                }
                self.bar.set_length(bytes);
            }
            LoadEvent::Hub(HubEvent::File { file, bytes, .. }) => {
                let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
                files.insert(file, bytes);
                self.bar.set_position(files.values().sum());
            }
            LoadEvent::Hub(HubEvent::Retry { file, reason }) => {
                self.messages.warning(format!("{file}: {reason}; trying again"));
            }
            LoadEvent::Layers { done, total } => {
                if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}") {
                    self.bar.set_style(style);
                }
                self.bar.set_length(total as u64);
                self.bar.set_position(done as u64);
                self.bar.set_message(format!("layer {done} of {total}"));
            }
            LoadEvent::Plan { plan, free, batch_size } => {
                let free = free.map(|free| format!(" of {} free", Bytes(free))).unwrap_or_default();
                let image = match plan.max_tiles {
                    0 => String::new(),
                    tiles => format!(", {} an image of {tiles} tiles", Bytes(plan.row(0, tiles, 0))),
                };
                let fits = plan.usual_rows().map(|rows| format!("; room for {rows} rows")).unwrap_or_default();
                self.messages.info(format!(
                    "plan: {} weights, {} workspace{free}; {} a token{image}{fits}, {batch_size} answers at a time at most",
                    Bytes(plan.weights),
                    Bytes(plan.workspace()),
                    Bytes(plan.kv_per_token),
                ));
            }
            LoadEvent::Ready { device, dtype, seconds } => {
                self.bar.finish_and_clear();
                self.messages.info(format!("model ready on {device} in {dtype} after {seconds:.1} s"));
            }
            _ => {}
        }
    }
}
