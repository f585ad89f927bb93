//! From a row to the messages that ask about it.

use std::path::Path;

use serde::Serialize;
use serde_json::value::RawValue;
use vgen_core::{Content, Fault, Message, Part, Request, Role, Row, SamplingParams};

use crate::config::{ImagePosition, RawImages};
use crate::images::{GivenImage, raw_url};
use crate::task::TextGenerationWithImage;

/// Where a row comes from: for messages, and for paths of images that are relative to the file.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowContext<'a> {
    /// Number of the row in its source, from 0.
    pub number: u64,
    /// The file that it comes from, for messages.
    pub file: Option<&'a Path>,
    /// What relative image paths are relative to; the working directory if `None`.
    pub base_dir: Option<&'a Path>,
}

impl<'a> RowContext<'a> {
    /// A row without a file.
    pub fn new(number: u64) -> Self {
        Self { number, file: None, base_dir: None }
    }

    /// A row of a file; image paths are relative to the file's folder.
    pub fn of_file(number: u64, file: &'a Path) -> Self {
        Self { number, file: Some(file), base_dir: file.parent() }
    }

    fn place(&self) -> String {
        match self.file {
            Some(file) => format!("row {} of {}", self.number, file.display()),
            None => format!("row {}", self.number),
        }
    }
}

/// A row's question.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The system message, if there is one, and the user message.
    pub messages: Vec<Message>,
    /// The messages as the `raw_input_*` metadata keeps them; `None` without `add_raw_input`.
    pub raw_input: Option<Box<RawValue>>,
}

impl TextGenerationWithImage {
    /// Renders a row's messages.
    ///
    /// # Errors
    /// Faults of the row: `row.missing_column`, `row.system_prompt`, `template.*`, `image.*`. The message names row
    /// and file.
    pub fn render(&self, row: &Row, context: &RowContext<'_>) -> Result<Rendered, Fault> {
        let text = self.text(row, context)?;
        let images = self.row_images(row, context)?;
        let system = self.row_system(row, context)?;
        let raw_input = self.add_raw_input.then(|| {
            let inline = self.raw_images == RawImages::Inline;
            let urls: Vec<_> = images.iter().map(|image| raw_url(image, inline)).collect();
            raw(&self.wire(system.as_deref(), &text, &urls))
        });
        let mut messages = Vec::with_capacity(2);
        if let Some(system) = system {
            messages.push(Message::text(Role::System, system));
        }
        let parts = self.ordered(Part::Text(text), images.into_iter().map(|image| Part::Image(image.image)));
        messages.push(Message { role: Role::User, content: Content::Parts(parts) });
        Ok(Rendered { messages, raw_input })
    }

    /// Renders a row and makes a backend's request of it.
    ///
    /// # Errors
    /// As [`TextGenerationWithImage::render`].
    pub fn request(&self, row: &Row, context: &RowContext<'_>, sampling: SamplingParams) -> Result<Request, Fault> {
        let rendered = self.render(row, context)?;
        Ok(self.request_for(&rendered, context.number, sampling))
    }

    /// A backend's request of messages that are rendered already.
    pub fn request_for(&self, rendered: &Rendered, number: u64, sampling: SamplingParams) -> Request {
        let mut request = Request::new(number, rendered.messages.clone(), sampling);
        request.num_generations = self.num_generations;
        request
    }

    fn text(&self, row: &Row, context: &RowContext<'_>) -> Result<String, Fault> {
        let mut values = Vec::with_capacity(self.columns.len());
        for column in &self.columns {
            let name = self.input_name(column);
            let value = row.get(name).ok_or_else(|| {
                Fault::row("row.missing_column", format!("{}: column {name:?} is missing", context.place()))
                    .with_hint("every row needs the columns that the task lists")
            })?;
            values.push((column.as_str(), value));
        }
        self.template.render(values).map_err(|error| error.into_fault(&context.place()))
    }

    fn row_system(&self, row: &Row, context: &RowContext<'_>) -> Result<Option<String>, Fault> {
        let name = self.input_name("system_prompt");
        let own = if self.row_system_prompt { row.get(name) } else { None };
        match own {
            None => Ok(self.system_prompt.clone()),
            Some(value) if value.get() == "null" => Ok(self.system_prompt.clone()),
            Some(_) => match row.text(name) {
                Some(text) => Ok(Some(text.into_owned()).filter(|text| !text.is_empty())),
                None => {
                    Err(Fault::row("row.system_prompt", format!("{}: column {name:?} is no text", context.place()))
                        .with_hint("row_system_prompt = false leaves the column alone"))
                }
            },
        }
    }

    fn row_images(&self, row: &Row, context: &RowContext<'_>) -> Result<Vec<GivenImage>, Fault> {
        let name = self.input_name(&self.image_column);
        let Some(value) = row.get(name) else {
            if self.image_required {
                return Err(Fault::row(
                    "row.missing_image",
                    format!("{}: column {name:?} is missing", context.place()),
                )
                .with_hint("image_required = false allows rows without an image"));
            }
            return Ok(Vec::new());
        };
        let images = self.images.read(value, context.base_dir).map_err(|error| {
            let mut fault = Fault::row(error.code, format!("{}: column {name:?}: {}", context.place(), error.message));
            fault.hint = error.hint.map(str::to_owned);
            fault
        })?;
        if images.is_empty() && self.image_required {
            return Err(Fault::row("image.missing", format!("{}: column {name:?} has no image", context.place()))
                .with_hint("image_required = false allows rows without an image"));
        }
        Ok(images)
    }

    fn ordered<T>(&self, text: T, images: impl Iterator<Item = T>) -> Vec<T> {
        match self.image_position {
            ImagePosition::AsGiven => std::iter::once(text).chain(images).collect(),
            ImagePosition::First => images.chain(std::iter::once(text)).collect(),
        }
    }

    /// The messages in the form of the wire, images by the given URLs.
    fn wire<'a>(&self, system: Option<&'a str>, text: &'a str, urls: &'a [String]) -> Vec<WireMessage<'a>> {
        let images = urls.iter().map(|url| WirePart::ImageUrl { image_url: WireUrl { url } });
        let user = WireMessage {
            role: Role::User,
            content: WireContent::Parts(self.ordered(WirePart::Text { text }, images)),
        };
        let system = system.map(|text| WireMessage { role: Role::System, content: WireContent::Text(text) });
        system.into_iter().chain(std::iter::once(user)).collect()
    }
}

#[derive(Serialize)]
struct WireMessage<'a> {
    role: Role,
    content: WireContent<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum WireContent<'a> {
    Text(&'a str),
    Parts(Vec<WirePart<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum WirePart<'a> {
    Text { text: &'a str },
    ImageUrl { image_url: WireUrl<'a> },
}

#[derive(Serialize)]
struct WireUrl<'a> {
    url: &'a str,
}

/// A value's JSON text. What the crate serialises (texts, numbers, lists of these) can't fail.
pub(crate) fn raw<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
