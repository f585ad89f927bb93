//! What a run takes in memory is what its plan says, whatever the type of the weights. Each test runs alone in a process of
//! its own, since it reads the process's resident set.
#![cfg(target_os = "linux")]
// What is wrong with the repository's own files is to stop the test at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::print_stdout)] // measured sizes, for whoever wants to see them

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use vgen_backends::local::{DTypeChoice, LocalBackend, LocalOptions, ModelSource, inspect};
use vgen_core::{Backend, Content, Message, Part, Request, Role, SamplingParams};
use vgen_mllama::{Config, expected};
use vgen_task::encode_image;

/// How far the resident set may be from the plan.
const TOLERANCE: f64 = 0.10;

/// Bytes of memory that belong to this process alone: what files are mapped can be dropped at any time.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// A random checkpoint of 50 million weights, f32 or bf16, with the tokenizer of a fixture.
fn write_checkpoint(folder: &Path, narrow: bool) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mllama/tiny-hublike");
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.json", "generation_config.json"] {
        fs::copy(fixture.join(name), folder.join(name)).unwrap();
    }
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(fixture.join(name)).unwrap()).unwrap() };
    let mut config = read("config.json");
    let mut set = |part: &str, values: Value| {
        for (key, value) in values.as_object().unwrap() {
            config[part][key] = value.clone();
        }
    };
    let text = json!({"hidden_size": 768, "intermediate_size": 2560, "num_hidden_layers": 6, "num_attention_heads": 12,
        "num_key_value_heads": 4, "cross_attention_layers": [1, 4]});
    let vision = json!({"hidden_size": 320, "attention_heads": 4, "intermediate_size": 1280, "image_size": 224,
        "patch_size": 14, "num_hidden_layers": 4, "num_global_layers": 1, "intermediate_layers_indices": [1, 2],
        "vision_output_dim": 960});
    set("text_config", text);
    set("vision_config", vision);
    let mut processor = read("preprocessor_config.json");
    processor["size"] = json!({"height": 224, "width": 224});
    fs::write(folder.join("preprocessor_config.json"), processor.to_string()).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let specs = expected(&Config::from_json(&config.to_string()).unwrap());
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for spec in &specs {
        let start = end;
        end += spec.elements() * if narrow { 2 } else { 4 };
        let dtype = if narrow { "BF16" } else { "F32" };
        header.insert(spec.name.clone(), json!({"dtype": dtype, "shape": spec.shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut state = 1u32;
    for spec in &specs {
        let norm = spec.name.contains("norm");
        let scale = 1.0 / (*spec.shape.last().unwrap() as f32).sqrt();
        for _ in 0..spec.elements() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let noise = (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0;
            let value = if norm { 1.0 + 0.1 * noise } else { noise * scale };
            // The upper half of a float is a bf16.
            file.write_all(&value.to_le_bytes()[if narrow { 2 } else { 0 }..]).unwrap();
        }
    }
    file.flush().unwrap();
}

/// Bytes of the checkpoint's tables of embeddings, which are read from the file's map.
fn embeddings(folder: &Path) -> u64 {
    let file = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap().tensors();
    let tables = tensors.iter().filter(|(name, _)| name.contains("embed") && name.ends_with(".weight"));
    tables.map(|(_, table)| table.data().len() as u64).sum()
}

fn picture(seed: u32) -> Part {
    let pixel = |x: u32, y: u32| Rgb([(x * 7 + seed * 31) as u8, (y * 5 + seed) as u8, (x ^ y) as u8]);
    Part::Image(encode_image(&RgbImage::from_fn(448, 448, pixel).into()).unwrap())
}

/// Runs `body` in a process that runs nothing else: this test again, told so by the environment.
fn alone(test: &str, body: fn()) {
    const ALONE: &str = "VGEN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let this = std::env::current_exe().unwrap();
    let out = Command::new(this)
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .env(ALONE, "1")
        // glibc else keeps up to 32 MiB of freed buffers, which is much beside a network as small as this.
        .env("MALLOC_MMAP_THRESHOLD_", "131072")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn f32_weights_take_what_is_planned() {
    alone("f32_weights_take_what_is_planned", || run(DTypeChoice::F32, false));
}

#[test]
fn bf16_weights_take_what_is_planned() {
    alone("bf16_weights_take_what_is_planned", || run(DTypeChoice::Bf16, false));
}

#[test]
fn q8_0_weights_take_what_is_planned() {
    alone("q8_0_weights_take_what_is_planned", || run(DTypeChoice::Q8_0, false));
}

#[test]
fn q4_k_weights_take_what_is_planned() {
    alone("q4_k_weights_take_what_is_planned", || run(DTypeChoice::Q4K, false));
}

#[test]
fn bf16_weights_in_place_take_what_is_planned() {
    alone("bf16_weights_in_place_take_what_is_planned", || run(DTypeChoice::Bf16, true));
}

fn run(dtype: DTypeChoice, in_place: bool) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), dtype == DTypeChoice::Bf16);
    let mut options = LocalOptions::new(ModelSource::Named(folder.path().to_str().unwrap().to_owned()));
    options.dtype = dtype;
    options.batch_size = 8;
    // All images of the run are kept, so what is kept is known.
    options.image_cache_bytes = 1 << 30;
    let mut plan = inspect(&options).unwrap().plan;
    if in_place {
        // Too little for packed weights.
        let packed = plan.weights;
        options.memory = Some(plan.least() - packed / 2);
        plan = inspect(&options).unwrap().plan;
        assert!(plan.weights < packed / 10, "{} of {packed} bytes are not in place", plan.weights);
    } else {
        assert!(plan.weights > 25_000_000, "{} bytes are too little to tell anything", plan.weights);
    }

    let in_map = if in_place { 0 } else { embeddings(folder.path()) };
    let before = resident();
    let backend = LocalBackend::load(options, |_| {}).unwrap();
    let loaded = resident() - before;
    let off = |found: u64, expected: u64| found as f64 / expected as f64 - 1.0;
    // Pages of the file's map aren't counted here.
    let weights_off = off(loaded, plan.weights - in_map);

    let peak = Arc::new(AtomicU64::new(0));
    let running = Arc::new(AtomicBool::new(true));
    let watcher = std::thread::spawn({
        let (peak, running) = (Arc::clone(&peak), Arc::clone(&running));
        move || {
            while running.load(Ordering::Relaxed) {
                peak.fetch_max(resident(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    const ROWS: u64 = 12;
    const IMAGES: u32 = 6;
    const NEW: u32 = 64;
    let (send, receive) = mpsc::channel();
    for row in 0..ROWS {
        let text = "tell me what is shown here and why it matters ".repeat(8);
        let parts = vec![picture(row as u32 % IMAGES), Part::Text(text)];
        let sampling = SamplingParams {
            max_new_tokens: Some(NEW),
            temperature: Some(0.0),
            ignore_eos: true,
            ..SamplingParams::default()
        };
        let message = Message { role: Role::User, content: Content::Parts(parts) };
        let send = send.clone();
        let done = move |result: Result<vgen_core::Response, vgen_core::Fault>| send.send(result).unwrap();
        backend.submit(Request::new(row, vec![message], sampling), Box::new(done));
    }
    drop(send);
    let mut prompt = 0;
    for result in receive {
        let generation = result.unwrap().generations.remove(0).unwrap();
        prompt = generation.usage.unwrap().input_tokens;
    }
    running.store(false, Ordering::Relaxed);
    watcher.join().unwrap();

    let taken = peak.load(Ordering::Relaxed) - before;
    let images = u64::from(IMAGES) * plan.max_tiles * plan.cross_kv_per_tile;
    let rows = 8 * plan.row(prompt + u64::from(NEW), 0, 1);
    // All images are prepared while the first ones are encoded, or with little memory one at a time.
    let pixels = if in_place { 1 } else { u64::from(IMAGES) } * plan.max_tiles * plan.pixels_per_tile;
    let expected = plan.weights + plan.workspace() + images + rows + pixels;
    let report = format!(
        "loaded {loaded} of {} planned ({in_map} in the map), peak {taken} of {expected} planned (workspace {} of it, images {images}, rows {rows}, pixels {pixels})",
        plan.weights,
        plan.workspace()
    );
    println!("{report}");
    // What the tokenizer, prepared images and the like take is more than weights in place.
    assert!(in_place || weights_off.abs() <= TOLERANCE, "{report}");
    let taken = if in_place { taken - (8 << 20).min(taken) } else { taken };
    assert!(off(taken, expected).abs() <= TOLERANCE, "{report}");
}
