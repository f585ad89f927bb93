//! Weights in fewer bits and in GGUF files: what is read is what was written, and how far answers move.

// What is wrong with the repository's own files is to stop the test at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::print_stdout)] // measured errors, for whoever wants to see them

mod cpu_level;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vgen_core::PixelTiles;
use vgen_mllama::{Checkpoint, CrossKv, DType, LoadOptions, Model, Sequence, WeightType, WeightTypes, quantize};

fn fixture(name: &str) -> Checkpoint {
    Checkpoint::folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name))
}

const VISION: &str = "mllama/tiny-hublike";
const TEXT: &str = "llama/chatml";

fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Model {
    cpu_level::limit();
    Model::load(checkpoint, options, &|_, _| {}).unwrap()
}

fn options(weights: impl Into<WeightTypes>) -> LoadOptions {
    LoadOptions { weights: weights.into(), ..LoadOptions::default() }
}

/// An image of smooth colours.
fn picture(model: &Model) -> PixelTiles {
    let vision = model.config().vision.as_ref().unwrap();
    let size = vision.image_size;
    let values = (0..vision.num_channels * size * size).map(|i| ((i as f32) * 0.013).sin()).collect();
    PixelTiles { tile_size: size, tiles_high: 1, tiles_wide: 1, aspect_ratio_id: 1, values, digest: [1; 32] }
}

/// Logits after every token of a text, which sees an image where the model can.
fn logits(model: &Model) -> Vec<f32> {
    let images: Vec<Arc<CrossKv>> = match model.config().vision {
        Some(_) => model.encode(&[&picture(model)]).unwrap().into_iter().map(Arc::new).collect(),
        None => Vec::new(),
    };
    let vocabulary = model.config().text.vocab_size as u32;
    let ids: Vec<u32> = (0..24).map(|i| (i * 37 + 5) % vocabulary).collect();
    let visible = vec![0..images.len(); ids.len()];
    let mut kv = model.self_kv(ids.len()).unwrap();
    let mut sequences = [Sequence { kv: &mut kv, images: &images, visible: &visible }];
    let wanted: Vec<u32> = (0..ids.len() as u32).collect();
    model.forward(&ids, &mut sequences, &wanted).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn written(checkpoint: &Checkpoint, types: &WeightTypes, folder: &Path) -> PathBuf {
    let out = folder.join("model.gguf");
    quantize(checkpoint, types, &out, &|_, _| {}).unwrap();
    out
}

#[test]
fn a_gguf_file_gives_the_bits_of_the_checkpoint_it_was_made_of() {
    let folder = tempfile::tempdir().unwrap();
    const ALL: [WeightType; 4] = [WeightType::F32, WeightType::Bf16, WeightType::Q8_0, WeightType::Q4K];
    // The plain Llama's embedding is its output head as well. A file has it once, in the type of the head, so that only
    // f32 leaves looked-up rows as they were.
    for (name, types) in [(VISION, &ALL[..]), (TEXT, &ALL[..1])] {
        let checkpoint = fixture(name);
        for &weights in types {
            // Quantised while loading, and as the file has it.
            let direct = logits(&load(&checkpoint, &options(weights)));
            let gguf = Checkpoint::gguf(written(&checkpoint, &weights.into(), folder.path())).unwrap();
            let read = LoadOptions { weights: WeightTypes::default(), ..LoadOptions::default() };
            let read =
                LoadOptions { weights: if weights == WeightType::F32 { weights.into() } else { read.weights }, ..read };
            assert_eq!(bits(&logits(&load(&gguf, &read))), bits(&direct), "{name} {weights}");
            for file in ["config.json", "tokenizer.json", "generation_config.json"] {
                assert_eq!(gguf.text(file).unwrap(), checkpoint.text(file).unwrap(), "{file}");
            }
        }
    }
}

#[test]
fn weights_left_in_the_map_give_the_bits_of_packed_ones() {
    let checkpoint = fixture("mllama/tiny-bf16");
    let packed = logits(&load(&checkpoint, &options(WeightType::Bf16)));
    let in_place = LoadOptions { in_place: true, ..options(WeightType::Bf16) };
    assert_eq!(bits(&logits(&load(&checkpoint, &in_place))), bits(&packed));
}

/// Largest and mean error of the logits by type, as parts of the largest logit. The bounds are twice what is measured.
#[test]
fn errors_grow_as_bits_get_fewer() {
    let checkpoint = fixture(VISION);
    let exact = logits(&load(&checkpoint, &options(WeightType::F32)));
    let scale = exact.iter().fold(0f32, |m, v| m.max(v.abs()));
    let mut means = Vec::new();
    for weights in [WeightType::Bf16, WeightType::Q8_0, WeightType::Q4K] {
        let found = logits(&load(&checkpoint, &options(weights)));
        let errors: Vec<f32> = found.iter().zip(&exact).map(|(a, b)| (a - b).abs() / scale).collect();
        let largest = errors.iter().fold(0f32, |m, e| m.max(*e));
        let mean = errors.iter().sum::<f32>() / errors.len() as f32;
        println!("{weights}: largest {largest:.5}, mean {mean:.5}");
        means.push((weights, largest, mean));
    }
    for ((weights, largest, mean), (most, usual)) in means.iter().zip([(0.03, 0.004), (0.085, 0.011), (0.57, 0.085)]) {
        assert!(*largest < most && *mean < usual, "{weights}: {largest} {mean}");
    }
    assert!(means[0].2 < means[2].2 && means[1].2 < means[2].2, "{means:?}");
}

/// The operations that every device has, with weights in blocks and in a half type: as near as the kernels are held to
/// be in 8 bits, and nearer in f16. A GPU computes so; bf16 has no product on the CPU.
#[test]
fn the_portable_path_is_as_near() {
    let checkpoint = fixture(VISION);
    let exact = logits(&load(&checkpoint, &options(WeightType::F32)));
    let scale = exact.iter().fold(0f32, |m, v| m.max(v.abs()));
    let portable = |weights: WeightType| LoadOptions { portable: true, ..options(weights) };
    let half = LoadOptions { dtype: DType::F16, kv_dtype: DType::F16, ..portable(WeightType::F32) };
    let quantised_half = LoadOptions { weights: WeightType::Q8_0.into(), ..half.clone() };
    for (name, options, most, usual) in [
        ("f32", portable(WeightType::F32), 1e-4, 1e-5),
        ("q8_0", portable(WeightType::Q8_0), 0.085, 0.011),
        ("f16", half, 0.01, 0.001),
        ("q8_0 beside f16", quantised_half, 0.085, 0.011),
    ] {
        let found = logits(&load(&checkpoint, &options));
        let errors: Vec<f32> = found.iter().zip(&exact).map(|(a, b)| (a - b).abs() / scale).collect();
        let largest = errors.iter().fold(0f32, |m, e| m.max(*e));
        let mean = errors.iter().sum::<f32>() / errors.len() as f32;
        println!("portable {name}: largest {largest:.5}, mean {mean:.5}");
        assert!(largest < most && mean < usual, "{name}: {largest} {mean}");
    }
}

#[test]
fn a_damaged_file_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(written(&fixture(TEXT), &WeightType::Q8_0.into(), folder.path())).unwrap();
    let refused = |bytes: &[u8]| {
        let path = folder.path().join("bad.gguf");
        std::fs::write(&path, bytes).unwrap();
        let loaded = Checkpoint::gguf(&path).and_then(|c| Model::load(&c, &LoadOptions::default(), &|_, _| {}));
        loaded.expect_err("a damaged file").to_string()
    };
    assert!(refused(&whole[..whole.len() - 100]).contains("truncated"));
    for len in [0, 3, 11, 40, 400] {
        assert!(refused(&whole[..len]).contains("bad.gguf"), "{len}");
    }
    // Any one byte of the header may be wrong: an error or a model, never a panic.
    for at in (0..2000).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        let path = folder.path().join("bad.gguf");
        std::fs::write(&path, &bytes).unwrap();
        let _ = Checkpoint::gguf(&path).and_then(|c| Model::load(&c, &LoadOptions::default(), &|_, _| {}));
    }
}
