//! distilabel's `TextGenerationWithImage`: rows to prompts and images, answers to output columns.
