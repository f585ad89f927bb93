//! distilabel's `TextGenerationWithImage`: rows to prompts and images, answers to output columns.

mod config;
mod error;
mod images;
mod output;
mod render;
mod task;
mod template;

pub use config::{ColumnCheck, ImageCheck, ImagePosition, ImageType, PARAMETERS, RawImages, TaskConfig, Undefined};
pub use error::{TaskError, TemplateError, TemplateErrorKind};
pub use images::{data_url, encode_image, image_mime};
pub use output::Answer;
pub use render::{Rendered, RowContext};
pub use task::{TaskBuilder, TextGenerationWithImage};
