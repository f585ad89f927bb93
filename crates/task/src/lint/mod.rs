//! [`Linter`]: what of prompts looks wrong although it can be asked, seen in a sample of rows before the run.

mod texts;

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;
use serde_json::value::RawValue;
use vgen_core::{Content, Fault, ImageRef, Message, Part, Row};

use crate::render::Rendered;
use crate::task::TextGenerationWithImage;
use texts::{image_tag, single_braces, special_token};

/// Whose prompts they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The local engine: text sees only images before it, and texts of special tokens stay text.
    Local,
    /// Llama-3.2-Vision behind a server, of which nobody knows what it does with texts of special tokens.
    ServedLlama,
    /// Any other model.
    Other,
}

impl Reader {
    /// Of a served model, by its name.
    pub fn of_model(name: &str) -> Self {
        let name = name.to_ascii_lowercase();
        if name.contains("llama-3.2") && name.contains("vision") { Self::ServedLlama } else { Self::Other }
    }

    fn is_llama(self) -> bool {
        self != Self::Other
    }
}

/// How many rows, and the first of them.
#[derive(Debug, Default)]
struct Seen {
    rows: u64,
    first: String,
    /// What was seen there.
    what: String,
    hint: Option<String>,
}

impl Seen {
    fn add(&mut self, place: &str, what: impl Into<String>) {
        if self.rows == 0 {
            (self.first, self.what) = (place.to_owned(), what.into());
        }
        self.rows += 1;
    }
}

/// Looks at rows and their prompts, and says at the end what looks wrong in them.
#[derive(Debug)]
pub struct Linter<'a> {
    /// `None` where rows bring their own messages.
    task: Option<&'a TextGenerationWithImage>,
    reader: Reader,
    rows: u64,
    readable: u64,
    text_before_image: Seen,
    image_tags: Seen,
    special_tokens: Seen,
    no_image: Seen,
    /// Rows by their number of images.
    images: BTreeMap<usize, Seen>,
    repeated: Seen,
    /// By code.
    failing: BTreeMap<String, Seen>,
    /// Columns that nobody reads and that hold images.
    unread: BTreeMap<String, Seen>,
    /// Listed columns that had a value in some row.
    filled: HashSet<String>,
    names: HashSet<String>,
}

impl<'a> Linter<'a> {
    /// For the prompts of a task; without one, of rows that bring their own.
    pub fn new(task: Option<&'a TextGenerationWithImage>, reader: Reader) -> Self {
        Self {
            task,
            reader,
            rows: 0,
            readable: 0,
            text_before_image: Seen::default(),
            image_tags: Seen::default(),
            special_tokens: Seen::default(),
            no_image: Seen::default(),
            images: BTreeMap::new(),
            repeated: Seen::default(),
            failing: BTreeMap::new(),
            unread: BTreeMap::new(),
            filled: HashSet::new(),
            names: HashSet::new(),
        }
    }

    /// How many rows were looked at.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Looks at a row: where it stands, its values unless they can't be read, and its prompt or why there is none.
    pub fn look(&mut self, place: &str, row: Option<&Row>, rendered: Result<&Rendered, &Fault>) {
        self.rows += 1;
        if let Some(row) = row {
            self.readable += 1;
            self.look_at_columns(place, row, rendered.is_ok_and(|rendered| images(&rendered.messages).count() > 0));
        }
        match rendered {
            Ok(rendered) => self.look_at_messages(place, &rendered.messages),
            Err(fault) => self.fails(place, fault),
        }
    }

    /// Counts a row of which it is known that it will fail.
    pub fn fails(&mut self, place: &str, fault: &Fault) {
        if ["row.missing_image", "image.missing"].contains(&&*fault.code) {
            self.no_image.add(place, "");
            return;
        }
        let seen = self.failing.entry(fault.code.to_string()).or_default();
        seen.hint = seen.hint.take().or_else(|| fault.hint.clone());
        seen.add(place, fault.message.clone());
    }

    fn look_at_columns(&mut self, place: &str, row: &Row, has_images: bool) {
        let Some(task) = self.task else { return };
        let reads = |name: &str| task.input_columns().iter().any(|(column, _)| column == name);
        for column in &task.columns {
            if row.get(task.input_name(column)).is_some_and(|value| !matches!(value.get(), "null" | "\"\"" | "[]")) {
                self.filled.insert(column.clone());
            }
        }
        for (name, value) in row.iter() {
            self.names.insert(name.to_owned());
            if holds_image(value, has_images) && !reads(name) {
                self.unread.entry(name.to_owned()).or_default().add(place, "");
            }
        }
    }

    fn look_at_messages(&mut self, place: &str, messages: &[Message]) {
        let count = images(messages).count();
        self.images.entry(count).or_default().add(place, "");
        if count == 0 && self.task.is_some() {
            self.no_image.add(place, "");
        }
        let mut seen = HashSet::new();
        if images(messages).any(|image| !seen.insert(image)) {
            self.repeated.add(place, "");
        }
        let texts = || messages.iter().flat_map(Message::texts);
        if messages.iter().any(has_text_before_image) {
            self.text_before_image.add(place, "");
        }
        if let Some(tag) = texts().find_map(image_tag) {
            self.image_tags.add(place, tag);
        }
        if let Some(token) = texts().find_map(special_token) {
            self.special_tokens.add(place, token);
        }
    }

    /// What looks wrong, each with a stable code (`lint.*`) and how to mend it.
    pub fn findings(&self) -> Vec<Fault> {
        let mut findings = Vec::new();
        let mut find = |code: &'static str, message: String, hint: &str| {
            findings.push(Fault::stop(code, message).with_hint(hint));
        };
        self.find_in_task(&mut find);
        for (code, seen) in &self.failing {
            let hint = seen.hint.as_deref().unwrap_or("mend these rows, or leave them out");
            find("lint.failing_rows", format!("{} will fail with {code}: {}", self.of(seen), seen.what), hint);
        }
        self.find_in_images(&mut find);
        let before = &self.text_before_image;
        if before.rows > 0 && self.reader.is_llama() {
            find(
                "lint.text_before_image",
                format!("{} have text before their image, which that text can't see", self.of(before)),
                "put images first: --image-position first",
            );
        }
        let fate = match self.reader {
            Reader::Local => "it stays plain text and is never the token",
            _ => "what the server makes of it is not known",
        };
        if self.image_tags.rows > 0 {
            let (of, what) = (self.of(&self.image_tags), &self.image_tags.what);
            find(
                "lint.image_tag",
                format!("{of} have an image tag like {what} in their text: {fate}"),
                "take it out: the place of the image is decided by --image-position",
            );
        }
        if self.special_tokens.rows > 0 {
            let (of, what) = (self.of(&self.special_tokens), &self.special_tokens.what);
            find(
                "lint.special_token",
                format!("{of} have a special token like {what} in their text: {fate}"),
                "take it out: the chat template puts special tokens where they belong",
            );
        }
        findings
    }

    fn find_in_task(&self, find: &mut impl FnMut(&'static str, String, &str)) {
        let Some(task) = self.task else { return };
        let used = |column: &String| task.template.variables().iter().any(|variable| variable.name == *column);
        for column in task.columns.iter().filter(|column| !used(column)) {
            let hint = "use it in the template, or take it off the list (--columns)";
            find("lint.unused_column", format!("column {column:?} is listed, but the template does not use it"), hint);
        }
        if self.readable > 0 {
            for column in task.columns.iter().filter(|column| used(column) && !self.filled.contains(*column)) {
                let (name, rows) = (task.input_name(column), self.readable);
                find(
                    "lint.empty_column",
                    format!("column {name:?}, which the template uses, is empty in all of the {rows} rows looked at"),
                    "look at its name: --input-mapping COLUMN=NAME reads it from another column",
                );
            }
        }
        let names = || self.names.iter().chain(&task.columns);
        if let Some(name) = task.config().template.as_deref().and_then(|template| single_braces(template, names())) {
            find(
                "lint.single_braces",
                format!("the template has {{{name}}}, which is plain text"),
                "a variable has two braces: {{ name }}",
            );
        }
    }

    fn find_in_images(&self, find: &mut impl FnMut(&'static str, String, &str)) {
        let with_images = self.images.iter().filter(|(count, _)| **count > 0);
        let some: u64 = with_images.clone().map(|(_, seen)| seen.rows).sum();
        let required = self.task.is_some_and(|task| task.image_required);
        if self.no_image.rows > 0 && required {
            find(
                "lint.missing_image",
                format!("{} have no image and will fail", self.of(&self.no_image)),
                "name the column with --image-column, or allow rows without an image: --image-required=false",
            );
        } else if self.no_image.rows > 0 && some > 0 {
            find(
                "lint.missing_image",
                format!("{} have no image, the others have", self.of(&self.no_image)),
                "mend these rows, or make them errors: --image-required",
            );
        }
        for (name, seen) in &self.unread {
            find(
                "lint.unread_image_column",
                format!("{} have an image in column {name:?}, which nothing reads", self.of(seen)),
                "read it with --image-column; a list of images in one column gives a row several",
            );
        }
        if self.repeated.rows > 0 {
            let hint = "give each image once: it is in view of the whole prompt";
            find("lint.repeated_image", format!("{} have the same image twice", self.of(&self.repeated)), hint);
        }
        let usual = with_images.clone().max_by_key(|(_, seen)| seen.rows).map_or(1, |(count, _)| *count);
        let most = if self.reader.is_llama() { 1 } else { usual };
        let mut extra = Seen::default();
        for (count, seen) in with_images.filter(|(count, _)| **count > most) {
            extra.add(&seen.first, count.to_string());
            extra.rows += seen.rows - 1;
        }
        if extra.rows > 0 {
            let what = match self.reader.is_llama() {
                true => "Llama-3.2-Vision was trained with one in a prompt".to_owned(),
                false => format!("most have {usual}"),
            };
            let hint = "ask about each image in a row of its own";
            let message = format!("{} have several images (the first one {}): {what}", self.of(&extra), extra.what);
            find("lint.several_images", message, hint);
        }
    }

    fn of(&self, seen: &Seen) -> String {
        format!("{} of {} rows looked at (first {})", seen.rows, self.rows, seen.first)
    }
}

fn images(messages: &[Message]) -> impl Iterator<Item = &ImageRef> {
    messages.iter().flat_map(Message::images)
}

fn has_text_before_image(message: &Message) -> bool {
    let Content::Parts(parts) = &message.content else { return false };
    let last = parts.iter().rposition(|part| matches!(part, Part::Image(_))).unwrap_or(0);
    parts[..last].iter().any(|part| matches!(part, Part::Text(text) if !text.trim().is_empty()))
}

/// Whether a column's value is an image for sure; where a row has none, also if it looks like an image's path.
fn holds_image(value: &RawValue, has_images: bool) -> bool {
    let text = value.get();
    // Most columns are short of being an image; long ones are worth no more than a look at their beginning.
    if text.starts_with("\"data:image/") {
        return true;
    }
    if text.starts_with('{') {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap_or_default();
        return fields.len() == 2 && fields.contains_key("bytes") && fields.contains_key("path");
    }
    if has_images || text.len() > 1024 {
        return false;
    }
    let Ok(Value::String(path)) = serde_json::from_str(text) else { return false };
    let end = path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    !path.contains(['\n', '\t']) && ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"].contains(&&*end)
}

#[cfg(test)]
mod tests;
