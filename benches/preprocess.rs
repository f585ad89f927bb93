//! Image files to the tiles of the vision tower, one file after the other on one thread, for `benches/preprocess.py`.
//!
//! `cargo bench --bench preprocess -- MODEL_FOLDER ROUNDS DUMP_FOLDER FILE...`. Prints a line of JSON for each file:
//! median seconds of decoding, of resizing and of the whole, the canvas, and where the values of the last round are
//! (f32, little-endian).
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a report to the terminal, stopped by any failure

use std::path::Path;
use std::time::Instant;

use vgen_task::image::{ImageLimits, MllamaImageProcessor, decode};

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [model, rounds, dump, files @ ..] = args.as_slice() else { return };
    let read = |name: &str| std::fs::read_to_string(Path::new(model).join(name)).unwrap();
    let processor = MllamaImageProcessor::from_json(&read("preprocessor_config.json"), &read("config.json")).unwrap();
    let (rounds, limits) = (rounds.parse().unwrap(), ImageLimits::default());
    for (number, file) in files.iter().enumerate() {
        let (mut decoding, mut resizing, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = None;
        // The first round only warms up.
        for round in 0..=rounds {
            let start = Instant::now();
            let bytes = std::fs::read(file).unwrap();
            let tiles = processor.process_file(&bytes, file, &limits).unwrap();
            if round > 0 {
                whole.push(start.elapsed().as_secs_f64());
            }
            last = Some(tiles);
        }
        // Parts by themselves, for which no memory of pixels is kept.
        for _ in 0..rounds {
            let bytes = std::fs::read(file).unwrap();
            let start = Instant::now();
            let image = decode(&bytes, file, &limits).unwrap();
            decoding.push(start.elapsed().as_secs_f64());
            let geometry = processor.fit(image.height() as usize, image.width() as usize).unwrap();
            let start = Instant::now();
            std::hint::black_box(processor.resize(&image, geometry));
            resizing.push(start.elapsed().as_secs_f64());
        }
        let tiles = last.unwrap();
        let values: Vec<u8> = tiles.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let values_file = Path::new(dump).join(format!("vgen-{number}.f32"));
        std::fs::write(&values_file, values).unwrap();
        let line = serde_json::json!({
            "file": file, "seconds": median(&mut whole), "decode": median(&mut decoding),
            "resize": median(&mut resizing), "aspect_ratio_id": tiles.aspect_ratio_id, "tiles": tiles.tiles(),
            "tile_size": tiles.tile_size, "values": values_file,
        });
        println!("{line}");
    }
}
