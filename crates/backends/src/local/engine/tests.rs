//! Steps that fail: what reaches the engine from outside is checked before, so these rows are made by hand.
#![allow(clippy::unwrap_used)] // what is wrong with the repository's own files stops the test

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use vgen_core::{CancelToken, PixelTiles, Reply, Response, SamplingParams};
use vgen_mllama::{Checkpoint, LoadOptions};
use vgen_task::prepare::EncodedPrompt;

use super::super::prepared::PreparedImages;
use super::super::queue::{JobQueue, Producer, Taken};
use super::super::row::RowImage;
use super::super::{GenerationDefaults, ModelSource, ResolvedSampling, inspect};
use super::*;

/// A token that the fixture's network doesn't know.
const UNKNOWN: u32 = 5000;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/mllama/tiny-hublike")
}

/// An engine for batches of 16, and what it needs to be fed.
struct Bench {
    engine: Engine,
    producer: Producer,
    images: Arc<PreparedImages>,
    tokenizer: tokenizers::Tokenizer,
    answered: (mpsc::Sender<Answered>, mpsc::Receiver<Answered>),
}

type Answered = (u64, Result<Response, Fault>);

/// Tokens of each row's answers, or its fault's code.
type Answers = BTreeMap<u64, Result<Vec<Vec<u32>>, String>>;

/// Sends what it gets; text of an answer makes it fail if it is to.
struct Sending {
    row: u64,
    panics: bool,
    send: mpsc::Sender<Answered>,
}

impl Reply for Sending {
    fn delta(&mut self, _: u32, _: &str) {
        assert!(!self.panics, "not this text");
    }

    fn done(self: Box<Self>, result: Result<Response, Fault>) {
        self.send.send((self.row, result)).unwrap();
    }
}

impl Bench {
    fn new(portable: bool) -> Self {
        let mut options = LocalOptions::new(ModelSource::Named(fixture().to_str().unwrap().to_owned()));
        (options.batch_size, options.portable) = (16, portable);
        let plan = inspect(&options).unwrap().plan;
        let load = LoadOptions { portable, ..LoadOptions::default() };
        let model = Model::load(&Checkpoint::folder(fixture()), &load, &|_, _| {}).unwrap();
        let tokenizer = tokenizers::Tokenizer::from_file(fixture().join("tokenizer.json")).unwrap();
        let queue = JobQueue::new(64);
        let (jobs, producer) = (queue.consumer(0), queue.producer());
        let vocabulary = Arc::new(Vocabulary::new(&tokenizer).unwrap());
        let engine = Engine::new(model, vocabulary, jobs, &options, plan, Arc::default(), Arc::default());
        Self { engine, producer, images: PreparedImages::new(1 << 30), tokenizer, answered: mpsc::channel() }
    }

    /// Six new tokens, drawn.
    fn job(&self, row: u64, num_generations: u32, ids: &[u32]) -> Job {
        let sampling = SamplingParams {
            max_new_tokens: Some(6),
            temperature: Some(0.8),
            ignore_eos: true,
            ..SamplingParams::default()
        };
        let vocab_size = self.engine.model.config().text.vocab_size;
        let none = GenerationDefaults::default();
        Job {
            row,
            num_generations,
            prompt: EncodedPrompt { ids: ids.to_vec(), text: String::new() },
            images: vec![],
            visible: vec![0..0; ids.len()],
            sampling: Arc::new(ResolvedSampling::resolve(&sampling, &none, &[2], vocab_size, &self.tokenizer).unwrap()),
            constraint: None,
            deadline: None,
            cancel: CancelToken::default(),
            submitted: Instant::now(),
            prepare: 0.0,
            overtaken: 0,
            reply: Box::new(Sending { row, panics: false, send: self.answered.0.clone() }),
        }
    }

    /// A row with an image of one tile before its prompt.
    fn job_with_image(&self, row: u64, number: u8) -> Job {
        let size = self.engine.model.config().vision.as_ref().unwrap().image_size;
        let values = (0..3 * size * size).map(|i| ((i * 7 + number as usize * 13) % 255) as f32 / 255.0 - 0.5);
        let tiles = PixelTiles {
            tile_size: size,
            tiles_high: 1,
            tiles_wide: 1,
            aspect_ratio_id: 1,
            values: values.collect(),
            digest: [number; 32],
        };
        let images = self.images.keep(vec![Arc::new(tiles)]);
        let ids = [5, 6, 7, 8];
        Job {
            images: images.into_iter().map(RowImage::from).collect(),
            visible: vec![0..1; ids.len()],
            ..self.job(row, 1, &ids)
        }
    }

    /// Answers of an engine that has all rows at once.
    fn run(self, jobs: Vec<Job>) -> Answers {
        jobs.into_iter().for_each(|job| self.producer.push(job));
        drop(self.producer);
        self.engine.run();
        drop(self.answered.0);
        let answers = |response: Response| {
            let tokens = |generation: vgen_core::Generation| generation.token_ids.unwrap_or_default();
            response.generations.into_iter().map(|generation| generation.map(tokens)).collect::<Result<_, _>>()
        };
        let answered = self.answered.1.into_iter();
        answered.map(|(row, result)| (row, result.and_then(answers).map_err(|f| f.code.into_owned()))).collect()
    }
}

fn run(rows: &[(u64, u32, &[u32])], portable: bool) -> Answers {
    let bench = Bench::new(portable);
    let jobs = rows.iter().map(|&(row, num_generations, ids)| bench.job(row, num_generations, ids)).collect();
    bench.run(jobs)
}

#[test]
fn a_step_that_fails_is_repeated_row_by_row() {
    let long: Vec<u32> = (3..200).collect();
    let good: [(u64, u32, &[u32]); 4] = [(0, 1, &[5, 6, 7]), (1, 2, &long), (2, 1, &[9; 40]), (3, 3, &[100])];
    let mut with_bad = good.to_vec();
    with_bad.insert(1, (100, 1, &[5, UNKNOWN, 7]));
    with_bad.insert(4, (101, 2, &[UNKNOWN]));
    for portable in [false, true] {
        let mut want = run(&good, portable);
        assert!(want.iter().all(|(&row, found)| found.as_ref().unwrap().len() == good[row as usize].1 as usize));
        assert!(want.values().flat_map(|found| found.as_ref().unwrap()).all(|tokens| tokens.len() == 6));
        for row in [100, 101] {
            want.insert(row, Err("model.sequence".to_owned()));
        }
        assert_eq!(run(&with_bad, portable), want, "portable {portable}");
    }
}

#[test]
fn a_panic_of_the_network_is_a_fault_of_its_row() {
    let fault = guarded::<()>(|| panic!("shapes {} and {}", 3, 4)).unwrap_err();
    assert_eq!((&*fault.code, &*fault.message), ("engine.panic", "the network failed: shapes 3 and 4"));
    assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
}

/// Keys and values are written by then, of the prompts and of the answers.
#[test]
fn what_fails_after_the_text_layers_leaves_no_token_twice() {
    let fails: Choose = |model, logits, highest| match highest.len() {
        0 | 1 => next_tokens(model, logits, highest),
        _ => Err(vgen_mllama::Error::Sequence("too many at once".to_owned())),
    };
    let panics: Choose = |model, logits, highest| {
        assert!(highest.len() < 2, "too many at once");
        next_tokens(model, logits, highest)
    };
    let long: Vec<u32> = (0..900).map(|n| 3 + n % 400).collect();
    let rows: [(u64, u32, &[u32]); 4] = [(0, 1, &[5, 6, 7]), (1, 1, &long), (2, 1, &[9; 40]), (3, 1, &[100])];
    for portable in [false, true] {
        let want = run(&rows, portable);
        assert!(want.values().all(Result::is_ok), "{want:?}");
        for choose in [fails, panics] {
            let mut bench = Bench::new(portable);
            bench.engine.choose = choose;
            let jobs = rows.iter().map(|&(row, count, ids)| bench.job(row, count, ids)).collect();
            assert_eq!(bench.run(jobs), want, "portable {portable}");
        }
    }
}

#[test]
fn a_network_call_that_fails_at_its_end_leaves_its_sequences_as_they_were() {
    for portable in [false, true] {
        let model = Bench::new(portable).engine.model;
        let mut kv = model.self_kv(8).unwrap();
        let mut call = |wanted: &[u32]| {
            let sequence = Sequence { kv: &mut kv, images: &[], visible: &[0..0, 0..0, 0..0] };
            let logits = model.forward(&[5, 6, 7], &mut [sequence], wanted);
            (logits.map(|logits| logits.to_vec2::<f32>().unwrap()), kv.len())
        };
        let (failed, len) = call(&[1000]);
        assert!(failed.is_err());
        assert_eq!(len, 0);
        let (logits, len) = call(&[2]);
        assert_eq!((logits.unwrap().len(), len), (1, 3));
    }
}

/// A prompt is read once for all its answers, also if these are more than fit in a batch.
#[test]
fn more_answers_than_a_batch_are_made_in_turns() {
    let prompt: Vec<u32> = (3..60).collect();
    for portable in [false, true] {
        let want = run(&[(7, 9, &prompt), (8, 1, &[5, 6])], portable);
        let different: std::collections::BTreeSet<_> = want[&7].as_ref().unwrap().iter().collect();
        assert!(different.len() > 4, "{want:?}");
        for batch_size in [1, 2, 4] {
            let mut bench = Bench::new(portable);
            bench.engine.batch_size = batch_size;
            let stats = Arc::clone(&bench.engine.stats);
            let jobs = vec![bench.job(7, 9, &prompt), bench.job(8, 1, &[5, 6])];
            assert_eq!(bench.run(jobs), want, "batches of {batch_size}, portable {portable}");
            assert_eq!(stats.report().prompt_tokens, prompt.len() as u64 + 2);
        }
    }
}

#[test]
fn a_panic_while_a_token_is_chosen_fails_its_row() {
    let rows: [(u64, u32, &[u32]); 3] = [(0, 1, &[5, 6, 7]), (1, 2, &[9; 40]), (2, 1, &[100])];
    let mut want = run(&rows, false);
    want.insert(1, Err("engine.panic".to_owned()));
    let bench = Bench::new(false);
    let mut jobs: Vec<_> = rows.iter().map(|&(row, count, ids)| bench.job(row, count, ids)).collect();
    jobs[1].reply = Box::new(Sending { row: 1, panics: true, send: bench.answered.0.clone() });
    assert_eq!(bench.run(jobs), want);
}

/// The beginning that prompts have in common is read for the first.
#[test]
fn a_common_beginning_is_read_once() {
    let prompt = |last: u32| (3..50).chain([last]).collect::<Vec<u32>>();
    let alone = |row, last| run(&[(row, 1, &prompt(last))], false);
    let mut bench = Bench::new(false);
    bench.engine.batch_size = 1;
    let stats = Arc::clone(&bench.engine.stats);
    let jobs = (0..4).map(|row| bench.job(row, 1, &prompt(100 + row as u32))).collect();
    let answers = bench.run(jobs);
    for row in 0..4 {
        assert_eq!(answers[&row], alone(row, 100 + row as u32)[&row]);
    }
    assert_eq!((stats.report().prompt_tokens, stats.report().shared_prompt_tokens), (48 + 3, 3 * 47));
}

#[test]
fn an_image_of_many_rows_is_encoded_and_counted_once_and_its_pixels_go() {
    let mut bench = Bench::new(false);
    let jobs: Vec<Job> = (0..6).map(|row| bench.job_with_image(row, 1 + (row / 4) as u8)).collect();
    let text = bench.engine.reservation(&jobs[0]).text_bytes;
    let pixels = jobs[0].images[0].prepared.clone().unwrap();
    assert_eq!(Arc::strong_count(&pixels), 5);
    bench.engine.waiting.extend(jobs);
    bench.engine.admit();
    assert_eq!(bench.engine.joining.len(), 6);
    assert_eq!(bench.engine.reserved_bytes(), 6 * text + 2 * bench.engine.plan.image(1));
    bench.engine.join();
    assert_eq!((bench.engine.joining.len(), bench.engine.active.len()), (0, 6));
    assert_eq!(Arc::strong_count(&pixels), 1);
    assert_eq!(bench.engine.reserved_bytes(), 6 * text + 2 * bench.engine.plan.image(1));
    let report = bench.engine.stats.report();
    assert_eq!((report.images_encoded, report.images_reused), (2, 4));
}

/// A row that is given up leaves before its image is encoded, and answers in the making wait for few images at a time.
#[test]
fn rows_are_given_up_between_images() {
    let mut bench = Bench::new(false);
    bench.engine.waiting.push_back(bench.job(0, 1, &[5]));
    bench.engine.admit();
    bench.engine.join();
    let jobs: Vec<Job> = (1..4).map(|row| bench.job_with_image(row, row as u8)).collect();
    bench.engine.waiting.extend(jobs);
    bench.engine.admit();
    bench.engine.joining[1].job.cancel.cancel();
    bench.engine.drop_given_up();
    let (row, result) = bench.answered.1.try_recv().unwrap();
    assert_eq!((row, &*result.unwrap_err().code), (2, "row.cancelled"));
    bench.engine.join();
    assert_eq!(bench.engine.stats.report().images_encoded, 2);
}

/// Rows with a known image go first, but not for ever.
#[test]
fn the_oldest_row_is_not_overtaken_for_ever() {
    let mut bench = Bench::new(false);
    bench.engine.batch_size = 2;
    bench.engine.waiting.push_back(bench.job_with_image(0, 1));
    bench.engine.admit();
    bench.engine.join();
    let mut joined = Vec::new();
    bench.engine.waiting.push_back(bench.job(1, 1, &[5]));
    let jobs: Vec<Job> = (2..7).map(|row| bench.job_with_image(row, 1)).collect();
    bench.engine.waiting.extend(jobs);
    while !bench.engine.waiting.is_empty() {
        bench.engine.active.clear();
        bench.engine.admit();
        joined.extend(bench.engine.joining.drain(..).map(|row| row.job.row));
    }
    assert_eq!(joined, [2, 3, 1, 4, 5, 6]);
}

/// Rows about one image stay with one engine, unless another has nothing to do and many wait.
#[test]
fn rows_of_an_image_stay_together() {
    let bench = Bench::new(false);
    let queue = JobQueue::new(6);
    let (first, second, producer) = (queue.consumer(0), queue.consumer(1), queue.producer());
    for (row, image) in [(0, 1), (1, 2), (2, 1), (3, 2), (4, 1)] {
        producer.push(bench.job_with_image(row, image));
    }
    let took = |taken| match taken {
        Taken::Job(job) => Some(job.row),
        Taken::Nothing | Taken::Closed => None,
    };
    assert_eq!(took(first.take(false)), Some(0));
    assert_eq!([false, true, false].map(|idle| took(second.take(idle))), [Some(1), Some(3), None]);
    assert_eq!([false, false, false].map(|idle| took(first.take(idle))), [Some(2), Some(4), None]);
    for row in 5..9 {
        producer.push(bench.job_with_image(row, 1));
    }
    assert_eq!([false, true, true].map(|idle| took(second.take(idle))), [None, Some(5), Some(6)]);
    drop(producer);
    assert_eq!([true, true, true].map(|idle| took(first.take(idle))), [None, None, None]);
}

/// What is used stays; of the rest the longest unused goes first.
#[test]
fn kept_images_stay_within_their_bytes() {
    let bench = Bench::new(false);
    let encode = |number: u8| {
        let job = bench.job_with_image(0, number);
        bench.engine.model.encode(&[job.images[0].prepared.as_ref().unwrap().tiles()]).unwrap().remove(0)
    };
    let bytes = encode(1).bytes();
    let mut cache = ImageCache::new(2 * bytes + bytes / 2);
    let used = cache.insert([1; 32], encode(1));
    for number in 2..5 {
        cache.insert([number; 32], encode(number));
    }
    assert!(cache.get(&[2; 32]).is_some());
    cache.trim();
    assert_eq!([1, 2, 3, 4].map(|number| cache.contains(&[number; 32])), [true, true, false, false]);
    drop(used);
    cache.insert([5; 32], encode(5));
    cache.trim();
    assert_eq!([1, 2, 5].map(|number| cache.contains(&[number; 32])), [false, true, true]);
}
