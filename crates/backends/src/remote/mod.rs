//! The remote backend: the same requests as the local engine, sent to Hugging Face InferenceEndpoints, the Hugging Face
//! router, or any server that speaks the OpenAI chat protocol (TGI, vLLM, transformers serve).
//!
//! Nothing is lost: each request gets exactly one answer, with the server's own words and the number of attempts if it
//! failed. A fixed number of HTTP requests is in flight across the whole run; overload shrinks it, success grows it back.
//!
//! | module | is for |
//! |---|---|
//! | [`config`](RemoteConfig) | what can be set, and what is refused at once |
//! | `client` | the [`vgen_core::Backend`]: setting up, names, threads |
//! | `sample` | one row: its generations, their attempts, deadlines |
//! | `wire` | request bodies, and which parameter each protocol can carry |
//! | `body` | a body in pieces, its images encoded while they are sent |
//! | `answer` | what servers send back, read leniently |
//! | `stream` | server-sent events and their chunks |
//! | `form` | whether a structured answer has the form that was asked for |
//! | `http` | one attempt: send, time limits, size limit |
//! | `retry` | how long to wait before the next attempt |
//! | `limit` | requests in flight, rates, spend |
//! | `images` | an image as a URL that the server can read |
//! | `endpoint` | finding and waking an inference endpoint |

mod answer;
mod body;
mod client;
mod config;
mod endpoint;
mod error;
mod form;
mod http;
mod images;
mod limit;
mod retry;
mod sample;
mod stream;
mod wire;

pub use client::{FetchImage, RemoteBackend, RemoteEvent, RemoteHooks, RemoteSecrets, RemoteStats, RenderPrompt};
pub use config::{ApiKeySource, Dialect, HttpVersion, Protocol, ROUTER, RemoteConfig};
pub use error::RemoteError;
