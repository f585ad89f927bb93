//! The network: every stage that a golden holds, for all three references; single rows and ragged batches.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use vgen_core::{PixelTiles, image_spans};
use vgen_mllama::{Checkpoint, CrossKv, Device, LoadOptions, Model, Reference, SelfKv, Sequence, Tensor};

use crate::On;
use crate::fixtures::{Case, CaseImage, Golden, batches, cases, checkpoint_names, checkpoints, preprocessor};
use crate::inputs::reference_pixels;

/// Largest error that counts as equal, relative to the largest value of the tensor.
const TOLERANCE: f32 = 1e-4;

on_all_paths!(
    vision_stages,
    text_layers_logits_and_greedy_tokens,
    ragged_batches,
    images_are_projected_once,
    chunked_prefill,
    unused_tiles_are_shared_only_where_they_are_equal,
);

/// What is around a kernel that reads pages: tables of pages, and the rows that it can't take.
#[test]
fn reading_pages() {
    ragged_batches(On::Pages);
    chunked_prefill(On::Pages);
}

/// A row whose image a kernel reads has the same bits beside one whose images no kernel reads.
#[test]
fn neighbours_do_not_change_how_pages_are_read() {
    let model = load("tiny-hublike", Reference::Meta, On::Pages);
    let vocabulary = model.config().text.vocab_size;
    let row = |name: &str| {
        let (ids, images, _) = recorded_case(name);
        Row::new(&model, ids, &images)
    };
    let bits = |mut rows: Vec<Row>| {
        let mut bits = Vec::new();
        generate(&model, &mut rows, 6, |step, logits| {
            if step > 0 {
                bits.extend(logits[..vocabulary].iter().map(|logit| logit.to_bits()));
            }
        });
        bits
    };
    assert_eq!(bits(vec![row("photo_jpeg")]), bits(vec![row("photo_jpeg"), row("two_images")]));
}

fn load(checkpoint: &str, reference: Reference, on: On) -> Model {
    let device = match on {
        On::Gpu(choice) => choice.open().unwrap().device,
        _ => Device::Cpu,
    };
    let portable = matches!(on, On::Portable | On::Pages);
    let options = LoadOptions { reference, device, portable, read_pages: on == On::Pages, ..LoadOptions::default() };
    Model::load(&Checkpoint::folder(checkpoints().join(checkpoint)), &options, &|_, _| {}).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let error = found.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(error <= TOLERANCE * scale, "{what}: off by {error}, the largest value is {scale}");
}

/// The images of a case: from recorded pixels where decoders differ, so that the network is tested apart from them.
fn images(case: &Case) -> Vec<PixelTiles> {
    let preprocessor = preprocessor("tiny");
    let golden = Golden::of("tiny", &case.name);
    let tiles = |(index, image): (usize, &CaseImage)| {
        let recorded = golden.as_ref().and_then(|golden| golden.u8(&format!("decoded_u8.{index}")));
        preprocessor.image_processor().unwrap().process(&reference_pixels(image, recorded), &image.file).unwrap()
    };
    case.images.iter().enumerate().map(tiles).collect()
}

/// What transformers puts in the place of an image that a row of a batch doesn't have.
fn padding_image(model: &Model) -> PixelTiles {
    let vision = model.config().vision.as_ref().unwrap();
    let values = vec![0.0; vision.num_channels * vision.image_size * vision.image_size];
    PixelTiles {
        tile_size: vision.image_size,
        tiles_high: 1,
        tiles_wide: 1,
        aspect_ratio_id: 0,
        values,
        digest: [0; 32],
    }
}

/// A row on its way through the model.
struct Row {
    ids: Vec<u32>,
    spans: Vec<Range<usize>>,
    images: Vec<Arc<CrossKv>>,
    kv: SelfKv,
}

impl Row {
    fn new(model: &Model, ids: Vec<u32>, images: &[PixelTiles]) -> Self {
        let images = model.encode(&images.iter().collect::<Vec<_>>()).unwrap();
        Self {
            spans: image_spans(&ids, model.config().image_token.unwrap()),
            kv: model.self_kv(ids.len() + 40).unwrap(),
            images: images.into_iter().map(Arc::new).collect(),
            ids,
        }
    }

    fn sequence(&mut self) -> Sequence<'_> {
        Sequence { kv: &mut self.kv, images: &self.images, visible: &self.spans }
    }

    /// Leaves only what a generated token sees.
    fn decode(&mut self) {
        self.spans = vec![self.spans.last().unwrap().clone()];
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().fold(0, |best, (i, v)| if *v > logits[best] { i } else { best });
    u32::try_from(best).unwrap()
}

/// Prefills rows in one ragged step, then decodes greedily, together. Calls `look` with the logits of each step's
/// wanted tokens: all of the prompt, then the last ones.
fn generate(model: &Model, rows: &mut [Row], steps: usize, mut look: impl FnMut(usize, &[f32])) -> Vec<Vec<u32>> {
    let vocabulary = model.config().text.vocab_size;
    let ids: Vec<u32> = rows.iter().flat_map(|row| row.ids.clone()).collect();
    let wanted: Vec<u32> = (0..u32::try_from(ids.len()).unwrap()).collect();
    let mut sequences: Vec<_> = rows.iter_mut().map(Row::sequence).collect();
    let logits = values(&model.forward(&ids, &mut sequences, &wanted).unwrap());
    look(0, &logits);
    let mut ends = Vec::new();
    for row in rows.iter_mut() {
        ends.push(ends.last().unwrap_or(&0) + row.ids.len());
        row.decode();
    }
    let mut next: Vec<u32> = ends.iter().map(|end| argmax(&logits[(end - 1) * vocabulary..end * vocabulary])).collect();
    let mut tokens: Vec<Vec<u32>> = next.iter().map(|token| vec![*token]).collect();
    for step in 1..steps {
        let wanted: Vec<u32> = (0..u32::try_from(rows.len()).unwrap()).collect();
        let mut sequences: Vec<_> = rows.iter_mut().map(Row::sequence).collect();
        let logits = values(&model.forward(&next, &mut sequences, &wanted).unwrap());
        look(step, &logits);
        next = logits.chunks(vocabulary).map(argmax).collect();
        tokens.iter_mut().zip(&next).for_each(|(all, token)| all.push(*token));
    }
    tokens
}

/// Cases that a checkpoint has goldens of.
fn recorded(checkpoint: &str) -> Vec<(Case, Vec<PixelTiles>, Golden)> {
    let found: Vec<_> = cases()
        .into_iter()
        .filter_map(|case| {
            let golden = Golden::of(checkpoint, &case.name)?;
            let images = images(&case);
            Some((case, images, golden))
        })
        .collect();
    assert!(!found.is_empty(), "no golden of {checkpoint}");
    found
}

fn recorded_case(name: &str) -> (Vec<u32>, Vec<PixelTiles>, Golden) {
    let mut cases = recorded("tiny").into_iter();
    let (case, images, golden) = cases.find(|(case, ..)| case.name == name).unwrap();
    (case.input_ids.unwrap(), images, golden)
}

fn vision_stages(on: On) {
    let mut compared = BTreeSet::new();
    for checkpoint in checkpoint_names() {
        for reference in [Reference::Hf4, Reference::Hf5] {
            let model = load(&checkpoint, reference, on);
            for (Case { name, .. }, images, golden) in recorded(&checkpoint) {
                // By stage: of all images at once, or one by one.
                let mut stages: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
                let mut observe = |stage: &str, tensor: &Tensor| {
                    let of_stage = stages.entry(stage.to_owned()).or_default();
                    let tensor = match stage {
                        "output" | "projected" => {
                            let id = images[of_stage.len()].aspect_ratio_id;
                            model.vision().unwrap().full_output(tensor, id).unwrap()
                        }
                        // Recorded with the channels before the patches.
                        "patch_conv" => tensor.transpose(1, 2).unwrap().contiguous().unwrap(),
                        _ => tensor.clone(),
                    };
                    of_stage.push(tensor);
                };
                if images.is_empty() {
                    continue;
                }
                model.encode_observed(&images.iter().collect::<Vec<_>>(), Some(&mut observe)).unwrap();
                for (stage, found) in stages {
                    // What has no reference in its name was recorded with hf4; up to the end of the tower hf5 is the
                    // same.
                    let keys = [format!("vision.{stage}.{reference}"), format!("vision.{stage}")];
                    if let Some((_, expected)) = keys.iter().find_map(|key| golden.f32(key)) {
                        let found: Vec<f32> = found.iter().flat_map(values).collect();
                        assert_close(&format!("{checkpoint} {reference} {name} {stage}"), &found, &expected);
                        compared.insert(stage);
                    }
                }
            }
        }
    }
    assert!(compared.len() >= 2, "{compared:?}");
}

fn text_layers_logits_and_greedy_tokens(on: On) {
    for checkpoint in checkpoint_names() {
        for reference in Reference::ALL {
            let model = load(&checkpoint, reference, on);
            for (case, images, golden) in recorded(&checkpoint) {
                let what = |stage: &str| format!("{checkpoint} {reference} {} {stage}", case.name);
                let ids = case.input_ids.clone().unwrap();
                let mut row = Row::new(&model, ids.clone(), &images);
                let mut observe = |stage: &str, tensor: &Tensor| {
                    for key in [format!("text.{stage}.{reference}"), format!("text.{stage}")] {
                        if let Some((_, expected)) = golden.f32(&key) {
                            assert_close(&what(&key), &values(tensor), &expected);
                        }
                    }
                };
                let last = u32::try_from(ids.len() - 1).unwrap();
                model.forward_observed(&ids, &mut [row.sequence()], &[last], Some(&mut observe)).unwrap();

                let mut rows = [Row::new(&model, ids, &images)];
                let vocabulary = model.config().text.vocab_size;
                let tokens = generate(&model, &mut rows, 32, |step, logits| {
                    if step == 0 {
                        for key in ["logits", "last_logits"] {
                            if let Some((_, expected)) = golden.f32(&format!("{key}.{reference}")) {
                                assert_close(&what(key), &logits[logits.len() - expected.len()..], &expected);
                            }
                        }
                    }
                    // Step i's logits are those after i tokens; the recording starts with the prompt's last.
                    if let Some((_, expected)) = golden.f32(&format!("decode_logits.{reference}")) {
                        let expected = &expected[step * vocabulary..][..vocabulary];
                        assert_close(&what("decode"), &logits[logits.len() - vocabulary..], expected);
                    }
                });
                let (_, expected) = golden.i64(&format!("tokens.{reference}")).unwrap();
                assert_eq!(tokens[0].iter().map(|t| i64::from(*t)).collect::<Vec<_>>(), expected, "{}", what("tokens"));
            }
        }
    }
}

/// In a batch transformers pads images too, and rows that see no image attend to that padding: the rows are given the
/// same padding images to compare with it. `meta` needs none of that.
fn ragged_batches(on: On) {
    let mut compared = 0;
    for checkpoint in checkpoint_names() {
        for batch in batches() {
            let Some(golden) = Golden::of(&checkpoint, &batch.name) else { continue };
            let (shape, ids) = golden.i64("input_ids").unwrap();
            let (_, mask) = golden.i64("attention_mask").unwrap();
            let width = shape[1];
            let most_images = batch.rows.iter().map(|row| row.images.len()).max().unwrap();
            for reference in Reference::ALL {
                let model = load(&checkpoint, reference, on);
                let vocabulary = model.config().text.vocab_size;
                let mut rows: Vec<Row> = (0..shape[0])
                    .map(|r| {
                        let real = |i: &usize| mask[r * width + i] == 1;
                        let id = |i: usize| u32::try_from(ids[r * width + i]).unwrap();
                        let mut images = images(&batch.rows[r]);
                        if reference != Reference::Meta {
                            images.resize_with(most_images, || padding_image(&model));
                        }
                        Row::new(&model, (0..width).filter(real).map(id).collect(), &images)
                    })
                    .collect();
                let mut expected_rows = Vec::new();
                if let Some((_, expected)) = golden.f32(&format!("logits.{reference}")) {
                    for (r, logits) in expected.chunks(width * vocabulary).enumerate() {
                        let real = (0..width).filter(|i| mask[r * width + i] == 1);
                        expected_rows.extend(real.flat_map(|i| &logits[i * vocabulary..][..vocabulary]).copied());
                    }
                }
                let lengths: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
                let tokens = generate(&model, &mut rows, 32, |step, logits| {
                    if step > 0 {
                        return;
                    }
                    let what = format!("{checkpoint} {reference} {}", batch.name);
                    if !expected_rows.is_empty() {
                        assert_close(&what, logits, &expected_rows);
                    }
                    let (_, expected) = golden.f32(&format!("last_logits.{reference}")).unwrap();
                    let mut end = 0;
                    for (length, expected) in lengths.iter().zip(expected.chunks(vocabulary)) {
                        end += length * vocabulary;
                        assert_close(&what, &logits[end - vocabulary..end], expected);
                    }
                    compared += 1;
                });
                if let Some((_, expected)) = golden.i64(&format!("tokens.{reference}")) {
                    let found: Vec<i64> = tokens.iter().flatten().map(|token| i64::from(*token)).collect();
                    assert_eq!(found, expected, "{checkpoint} {reference} {}", batch.name);
                }
            }
        }
    }
    assert!(compared > 0, "no batch has goldens");
}

fn images_are_projected_once(on: On) {
    let model = load("tiny-hublike", Reference::Meta, on);
    let (ids, images, _) = recorded_case("two_images");
    let mut rows = [Row::new(&model, ids, &images)];
    let before = (model.counters().images_encoded(), model.counters().image_projections());
    assert_eq!(before, (2, 2));
    generate(&model, &mut rows, 32, |_, _| {});
    assert_eq!((model.counters().images_encoded(), model.counters().image_projections()), before);
}

/// A prompt read in pieces gives what it gives whole.
fn chunked_prefill(on: On) {
    let model = load("tiny", Reference::Meta, on);
    let (ids, images, golden) = recorded_case("three_mixed");
    let (_, expected) = golden.f32("logits.meta").unwrap();
    for chunk in [1, 2, 3, 7] {
        let mut row = Row::new(&model, ids.clone(), &images);
        let mut logits = Vec::new();
        for start in (0..ids.len()).step_by(chunk) {
            let part = start..ids.len().min(start + chunk);
            let sequence = Sequence { kv: &mut row.kv, images: &row.images, visible: &row.spans[part.clone()] };
            // Only the last piece has logits that somebody wants.
            let last = u32::try_from(part.len() - 1).unwrap();
            let wanted = if part.end == ids.len() { vec![last] } else { vec![] };
            logits = values(&model.forward(&ids[part], &mut [sequence], &wanted).unwrap());
            assert_eq!(logits.len(), wanted.len() * model.config().text.vocab_size);
        }
        assert_close(&format!("chunks of {chunk}"), &logits, &expected);
    }
}

/// Where unused tiles share a representative, and where each must be computed.
fn unused_tiles_are_shared_only_where_they_are_equal(on: On) {
    assert!(load("tiny-hublike", Reference::Meta, on).vision().unwrap().unused_tiles_share());
    assert!(!load("tiny", Reference::Meta, on).vision().unwrap().unused_tiles_share());
}
