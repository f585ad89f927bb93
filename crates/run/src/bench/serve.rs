//! [`ChatServer`]: a backend behind OpenAI's chat protocol on loopback, so that a bench can compare a model with itself
//! behind HTTP. No server for others: it listens on 127.0.0.1 only, takes no key and ends with the bench.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use vgen_core::{Backend, Fault, FaultClass, Reply, Row, SamplingParams};
use vgen_task::{ImagePosition, OpenAiBatch, RowContext};

/// Largest request.
const MAX_BODY: usize = 256 << 20;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A backend behind `/v1/chat/completions` on a free port of 127.0.0.1. Ends when dropped.
pub struct ChatServer {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl ChatServer {
    /// Starts it.
    ///
    /// # Errors
    /// `bench.serve` if there is no port or no thread.
    pub fn start(backend: Arc<dyn Backend>) -> Result<Self, Fault> {
        let failed =
            |error: std::io::Error| Fault::stop("bench.serve", format!("the loopback server can't start: {error}"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("chat-server")
            .enable_all()
            .build()
            .map_err(failed)?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        runtime.spawn(accept(listener, backend));
        Ok(Self { address, runtime: Some(runtime) })
    }

    /// Its address, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for ChatServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, backend: Arc<dyn Backend>) {
    // An error of one connection is no reason to take no more.
    loop {
        let Ok((connection, _)) = listener.accept().await else { continue };
        // Pieces of an answer are small and must not wait for each other.
        let _ = connection.set_nodelay(true);
        let backend = Arc::clone(&backend);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let backend = Arc::clone(&backend);
                async move { Ok::<_, Infallible>(answer(backend, request).await) }
            });
            // A client that goes away is its own matter.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
        });
    }
}

async fn answer(backend: Arc<dyn Backend>, request: Request<Incoming>) -> Response<Body> {
    if (request.method(), request.uri().path()) != (&Method::POST, "/v1/chat/completions") {
        let what = format!("{} {} is not served", request.method(), request.uri().path());
        return refused(StatusCode::NOT_FOUND, "serve.path", &what);
    }
    let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refused(StatusCode::PAYLOAD_TOO_LARGE, "serve.body", &error.to_string()),
    };
    let asked = match Asked::read(&body) {
        Ok(asked) => asked,
        Err(fault) => return refused(StatusCode::BAD_REQUEST, &fault.code, &fault.message),
    };
    if let Err(fault) = backend.check(&asked.request.sampling, asked.request.num_generations) {
        return refused(StatusCode::BAD_REQUEST, &fault.code, &fault.message);
    }
    let Asked { request, row, stream, usage } = asked;
    if stream { streamed(&*backend, request, usage) } else { whole(&*backend, request, &row).await }
}

/// A request, read.
struct Asked {
    request: vgen_core::Request,
    row: Row,
    stream: bool,
    usage: bool,
}

impl Asked {
    fn read(body: &[u8]) -> Result<Self, Fault> {
        let wrong = |message: String| Fault::row("batch.request", message);
        let mut body: Map<String, Value> =
            serde_json::from_slice(body).map_err(|error| wrong(format!("the body is no JSON object: {error}")))?;
        let mut flag = |name: &str| match body.remove(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(wrong(format!("the body's {name} can't be {other}"))),
        };
        let (stream, ignore_eos) = (flag("stream")?, flag("ignore_eos")?);
        let options = body.remove("stream_options").unwrap_or_default();
        let usage = options.get("include_usage").and_then(Value::as_bool).unwrap_or(false);
        // The rest is what a line of a batch file may say.
        let mut row = Row::new();
        let set = row.set("custom_id", "chat").and_then(|()| row.set("body", &body));
        set.map_err(|error| wrong(error.to_string()))?;
        let batch = OpenAiBatch { image_position: ImagePosition::AsGiven };
        let messages = batch.render(&row, &RowContext::new(0))?.messages;
        let (sampling, num_generations) = batch.sampling(&row, &SamplingParams { ignore_eos, ..Default::default() })?;
        // The seed of the request is all that its random stream hangs on: the number of the row is always 0.
        let request = vgen_core::Request { num_generations, ..vgen_core::Request::new(0, messages, sampling) };
        Ok(Self { request, row, stream, usage })
    }
}

/// The answer at once, when it is there.
async fn whole(backend: &dyn Backend, request: vgen_core::Request, row: &Row) -> Response<Body> {
    let (send, receive) = oneshot::channel();
    backend.submit(
        request,
        Box::new(move |result| {
            // The client may have gone.
            let _ = send.send(result);
        }),
    );
    let result = receive.await.unwrap_or_else(|_| Err(Fault::stop("backend.lost", "the backend gave no answer")));
    let faults = result.as_ref().map(|response| response.generations.iter().find_map(|one| one.as_ref().err()));
    if let Some(fault) = faults.unwrap_or_else(Some) {
        return refused(status(fault), &fault.code, &fault.message);
    }
    let batch = OpenAiBatch { image_position: ImagePosition::AsGiven };
    let line = batch.output_rows(row, &result).into_iter().next().unwrap_or_default();
    let body = line.parse::<Value>("response").map(|mut response| response["body"].take());
    full(StatusCode::OK, "application/json", body.unwrap_or_default().to_string())
}

/// The answer piece by piece, as server-sent events.
fn streamed(backend: &dyn Backend, request: vgen_core::Request, usage: bool) -> Response<Body> {
    let (events, coming) = unbounded_channel();
    let model = backend.model_name().to_owned();
    backend.submit(request, Box::new(Events { events, model, usage }));
    let frames = stream::unfold(coming, |mut coming| async move {
        let event: String = coming.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(format!("data: {event}\n\n")))), coming))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

struct Events {
    events: UnboundedSender<String>,
    model: String,
    usage: bool,
}

impl Events {
    fn send(&self, choices: Value, more: Option<(&str, Value)>) {
        let mut chunk = json!({"id": "chatcmpl-bench", "object": "chat.completion.chunk", "model": self.model,
            "choices": choices});
        if let (Some((name, value)), Some(chunk)) = (more, chunk.as_object_mut()) {
            chunk.insert(name.to_owned(), value);
        }
        // The client may have gone.
        let _ = self.events.send(chunk.to_string());
    }
}

impl Reply for Events {
    fn delta(&mut self, sample: u32, text: &str) {
        self.send(json!([{"index": sample, "delta": {"content": text}, "finish_reason": null}]), None);
    }

    fn done(self: Box<Self>, result: Result<vgen_core::Response, Fault>) {
        let generations = match result {
            Ok(response) => response.generations.into_iter().collect::<Result<Vec<_>, _>>(),
            Err(fault) => Err(fault),
        };
        match generations {
            Ok(generations) => {
                let (mut prompt, mut completion) = (0, 0);
                for (index, generation) in generations.iter().enumerate() {
                    let usage = generation.usage.unwrap_or_default();
                    prompt = prompt.max(usage.input_tokens);
                    completion += usage.output_tokens;
                    let reason = generation.finish_reason;
                    self.send(json!([{"index": index, "delta": {}, "finish_reason": reason}]), None);
                }
                if self.usage {
                    let usage = json!({"prompt_tokens": prompt, "completion_tokens": completion,
                        "total_tokens": prompt + completion});
                    self.send(json!([]), Some(("usage", usage)));
                }
            }
            Err(fault) => {
                let error = json!({"message": fault.message, "code": fault.code});
                self.send(json!([]), Some(("error", error)));
            }
        }
        let _ = self.events.send("[DONE]".to_owned());
    }
}

/// What of a fault a client can do something about.
fn status(fault: &Fault) -> StatusCode {
    match fault.class {
        FaultClass::Row => StatusCode::BAD_REQUEST,
        FaultClass::Retry => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn refused(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    full(status, "application/json", json!({"error": {"message": message, "code": code}}).to_string())
}

fn full(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
