//! What is asked about each row.

use clap::Args;
use serde_json::{Map, Value};

use crate::settings::{Origin, Settings};

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
    /// The column of a row's own form of answer, {"format": "json", "schema": {...}} as in distilabel, or format
    /// regex or choice; a row without one takes the run's.
    #[arg(long, value_name = "NAME")]
    structured_output_column: Option<String>,
    /// Where images stand in the message: before the text, or after it as distilabel puts them [default: first; for
    /// other backends than the local one: as-given].
    #[arg(long, value_name = "WHERE", value_parser = ["first", "as-given"])]
    image_position: Option<String>,
    /// Whether each row must have an image [default: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    image_required: Option<bool>,
    /// Answers for each row, up to 4096; more than the batch size are made in turns [default: 1].
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

impl TaskFlags {
    pub(crate) fn add_to(self, settings: &mut Settings) {
        let position = self.image_position.map(|position| position.replace('-', "_"));
        settings.flag(("task", "system_prompt"), "--system-prompt", self.system_prompt);
        settings.flag(("task", "template"), "--template", self.template);
        settings.flags(("task", "columns"), "--columns", self.columns);
        settings.flag(("task", "image_type"), "--image-type", self.image_type);
        settings.flag(("task", "image_column"), "--image-column", self.image_column);
        settings.flag(
            ("task", "structured_output_column"),
            "--structured-output-column",
            self.structured_output_column,
        );
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

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() => Ok((from.to_owned(), to.to_owned())),
        _ => Err("expected COLUMN=NAME".to_owned()),
    }
}
