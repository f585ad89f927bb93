//! distilabel's `TextGenerationWithImage`: rows to prompts and images, answers to output columns.

pub mod chat;
pub mod image;
pub mod prepare;
pub mod tokens;
