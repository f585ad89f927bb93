//! Where answers come from: [`local`] (the engine that runs Llama-3.2-Vision in this process), [`remote`] (an
//! InferenceEndpoints or OpenAI-compatible server) and [`mock`] (a scripted backend for tests).

pub mod local;
pub mod mock;
pub mod remote;
