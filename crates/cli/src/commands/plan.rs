//! `vgen plan`: what a run of a local model takes, from `config.json` and the headers of images alone.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use vgen_backends::local::{
    Bytes, DeviceModel, EngineReport, Inspected, LocalOptions, MemoryPlan, Prediction, Workload, inspect,
};
use vgen_core::{Fault, Row};
use vgen_dataset::Origin;
use vgen_task::Rendered;

use super::survey::{Rows, Survey};
use crate::args::SpeedFlags;
use crate::messages::Messages;
use crate::table::{BackendTable, Config};
use crate::{exit, local};

/// Text tokens of a prompt where there are no rows to look at.
const USUAL_PROMPT: u64 = 256;

/// Prints the plan.
pub(crate) fn plan(config: &Config, speed: &SpeedFlags, json: bool, messages: &Messages) -> Result<u8, Fault> {
    let options = local_options(config)?;
    let measured = speed.measured()?;
    let inspected = inspect(&options)?;
    let rows = match config.input.place {
        Some(_) => Some(count(config, &inspected, &options, messages)?),
        None => None,
    };
    let report = Report::new(config, &options, &inspected, rows, speed.rows_per_second, measured.as_ref());
    if json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| Fault::stop("run.plan", e.to_string()))?;
        super::print(&(text + "\n"))?;
    } else {
        super::print(&report.text(true))?;
    }
    inspected.plan.check(inspected.free)?;
    report.check()?;
    Ok(exit::DONE)
}

/// Looks at all rows; says which of them can't be run.
fn count(config: &Config, inspected: &Inspected, options: &LocalOptions, messages: &Messages) -> Result<Rows, Fault> {
    let task = super::check::task(config, Some(inspected))?;
    let survey = Survey {
        task: &*task,
        model: Some(inspected),
        frontend: None,
        limits: options.prepare.limits.clone(),
        fetcher: None,
        sampling: &config.sampling,
        most_rows: None,
    };
    let mut watch = |origin: &Origin, _: Option<&Row>, rendered: Result<&Rendered, &Fault>| {
        if let Err(fault) = rendered {
            messages.warning(format!("{} [{}]", super::check::placed(origin, fault), fault.code));
        }
    };
    survey.of(&mut super::input::source(config)?, &mut watch)
}

/// Prints what the rows cost on a device that is known by its data sheet.
pub(crate) fn predict(config: &Config, device: &DeviceModel, json: bool, messages: &Messages) -> Result<u8, Fault> {
    let options = local_options(config)?;
    let inspected = inspect(&options)?;
    let new_tokens = config.sampling.max_new_tokens.unwrap_or(inspected.max_new_tokens).into();
    let work = match config.input.place {
        Some(_) => {
            let rows = count(config, &inspected, &options, messages)?;
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
pub(super) struct Measured {
    rows_per_second: f64,
    backend: Option<EngineReport>,
}

impl SpeedFlags {
    pub(super) fn measured(&self) -> Result<Option<Measured>, Fault> {
        let Some(path) = &self.measured else { return Ok(None) };
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
        let measured = text.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
        measured.map(Some).map_err(|reason| {
            Fault::stop("config.measured", format!("{} can't be read: {reason}", path.display()))
                .with_hint("name the file that --stats wrote")
        })
    }
}

/// The plan in the words that are printed.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    model: String,
    device: String,
    dtype: String,
    #[serde(flatten)]
    plan: MemoryPlan,
    workspace: u64,
    /// Keys and values of the largest image.
    cross_kv_per_image: u64,
    free: Option<u64>,
    pub(super) rows: Option<Rows>,
    /// New tokens of an answer, at most.
    max_new_tokens: u64,
    num_generations: u64,
    /// Answers of the largest row that are made together.
    at_a_time: u64,
    /// The largest row: its prompt, the answers that are made together, its images.
    row_bytes: u64,
    /// What weights and rows have room in: what is allowed, or what is free but for a twentieth.
    room: Option<u64>,
    /// Whether the room is what was said.
    #[serde(skip)]
    limited: bool,
    /// Rows of the largest size that fit at a time.
    rows_that_fit: Option<u64>,
    /// Answers computed together at most.
    batch_size: u64,
    pub(super) seconds: Option<f64>,
}

impl Report {
    pub(super) fn new(
        config: &Config,
        options: &LocalOptions,
        inspected: &Inspected,
        rows: Option<Rows>,
        rows_per_second: Option<f64>,
        measured: Option<&Measured>,
    ) -> Self {
        let plan = inspected.plan.clone();
        let max_new_tokens = config.sampling.max_new_tokens.unwrap_or(inspected.max_new_tokens).into();
        let num_generations = config.task.num_generations.unwrap_or(1).max(1) as u64;
        let prompt = rows.as_ref().map_or(USUAL_PROMPT, |rows| rows.longest_prompt_about);
        let tiles = rows.as_ref().map_or(plan.max_tiles, |rows| rows.most_tiles);
        let (tokens, batch_size) = (prompt + max_new_tokens, inspected.batch_size as u64);
        let at_a_time = plan.answers_at_a_time(tokens, tiles, num_generations, batch_size);
        let row_bytes = plan.answers(tokens, num_generations, at_a_time) + plan.row(0, tiles, 0);
        let room = plan.room();
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
            at_a_time,
            row_bytes,
            room,
            limited: options.memory.is_some(),
            rows_that_fit: room.and_then(|room| plan.rows_in(room, row_bytes)),
            batch_size,
            seconds: seconds.filter(|seconds| seconds.is_finite()),
            plan,
        }
    }

    /// Refuses what could never run: not even one row has room.
    pub(super) fn check(&self) -> Result<(), Fault> {
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

    /// In lines; with `whole`, also what rows and time are.
    pub(super) fn text(&self, whole: bool) -> String {
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
            line("prepared images", format!("up to {}", Bytes(self.plan.prepared_images)));
        }
        if let Some(rows) = &self.rows {
            let faulty =
                if rows.faulty_rows > 0 { format!(", {} can't be run", rows.faulty_rows) } else { String::new() };
            if whole {
                line("rows", format!("{}{faulty}", rows.rows));
            }
            if rows.images > 0 {
                line("images", rows.images_in_words());
                let bytes = Bytes(rows.cross_kv_bytes);
                line(
                    "tiles",
                    format!("{}, {} different: {bytes} of keys and values", rows.tiles, rows.different_tiles),
                );
            }
            line("prompt tokens", rows.tokens_in_words());
        }
        let mut answers = String::new();
        if self.num_generations > 1 {
            let _ = write!(answers, ", {} answers", self.num_generations);
        }
        if self.at_a_time < self.num_generations {
            let _ = write!(answers, ", {} at a time", self.at_a_time);
        }
        let row = Bytes(self.row_bytes);
        line("largest row", format!("{row} with {} new tokens{answers}", self.max_new_tokens));
        if let Some(room) = self.room {
            let what = match (self.limited, self.free) {
                (false, Some(free)) => format!("of {} free", Bytes(free)),
                _ => "allowed".to_owned(),
            };
            let fit =
                self.rows_that_fit.map_or_else(|| "not even the weights".to_owned(), |n| format!("{n} rows at a time"));
            line("fits", format!("{fit} in {} {what}; {} answers at a time at most", Bytes(room), self.batch_size));
        }
        if let Some(seconds) = self.seconds.filter(|_| whole) {
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
