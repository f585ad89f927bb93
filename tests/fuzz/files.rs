//! Files that the library reads: images, data sets, checkpoints.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use tempfile::TempDir;
use vgen_backends::local::{LocalBackend, LocalOptions, ModelSource};
use vgen_core::{Backend, Content, Message, Request, Role, SamplingParams};
use vgen_dataset::InputOptions;
use vgen_task::image::{ImageError, ImageLimits, decode};

use crate::mutate::mutate;
use crate::rounds;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Files below a folder, in order.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn images() {
    let pixels = RgbImage::from_fn(67, 45, |x, y| Rgb([(x * 3) as u8, (y * 5) as u8, (x ^ y) as u8]));
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for format in
        [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::Tiff]
    {
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(pixels.clone()).write_to(&mut bytes, format).unwrap();
        seeds.push(bytes.into_inner());
    }
    // Those of other makers: progressive, with other sampling of colours, with inks.
    let fixtures = files_below(&repository("crates/task/tests/images"));
    let jpegs = fixtures.iter().filter(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    seeds.extend(jpegs.map(|path| std::fs::read(path).unwrap()));
    let limits = ImageLimits { max_pixels: 1 << 22, ..ImageLimits::default() };
    assert!(seeds.len() > 6 && seeds.iter().all(|seed| decode(seed, "whole", &limits).is_ok()));
    rounds(3000, |rng| {
        let mut bytes = seeds[rng.usize(0..seeds.len())].clone();
        let other = &seeds[rng.usize(0..seeds.len())];
        mutate(rng, &mut bytes, other);
        match decode(&bytes, "broken", &limits) {
            Ok(image) => assert!(u64::from(image.width()) * u64::from(image.height()) <= limits.max_pixels),
            // A panic of a decoder: those of other formats are of others, and their rows fail with this.
            Err(ImageError::Decode { reason, .. }) if bytes.starts_with(&[0xff, 0xd8]) => {
                assert!(!reason.starts_with("the decoder failed"), "{reason}");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    });
}

#[test]
fn data_sets() {
    let parquet = std::fs::read(repository("tests/fixtures/features.parquet")).unwrap();
    let jsonl: String = (0..20)
        .map(|n| format!("{{\"id\": {n}, \"instruction\": \"what? \\u00e9 \u{1f600}\", \"image\": \"a{n}.png\", \"x\": [1.5, null]}}\n"))
        .collect();
    let csv: String = (0..20).map(|n| format!("{n},\"a \"\"quoted\"\" one,\n{n}\",image{n}.png\n")).collect();
    let csv = format!("id,instruction,image\n{csv}");
    let seeds: [(&str, &[u8]); 3] =
        [("in.jsonl", jsonl.as_bytes()), ("in.csv", csv.as_bytes()), ("in.parquet", &parquet)];
    let folder = TempDir::new().unwrap();
    // How many rows can be read.
    let read = |name: &str, bytes: &[u8], skip| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let Ok(mut source) = vgen_dataset::open(&[path], &InputOptions::default()) else { return 0 };
        let _ = source.skip(skip);
        // A row that is broken is a row; the source ends at what nothing can follow.
        let rows = (0..10_000).take_while(|_| matches!(source.next_row(), Ok(Some(_)))).count();
        assert!(rows < 10_000, "{name} does not end");
        rows
    };
    assert!(seeds.iter().all(|(name, seed)| read(name, seed, 0) > 0));
    rounds(600, |rng| {
        let (name, seed) = seeds[rng.usize(0..seeds.len())];
        let mut bytes = seed.to_vec();
        let other = seeds[rng.usize(0..seeds.len())].1;
        mutate(rng, &mut bytes, other);
        read(name, &bytes, rng.u64(0..4));
    });
}

/// A model with one file broken is refused, or answers.
#[test]
fn checkpoints() {
    let original = repository("tests/fixtures/mllama/tiny-hublike");
    let files: Vec<(PathBuf, Vec<u8>)> =
        files_below(&original).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    assert!(answers(&original));
    rounds(60, |rng| {
        let folder = TempDir::new().unwrap();
        let broken = rng.usize(0..files.len());
        for (number, (path, bytes)) in files.iter().enumerate() {
            let mut bytes = bytes.clone();
            if number == broken {
                let other = &files[rng.usize(0..files.len())].1;
                // Of weights, the header.
                let weights = path.extension().is_some_and(|extension| extension == "safetensors");
                let mut rest = bytes.split_off(if weights { bytes.len().min(4096) } else { bytes.len() });
                mutate(rng, &mut bytes, other);
                bytes.append(&mut rest);
            }
            std::fs::write(folder.path().join(path.file_name().unwrap()), bytes).unwrap();
        }
        answers(folder.path());
    });
}

fn answers(model: &Path) -> bool {
    let mut options = LocalOptions::new(ModelSource::Named(model.to_str().unwrap().to_owned()));
    options.memory = Some(1 << 30);
    let Ok(backend) = LocalBackend::load(options, |_| {}) else { return false };
    let (send, receive) = mpsc::channel();
    let sampling = SamplingParams { max_new_tokens: Some(2), ..SamplingParams::default() };
    let message = Message { role: Role::User, content: Content::Text("what is this?".to_owned()) };
    backend.submit(Request::new(0, vec![message], sampling), Box::new(move |result| send.send(result).unwrap()));
    let outcome = receive.recv().unwrap().and_then(|response| response.generations[0].clone());
    assert!(!outcome.as_ref().is_err_and(|fault| fault.code == "engine.panic"), "{outcome:?}");
    outcome.is_ok()
}
