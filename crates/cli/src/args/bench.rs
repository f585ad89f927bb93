//! `vgen bench`.

use std::path::PathBuf;

use clap::Args;

/// The arguments of `vgen bench`. What is given here overrides `[bench]` of the config file.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").multiple(true).required(true)
    .args(["config", "demo", "local", "remote", "mock", "compare", "schema"])))]
pub(crate) struct BenchCommand {
    /// What to measure (TOML): [bench], one [[backend]] for each backend, and [input], [task], [sampling], [images] as
    /// for vgen run.
    #[arg(value_name = "BENCH.toml")]
    pub(crate) config: Option<PathBuf>,
    /// Compare the small model that is part of this program, run in this process, with itself behind a server on
    /// loopback, on its sample images.
    #[arg(long, conflicts_with_all = ["config", "local", "remote", "mock", "rows", "workload", "compare"])]
    pub(crate) demo: bool,
    /// Put the results of two benches side by side.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], exclusive = true)]
    pub(crate) compare: Vec<PathBuf>,
    /// Print the JSON schema of a bench's result.
    #[arg(long, exclusive = true)]
    pub(crate) schema: bool,
    #[command(flatten)]
    pub(crate) backends: BackendFlags,
    #[command(flatten)]
    pub(crate) rows: BenchRows,
    #[command(flatten)]
    pub(crate) readings: Readings,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Backends")]
pub(crate) struct BackendFlags {
    /// Measure this model in this process: a folder, a GGUF file or owner/name; after commas keys of [backend], for
    /// example DIR,dtype=q8_0,batch_size=16. Several times for several.
    #[arg(long, value_name = "MODEL[,KEY=VALUE]")]
    pub(crate) local: Vec<String>,
    /// Measure this server: its address; after commas keys of [backend], for example
    /// http://localhost:8000,model_id=my-model,dialect=vllm. Several times for several.
    #[arg(long, value_name = "URL[,KEY=VALUE]")]
    pub(crate) remote: Vec<String>,
    /// Measure a scripted backend by this name; after commas keys of [backend]. Several times for several.
    #[arg(long, value_name = "NAME[,KEY=VALUE]")]
    pub(crate) mock: Vec<String>,
    /// Open each local backend once for each of these batch sizes, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',', conflicts_with = "demo")]
    pub(crate) batch_sizes: Vec<usize>,
    /// Bytes a second that the device reads from memory, for the share of it that is reached: 60e9.
    #[arg(long, value_name = "N", conflicts_with = "measure_peaks")]
    pub(crate) peak_bandwidth: Option<f64>,
    /// Operations a second that the device does, for the share of it that is reached: 1e12.
    #[arg(long, value_name = "N", conflicts_with = "measure_peaks")]
    pub(crate) peak_flops: Option<f64>,
    /// Measure both, in a second, on this machine's processor, for local backends that compute on it.
    #[arg(long)]
    pub(crate) measure_peaks: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Rows")]
pub(crate) struct BenchRows {
    /// Ask about the rows of this file, as --input of a run, the requests of an OpenAI batch file included. Every reading
    /// asks about the same rows.
    #[arg(long, value_name = "FILE", conflicts_with = "workload")]
    pub(crate) rows: Option<PathBuf>,
    /// Draw rows: one-tile, four-tiles, strips, mixed-ratios, one-image (with 16 questions), mixed (every other row
    /// without image). Every reading asks about others [default: one-tile].
    #[arg(long, value_name = "NAME")]
    pub(crate) workload: Option<String>,
    /// Rows of a reading [default: 32; of a file: all].
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<usize>,
    /// Answers of exactly so many tokens, whatever the model wants (ignore_eos) [default: the model ends them, at most
    /// 128].
    #[arg(long, value_name = "N")]
    pub(crate) output_tokens: Option<u32>,
    /// Of drawn rows and arrivals [default: 0], and where it is given of answers: else these have [sampling] seed, or the
    /// backend's own.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Readings")]
pub(crate) struct Readings {
    /// So many requests in flight at a time, the next one when one is answered; several separated by commas
    /// [default: 1,4,16].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) concurrency: Vec<usize>,
    /// So many requests a second on average, at random moments, whatever is answered; several separated by commas. Times
    /// count from the moment that a request is due.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) rates: Vec<f64>,
    /// As many in flight as keep the backend busy, by its own word: as a run does it.
    #[arg(long)]
    pub(crate) window: bool,
    /// How often each reading is taken [default: 5].
    #[arg(long, value_name = "N")]
    pub(crate) repeats: Option<u32>,
    /// Rows that each backend answers first, outside of all numbers [default: 4].
    #[arg(long, value_name = "N")]
    pub(crate) warmup: Option<usize>,
    /// Measure one backend after the other, each opened alone, instead of in turns.
    #[arg(long)]
    pub(crate) one_by_one: bool,
    /// Write the results to NAME.json, NAME.md, NAME.csv and NAME.html [default: vgen-bench- and the time]. The JSON is
    /// written after each reading; the folder is made.
    #[arg(long, short, value_name = "NAME")]
    pub(crate) out: Option<PathBuf>,
    /// Replace results that are there.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Say nothing but the result.
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
