//! distilabel's `TextGenerationWithImage`: rows to prompts and images, answers to output columns.

mod batch;
pub mod chat;
mod config;
mod error;
pub mod image;
mod images;
mod lint;
mod output;
pub mod prepare;
mod render;
mod structured_output;
mod task;
mod template;
pub mod tokens;

pub use batch::OpenAiBatch;
pub use config::{
    ColumnCheck, ImageCheck, ImagePosition, ImageType, PARAMETERS, PilFormat, RawImages, TaskConfig, Undefined,
};
pub use error::{TaskError, TemplateError, TemplateErrorKind};
pub use images::{data_url, encode_image, image_mime, image_refs};
pub use lint::{Linter, Reader};
pub use output::Answer;
pub use render::{Rendered, RowContext};
pub use task::{TaskBuilder, TextGenerationWithImage};
