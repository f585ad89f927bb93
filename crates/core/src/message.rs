//! Chat messages with images, in the form of the OpenAI chat protocol that distilabel sends.

use serde::ser::{SerializeMap, SerializeStruct};
use serde::{Deserialize, Serialize, Serializer};

use crate::ImageRef;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Content,
}

/// A message's text, or its parts in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Text alone.
    Text(String),
    /// Texts and images in order.
    Parts(Vec<Part>),
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Text.
    Text(String),
    /// An image. On the wire `{"type": "image_url", "image_url": {"url": ...}}`.
    Image(ImageRef),
}

impl Message {
    /// A message of text alone.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self { role, content: Content::Text(text.into()) }
    }

    /// The texts of the message in order.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let (text, parts) = match &self.content {
            Content::Text(text) => (Some(text.as_str()), &[][..]),
            Content::Parts(parts) => (None, &parts[..]),
        };
        text.into_iter().chain(parts.iter().filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Image(_) => None,
        }))
    }

    /// The texts of the message, one after the other.
    pub fn plain_text(&self) -> String {
        self.texts().collect()
    }

    /// The images of the message in order.
    pub fn images(&self) -> impl Iterator<Item = &ImageRef> {
        let parts = match &self.content {
            Content::Text(_) => &[][..],
            Content::Parts(parts) => parts,
        };
        parts.iter().filter_map(|part| match part {
            Part::Image(image) => Some(image),
            Part::Text(_) => None,
        })
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Content::Text(text) => serializer.serialize_str(text),
            Content::Parts(parts) => parts.serialize(serializer),
        }
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        match self {
            Part::Text(text) => {
                map.serialize_entry("type", "text")?;
                map.serialize_entry("text", text)?;
            }
            Part::Image(image) => {
                map.serialize_entry("type", "image_url")?;
                map.serialize_entry("image_url", &ImageUrl(image))?;
            }
        }
        map.end()
    }
}

/// A URL or path as it was given; of an image in memory only its name, so that printed messages stay small.
struct ImageUrl<'a>(&'a ImageRef);

impl Serialize for ImageUrl<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("image_url", 1)?;
        match self.0 {
            ImageRef::Url(url) => object.serialize_field("url", url.as_ref())?,
            ImageRef::Path(path) => object.serialize_field("url", &path.to_string_lossy())?,
            ImageRef::Bytes { bytes, name: None } => {
                object.serialize_field("url", &format!("<{} bytes>", bytes.len()))?;
            }
            ImageRef::Bytes { name: Some(name), .. } => object.serialize_field("url", name.as_ref())?,
        }
        object.end()
    }
}
