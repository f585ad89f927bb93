//! The Llama-3.2-Vision network ("mllama") on candle.

pub mod hub;
