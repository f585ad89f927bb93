//! A row's answer does not depend on its neighbours: the same tokens and the same bits of their log-probabilities
//! alone, in batches of any size, in any order, on any number of threads and engines, with prompts read whole or in pieces.

// What is wrong with the repository's own files is to stop the test at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cpu_level;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

use image::{Rgb, RgbImage};
use vgen_backends::local::{DeviceChoice, EngineReport, LocalBackend, LocalOptions, ModelSource};
use vgen_core::{Backend, Content, Message, Part, Request, Role, SamplingParams};
use vgen_task::encode_image;

/// Tokens and bits of their log-probabilities, by sample.
type Answer = Vec<(Vec<u32>, Vec<u32>)>;

/// A picture whose pixels depend on `seed`, so that images differ.
fn picture(width: u32, height: u32, seed: u32) -> Part {
    let pixel = |x: u32, y: u32| {
        let value = (x * 7 + y * 13 + seed * 29).wrapping_mul(2_654_435_761) >> 24;
        Rgb([value as u8, (x * 3 + seed) as u8, (y * 5) as u8])
    };
    Part::Image(encode_image(&RgbImage::from_fn(width, height, pixel).into()).unwrap())
}

/// Rows of all kinds: without an image, with 1 to 4 tiles, with two images, short and long, one to three answers,
/// greedy and sampled, some with the image of another row.
fn requests() -> Vec<Request> {
    let sizes = [(50, 50), (100, 40), (40, 150), (220, 50), (50, 220), (100, 100)];
    (0..60u64)
        .map(|row| {
            let n = row as u32;
            let (width, height) = sizes[n as usize % sizes.len()];
            let mut parts = match n % 5 {
                0 => vec![],
                // Each is shared by several rows.
                1 => vec![picture(width, height, n % 3)],
                2 => vec![picture(width, height, n), Part::Text("and".into()), picture(60, 60, n + 100)],
                3 => vec![picture(80, 90, n), picture(width, height, n + 7)],
                _ => vec![picture(width, height, n)],
            };
            // Some are read in pieces whatever the settings.
            let times = if n % 15 == 14 { 24 } else { n as usize % 4 * 2 };
            let words = "tell me what is shown here and why it matters ".repeat(times);
            parts.push(Part::Text(format!("{words}question {n}?")));
            let mut messages = vec![Message { role: Role::User, content: Content::Parts(parts) }];
            if n % 4 == 1 {
                messages.insert(0, Message::text(Role::System, "Answer in few words, and only what you see."));
            }
            let sampled = n % 2 == 1;
            let sampling = SamplingParams {
                max_new_tokens: Some(4 + n % 9),
                temperature: Some(if sampled { 0.8 } else { 0.0 }),
                top_p: sampled.then_some(0.9),
                top_k: sampled.then_some(40),
                seed: Some(11),
                logprobs: true,
                ignore_eos: true,
                ..SamplingParams::default()
            };
            Request { num_generations: 1 + n % 3, ..Request::new(row, messages, sampling) }
        })
        .collect()
}

struct Run {
    batch_size: usize,
    step_tokens: usize,
    threads: Option<usize>,
    image_cache_bytes: u64,
    shuffled: bool,
    with_cancelled: bool,
    portable: bool,
    device: DeviceChoice,
    devices: usize,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            batch_size: 32,
            step_tokens: 512,
            threads: None,
            image_cache_bytes: 1 << 30,
            shuffled: false,
            with_cancelled: false,
            portable: false,
            device: DeviceChoice::Cpu,
            devices: 1,
        }
    }
}

impl Run {
    fn backend(&self) -> LocalBackend {
        cpu_level::limit();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mllama/tiny-hublike");
        let mut options = LocalOptions::new(ModelSource::Named(model.to_str().unwrap().to_owned()));
        options.batch_size = self.batch_size;
        options.step_tokens = self.step_tokens;
        options.image_cache_bytes = self.image_cache_bytes;
        options.portable = self.portable;
        options.devices = vec![self.device; self.devices];
        options.threads = self.threads;
        LocalBackend::load(options, |_| {}).unwrap()
    }

    fn answers(&self, requests: &[Request]) -> BTreeMap<u64, Answer> {
        self.answers_and_report(requests).0
    }

    fn answers_and_report(&self, requests: &[Request]) -> (BTreeMap<u64, Answer>, EngineReport) {
        let backend = self.backend();
        let mut order: Vec<&Request> = requests.iter().collect();
        if self.shuffled {
            order.sort_by_key(|request| request.row.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        }
        let (send, receive) = mpsc::channel();
        for request in order {
            let (send, row) = (send.clone(), request.row);
            let done = move |result| send.send((row, result)).unwrap();
            backend.submit(request.clone(), Box::new(done));
            if self.with_cancelled {
                let mut neighbour = request.clone();
                neighbour.cancel = Default::default();
                neighbour.row += 1_000_000;
                neighbour.sampling.max_new_tokens = Some(200);
                let cancel = neighbour.cancel.clone();
                backend.submit(neighbour, Box::new(|_| {}));
                std::thread::sleep(std::time::Duration::from_millis(row % 7));
                cancel.cancel();
            }
        }
        drop(send);
        let (mut longest, with_bits) = (0, requests[0].sampling.logprobs);
        let answers = receive.into_iter().map(|(row, result)| {
            let mut sample = |generation: Result<vgen_core::Generation, vgen_core::Fault>| {
                let generation = generation.unwrap();
                longest = longest.max(generation.usage.unwrap().input_tokens);
                assert_eq!(generation.logprobs.is_some(), with_bits);
                let logprobs = generation.logprobs.unwrap_or_default();
                let bits = logprobs.iter().map(|token| token.logprob.to_bits()).collect();
                (generation.token_ids.unwrap(), bits)
            };
            (row, result.unwrap().generations.into_iter().map(&mut sample).collect())
        });
        let answers = answers.collect();
        assert!(longest > 600, "no prompt is read in pieces");
        (answers, backend.stats().report())
    }
}

/// Runs under every condition and compares with the rows alone.
fn assert_invariant(portable: bool, device: DeviceChoice) {
    let requests = requests();
    let base = || Run { portable, device, ..Run::default() };
    let alone = Run { batch_size: 1, ..base() }.answers(&requests);
    assert_eq!(alone.len(), requests.len());
    let distinct: std::collections::BTreeSet<_> = alone.values().collect();
    assert!(distinct.len() > 50, "the rows must differ for this to mean something");
    let runs = [
        ("batches of 2", Run { batch_size: 2, ..base() }),
        ("batches of 7", Run { batch_size: 7, ..base() }),
        ("batches of 32", base()),
        ("shuffled", Run { shuffled: true, ..base() }),
        ("pieces of prompts", Run { step_tokens: 11, ..base() }),
        ("no image kept", Run { image_cache_bytes: 0, batch_size: 7, ..base() }),
        ("two engines", Run { devices: 2, ..base() }),
        ("three engines, shuffled", Run { devices: 3, batch_size: 2, shuffled: true, ..base() }),
        ("cancelled neighbours", Run { with_cancelled: true, batch_size: 7, ..base() }),
    ];
    for (name, run) in runs {
        assert_same(&alone, &run.answers(&requests), name);
    }
    if device == DeviceChoice::Cpu {
        for threads in [1, 2] {
            assert_same(&alone, &answers_with_threads(threads, portable), &format!("{threads} threads"));
        }
    }
}

fn assert_same(alone: &BTreeMap<u64, Answer>, answers: &BTreeMap<u64, Answer>, name: &str) {
    let different: Vec<_> = alone.iter().filter(|(row, answer)| answers.get(row) != Some(answer)).collect();
    let different: Vec<_> = different.into_iter().map(|(row, _)| row).collect();
    assert!(different.is_empty(), "rows {different:?} differ with {name}");
}

const THREADS: &str = "VGEN_TEST_THREADS";
const PORTABLE: &str = "VGEN_TEST_PORTABLE";
const ANSWERS: &str = "VGEN_TEST_ANSWERS";

/// The answers of a process of its own: the number of threads is that of a whole process, from its start.
fn answers_with_threads(threads: usize, portable: bool) -> BTreeMap<u64, Answer> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answers.json");
    let mut this = Command::new(std::env::current_exe().unwrap());
    this.args(["--exact", "answers_of_a_process", "--nocapture", "--include-ignored"]);
    // What candle's own products are spread over; LocalOptions::threads does the rest.
    this.env(THREADS, threads.to_string()).env("RAYON_NUM_THREADS", threads.to_string());
    if portable {
        this.env(PORTABLE, "1");
    }
    let out = this.env(ANSWERS, &file).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
#[ignore = "the other tests start it, with what to do in the environment"]
fn answers_of_a_process() {
    let Some(file) = std::env::var_os(ANSWERS) else { return };
    let threads: usize = std::env::var(THREADS).unwrap().parse().unwrap();
    let portable = std::env::var_os(PORTABLE).is_some();
    let answers = Run { threads: Some(threads), portable, ..Run::default() }.answers(&requests());
    assert_eq!(vgen_kernels::threads::limit(), threads);
    assert_eq!(candle_core::utils::get_num_threads(), threads);
    std::fs::write(file, serde_json::to_vec(&answers).unwrap()).unwrap();
}

#[test]
fn answers_do_not_depend_on_neighbours() {
    assert_invariant(false, DeviceChoice::Cpu);
}

/// The same of the operations that every device has.
#[test]
fn answers_do_not_depend_on_neighbours_on_the_portable_path() {
    assert_invariant(true, DeviceChoice::Cpu);
}

/// Says something without a macro, whose text would be kept back.
fn say(what: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "{what}").unwrap();
}

/// What is kept of earlier rows can be dropped, and is then computed again.
#[test]
fn what_is_forgotten_is_computed_again() {
    let mut request = requests().swap_remove(4);
    request.num_generations = 1;
    let backend = Run::default().backend();
    let ask = |encoded: u64| {
        let answer = backend.generate(request.clone()).unwrap().generations.swap_remove(0).unwrap();
        assert_eq!(backend.stats().report().images_encoded, encoded);
        answer.token_ids.unwrap()
    };
    let first = ask(1);
    assert_eq!(ask(1), first);
    backend.forget();
    assert_eq!(ask(2), first);
}

/// A GPU that works, or a message why the test is skipped.
fn gpu() -> Option<DeviceChoice> {
    let mut reasons = Vec::new();
    for choice in [DeviceChoice::Cuda(0), DeviceChoice::Metal] {
        match choice.open() {
            Ok(_) => return Some(choice),
            Err(fault) => reasons.push(fault.message),
        }
    }
    say(&format!("skipped: {}", reasons.join("; ")));
    None
}

/// With fixed shapes a GPU keeps it too, as far as its library's kernels treat rows alike.
#[test]
fn gpu_answers_do_not_depend_on_neighbours() {
    if let Some(device) = gpu() {
        assert_invariant(false, device);
    }
}

/// A run of all rows that says how fast it was, and that little but chosen tokens and candidates left the device.
#[test]
fn gpu_throughput() {
    let Some(device) = gpu() else { return };
    let mut requests = requests();
    requests.iter_mut().for_each(|request| request.sampling.logprobs = false);
    let start = std::time::Instant::now();
    let (answers, report) = Run { device, ..Run::default() }.answers_and_report(&requests);
    let tokens: usize = answers.values().flatten().map(|(tokens, _)| tokens.len()).sum();
    assert_eq!(answers.len(), requests.len());
    // A choice that the candidates don't settle takes a second copy.
    assert!(report.copies_to_host <= report.steps + report.steps / 4, "{report:?}");
    say(&format!("{device}: {:.0} tokens/s, loading included", tokens as f64 / start.elapsed().as_secs_f64()));
}
