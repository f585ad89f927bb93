//! The input and the output.

use std::path::PathBuf;

use clap::Args;

use crate::quantity;
use crate::settings::Settings;

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
    pub(crate) sample: Option<u64>,
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
    /// Images in the output: as the input has them, their paths or URLs only, or their bytes, those of URLs included
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

impl RowFlags {
    pub(crate) fn add_to(self, settings: &mut Settings) {
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
