//! [`Server`]: the listener, its runtime and the record of what arrived.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use crate::answer::{Answer, Step};

/// Time for sent bytes to leave before a connection is broken off.
const FLUSH: Duration = Duration::from_millis(20);

/// Connections that may wait to be accepted. One that finds no place waits for seconds, not for its turn.
const BACKLOG: u32 = 4096;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// How many requests arrived before it.
    pub number: usize,
    /// Which connection it came on, from 0.
    pub connection: usize,
    /// When its body was complete.
    pub at: Instant,
    /// The method, upper case.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Protocol version.
    pub version: Version,
    /// Headers, names in lower case.
    pub headers: HeaderMap,
    /// The body; empty where none is kept.
    pub body: Bytes,
}

impl Received {
    /// A header's value, if it is there and text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

type Script = dyn Fn(&Received) -> Answer + Send + Sync;

struct State {
    script: Box<Script>,
    record: bool,
    received: Mutex<Vec<Received>>,
    requests: AtomicUsize,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    peak: AtomicUsize,
}

struct Tls {
    acceptor: TlsAcceptor,
    certificate: String,
}

/// A server on a free port of 127.0.0.1. Ends when dropped.
pub struct Server {
    address: SocketAddr,
    certificate: Option<String>,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

impl Server {
    /// Starts a server that answers by `script` and keeps every request.
    pub fn start(script: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> io::Result<Self> {
        Self::launch(Box::new(script), true, 1, None)
    }

    /// As [`Server::start`], over TLS and with HTTP/2 on offer. The certificate for 127.0.0.1 is made for the occasion:
    /// nobody trusts it without being told.
    pub fn start_tls(script: impl Fn(&Received) -> Answer + Send + Sync + 'static) -> io::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).map_err(io::Error::other)?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tls = Tls { acceptor: Arc::new(config).into(), certificate: made.cert.pem() };
        Self::launch(Box::new(script), true, 1, Some(tls))
    }

    /// Starts a server on `threads` threads that keeps no request and throws bodies away as they come, for load
    /// measurements.
    pub fn start_unrecorded(
        threads: usize,
        script: impl Fn(&Received) -> Answer + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::launch(Box::new(script), false, threads, None)
    }

    fn launch(script: Box<Script>, record: bool, threads: usize, tls: Option<Tls>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("loopback")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
            socket.listen(BACKLOG)
        })?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            script,
            record,
            received: Mutex::default(),
            requests: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        });
        let (acceptor, certificate) = tls.map(|tls| (tls.acceptor, tls.certificate)).unzip();
        runtime.spawn(accept(listener, acceptor, Arc::clone(&state)));
        Ok(Self { address, certificate, state, runtime: Some(runtime) })
    }

    /// `http://127.0.0.1:PORT`, or with `https`, without a slash at the end.
    pub fn url(&self) -> String {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The certificate that a client has to trust, in PEM; `None` without TLS.
    pub fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Every request so far, in the order of arrival.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.state.received).clone()
    }

    /// How many requests arrived.
    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// How many connections were opened.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// How many requests were in the server at the same time, at most.
    pub fn peak_in_flight(&self) -> usize {
        self.state.peak.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Small answers must not wait for more.
        let _ = stream.set_nodelay(true);
        let connection = state.connections.fetch_add(1, Ordering::SeqCst);
        let reset = Arc::new(AtomicBool::new(false));
        let socket = Socket { stream, reset: Arc::clone(&reset) };
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            match tls {
                None => talk(socket, connection, &state, &reset).await,
                // A client that does not trust the certificate ends the handshake.
                Some(tls) => {
                    if let Ok(socket) = tls.accept(socket).await {
                        talk(socket, connection, &state, &reset).await;
                    }
                }
            }
        });
    }
}

async fn talk<S>(socket: S, connection: usize, state: &Arc<State>, reset: &Arc<AtomicBool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| serve(request, connection, Arc::clone(state), Arc::clone(reset)));
    // How a connection ends is the client's business.
    let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
}

type Body = BoxBody<Bytes, io::Error>;

/// Counts a request as in flight while it lives.
struct InFlight(Arc<State>);

impl InFlight {
    fn enter(state: &Arc<State>) -> Self {
        let now = state.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        state.peak.fetch_max(now, Ordering::SeqCst);
        Self(Arc::clone(state))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(
    request: Request<Incoming>,
    connection: usize,
    state: Arc<State>,
    reset: Arc<AtomicBool>,
) -> Result<Response<Body>, io::Error> {
    let in_flight = InFlight::enter(&state);
    let (parts, mut body) = request.into_parts();
    let body = if state.record {
        body.collect().await.map_err(io::Error::other)?.to_bytes()
    } else {
        while let Some(frame) = body.frame().await {
            frame.map_err(io::Error::other)?;
        }
        Bytes::new()
    };
    let received = Received {
        number: state.requests.fetch_add(1, Ordering::SeqCst),
        connection,
        at: Instant::now(),
        method: parts.method.to_string(),
        path: parts.uri.path_and_query().map(|path| path.to_string()).unwrap_or_default(),
        version: parts.version,
        headers: parts.headers,
        body,
    };
    let answer = (state.script)(&received);
    if state.record {
        lock(&state.received).push(received);
    }
    if !answer.delay.is_zero() {
        tokio::time::sleep(answer.delay).await;
    }
    if answer.reset {
        reset.store(true, Ordering::SeqCst);
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    let mut response = Response::new(body_of(answer.steps, in_flight));
    *response.status_mut() = StatusCode::from_u16(answer.status).map_err(io::Error::other)?;
    for (name, value) in &answer.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(io::Error::other)?;
        response.headers_mut().append(name, HeaderValue::from_str(value).map_err(io::Error::other)?);
    }
    Ok(response)
}

/// The request counts as in flight until its body is gone.
fn body_of(mut steps: Vec<Step>, in_flight: InFlight) -> Body {
    let whole = match steps.as_mut_slice() {
        [] => Some(Empty::new().map_err(no_error).boxed()),
        [Step::Data(bytes)] => Some(Full::new(std::mem::take(bytes)).map_err(no_error).boxed()),
        _ => None,
    };
    // A body of known length lets the server write `content-length` itself.
    if let Some(body) = whole {
        return body;
    }
    let frames = stream::unfold((steps.into_iter(), in_flight), |(mut steps, in_flight)| async move {
        loop {
            let frame = match steps.next()? {
                Step::Data(bytes) => Ok(Frame::data(bytes)),
                Step::Cut => {
                    // What came before has to be on its way first.
                    tokio::time::sleep(FLUSH).await;
                    Err(io::Error::from(io::ErrorKind::ConnectionAborted))
                }
                Step::Pause(pause) => {
                    tokio::time::sleep(pause).await;
                    continue;
                }
            };
            return Some((frame, (steps, in_flight)));
        }
    });
    BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(frames.boxed()))))
}

fn no_error(never: Infallible) -> io::Error {
    match never {}
}

/// `BoxBody` wants `Sync`, which a stream that is only ever polled by its owner gives for free.
struct SyncStream<S>(Mutex<S>);

impl<S: futures_util::Stream + Unpin> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).poll_next_unpin(cx)
    }
}

/// A connection that can end with a reset.
struct Socket {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.reset.load(Ordering::SeqCst) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.load(Ordering::SeqCst) {
            // An orderly end would come before the reset.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
