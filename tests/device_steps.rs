//! What a decode step asks of a device, measured on the path that every device has: as many operations and allocations
//! for many rows as for one, and nothing copied back but the tokens. A test of its own, alone in its process: it counts
//! allocations.

// What is wrong with the repository's own files is to stop the test at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use image::{Rgb, RgbImage};
use vgen_backends::local::{
    DTypeChoice, DecodeStep, EngineReport, LocalBackend, LocalOptions, ModelSource, StepLaunches,
};
use vgen_core::{Backend, Content, Message, Part, PixelTiles, Request, Role, SamplingParams};
use vgen_mllama::{Checkpoint, CrossKv, Highest, LoadOptions, Model, SelfKv, Sequence};
use vgen_task::encode_image;

/// Counts the results of tensor operations: each has its values in a shared store of its own.
struct Counting;

static COUNTED: AtomicU64 = AtomicU64::new(0);
static COUNTS: AtomicBool = AtomicBool::new(false);

/// As `Arc` lays out the store of a tensor: two counts, then parking_lot's lock, which is a word, then the values.
const STORE: Layout = Layout::new::<(usize, usize, usize, candle_core::Storage)>();

#[expect(unsafe_code, reason = "there is no other way to count allocations")]
// SAFETY: all calls are passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout == STORE && COUNTS.load(Ordering::Relaxed) {
            COUNTED.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn stores_of(work: impl FnOnce()) -> u64 {
    COUNTED.store(0, Ordering::Relaxed);
    COUNTS.store(true, Ordering::Relaxed);
    work();
    COUNTS.store(false, Ordering::Relaxed);
    COUNTED.load(Ordering::Relaxed)
}

fn checkpoint() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mllama/tiny-hublike")
}

/// A row whose prompt has been read.
struct Row {
    kv: SelfKv,
    images: Vec<Arc<CrossKv>>,
}

/// An image of one to four tiles.
fn image(model: &Model, number: usize) -> PixelTiles {
    let vision = model.config().vision.as_ref().unwrap();
    let id = 1 + number % 4;
    let (tiles, size) = (vision.live_tiles(id), vision.image_size);
    let values = (0..tiles * 3 * size * size).map(|i| ((i * 7 + number * 13) % 255) as f32 / 255.0 - 0.5).collect();
    let mut digest = [0; 32];
    digest[0] = number as u8;
    PixelTiles { tile_size: size, tiles_high: 1, tiles_wide: tiles, aspect_ratio_id: id, values, digest }
}

impl Row {
    fn new(model: &Model, number: usize) -> Self {
        let image = image(model, number);
        let images: Vec<_> = model.encode(&[&image]).unwrap().into_iter().map(Arc::new).collect();
        let mut kv = model.self_kv(80).unwrap();
        let ids: Vec<u32> = (0..5 + number as u32 % 7).collect();
        let sequence = Sequence { kv: &mut kv, images: &images, visible: &vec![0..1; ids.len()] };
        model.forward(&ids, &mut [sequence], &[0]).unwrap();
        Self { kv, images }
    }
}

/// What a step made: results of operations, copies to the host and to the device.
#[derive(Debug, PartialEq)]
struct Made {
    stores: u64,
    to_host: u64,
    to_device: u64,
}

/// Makes a step of all rows, of which each takes its highest token or draws from the highest few.
fn step(model: &Model, rows: &mut [Row], draws: bool) -> Made {
    let (to_host, to_device) = (model.counters().copies_to_host(), model.counters().copies_to_device());
    let ids: Vec<u32> = (0..rows.len() as u32).collect();
    let visible = vec![0..1; 1];
    let temperatures = vec![0.6; rows.len()];
    let stores = stores_of(|| {
        let mut sequences: Vec<_> =
            rows.iter_mut().map(|row| Sequence { kv: &mut row.kv, images: &row.images, visible: &visible }).collect();
        let logits = model.forward(&ids, &mut sequences, &ids).unwrap();
        if draws {
            let top = model.top(&logits, &temperatures).unwrap();
            assert!(top.len() == ids.len() && top.iter().all(|found| found.is_some()));
        } else {
            let highest = model.highest(&logits).unwrap();
            assert_eq!(highest.len(), ids.len());
            assert!(highest.iter().all(|found| matches!(found, Highest::Token(_))));
        }
    });
    let to_host = model.counters().copies_to_host() - to_host;
    Made { stores, to_host, to_device: model.counters().copies_to_device() - to_device }
}

fn load(fixed_shapes: bool, read_pages: bool) -> Model {
    let options = LoadOptions { portable: true, fixed_shapes, read_pages, ..LoadOptions::default() };
    Model::load(&Checkpoint::folder(checkpoint()), &options, &|_, _| {}).unwrap()
}

/// Rows of one number of tiles where shapes are fixed: those with another number of keys are looked up apart.
fn rows(model: &Model, count: usize, fixed_shapes: bool) -> Vec<Row> {
    (0..count).map(|number| Row::new(model, if fixed_shapes { number * 4 } else { number })).collect()
}

fn operations_do_not_depend_on_the_batch() {
    for fixed_shapes in [false, true] {
        let model = load(fixed_shapes, false);
        let text = &model.config().text;
        // What is written in place makes no new store: keys and values of each layer.
        let in_place = 2 * text.self_layers() as u64;
        // Not 7: a list of seven words is as large as a store. With fixed shapes products have 64 rows.
        for count in [1, 2, 5, 32, 100] {
            let kind = DecodeStep {
                reads_pages: false,
                half: false,
                quantised: false,
                fixed_shapes,
                answers: count as u64,
                text: 16,
                image: 80,
            };
            let expected = StepLaunches::new(kind).total(text) - in_place;
            assert!(
                count > 64 || expected == StepLaunches::new(DecodeStep { answers: 1, ..kind }).total(text) - in_place
            );
            let mut rows = rows(&model, count, fixed_shapes);
            // The first step finds where the images are, which later ones know.
            step(&model, &mut rows, false);
            for _ in 0..3 {
                let made = step(&model, &mut rows, false);
                assert_eq!((made.stores, made.to_host), (expected, 1), "{count} rows, fixed shapes {fixed_shapes}");
            }
        }
    }
}

/// Ids, cosines, sines, slots and the rows wanted; slots and a mask of the lookup of texts, or three tables each of texts
/// and images. None is for a layer or a row.
fn copies_to_the_device_depend_on_nothing() {
    for (fixed_shapes, read_pages, expected) in
        [(false, false, 7), (true, false, 7), (false, true, 11), (true, true, 11)]
    {
        let model = load(fixed_shapes, read_pages);
        for count in [1, 5, 32] {
            let mut rows = rows(&model, count, fixed_shapes);
            step(&model, &mut rows, false);
            let made = step(&model, &mut rows, false);
            assert_eq!((made.to_device, made.to_host), (expected, 1), "{count} rows, pages {read_pages}");
            // Temperatures go there too.
            let made = step(&model, &mut rows, true);
            assert_eq!((made.to_device, made.to_host), (expected + 1, 1), "{count} rows, pages {read_pages}");
        }
    }
}

fn picture(seed: u32) -> Part {
    let pixel = |x: u32, y: u32| Rgb([(x * 3 + seed) as u8, (y * 5) as u8, (x * y) as u8]);
    Part::Image(encode_image(&RgbImage::from_fn(60, 50, pixel).into()).unwrap())
}

/// Answers of the engine to rows with the given parameters.
fn report(sampling: impl Fn(u64) -> SamplingParams) -> EngineReport {
    let mut options = LocalOptions::new(ModelSource::Named(checkpoint().to_str().unwrap().to_owned()));
    (options.portable, options.dtype) = (true, DTypeChoice::F32);
    let backend = LocalBackend::load(options, |_| {}).unwrap();
    let (send, receive) = mpsc::channel();
    for row in 0..12 {
        let parts = vec![picture(row as u32), Part::Text("what is it?".into())];
        let message = Message { role: Role::User, content: Content::Parts(parts) };
        let send = send.clone();
        let done = move |result: Result<vgen_core::Response, _>| {
            send.send(result.unwrap().generations.into_iter().all(|generation| generation.is_ok())).unwrap();
        };
        backend.submit(Request::new(row, vec![message], sampling(row)), Box::new(done));
    }
    drop(send);
    assert!(receive.into_iter().all(|good| good));
    backend.stats().report()
}

fn only_tokens_leave_the_device() {
    let greedy =
        SamplingParams { max_new_tokens: Some(9), temperature: Some(0.0), ignore_eos: true, ..Default::default() };
    let all_greedy = report(|_| greedy.clone());
    // A step that only reads a part of a prompt chooses no token.
    assert!(all_greedy.copies_to_host <= all_greedy.steps && all_greedy.steps < 12 * 9, "{all_greedy:?}");
    let drawn = |temperature: f64, top_p: Option<f64>, top_k: Option<u32>| SamplingParams {
        temperature: Some(temperature),
        top_p,
        top_k,
        ..greedy.clone()
    };
    // Rows that draw with a limit leave their highest few there, and the others' tokens go with them.
    let limited = report(|row| match row % 3 {
        0 => drawn(0.6, Some(0.5), None),
        1 => drawn(0.7, Some(0.9), Some(40)),
        _ => greedy.clone(),
    });
    assert!(limited.copies_to_host <= limited.steps, "{limited:?}");
    // Of the one row that draws without a limit the logits come too, apart from the tokens of the others.
    let free = report(|row| if row == 3 { drawn(0.7, None, None) } else { greedy.clone() });
    assert!(free.copies_to_host > free.steps - 12 && free.copies_to_host <= free.steps + 9, "{free:?}");
    assert!(free.copies_to_device > 0);
}

#[test]
fn what_a_step_asks_of_a_device() {
    operations_do_not_depend_on_the_batch();
    copies_to_the_device_depend_on_nothing();
    only_tokens_leave_the_device();
}
