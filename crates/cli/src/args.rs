//! The command lines, exactly as typed; [`Flags::settings`] turns them into settings. Parsing touches no file.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use serde_json::{Map, Value};
use vgen_mllama::{WeightOverride, WeightType};

use crate::messages::Color;
use crate::quantity;
use crate::remote::flags::{RemoteCommand, RemoteFlags};
use crate::settings::{Origin, Settings};
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
    /// When messages are coloured; NO_COLOR is honoured.
    #[arg(long, value_name = "WHEN", default_value = "auto", value_enum, global = true)]
    pub(crate) color: Color,
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
    /// Says what a run of a local model takes, from its configuration and the headers of images alone.
    #[command(after_help = EXIT_CODES)]
    Plan(Box<PlanCommand>),
    /// Runs a sample of a finished local run again, alone and beside others, and compares.
    #[command(after_help = EXIT_CODES)]
    Verify(Box<VerifyCommand>),
    /// Joins the outputs of shards, after a check that every row is there once.
    Merge(MergeCommand),
    /// Writes a checkpoint as one GGUF file with weights of fewer bits, which loads in seconds.
    Quantize(QuantizeCommand),
    /// Prints the messages that would be sent, {"messages": [...]} for each row, without loading a model.
    Render(Box<RenderCommand>),
}

/// Runs Llama-3.2-Vision in this process, over the rows of a file or for one question.
#[derive(Debug, Parser)]
#[command(name = "vgen-local", version, long_version = version::LONG, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct LocalArgs {
    #[command(flatten)]
    pub(crate) local: Box<LocalCommand>,
    /// When messages are coloured; NO_COLOR is honoured.
    #[arg(long, value_name = "WHEN", default_value = "auto", value_enum)]
    pub(crate) color: Color,
}

/// The arguments of `vgen local`.
#[derive(Debug, Args)]
pub(crate) struct LocalCommand {
    /// Run the small model that is part of this program, on its sample images unless told otherwise. Needs no network.
    #[arg(long, conflicts_with_all = ["model", "revision"])]
    pub(crate) demo: bool,
    #[command(flatten)]
    pub(crate) question: QuestionFlags,
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    pub(crate) model: ModelFlags,
}

/// One question instead of a file of rows.
#[derive(Debug, Args)]
pub(crate) struct QuestionFlags {
    /// Ask about this image file or URL instead of a file of rows; several times for several images.
    #[arg(long, value_name = "FILE", requires = "prompt", conflicts_with = "input")]
    pub(crate) image: Vec<String>,
    /// Ask this; the answer is printed as it comes.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["input", "output", "limit"])]
    pub(crate) prompt: Option<String>,
}

/// The arguments of `vgen run`.
#[derive(Debug, Args)]
pub(crate) struct RunCommand {
    /// The config file (TOML). Paths in it are relative to its folder.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    pub(crate) model: ModelFlags,
    #[command(flatten)]
    pub(crate) remote: RemoteFlags,
}

/// The arguments of `vgen quantize`.
#[derive(Debug, Args)]
pub(crate) struct QuantizeCommand {
    /// A folder with the checkpoint, a GGUF file, or owner/name on the Hugging Face hub.
    #[arg(value_name = "MODEL")]
    pub(crate) model: String,
    /// The file to write.
    #[arg(value_name = "OUT.gguf")]
    pub(crate) out: PathBuf,
    /// Type of the large matrices: f32, bf16, q8_0, q4_k. With q4_k the vision tower, the projector and the output
    /// head take q8_0.
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_k")]
    pub(crate) weight_type: WeightType,
    /// Type of some tensors by name: vision_model.*=bf16. May be repeated; the last counts.
    #[arg(long, value_name = "PATTERN=TYPE")]
    pub(crate) tensor_type: Vec<WeightOverride>,
    /// Branch, tag or commit on the hub [default: main].
    #[arg(long, value_name = "REV")]
    pub(crate) revision: Option<String>,
    /// Replace the file if it exists.
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// The arguments of `vgen merge`.
#[derive(Debug, Args)]
pub(crate) struct MergeCommand {
    /// The output of each shard, its run record (the folder with .run at its end) beside it.
    #[arg(value_name = "OUTPUT", required = true)]
    pub(crate) shards: Vec<PathBuf>,
    /// Where the rows go; the extension must be that of the shards.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Replace an output that is there.
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// The arguments of `vgen render`.
#[derive(Debug, Args)]
pub(crate) struct RenderCommand {
    /// A config file (TOML), as for vgen run; its backend only decides defaults.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) rows: RowFlags,
    #[command(flatten)]
    pub(crate) task: TaskFlags,
}

/// The arguments of `vgen plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanCommand {
    /// A config file (TOML), as for vgen run.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Print the plan as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// The speed to reckon with, in rows a second.
    #[arg(long, value_name = "N", conflicts_with = "measured")]
    pub(crate) rows_per_second: Option<f64>,
    /// Reckon with the speeds of an earlier run with this model: the file that its --stats wrote.
    #[arg(long, value_name = "FILE")]
    pub(crate) measured: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    pub(crate) model: ModelFlags,
}

/// The arguments of `vgen verify`: the run's own settings, and what to look at.
#[derive(Debug, Args)]
pub(crate) struct VerifyCommand {
    /// The output of the run.
    #[arg(value_name = "OUTPUT")]
    pub(crate) answers: PathBuf,
    /// The run's config file (TOML); flags that it was given are to be given here, too.
    #[arg(value_name = "CONFIG.toml")]
    pub(crate) config: Option<PathBuf>,
    /// How many rows to run again.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rows: u32,
    /// Which rows: another number, others.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) rows_seed: u64,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) flags: Flags,
    #[command(flatten)]
    pub(crate) model: ModelFlags,
}

/// The flags of every run.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(crate) rows: RowFlags,
    #[command(flatten)]
    pub(crate) task: TaskFlags,
    #[command(flatten)]
    pub(crate) sampling: SamplingFlags,
    #[command(flatten)]
    pub(crate) images: ImageFlags,
    #[command(flatten)]
    pub(crate) run: RunFlags,
    /// Print the configuration that holds, with the origin of each value, and end.
    #[arg(long)]
    pub(crate) print_config: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Rows")]
pub(crate) struct RowFlags {
    /// The rows: files of JSON lines, CSV (plain, gzip, zstd) or Parquet, a pattern for such files in quotes, or a folder
    /// of images; several times for several; - is standard input. Paths of images are relative to the file's folder.
    #[arg(long, short, value_name = "FILE")]
    input: Vec<PathBuf>,
    /// What the input is written in; openai_batch is JSON lines of requests, answered as OpenAI's batch output
    /// [default: by name and content].
    #[arg(long, value_name = "FORMAT", value_parser = ["jsonl", "csv", "parquet", "images", "openai_batch"])]
    input_format: Option<String>,
    /// Of a folder, only images whose path in it matches; several times for several patterns [default: all images].
    #[arg(long, value_name = "PATTERN")]
    glob: Vec<String>,
    /// What to ask about every image of a folder.
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,
    /// What to ask about an image of a folder is in the file beside it with this instead of the image's extension, for
    /// example .prompt.txt.
    #[arg(long, value_name = "SUFFIX")]
    instruction_suffix: Option<String>,
    /// Leave out so many rows at the start [default: 0].
    #[arg(long, value_name = "ROWS")]
    skip: Option<u64>,
    /// Of the rows left, take a random sample of so many; --seed decides which [default: all].
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    sample: Option<u64>,
    /// End after this many rows [default: all].
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Of the rows chosen, do only one of N equal shares: 1/4 is the first of four. vgen merge joins the outputs.
    #[arg(long, value_name = "I/N")]
    shard: Option<String>,
    /// Where the answers go: JSON lines (compressed if the name ends in .gz or .zst), CSV (.csv, .tsv), Parquet
    /// (.parquet); - is standard output [default: -].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What the output is written in; sidecar is a text file beside each image, with the folder as --output
    /// [default: by name].
    #[arg(long, value_name = "FORMAT", value_parser = ["jsonl", "csv", "parquet", "sidecar"])]
    output_format: Option<String>,
    /// Replace an output that is there; without it such a file is gone on with if its run record fits, else refused.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    overwrite: Option<bool>,
    /// Whether to go on with an earlier run of this output: if there is one, never, or else it is an error
    /// [default: auto].
    #[arg(long, value_name = "WHEN", value_parser = ["auto", "never", "require"])]
    resume: Option<String>,
    /// Do rows with an error again and put the answers in their places.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    retry_failed: Option<bool>,
    /// With --retry-failed: only rows with this error code; several times for several codes.
    #[arg(long, value_name = "CODE", requires = "retry_failed")]
    only: Vec<String>,
    /// Finished rows are on the disk after so many seconds at most [default: 1].
    #[arg(long, value_name = "SECONDS")]
    sync_seconds: Option<f64>,
    /// Or after so many finished rows [default: none].
    #[arg(long, value_name = "ROWS")]
    sync_rows: Option<u64>,
    /// Rows of a row group of Parquet [default: 10000].
    #[arg(long, value_name = "ROWS")]
    row_group_rows: Option<u64>,
    /// Images in CSV and Parquet: as the input has them, their paths or URLs only, or the bytes of their files
    /// [default: keep].
    #[arg(long, value_name = "HOW", value_parser = ["keep", "reference", "embed"])]
    output_images: Option<String>,
    /// Of text files beside images, what stands instead of the image's extension [default: .txt].
    #[arg(long, value_name = "SUFFIX")]
    sidecar_suffix: Option<String>,
    /// Longest line of the input in bytes; a longer one becomes a row with an error [default: 256MiB].
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    max_line_bytes: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Prompt")]
pub(crate) struct TaskFlags {
    /// Sent before every row's message [default: none]. A row's own column "system_prompt" wins.
    #[arg(long, value_name = "TEXT")]
    system_prompt: Option<String>,
    /// Jinja2 template of the message's text [default: {{ instruction }}].
    #[arg(long, value_name = "TEXT")]
    template: Option<String>,
    /// Columns that the template uses, separated by commas [default: instruction].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    columns: Vec<String>,
    /// What the image column holds: url is URLs, data URLs and paths [default: url].
    #[arg(long, value_name = "TYPE", value_parser = ["url", "base64", "PIL"])]
    image_type: Option<String>,
    /// The column of the image or images [default: image].
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,
    /// Where images stand in the message: before the text, or after it as distilabel puts them [default: first; for
    /// other backends than the local one: as-given].
    #[arg(long, value_name = "WHERE", value_parser = ["first", "as-given"])]
    image_position: Option<String>,
    /// Whether each row must have an image [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    image_required: Option<bool>,
    /// Answers for each row [default: 1].
    #[arg(long, short, value_name = "N")]
    num_generations: Option<u32>,
    /// One output row for all answers of a row, instead of one for each [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    group_generations: Option<bool>,
    /// Don't keep the messages in the column distilabel_metadata.
    #[arg(long)]
    no_raw_input: bool,
    /// Don't keep the answers in the column distilabel_metadata.
    #[arg(long)]
    no_raw_output: bool,
    /// Read the task's column from another column: instruction=question. Several times for several columns.
    #[arg(long, value_name = "COLUMN=NAME", value_parser = pair)]
    input_mapping: Vec<(String, String)>,
    /// Write an output column under another name: generation=answer. Several times for several columns.
    #[arg(long, value_name = "COLUMN=NAME", value_parser = pair)]
    output_mapping: Vec<(String, String)>,
    /// What a missing value in the template does: an error of the row, or empty text [default: strict].
    #[arg(long, value_name = "MODE", value_parser = ["strict", "lenient"])]
    undefined: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling (what is not given is the model's own default)")]
pub(crate) struct SamplingFlags {
    /// At most this many new tokens.
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<u32>,
    /// No end of sequence before this many new tokens.
    #[arg(long, value_name = "N")]
    min_new_tokens: Option<u32>,
    /// Divides the logits; 0 is greedy.
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Keep the most probable tokens that together reach this probability, 0 to 1.
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Keep this many of the most probable tokens; 0 keeps all.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Keep tokens at least this share as probable as the most probable one, 0 to 1.
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Locally typical sampling: the probability to reach, 0 to 1.
    #[arg(long, value_name = "P")]
    typical_p: Option<f64>,
    /// Divides the logits of tokens seen in prompt and answer; 1 is off.
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// Subtracted from a token's logit for each time that it was generated; 0 is off.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f64>,
    /// Subtracted once from the logit of each token that was generated; 0 is off.
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f64>,
    /// Added to a token's logit: 128009=-5. Several times for several tokens.
    #[arg(long, value_name = "ID=BIAS", value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,
    /// A text that must not be generated; several times for several texts.
    #[arg(long, value_name = "TEXT")]
    bad_words: Vec<String>,
    /// A text that ends an answer and is cut from it; several times for several texts.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Keep the stop text in the answer.
    #[arg(long)]
    include_stop: bool,
    /// A token that ends an answer, besides the model's own; separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    stop_token_ids: Vec<u32>,
    /// Don't end at the model's end-of-sequence tokens.
    #[arg(long)]
    ignore_eos: bool,
    /// The run's seed; each row and sample has a random stream of its own, derived from it.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Return the log-probability of each token, in the column llm_<task>_logprobs.
    #[arg(long)]
    logprobs: bool,
    /// With --logprobs: also this many alternatives for each token.
    #[arg(long, value_name = "N", requires = "logprobs")]
    top_logprobs: Option<u32>,
    /// Put the prompt's text before the answer.
    #[arg(long)]
    echo: bool,
    /// The answer must be JSON that the schema in this file accepts.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["regex", "choice"])]
    json_schema: Option<PathBuf>,
    /// The answer must match this regular expression as a whole.
    #[arg(long, value_name = "REGEX", conflicts_with = "choice")]
    regex: Option<String>,
    /// The answer must be one of these; given once for each.
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelFlags {
    /// A folder with the checkpoint, a GGUF file, or owner/name on the Hugging Face hub.
    #[arg(long, short, value_name = "DIR_OR_ID")]
    model: Option<String>,
    /// Branch, tag or commit on the hub [default: main].
    #[arg(long, value_name = "REV")]
    revision: Option<String>,
    /// Where it runs: auto, cpu, cuda, cuda:N, metal [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Type of weights and activations: auto, f32, bf16, f16 (GPU), q8_0, q4_k (CPU) [default: auto, which is bf16 on a
    /// GPU, and on the CPU the best that fits of the checkpoint's own types, q8_0 and q4_k].
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// Type of the weights of some tensors on the CPU, by name: vision_model.*=bf16. May be repeated; the last counts.
    #[arg(long, value_name = "PATTERN=TYPE")]
    tensor_type: Vec<String>,
    /// Type of keys and values: auto, f32, bf16, f16 [default: auto, which is f32 with f32 weights, else bf16].
    #[arg(long, value_name = "TYPE")]
    kv_dtype: Option<String>,
    /// Whose numbers to reproduce: Meta's own code, or transformers before and since 4.57 [default: meta].
    #[arg(long, value_name = "WHOSE", value_parser = ["meta", "hf4", "hf5"])]
    reference: Option<String>,
    /// Answers computed together at most [default: 8].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_size: Option<u32>,
    /// Tokens computed in one step at most, those of running answers included [default: 512].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    step_tokens: Option<u32>,
    /// Threads that compute [default: one for each core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Threads that fetch, decode and tile images ahead of the model [default: 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    prepare_threads: Option<u32>,
    /// Keys and values of images that are kept for later rows with the same image, in bytes [default: 1GiB].
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    image_cache: Option<u64>,
    /// Memory for weights, kept images and rows, for example 20GiB [default: as much as the batch size needs].
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    memory: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct ImageFlags {
    /// Largest image file or download [default: 64MiB].
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    max_image_bytes: Option<u64>,
    /// Largest width times height in pixels [default: 89478485].
    #[arg(long, value_name = "PIXELS")]
    max_image_pixels: Option<u64>,
    /// Longest time for one image from the network, in seconds [default: 60].
    #[arg(long, value_name = "SECONDS")]
    image_timeout: Option<f64>,
    /// Redirects that an image's URL may take [default: 5].
    #[arg(long, value_name = "N")]
    max_redirects: Option<u32>,
    /// Let images' URLs lead to loopback, private and other addresses that are not public.
    #[arg(long)]
    allow_private_addresses: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Run")]
pub(crate) struct RunFlags {
    /// Time for each row, in seconds; what it has by then is its answer [default: none].
    #[arg(long, value_name = "SECONDS")]
    row_timeout: Option<f64>,
    /// Stop when more rows fail than this: a number, or a share like 5% that is looked at once 100 rows are done
    /// [default: never].
    #[arg(long, value_name = "N|P%")]
    max_errors: Option<String>,
    /// Say nothing but errors: no progress, no warnings, no summary.
    #[arg(long, short, action = ArgAction::SetTrue)]
    quiet: bool,
    /// Write what the run did and where its time went to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Seconds between lines of progress where standard error is no terminal [default: 10].
    #[arg(long, value_name = "SECONDS")]
    progress_interval: Option<f64>,
}

impl Flags {
    /// What was given, as settings.
    pub(crate) fn settings(self) -> Settings {
        let mut settings = Settings::default();
        self.rows.add_to(&mut settings);
        self.task.add_to(&mut settings);
        self.sampling.add_to(&mut settings);
        self.images.add_to(&mut settings);
        self.run.add_to(&mut settings);
        settings
    }
}

impl RenderCommand {
    /// What was given, as settings.
    pub(crate) fn settings(self) -> Settings {
        let mut settings = Settings::default();
        self.rows.add_to(&mut settings);
        self.task.add_to(&mut settings);
        settings
    }
}

fn given(flag: bool) -> Option<bool> {
    flag.then_some(true)
}

impl RowFlags {
    fn add_to(self, settings: &mut Settings) {
        settings.flags(("input", "path"), "--input", self.input);
        settings.flag(("input", "format"), "--input-format", self.input_format);
        settings.flags(("input", "globs"), "--glob", self.glob);
        settings.flag(("input", "instruction"), "--instruction", self.instruction);
        settings.flag(("input", "instruction_suffix"), "--instruction-suffix", self.instruction_suffix);
        settings.flag(("input", "skip"), "--skip", self.skip);
        settings.flag(("input", "sample"), "--sample", self.sample);
        settings.flag(("input", "limit"), "--limit", self.limit);
        settings.flag(("input", "shard"), "--shard", self.shard);
        settings.flag(("output", "path"), "--output", self.output);
        settings.flag(("output", "format"), "--output-format", self.output_format);
        settings.flag(("output", "overwrite"), "--overwrite", self.overwrite);
        settings.flag(("output", "resume"), "--resume", self.resume);
        settings.flag(("output", "retry_failed"), "--retry-failed", self.retry_failed);
        settings.flags(("output", "only"), "--only", self.only);
        settings.flag(("output", "sync_seconds"), "--sync-seconds", self.sync_seconds);
        settings.flag(("output", "sync_rows"), "--sync-rows", self.sync_rows);
        settings.flag(("output", "row_group_rows"), "--row-group-rows", self.row_group_rows);
        settings.flag(("output", "images"), "--output-images", self.output_images);
        settings.flag(("output", "sidecar_suffix"), "--sidecar-suffix", self.sidecar_suffix);
        settings.flag(("input", "max_line_bytes"), "--max-line-bytes", self.max_line_bytes);
    }
}

impl TaskFlags {
    fn add_to(self, settings: &mut Settings) {
        let position = self.image_position.map(|position| position.replace('-', "_"));
        settings.flag(("task", "system_prompt"), "--system-prompt", self.system_prompt);
        settings.flag(("task", "template"), "--template", self.template);
        settings.flags(("task", "columns"), "--columns", self.columns);
        settings.flag(("task", "image_type"), "--image-type", self.image_type);
        settings.flag(("task", "image_column"), "--image-column", self.image_column);
        settings.flag(("task", "image_position"), "--image-position", position);
        settings.flag(("task", "image_required"), "--image-required", self.image_required);
        settings.flag(("task", "num_generations"), "--num-generations", self.num_generations);
        settings.flag(("task", "group_generations"), "--group-generations", self.group_generations);
        settings.flag(("task", "add_raw_input"), "--no-raw-input", self.no_raw_input.then_some(false));
        settings.flag(("task", "add_raw_output"), "--no-raw-output", self.no_raw_output.then_some(false));
        settings.flag(("task", "undefined"), "--undefined", self.undefined);
        mapping(settings, "input_mappings", "--input-mapping", self.input_mapping);
        mapping(settings, "output_mappings", "--output-mapping", self.output_mapping);
    }
}

fn mapping(settings: &mut Settings, name: &str, flag: &'static str, pairs: Vec<(String, String)>) {
    if !pairs.is_empty() {
        let map: Map<String, Value> = pairs.into_iter().map(|(from, to)| (from, to.into())).collect();
        settings.set("task", name, Value::Object(map), Origin::Flag(flag));
    }
}

impl SamplingFlags {
    fn add_to(self, settings: &mut Settings) {
        let mut set = |name: &str, flag: &'static str, value: Option<Value>| {
            settings.flag(("sampling", name), flag, value);
        };
        set("max_new_tokens", "--max-new-tokens", self.max_new_tokens.map(Value::from));
        set("min_new_tokens", "--min-new-tokens", self.min_new_tokens.map(Value::from));
        set("temperature", "--temperature", self.temperature.map(Value::from));
        set("top_p", "--top-p", self.top_p.map(Value::from));
        set("top_k", "--top-k", self.top_k.map(Value::from));
        set("min_p", "--min-p", self.min_p.map(Value::from));
        set("typical_p", "--typical-p", self.typical_p.map(Value::from));
        set("repetition_penalty", "--repetition-penalty", self.repetition_penalty.map(Value::from));
        set("frequency_penalty", "--frequency-penalty", self.frequency_penalty.map(Value::from));
        set("presence_penalty", "--presence-penalty", self.presence_penalty.map(Value::from));
        if !self.logit_bias.is_empty() {
            let map: Map<String, Value> =
                self.logit_bias.iter().map(|(token, bias)| (token.to_string(), Value::from(*bias))).collect();
            set("logit_bias", "--logit-bias", Some(Value::Object(map)));
        }
        set("include_stop", "--include-stop", given(self.include_stop).map(Value::from));
        set("ignore_eos", "--ignore-eos", given(self.ignore_eos).map(Value::from));
        set("seed", "--seed", self.seed.map(Value::from));
        set("logprobs", "--logprobs", given(self.logprobs).map(Value::from));
        set("top_logprobs", "--top-logprobs", self.top_logprobs.map(Value::from));
        set("echo", "--echo", given(self.echo).map(Value::from));
        set("regex", "--regex", self.regex.map(Value::from));
        settings.flag(("sampling", "json_schema"), "--json-schema", self.json_schema);
        settings.flags(("sampling", "bad_words"), "--bad-words", self.bad_words);
        settings.flags(("sampling", "stop"), "--stop", self.stop);
        settings.flags(("sampling", "stop_token_ids"), "--stop-token-ids", self.stop_token_ids);
        settings.flags(("sampling", "choice"), "--choice", self.choice);
    }
}

impl ModelFlags {
    /// Lays what was given over the settings.
    pub(crate) fn add_to(self, settings: &mut Settings) {
        settings.flag(("backend", "model"), "--model", self.model);
        settings.flag(("backend", "revision"), "--revision", self.revision);
        settings.flag(("backend", "device"), "--device", self.device);
        settings.flag(("backend", "dtype"), "--dtype", self.dtype);
        let tensor_types = (!self.tensor_type.is_empty()).then_some(self.tensor_type);
        settings.flag(("backend", "tensor_types"), "--tensor-type", tensor_types);
        settings.flag(("backend", "kv_dtype"), "--kv-dtype", self.kv_dtype);
        settings.flag(("backend", "reference"), "--reference", self.reference);
        settings.flag(("backend", "batch_size"), "--batch-size", self.batch_size);
        settings.flag(("backend", "step_tokens"), "--step-tokens", self.step_tokens);
        settings.flag(("backend", "threads"), "--threads", self.threads);
        settings.flag(("backend", "prepare_threads"), "--prepare-threads", self.prepare_threads);
        settings.flag(("backend", "image_cache"), "--image-cache", self.image_cache);
        settings.flag(("backend", "memory"), "--memory", self.memory);
    }
}

impl ImageFlags {
    fn add_to(self, settings: &mut Settings) {
        settings.flag(("images", "max_bytes"), "--max-image-bytes", self.max_image_bytes);
        settings.flag(("images", "max_pixels"), "--max-image-pixels", self.max_image_pixels);
        settings.flag(("images", "timeout"), "--image-timeout", self.image_timeout);
        settings.flag(("images", "max_redirects"), "--max-redirects", self.max_redirects);
        let private = given(self.allow_private_addresses);
        settings.flag(("images", "allow_private_addresses"), "--allow-private-addresses", private);
    }
}

impl RunFlags {
    fn add_to(self, settings: &mut Settings) {
        settings.flag(("run", "row_timeout"), "--row-timeout", self.row_timeout);
        settings.flag(("run", "max_errors"), "--max-errors", self.max_errors);
        settings.flag(("run", "quiet"), "--quiet", given(self.quiet));
        settings.flag(("run", "stats"), "--stats", self.stats);
        settings.flag(("run", "progress_interval"), "--progress-interval", self.progress_interval);
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.to_owned(), to.to_owned())),
        _ => Err("expected COLUMN=NAME".to_owned()),
    }
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let (token, bias) = text.split_once('=').ok_or("expected ID=BIAS")?;
    let token = token.trim().parse().map_err(|_| format!("{token:?} is no token's number"))?;
    match bias.trim().parse::<f32>() {
        Ok(bias) if bias.is_finite() => Ok((token, bias)),
        _ => Err(format!("{bias:?} is no number")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::keys::{self, KEYS};

    #[test]
    fn command_lines_are_consistent() {
        VgenArgs::command().debug_assert();
        LocalArgs::command().debug_assert();
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
            --revision r --device cpu --dtype f32 --tensor-type a=f32 --kv-dtype f32 --reference hf4 --batch-size 2 --step-tokens 9 --threads 2 --prepare-threads 1 --image-cache 1GiB --memory 1GiB \
            --max-image-bytes 1 --max-image-pixels 1 --image-timeout 1 --max-redirects 1 \
            --allow-private-addresses --row-timeout 1 --quiet --stats s --progress-interval 1";
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
        let others = ["--demo", "--image", "--prompt", "--json-schema", "--choice", "--print-config", "--color"];
        for flag in LocalArgs::command().get_arguments().filter_map(|arg| arg.get_long()) {
            let flag = format!("--{flag}");
            let seen = given.iter().any(|word| word.split('=').next() == Some(&flag));
            assert!(seen || others.contains(&flag.as_str()), "{flag}");
        }
    }
}
