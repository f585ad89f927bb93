//! Every stage of a row but the network, by itself: `cargo bench --bench stages [-- STAGE]`.
#![allow(clippy::unwrap_used)] // stopped by any failure

use std::hint::black_box;
use std::io::sink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use vgen_backends::local::{Candidates, GenerationDefaults, ResolvedSampling, Sampler};
use vgen_backends::mock::{MockBackend, MockOptions};
use vgen_core::{ImageRef, Message, Part, Role, Row, SamplingParams};
use vgen_dataset::{JsonlSink, JsonlSource, RowSink};
use vgen_run::Pipeline;
use vgen_run::bench::Workload;
use vgen_task::prepare::{ModelFiles, PrepareOptions, Preprocessor};
use vgen_task::{RowContext, TextGenerationWithImage};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/shapes");

fn preprocessor() -> Preprocessor {
    let read = |name: &str| std::fs::read_to_string(Path::new(MODEL).join(name)).unwrap();
    let files =
        ["config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.json"];
    let [config, preprocessor_config, tokenizer, tokenizer_config, chat_template] = files.map(read);
    // The released checkpoints' tiles: 560 pixels.
    let config = config.replace("\"image_size\": 64", "\"image_size\": 560");
    let preprocessor_config = preprocessor_config.replace(": 64", ": 560");
    let files = ModelFiles {
        config: &config,
        preprocessor_config: Some(&preprocessor_config),
        tokenizer: tokenizer.as_bytes(),
        tokenizer_config: Some(&tokenizer_config),
        chat_template: Some(&chat_template),
    };
    Preprocessor::from_files(&files, PrepareOptions::default()).unwrap()
}

/// A row of a workload: its image as a file, and its messages.
fn picture(folder: &Path, workload: Workload) -> (PathBuf, Vec<Message>) {
    let row = workload.rows(1, 0, 0).remove(0);
    let Some(ImageRef::Bytes { bytes, .. }) = row.messages[0].images().next() else { unreachable!("it has an image") };
    let path = folder.join(format!("{}.jpg", workload.name()));
    std::fs::write(&path, bytes).unwrap();
    (path, row.messages)
}

/// A file on the disk to normalised tiles.
fn fetch_decode_tile(c: &mut Criterion, folder: &Path, preprocessor: &Preprocessor) {
    let mut group = c.benchmark_group("fetch, decode, tile");
    for workload in [Workload::OneTile, Workload::FourTiles, Workload::Strips] {
        let image = ImageRef::Path(picture(folder, workload).0);
        group.bench_function(workload.name(), |b| b.iter(|| preprocessor.process_image(black_box(&image)).unwrap()));
    }
}

fn template(c: &mut Criterion) {
    let task = TextGenerationWithImage::builder().template("Question: {{ instruction }}").build().unwrap();
    let row =
        Row::from_json(r#"{"instruction": "What is in this image?", "image": "https://example.com/a.png"}"#).unwrap();
    c.bench_function("template", |b| b.iter(|| task.render(black_box(&row), &RowContext::new(0)).unwrap()));
}

fn tokenise(c: &mut Criterion, folder: &Path, preprocessor: &Preprocessor) {
    let messages = picture(folder, Workload::OneTile).1;
    let long =
        "The lighthouse keeper counted the ships that passed, one after the other, and wrote them down. ".repeat(40);
    let mut long_messages = messages.clone();
    long_messages.push(Message { role: Role::User, content: vgen_core::Content::Parts(vec![Part::Text(long)]) });
    let mut group = c.benchmark_group("chat template, tokenise");
    for (name, messages) in [("short", messages), ("long", long_messages)] {
        group.bench_function(name, |b| b.iter(|| preprocessor.encode_messages(black_box(&messages)).unwrap()));
    }
}

/// A run of 2000 rows with a backend that answers at once: what a row costs besides its answer.
fn schedule(c: &mut Criterion) {
    const ROWS: u64 = 2000;
    let line = "{\"instruction\": \"What is it?\", \"image\": \"https://example.com/a.png\"}\n";
    let input: &'static [u8] = Vec::leak(line.repeat(ROWS as usize).into_bytes());
    let backend = Arc::new(MockBackend::new(MockOptions { window: 8, ..MockOptions::default() }).unwrap());
    let mut group = c.benchmark_group("schedule");
    group.throughput(Throughput::Elements(ROWS)).sample_size(10);
    group.bench_function("2000 rows, no model", |b| {
        b.iter(|| {
            let source = JsonlSource::from_reader(input, "rows.jsonl");
            let task = TextGenerationWithImage::builder().build().unwrap();
            let sink = JsonlSink::from_writer(sink(), "nowhere");
            Pipeline::new(source, task, Arc::clone(&backend) as _, sink).run().unwrap()
        });
    });
}

/// A token out of the 128256 logits of the released checkpoints.
fn sample(c: &mut Criterion, preprocessor: &Preprocessor) {
    const VOCABULARY: usize = 128_256;
    let noise = |at: usize| ((at.wrapping_mul(2_654_435_761) >> 7) % 10_000) as f32 / 1000.0;
    let logits: Vec<f32> = (0..VOCABULARY).map(noise).collect();
    let greedy = SamplingParams { temperature: Some(0.0), ..SamplingParams::default() };
    let random =
        SamplingParams { temperature: Some(0.7), top_p: Some(0.9), top_k: Some(50), ..SamplingParams::default() };
    let penalty = SamplingParams { repetition_penalty: Some(1.1), ..random.clone() };
    let mut group = c.benchmark_group("sample");
    for (name, params) in [("greedy", greedy), ("top-k, top-p", random), ("and repetition penalty", penalty)] {
        let defaults = GenerationDefaults::default();
        let tokenizer = preprocessor.tokenizer().inner();
        let resolved = Arc::new(ResolvedSampling::resolve(&params, &defaults, &[], VOCABULARY, tokenizer).unwrap());
        let mut scratch = Candidates::default();
        group.bench_function(name, |b| {
            b.iter_batched(
                || (Sampler::new(Arc::clone(&resolved), &[1, 2, 3], 0, 0), logits.clone()),
                |(mut sampler, mut logits)| sampler.sample(&mut logits, &mut scratch).unwrap(),
                BatchSize::LargeInput,
            );
        });
    }
}

fn write(c: &mut Criterion) {
    let row = Row::from_json(
        r#"{"instruction": "What is it?", "image": "a.png", "generation": "a cat on a mat", "model_name": "m", "error": null}"#,
    )
    .unwrap();
    let mut jsonl = JsonlSink::from_writer(sink(), "nowhere");
    let mut number = 0;
    c.bench_function("sink, JSON lines", |b| {
        b.iter(|| {
            number += 1;
            jsonl.write(number, std::slice::from_ref(black_box(&row))).unwrap();
            if number % 100 == 0 {
                jsonl.flush().unwrap();
            }
        });
    });
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let preprocessor = preprocessor();
    let mut c = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .sample_size(30)
        .configure_from_args();
    fetch_decode_tile(&mut c, folder.path(), &preprocessor);
    template(&mut c);
    tokenise(&mut c, folder.path(), &preprocessor);
    schedule(&mut c);
    sample(&mut c, &preprocessor);
    write(&mut c);
    c.final_summary();
}
