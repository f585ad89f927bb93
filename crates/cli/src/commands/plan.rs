//! `vgen plan`: what a run of a local model takes, from `config.json` and the headers of images alone.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vgen_backends::local::{
    Bytes, DEFAULT_MAX_NEW_TOKENS, DeviceModel, EngineReport, Inspected, LocalOptions, MemoryPlan, Prediction,
    Workload, inspect,
};
use vgen_core::{Fault, ImageRef};
use vgen_dataset::RowSource;
use vgen_task::image::image_size;
use vgen_task::{RowContext, TaskConfig, TextGenerationWithImage};

use crate::messages::Messages;
use crate::table::{BackendTable, Config};
use crate::{exit, local};

/// Text tokens of a prompt where there are no rows to look at.
const USUAL_PROMPT: u64 = 256;
/// What a chat template adds to a prompt, about.
const TEMPLATE_TOKENS: u64 = 30;
/// Bytes of a token of text, about.
const TOKEN_BYTES: u64 = 4;

/// How fast to reckon.
pub(crate) struct Speed {
    pub(crate) rows_per_second: Option<f64>,
    pub(crate) measured: Option<PathBuf>,
}

/// Prints the plan.
pub(crate) fn plan(config: &Config, speed: &Speed, json: bool, messages: &Messages) -> Result<u8, Fault> {
    let options = local_options(config)?;
    let measured = speed.measured()?;
    let inspected = inspect(&options)?;
    let rows = match config.input.place {
        Some(_) => Some(Rows::count(config, &inspected, &options, messages)?),
        None => None,
    };
    let report = Report::new(config, &options, &inspected, rows, speed.rows_per_second, measured.as_ref());
    if json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| Fault::stop("run.plan", e.to_string()))?;
        super::print(&(text + "\n"))?;
    } else {
        super::print(&report.text())?;
    }
    inspected.plan.check(inspected.free)?;
    report.check()?;
    Ok(exit::DONE)
}

/// Prints what the rows cost on a device that is known by its data sheet.
pub(crate) fn predict(config: &Config, device: &DeviceModel, json: bool, messages: &Messages) -> Result<u8, Fault> {
    let options = local_options(config)?;
    let inspected = inspect(&options)?;
    let new_tokens = config.sampling.max_new_tokens.map_or(DEFAULT_MAX_NEW_TOKENS, |n| n).into();
    let work = match config.input.place {
        Some(_) => {
            let rows = Rows::count(config, &inspected, &options, messages)?;
            let each = |all: u64| all.div_ceil((rows.rows - rows.faulty_rows).max(1));
            Workload { tiles: each(rows.tiles), prompt: each(rows.prompt_tokens_about), new_tokens }
        }
        None => Workload { tiles: inspected.plan.max_tiles, prompt: USUAL_PROMPT, new_tokens },
    };
    let prediction = Prediction::new(&inspected.config, &options, device, work);
    if json {
        let text = serde_json::to_string_pretty(&prediction).map_err(|e| Fault::stop("run.plan", e.to_string()))?;
        super::print(&(text + "\n"))?;
    } else {
        super::print(&prediction.text())?;
    }
    Ok(if prediction.too_large { exit::PLAN } else { exit::DONE })
}

/// The engine's options of a local run.
fn local_options(config: &Config) -> Result<LocalOptions, Fault> {
    match &config.backend {
        BackendTable::Local(table) => local::options(table, &config.images),
        _ => Err(Fault::stop("usage.plan", "only local runs have a plan").with_hint("name a model with --model")),
    }
}

/// A file that `--stats` wrote, as far as it is needed.
#[derive(Deserialize)]
struct Measured {
    rows_per_second: f64,
    backend: Option<EngineReport>,
}

impl Speed {
    fn measured(&self) -> Result<Option<Measured>, Fault> {
        let Some(path) = &self.measured else { return Ok(None) };
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
        let measured = text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
        measured.map(Some).map_err(|reason| {
            Fault::stop("config.measured", format!("{} can't be read: {reason}", path.display()))
                .with_hint("name the file that --stats wrote")
        })
    }
}

/// What the rows of an input have, by their text and the headers of their images.
#[derive(Debug, Default, Serialize)]
struct Rows {
    rows: u64,
    /// Rows that can't be asked about, or have an image whose header can't be read.
    faulty_rows: u64,
    images: u64,
    /// By path, URL or bytes: each is encoded once if images are kept.
    different_images: u64,
    /// Images in the network are not fetched; they are taken as the largest.
    unseen_images: u64,
    tiles: u64,
    different_tiles: u64,
    /// Keys and values of all different images.
    cross_kv_bytes: u64,
    most_tiles: u64,
    /// A quarter of the bytes, and something for the template.
    prompt_tokens_about: u64,
    longest_prompt_about: u64,
}

impl Rows {
    fn count(
        config: &Config,
        inspected: &Inspected,
        options: &LocalOptions,
        messages: &Messages,
    ) -> Result<Self, Fault> {
        let mut task = config.task.clone();
        if inspected.processor.is_none() {
            task = TaskConfig { image_required: task.image_required.or(Some(false)), ..task };
        }
        let task = TextGenerationWithImage::from_config(task)?;
        let mut source = super::input::source(config)?;
        let mut count = Self::default();
        let mut seen = HashMap::new();
        while config.input.limit.is_none_or(|limit| count.rows < limit) {
            let Some(row) = source.next_row()? else { break };
            count.rows += 1;
            let context = RowContext { base_dir: source.folder(), ..RowContext::new(row.number) };
            let counted = row.row.and_then(|values| task.render(&values, &context)).and_then(|rendered| {
                let text: usize = rendered.messages.iter().map(|message| message.plain_text().len()).sum();
                let tokens = text as u64 / TOKEN_BYTES + TEMPLATE_TOKENS;
                let mut tiles = 0;
                for image in rendered.messages.iter().flat_map(|message| message.images()) {
                    tiles += count.image(image, inspected, options, &mut seen)?;
                }
                Ok((tokens, tiles))
            });
            match counted {
                Ok((tokens, tiles)) => {
                    count.tiles += tiles;
                    count.most_tiles = count.most_tiles.max(tiles);
                    count.prompt_tokens_about += tokens;
                    count.longest_prompt_about = count.longest_prompt_about.max(tokens);
                }
                Err(fault) => {
                    count.faulty_rows += 1;
                    messages.warning(format!("{}: {} [{}]", row.origin, fault.message, fault.code));
                }
            }
        }
        count.different_images = seen.len() as u64;
        count.different_tiles = seen.values().sum();
        count.cross_kv_bytes = count.different_tiles * inspected.plan.cross_kv_per_tile;
        Ok(count)
    }

    /// Tiles of an image.
    fn image(
        &mut self,
        image: &ImageRef,
        inspected: &Inspected,
        options: &LocalOptions,
        seen: &mut HashMap<u64, u64>,
    ) -> Result<u64, Fault> {
        let Some(processor) = &inspected.processor else {
            return Err(Fault::row("prompt.text_only", "the row has an image, but the model reads text only"));
        };
        self.images += 1;
        // The hash and not the image: images in memory would all stay there.
        let mut hash = DefaultHasher::new();
        image.hash(&mut hash);
        let hash = hash.finish();
        if let Some(tiles) = seen.get(&hash) {
            return Ok(*tiles);
        }
        let tiles = match image_size(image, &options.prepare.limits)? {
            Some((width, height)) => processor
                .fit(height as usize, width as usize)
                .map_or(inspected.plan.max_tiles, |fit| (fit.tiles_high * fit.tiles_wide) as u64),
            None => {
                self.unseen_images += 1;
                inspected.plan.max_tiles
            }
        };
        seen.insert(hash, tiles);
        Ok(tiles)
    }
}

/// The plan in the words that are printed.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    dtype: String,
    #[serde(flatten)]
    plan: MemoryPlan,
    workspace: u64,
    /// Keys and values of the largest image.
    cross_kv_per_image: u64,
    free: Option<u64>,
    rows: Option<Rows>,
    /// New tokens of an answer, at most.
    max_new_tokens: u64,
    num_generations: u64,
    /// The largest row: its prompt, all its answers, its images.
    row_bytes: u64,
    /// What the answers have room in: what is allowed, or what is free.
    room: Option<u64>,
    /// Rows of the largest size that fit at a time.
    rows_that_fit: Option<u64>,
    /// Answers computed together at most.
    batch_size: u64,
    seconds: Option<f64>,
}

impl Report {
    fn new(
        config: &Config,
        options: &LocalOptions,
        inspected: &Inspected,
        rows: Option<Rows>,
        rows_per_second: Option<f64>,
        measured: Option<&Measured>,
    ) -> Self {
        let plan = inspected.plan.clone();
        let max_new_tokens = config.sampling.max_new_tokens.map_or(DEFAULT_MAX_NEW_TOKENS, |n| n).into();
        let num_generations = config.task.num_generations.unwrap_or(1).max(1) as u64;
        let prompt = rows.as_ref().map_or(USUAL_PROMPT, |rows| rows.longest_prompt_about);
        let tiles = rows.as_ref().map_or(plan.max_tiles, |rows| rows.most_tiles);
        let row_bytes = plan.row(prompt + max_new_tokens, tiles, num_generations);
        let room = options.memory.or(inspected.free);
        let seconds = rows.as_ref().and_then(|rows| {
            let answers = (rows.rows - rows.faulty_rows) * num_generations;
            match (rows_per_second, measured) {
                (Some(speed), _) => Some(rows.rows as f64 / speed),
                (None, Some(Measured { backend: Some(engine), .. })) => {
                    Some(expected(engine, rows, answers * max_new_tokens))
                }
                (None, Some(measured)) => Some(rows.rows as f64 / measured.rows_per_second),
                (None, None) => None,
            }
        });
        Self {
            model: options.model.name().to_owned(),
            device: inspected.device.clone(),
            dtype: inspected.dtype.clone(),
            workspace: plan.workspace(),
            cross_kv_per_image: plan.max_tiles * plan.cross_kv_per_tile,
            free: inspected.free,
            rows,
            max_new_tokens,
            num_generations,
            row_bytes,
            room,
            rows_that_fit: room.and_then(|room| plan.rows_in(room, row_bytes)),
            batch_size: options.batch_size as u64,
            seconds: seconds.filter(|seconds| seconds.is_finite()),
            plan,
        }
    }

    /// Refuses what could never run: not even one row has room.
    fn check(&self) -> Result<(), Fault> {
        match (self.room, self.rows_that_fit) {
            (Some(room), None | Some(0)) => {
                let (fixed, row) = (Bytes(self.plan.fixed()), Bytes(self.row_bytes));
                let message = format!("{fixed} and {row} for the largest row don't fit in {}", Bytes(room));
                Err(Fault::stop("plan.memory", message)
                    .with_hint("allow more with --memory, keep fewer images (--image-cache), or ask for fewer tokens"))
            }
            _ => Ok(()),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string can't fail.
            let _ = writeln!(text, "{name:<26}{value}");
        };
        line("model", format!("{} in {} on {}", self.model, self.dtype, self.device));
        line("weights", Bytes(self.plan.weights).to_string());
        if self.plan.max_tiles > 0 {
            line("vision workspace", Bytes(self.plan.vision_workspace).to_string());
        }
        line("text workspace", Bytes(self.plan.text_workspace).to_string());
        line("keys, values per token", Bytes(self.plan.kv_per_token).to_string());
        if self.plan.max_tiles > 0 {
            let (tile, image) = (Bytes(self.plan.cross_kv_per_tile), Bytes(self.cross_kv_per_image));
            line("keys, values per tile", format!("{tile}, {image} for an image of {} tiles", self.plan.max_tiles));
            line("images kept", format!("up to {}", Bytes(self.plan.image_cache)));
        }
        if let Some(rows) = &self.rows {
            let faulty =
                if rows.faulty_rows > 0 { format!(", {} can't be run", rows.faulty_rows) } else { String::new() };
            line("rows", format!("{}{faulty}", rows.rows));
            if rows.images > 0 {
                let unseen = match rows.unseen_images {
                    0 => String::new(),
                    n => format!(", {n} in the network not looked at"),
                };
                line("images", format!("{}, {} different{unseen}", rows.images, rows.different_images));
                let bytes = Bytes(rows.cross_kv_bytes);
                line(
                    "tiles",
                    format!("{}, {} different: {bytes} of keys and values", rows.tiles, rows.different_tiles),
                );
            }
            let tokens = format!("about {}, longest about {}", rows.prompt_tokens_about, rows.longest_prompt_about);
            line("prompt tokens", tokens);
        }
        let answers =
            if self.num_generations > 1 { format!(", {} answers", self.num_generations) } else { String::new() };
        let row = Bytes(self.row_bytes);
        line("largest row", format!("{row} with {} new tokens{answers}", self.max_new_tokens));
        if let Some(room) = self.room {
            let what = if self.plan.memory.is_some() { "allowed" } else { "free" };
            let fit =
                self.rows_that_fit.map_or_else(|| "not even the weights".to_owned(), |n| format!("{n} rows at a time"));
            line("fits", format!("{fit} in {} {what}; --batch-size is {}", Bytes(room), self.batch_size));
        }
        if let Some(seconds) = self.seconds {
            line("time", format!("about {}", crate::progress::duration(std::time::Duration::from_secs_f64(seconds))));
        }
        text
    }
}

/// Seconds by the speeds of an earlier run, if every answer takes all its tokens and every image is encoded once.
fn expected(engine: &EngineReport, rows: &Rows, new_tokens: u64) -> f64 {
    let each = |seconds: f64, count: u64| if count == 0 { 0.0 } else { seconds / count as f64 };
    let tile = each(engine.encode_seconds, engine.tiles_encoded);
    let prompt_token = each(engine.prefill_seconds, engine.prompt_tokens);
    let new_token = each(engine.decode_seconds + engine.sample_seconds, engine.generated_tokens);
    rows.different_tiles as f64 * tile + rows.prompt_tokens_about as f64 * prompt_token + new_tokens as f64 * new_token
}
