//! How much the remote client itself costs: an echo server on loopback, and this client asking it as fast as it can.
//! `benches/remote_load.py` runs both, beside `huggingface_hub`'s client on the same server.
//!
//! ```text
//! remote_load serve                                          prints its address and serves until its input ends
//! remote_load ask URL REQUESTS IN_FLIGHT IMAGE_BYTES         prints one line of JSON
//! remote_load limits                                         what this machine can do at best, as one line of JSON
//! ```

#![allow(clippy::print_stdout, reason = "its output is what it is for")]
#![allow(clippy::cast_precision_loss, reason = "rates")]

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::Simd;
use base64::engine::general_purpose::PAD;
use serde_json::json;
use vgen_backends::remote::{RemoteBackend, RemoteConfig, RemoteHooks, RemoteSecrets};
use vgen_core::{Backend, Content, ImageRef, Message, Part, Request, Role, SamplingParams};
use vgen_loopback::{Answer, Server};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["serve"] => serve(),
        ["ask", url, requests, in_flight, bytes] => ask(url, requests.parse()?, in_flight.parse()?, bytes.parse()?),
        ["limits"] => limits(),
        _ => Err("usage: remote_load serve | ask URL REQUESTS IN_FLIGHT IMAGE_BYTES | limits".into()),
    }
}

fn serve() -> Result<(), Failure> {
    let answer = json!({
        "object": "chat.completion", "id": "x", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "A boardwalk through a meadow."},
                     "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 26}
    });
    let server = Server::start_unrecorded(1, move |_| Answer::json(&answer))?;
    println!("{}", server.url());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A file that looks like a PNG and is as large as asked for.
fn image(bytes: usize) -> ImageRef {
    let mut file = vec![137, 80, 78, 71, 13, 10, 26, 10];
    file.extend((8..bytes).map(|place| place.wrapping_mul(31).to_le_bytes()[0]));
    ImageRef::Bytes { bytes: file.into(), name: None }
}

fn ask(url: &str, requests: u64, in_flight: usize, bytes: usize) -> Result<(), Failure> {
    let config = RemoteConfig {
        base_url: Some(url.to_owned()),
        max_in_flight: in_flight,
        max_attempts: 1,
        ..RemoteConfig::default()
    };
    let backend = RemoteBackend::connect(config, RemoteSecrets::default(), RemoteHooks::default())?;
    let image = image(bytes);
    let (send, receive) = mpsc::channel();
    let mut latencies = Vec::new();
    let mut resident_early = 0;
    let begun = Instant::now();
    for row in 0..requests {
        // As a run does: so many at once, another one for each that ends.
        if row >= in_flight as u64 {
            latencies.push(receive.recv()??);
        }
        if row == requests / 10 {
            resident_early = status_kib("VmRSS:");
        }
        let parts = vec![Part::Text(format!("row {row}")), Part::Image(image.clone())];
        let message = Message { role: Role::User, content: Content::Parts(parts) };
        let (send, asked) = (send.clone(), Instant::now());
        let reply = move |result: Result<vgen_core::Response, vgen_core::Fault>| {
            let answered = result.and_then(|response| response.generations.into_iter().next().transpose());
            // The receiver goes away only when something failed.
            let _ = send.send(answered.map(|_| asked.elapsed().as_secs_f64()));
        };
        backend.submit(Request::new(row, vec![message], SamplingParams::default()), Box::new(reply));
    }
    drop(send);
    for latency in receive {
        latencies.push(latency?);
    }
    let seconds = begun.elapsed().as_secs_f64();
    latencies.sort_by(f64::total_cmp);
    let percentile = |share: usize| latencies.get(latencies.len() * share / 100).copied().unwrap_or_default();
    let rate = requests as f64 / seconds;
    println!(
        "{}",
        json!({"client": "vgen", "requests": requests, "in_flight": in_flight, "image_bytes": bytes,
               "requests_per_second": rate, "p50_ms": percentile(50) * 1e3, "p99_ms": percentile(99) * 1e3,
               "resident_kib_after_a_tenth": resident_early, "resident_kib": status_kib("VmRSS:"),
               "peak_kib": status_kib("VmHWM:")})
    );
    Ok(())
}

/// What nothing that sends the same bytes over the same path can do better: loopback with both ends on this machine,
/// and one core's base64 and JSON.
fn limits() -> Result<(), Failure> {
    let bytes: Vec<u8> = (0..500_000_usize).map(|place| place.wrapping_mul(31).to_le_bytes()[0]).collect();
    let engine = Simd::standard(PAD);
    let mut text = vec![0; bytes.len() * 4 / 3 + 4];
    let base64 = rate(bytes.len(), || engine.encode_slice(&bytes, &mut text).is_ok());
    let text = String::from_utf8_lossy(&text).into_owned();
    // The best of a few: whoever disturbs makes it slower, never faster.
    let carried = (0..3).map(|_| loopback()).collect::<Result<Vec<_>, _>>()?;
    let json = rate(text.len(), || serde_json::to_vec(&text).is_ok());
    println!(
        "{}",
        json!({"loopback_bytes_per_second": carried.into_iter().fold(0.0, f64::max), "base64_bytes_per_second": base64,
               "json_string_bytes_per_second": json})
    );
    Ok(())
}

/// Bytes a second of work that goes through so many bytes.
fn rate(bytes: usize, mut work: impl FnMut() -> bool) -> f64 {
    let (mut rounds, begun) = (0_u32, Instant::now());
    while begun.elapsed() < Duration::from_millis(300) && black_box(work()) {
        rounds += 1;
    }
    f64::from(rounds) * bytes as f64 / begun.elapsed().as_secs_f64()
}

/// Bytes a second through one connection, written and read in pieces of the client's size.
fn loopback() -> Result<f64, Failure> {
    const PIECE: usize = 64 << 10;
    const PIECES: usize = 16 << 10;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut sender = TcpStream::connect(listener.local_addr()?)?;
    let (mut receiver, _) = listener.accept()?;
    let drain = std::thread::spawn(move || {
        let mut piece = vec![0; 4 * PIECE];
        while receiver.read(&mut piece).is_ok_and(|count| count > 0) {}
    });
    let (piece, begun) = (vec![7; PIECE], Instant::now());
    for _ in 0..PIECES {
        sender.write_all(&piece)?;
    }
    drop(sender);
    drain.join().map_err(|_| "the receiver broke")?;
    Ok((PIECE * PIECES) as f64 / begun.elapsed().as_secs_f64())
}

/// A line of this process's status, in KiB; 0 where the system does not say.
fn status_kib(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
