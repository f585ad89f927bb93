//! [`TaskConfig`]: the task's parameters as a config file or a caller gives them, none checked against another yet.
//!
//! The names are distilabel's; those under "beyond distilabel" are our own. Where distilabel takes a number or a truth
//! value as text (`"3"`, `"yes"`), so do we.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::TaskError;

/// What the `image` column holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ImageType {
    /// URLs, data URLs or paths.
    #[default]
    #[serde(rename = "url")]
    Url,
    /// Base64 text of an image file.
    #[serde(rename = "base64")]
    Base64,
    /// Images in memory: `{"bytes", "path"}` objects as Hugging Face data sets have them.
    #[serde(rename = "PIL")]
    Pil,
}

/// Where the images stand in the user message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImagePosition {
    /// Text, then images, as distilabel sends them.
    #[default]
    AsGiven,
    /// Images, then text: what Llama-3.2-Vision was trained with.
    First,
}

/// What a template's missing value does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Undefined {
    /// Printing, iterating or computing with it is an error; asking for its truth is not.
    #[default]
    Strict,
    /// It prints as nothing, as in distilabel.
    Lenient,
}

/// How `columns` and the template are held against each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnCheck {
    /// By the parsed template's free variables: a listed column must be used, a used variable listed.
    #[default]
    Variables,
    /// By distilabel's search in the template's text.
    Text,
    /// Not at all; what [`ColumnCheck::Variables`] would refuse becomes a warning.
    Off,
}

/// What is asked of the `image` column before anything is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageCheck {
    /// It must look like an image; its true type is told by its first bytes.
    #[default]
    Strict,
    /// Any text goes out as it is, as in distilabel: for servers with URL schemes of their own.
    Passthrough,
}

/// What is sent of an image in memory (`image_type = "PIL"`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PilFormat {
    /// The file as it is, whatever its format.
    #[default]
    Original,
    /// A JPEG of quality 75, as in distilabel; pixels that JPEG has no form for (transparency, palettes, 16 bits) are
    /// refused, as there.
    Jpeg,
}

/// How images in memory stand in the `raw_input_*` metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RawImages {
    /// As `sha256:<hex digest of the file>`.
    #[default]
    Digest,
    /// As the whole data URL, as in distilabel.
    Inline,
}

/// The task's parameters. `None` is the default.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TaskConfig {
    /// Name of the step, part of the metadata's keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Jinja2 template of the user message's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Columns that the template may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// Sent verbatim before the user message; empty is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// What the `image` column holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_type: Option<ImageType>,
    /// Answers for each row, up to [`vgen_core::MAX_NUM_GENERATIONS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_generations: Option<i64>,
    /// One output row with lists instead of one row for each answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_generations: Option<bool>,
    /// Keep the answer's text in the metadata, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_raw_output: Option<bool>,
    /// Keep the messages in the metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_raw_input: Option<bool>,
    /// Task column to data set column.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub input_mappings: BTreeMap<String, String>,
    /// Output column to its name in the output.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub output_mappings: BTreeMap<String, String>,
    /// Beyond distilabel: the column of the image or images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_column: Option<String>,
    /// Beyond distilabel: whether each row must have an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_required: Option<bool>,
    /// Beyond distilabel: where the images stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_position: Option<ImagePosition>,
    /// Beyond distilabel: what a missing value does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undefined: Option<Undefined>,
    /// Beyond distilabel: how columns and template are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column_check: Option<ColumnCheck>,
    /// Beyond distilabel: what is asked of images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_check: Option<ImageCheck>,
    /// Beyond distilabel: what is sent of images in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pil_format: Option<PilFormat>,
    /// Beyond distilabel: how images in memory stand in the metadata.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_images: Option<RawImages>,
    /// Beyond distilabel: whether a row's `system_prompt` column wins over the task's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_system_prompt: Option<bool>,
    /// Beyond distilabel: the column of a row's own form of answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structured_output_column: Option<String>,
    /// Beyond distilabel: how many steps a template may take for a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_fuel: Option<u64>,
    /// Parameters of distilabel that were given and have no effect here, for a warning.
    #[serde(skip)]
    pub without_effect: Vec<&'static str>,
}

/// Every parameter that [`TaskConfig::from_map`] takes.
pub const PARAMETERS: [&str; 28] = [
    "name",
    "template",
    "columns",
    "system_prompt",
    "image_type",
    "num_generations",
    "group_generations",
    "add_raw_output",
    "add_raw_input",
    "input_mappings",
    "output_mappings",
    "image_column",
    "image_required",
    "image_position",
    "undefined",
    "column_check",
    "image_check",
    "pil_format",
    "raw_images",
    "row_system_prompt",
    "structured_output_column",
    "template_fuel",
    "use_system_prompt",
    "use_default_structured_output",
    "use_cache",
    "input_batch_size",
    "resources",
    "exclude_from_signature",
];

impl TaskConfig {
    /// Reads a table of parameters and reports all that is wrong with it at once.
    pub fn from_map(map: &Map<String, Value>) -> Result<Self, TaskError> {
        let mut read = Reader { map, errors: Vec::new() };
        let mut config = Self {
            name: read.optional("name", text),
            template: read.required("template", text),
            columns: read.required("columns", columns),
            system_prompt: read.optional("system_prompt", text),
            image_type: read.required("image_type", |v| choice(v, &["url", "base64", "PIL"])),
            num_generations: read.required("num_generations", integer),
            group_generations: read.required("group_generations", boolean),
            add_raw_output: read.flag("add_raw_output"),
            add_raw_input: read.flag("add_raw_input"),
            input_mappings: read.required("input_mappings", mapping).unwrap_or_default(),
            output_mappings: read.required("output_mappings", mapping).unwrap_or_default(),
            image_column: read.required("image_column", text),
            image_required: read.required("image_required", boolean),
            image_position: read.required("image_position", |v| choice(v, &["as_given", "first"])),
            undefined: read.required("undefined", |v| choice(v, &["strict", "lenient"])),
            column_check: read.required("column_check", |v| choice(v, &["variables", "text", "off"])),
            image_check: read.required("image_check", |v| choice(v, &["strict", "passthrough"])),
            pil_format: read.required("pil_format", |v| choice(v, &["original", "jpeg"])),
            raw_images: read.required("raw_images", |v| choice(v, &["digest", "inline"])),
            row_system_prompt: read.required("row_system_prompt", boolean),
            structured_output_column: read.required("structured_output_column", text),
            template_fuel: read.required("template_fuel", |v| positive(v).map(|n| n as u64)),
            without_effect: Vec::new(),
        };
        read.required("use_system_prompt", boolean);
        read.required("use_default_structured_output", boolean);
        read.required("use_cache", boolean);
        read.required("input_batch_size", positive);
        read.required("resources", resources);
        read.required("exclude_from_signature", names);
        config.without_effect = PARAMETERS[22..].iter().copied().filter(|name| map.contains_key(*name)).collect();
        for name in map.keys().filter(|name| !PARAMETERS.contains(&name.as_str())) {
            read.errors.push(TaskError::UnknownParameter { name: name.clone(), nearest: nearest(name) });
        }
        TaskError::collect(read.errors)?;
        Ok(config)
    }
}

impl<'de> Deserialize<'de> for TaskConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = Map::<String, Value>::deserialize(deserializer)?;
        Self::from_map(&map).map_err(serde::de::Error::custom)
    }
}

fn nearest(name: &str) -> Option<&'static str> {
    PARAMETERS
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, known)| *distance <= known.len() / 3 + 1)
        .min()
        .map(|(_, known)| known)
}

struct Reader<'a> {
    map: &'a Map<String, Value>,
    errors: Vec<TaskError>,
}

impl Reader<'_> {
    /// A parameter that can't be null.
    fn required<T>(&mut self, name: &'static str, read: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        match read(self.map.get(name)?) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.errors.push(TaskError::InvalidParameter { name, reason });
                None
            }
        }
    }

    /// A parameter for which null is the same as not given.
    fn optional<T>(&mut self, name: &'static str, read: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        self.map.get(name).filter(|value| !value.is_null())?;
        self.required(name, read)
    }

    /// A truth value for which null is false.
    fn flag(&mut self, name: &'static str) -> Option<bool> {
        if self.map.get(name)?.is_null() { Some(false) } else { self.required(name, boolean) }
    }
}

fn got(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

fn text(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("expected a text, got {}", got(value)))
}

fn names(value: &Value) -> Result<Vec<String>, String> {
    let list = value.as_array().ok_or_else(|| format!("expected a list of texts, got {}", got(value)))?;
    list.iter().map(text).collect()
}

fn columns(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::String(name) => Ok(vec![name.clone()]),
        Value::Array(_) => names(value),
        _ => Err(format!("expected a column's name or a list of names, got {}", got(value))),
    }
}

fn choice<T: for<'de> Deserialize<'de>>(value: &Value, known: &[&str]) -> Result<T, String> {
    T::deserialize(value).map_err(|_| {
        let known: Vec<_> = known.iter().map(|name| format!("{name:?}")).collect();
        format!("expected one of {}, got {}", known.join(", "), got(value))
    })
}

fn boolean(value: &Value) -> Result<bool, String> {
    let known = match value {
        Value::Bool(value) => Some(*value),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => None,
        },
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "0" | "off" | "f" | "false" | "n" | "no" => Some(false),
            "1" | "on" | "t" | "true" | "y" | "yes" => Some(true),
            _ => None,
        },
        _ => None,
    };
    known.ok_or_else(|| format!("expected true or false, got {}", got(value)))
}

fn integer(value: &Value) -> Result<i64, String> {
    let whole = |number: f64| (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i64);
    let known = match value {
        Value::Bool(value) => Some(i64::from(*value)),
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => {
            let text = text.trim();
            let (digits, fraction) = text.split_once('.').unwrap_or((text, ""));
            fraction.bytes().all(|b| b == b'0').then(|| digits.parse().ok()).flatten()
        }
        _ => None,
    };
    known.ok_or_else(|| format!("expected an integer, got {}", got(value)))
}

fn positive(value: &Value) -> Result<i64, String> {
    integer(value).and_then(|n| if n > 0 { Ok(n) } else { Err(format!("expected an integer above 0, got {n}")) })
}

fn mapping(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let map = value.as_object().ok_or_else(|| format!("expected a table of texts, got {}", got(value)))?;
    map.iter().map(|(from, to)| Ok((from.clone(), text(to)?))).collect()
}

fn resources(value: &Value) -> Result<(), String> {
    let map = value.as_object().ok_or_else(|| format!("expected a table, got {}", got(value)))?;
    for (key, value) in map {
        match key.as_str() {
            "replicas" => positive(value).map(drop)?,
            "cpus" | "gpus" | "memory" | "resources" => {}
            _ => return Err(format!("unknown entry {key:?}")),
        }
    }
    Ok(())
}
