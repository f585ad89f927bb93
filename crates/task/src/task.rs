//! [`TextGenerationWithImage`] itself: its builder, and the checks that need more than one parameter.

use std::collections::BTreeMap;

use vgen_core::MAX_NUM_GENERATIONS;

use crate::config::{
    ColumnCheck, ImageCheck, ImagePosition, ImageType, PARAMETERS, PilFormat, RawImages, TaskConfig, Undefined,
};
use crate::error::TaskError;
use crate::images::ImageRules;
use crate::template::{Template, Variable, text_mentions};

/// distilabel's default name of the task's only step.
const DEFAULT_NAME: &str = "text_generation_with_image_0";
const DEFAULT_TEMPLATE: &str = "{{ instruction }}";
const DEFAULT_COLUMN: &str = "instruction";
/// A template that needs more than this for one row loops over far too much; it is a fraction of a second.
const DEFAULT_FUEL: u64 = 5_000_000;
/// Columns that the task writes, in the order of a row.
pub(crate) const OUTPUTS: [&str; 5] = ["generation", "distilabel_metadata", "model_name", "finish_reason", "error"];

/// distilabel's task: renders a template over a row's columns, sends it with the row's image, and writes the answers
/// into columns. Built once, checked whole, then used for every row from any thread.
#[derive(Debug)]
pub struct TextGenerationWithImage {
    pub(crate) name: String,
    pub(crate) template: Template,
    pub(crate) columns: Vec<String>,
    pub(crate) system_prompt: Option<String>,
    pub(crate) row_system_prompt: bool,
    pub(crate) structured_output_column: Option<String>,
    pub(crate) images: ImageRules,
    pub(crate) image_column: String,
    pub(crate) image_required: bool,
    pub(crate) image_position: ImagePosition,
    pub(crate) raw_images: RawImages,
    pub(crate) num_generations: u32,
    pub(crate) group_generations: bool,
    pub(crate) add_raw_output: bool,
    pub(crate) add_raw_input: bool,
    pub(crate) input_mappings: BTreeMap<String, String>,
    pub(crate) output_mappings: BTreeMap<String, String>,
    warnings: Vec<String>,
    config: TaskConfig,
}

impl TextGenerationWithImage {
    /// A builder with distilabel's defaults.
    pub fn builder() -> TaskBuilder {
        TaskBuilder::default()
    }

    /// Builds the task from a config file's table.
    ///
    /// # Errors
    /// Everything that is wrong with it, at once.
    pub fn from_config(config: TaskConfig) -> Result<Self, TaskError> {
        TaskBuilder { config }.build()
    }

    /// The parameters that it was built from.
    pub fn config(&self) -> &TaskConfig {
        &self.config
    }

    /// Name of the step.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Answers for each row, at least 1.
    pub fn num_generations(&self) -> u32 {
        self.num_generations
    }

    /// Whether the answers of a row stand in one output row.
    pub fn group_generations(&self) -> bool {
        self.group_generations
    }

    /// What is odd about the parameters without being wrong.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The data set's columns that the task reads, and whether each must be there.
    pub fn input_columns(&self) -> Vec<(String, bool)> {
        let mut inputs: Vec<(&str, bool)> = self.columns.iter().map(|name| (name.as_str(), true)).collect();
        inputs.push(("system_prompt", false));
        inputs.push((self.image_column.as_str(), self.image_required));
        inputs.extend(self.structured_output_column.iter().map(|name| (name.as_str(), false)));
        let mut named: Vec<(String, bool)> = Vec::new();
        for (name, required) in inputs {
            let name = self.input_name(name);
            match named.iter_mut().find(|(known, _)| known == name) {
                Some(entry) => entry.1 = required,
                None => named.push((name.to_owned(), required)),
            }
        }
        named
    }

    /// distilabel's output columns under their final names.
    pub fn output_columns(&self) -> Vec<String> {
        ["generation", "model_name"].map(|name| self.output_name(name).to_owned()).to_vec()
    }

    /// Every column that an output row has besides the input row's, in order; log-probabilities, tool calls and
    /// reasoning, if asked for, come in [`TextGenerationWithImage::extra_column`] besides.
    pub fn written_columns(&self) -> Vec<String> {
        OUTPUTS.map(|name| self.output_name(name).to_owned()).to_vec()
    }

    /// The column of something that the backend gives besides text: `logprobs`, `tool_calls`, `reasoning`.
    pub fn extra_column(&self, what: &str) -> String {
        format!("llm_{}_{what}", self.name)
    }

    pub(crate) fn input_name<'a>(&'a self, column: &'a str) -> &'a str {
        self.input_mappings.get(column).map_or(column, String::as_str)
    }

    /// The name under which an output column is written.
    pub fn output_name<'a>(&'a self, column: &'a str) -> &'a str {
        self.output_mappings.get(column).map_or(column, String::as_str)
    }
}

/// Builds a [`TextGenerationWithImage`]; what is not set has distilabel's default.
#[derive(Clone, Debug, Default)]
pub struct TaskBuilder {
    config: TaskConfig,
}

impl From<TaskConfig> for TaskBuilder {
    fn from(config: TaskConfig) -> Self {
        Self { config }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        impl TaskBuilder {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(mut self, $name: impl Into<$type>) -> Self {
                    self.config.$name = Some($name.into());
                    self
                }
            )*
        }
    };
}

setters! {
    /// Name of the step: ASCII letters, digits, `_`, `-`. Default `text_generation_with_image_0`.
    name: String,
    /// Jinja2 template of the text. Default `{{ instruction }}`.
    template: String,
    /// Sent verbatim as the system message. Default none.
    system_prompt: String,
    /// What the image column holds. Default [`ImageType::Url`].
    image_type: ImageType,
    /// Answers for each row, at least 1. Default 1.
    num_generations: i64,
    /// One output row for all answers. Default false.
    group_generations: bool,
    /// Keep the answer in the metadata. Default true.
    add_raw_output: bool,
    /// Keep the messages in the metadata. Default true.
    add_raw_input: bool,
    /// The image's column. Default `image`.
    image_column: String,
    /// Whether each row must have an image. Default true.
    image_required: bool,
    /// Where the images stand. Default [`ImagePosition::AsGiven`].
    image_position: ImagePosition,
    /// What a missing value does. Default [`Undefined::Strict`].
    undefined: Undefined,
    /// How columns and template are compared. Default [`ColumnCheck::Variables`].
    column_check: ColumnCheck,
    /// What is asked of images. Default [`ImageCheck::Strict`].
    image_check: ImageCheck,
    /// What is sent of images in memory. Default [`PilFormat::Original`].
    pil_format: PilFormat,
    /// How images in memory stand in the metadata. Default [`RawImages::Digest`].
    raw_images: RawImages,
    /// Whether the row's `system_prompt` column wins. Default true.
    row_system_prompt: bool,
    /// The column of a row's own form of answer. Default none.
    structured_output_column: String,
    /// Steps that a template may take for a row. Default 5,000,000.
    template_fuel: u64,
}

impl TaskBuilder {
    /// Columns that the template may use. Default `instruction`.
    #[must_use]
    pub fn columns<S: Into<String>>(mut self, columns: impl IntoIterator<Item = S>) -> Self {
        self.config.columns = Some(columns.into_iter().map(Into::into).collect());
        self
    }

    /// Reads the task's column from another column of the data set.
    #[must_use]
    pub fn input_mapping(mut self, column: impl Into<String>, data_set_column: impl Into<String>) -> Self {
        self.config.input_mappings.insert(column.into(), data_set_column.into());
        self
    }

    /// Writes an output column under another name.
    #[must_use]
    pub fn output_mapping(mut self, column: impl Into<String>, name: impl Into<String>) -> Self {
        self.config.output_mappings.insert(column.into(), name.into());
        self
    }

    /// What distilabel does where we do better by default: lenient undefined, its text search as the column check,
    /// images unchecked, as JPEG, and whole in the metadata, no system prompt of a row's own.
    #[must_use]
    pub fn like_distilabel(self) -> Self {
        self.undefined(Undefined::Lenient)
            .column_check(ColumnCheck::Text)
            .image_check(ImageCheck::Passthrough)
            .pil_format(PilFormat::Jpeg)
            .raw_images(RawImages::Inline)
            .row_system_prompt(false)
    }

    /// Checks everything and builds the task. Nothing is loaded or sent.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn build(self) -> Result<TextGenerationWithImage, TaskError> {
        let config = self.config;
        let mut errors = Vec::new();
        let mut warnings: Vec<String> = config
            .without_effect
            .iter()
            .map(|name| format!("parameter {name:?} has no effect: rows are neither batched nor cached by step"))
            .collect();

        let name = config.name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            let reason = format!("expected ASCII letters, digits, _ and -, got {name:?}");
            errors.push(TaskError::InvalidParameter { name: "name", reason });
        }
        let num_generations = match u32::try_from(config.num_generations.unwrap_or(1)) {
            Ok(n @ 1..=MAX_NUM_GENERATIONS) => n,
            _ => {
                let given = config.num_generations.unwrap_or(1);
                let reason = format!("expected 1 to {MAX_NUM_GENERATIONS}, got {given}");
                errors.push(TaskError::InvalidParameter { name: "num_generations", reason });
                1
            }
        };
        let columns = config.columns.clone().unwrap_or_else(|| vec![DEFAULT_COLUMN.to_owned()]);
        let image_column = config.image_column.clone().unwrap_or_else(|| "image".to_owned());
        check_mappings(&config, &columns, &image_column, &mut errors);

        let source = config.template.as_deref().unwrap_or(DEFAULT_TEMPLATE);
        let undefined = config.undefined.unwrap_or_default();
        let check = config.column_check.unwrap_or_default();
        if check == ColumnCheck::Text {
            // Before the template is parsed, as distilabel does it.
            let unused = columns.iter().filter(|column| !text_mentions(source, column));
            errors.extend(unused.map(|column| TaskError::UnusedColumn { column: column.clone() }));
        }
        let template = match Template::new(source, undefined, config.template_fuel.unwrap_or(DEFAULT_FUEL)) {
            Ok(template) => Some(template),
            Err(error) => {
                errors.push(error.into());
                None
            }
        };
        if let Some(template) = &template
            && check != ColumnCheck::Text
        {
            let found = compare(template.variables(), &columns, undefined);
            if check == ColumnCheck::Off {
                // Columns that are not used are the linter's.
                let unlisted = found.iter().filter(|error| !matches!(error, TaskError::UnusedColumn { .. }));
                warnings.extend(unlisted.map(ToString::to_string));
            } else {
                errors.extend(found);
            }
        }
        TaskError::collect(errors)?;
        let Some(template) = template else {
            // Without a template there was an error.
            return Err(TaskError::Several(Vec::new()));
        };
        Ok(TextGenerationWithImage {
            name,
            template,
            columns,
            system_prompt: config.system_prompt.clone().filter(|prompt| !prompt.is_empty()),
            row_system_prompt: config.row_system_prompt.unwrap_or(true),
            structured_output_column: config.structured_output_column.clone(),
            images: ImageRules {
                image_type: config.image_type.unwrap_or_default(),
                check: config.image_check.unwrap_or_default(),
                pil_format: config.pil_format.unwrap_or_default(),
            },
            image_column,
            image_required: config.image_required.unwrap_or(true),
            image_position: config.image_position.unwrap_or_default(),
            raw_images: config.raw_images.unwrap_or_default(),
            num_generations,
            group_generations: config.group_generations.unwrap_or(false),
            add_raw_output: config.add_raw_output.unwrap_or(true),
            add_raw_input: config.add_raw_input.unwrap_or(true),
            input_mappings: config.input_mappings.clone(),
            output_mappings: config.output_mappings.clone(),
            warnings,
            config,
        })
    }
}

fn check_mappings(config: &TaskConfig, columns: &[String], image_column: &str, errors: &mut Vec<TaskError>) {
    let mut inputs = columns.to_vec();
    inputs.push("system_prompt".to_owned());
    inputs.push(image_column.to_owned());
    inputs.extend(config.structured_output_column.clone());
    let outputs = OUTPUTS.map(str::to_owned).to_vec();
    for (parameter, mappings, known) in
        [("input_mappings", &config.input_mappings, inputs), ("output_mappings", &config.output_mappings, outputs)]
    {
        debug_assert!(PARAMETERS.contains(&parameter));
        for column in mappings.keys().filter(|column| !known.contains(column)) {
            errors.push(TaskError::UnknownMapping { parameter, column: column.clone(), known: known.clone() });
        }
    }
}

/// Where the template's free variables and the listed columns differ.
fn compare(variables: &[Variable], columns: &[String], undefined: Undefined) -> Vec<TaskError> {
    let unused = columns.iter().filter(|column| !variables.iter().any(|variable| variable.name == **column));
    let mut errors: Vec<_> = unused.map(|column| TaskError::UnusedColumn { column: column.clone() }).collect();
    if undefined == Undefined::Strict {
        let unlisted = variables.iter().filter(|variable| !variable.optional && !columns.contains(&variable.name));
        errors.extend(unlisted.map(|variable| TaskError::UnlistedVariable {
            variable: variable.name.clone(),
            line: variable.line,
            position: variable.column,
        }));
    }
    errors
}
