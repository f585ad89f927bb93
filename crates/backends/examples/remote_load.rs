//! How much the remote client itself costs: an echo server on loopback, and this client asking it as fast as it can.
//! `benches/remote_load.py` runs both, beside `huggingface_hub`'s client on the same server.
//!
//! ```text
//! remote_load serve                                          prints its address and serves until its input ends
//! remote_load ask URL REQUESTS IN_FLIGHT IMAGE_BYTES         prints one line of JSON
//! ```

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use std::io::Read;
use std::sync::mpsc;
use std::time::Instant;

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
        _ => Err("usage: remote_load serve | remote_load ask URL REQUESTS IN_FLIGHT IMAGE_BYTES".into()),
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
            resident_early = resident_kib();
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
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = requests as f64 / seconds;
    println!(
        "{}",
        json!({"client": "vgen", "requests": requests, "in_flight": in_flight, "image_bytes": bytes,
               "requests_per_second": rate, "p50_ms": percentile(50) * 1e3, "p99_ms": percentile(99) * 1e3,
               "resident_kib_after_a_tenth": resident_early, "resident_kib": resident_kib()})
    );
    Ok(())
}

/// Memory in use, in KiB; 0 where the system does not say.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}
