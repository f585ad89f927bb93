//! Rows that go wrong in the engine: each fails alone, with a reason, and its neighbours' answers stay what they are to
//! the last bit.

// What is wrong with the repository's own files is to stop the test at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use safetensors::SafeTensors;
use tempfile::TempDir;
use vgen_backends::local::{LocalBackend, LocalOptions, ModelSource};
use vgen_core::{
    Backend, Constraint, Content, Fault, FinishReason, ImageRef, Message, Part, Reply, Request, Response, Role,
    SamplingParams,
};
use vgen_task::encode_image;

/// A text that is one token of the fixture's tokenizer wherever it stands, and that token.
const POISON: (&str, usize) = ("~", 126);

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mllama/tiny-hublike")
}

/// A copy of the fixture whose embedding of [`POISON`] is NaN.
fn poisoned() -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut found = false;
    for entry in std::fs::read_dir(fixture()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let row = tensors.tensors().into_iter().find(|(name, _)| name.ends_with("embed_tokens.weight"));
            let row = row.map(|(_, tensor)| {
                let width = tensor.data().len() / tensor.shape()[0];
                let start = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize + POISON.1 * width;
                start..start + width
            });
            if let Some(row) = row {
                let nan = f32::NAN.to_le_bytes();
                bytes[row].chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&nan));
                found = true;
            }
        }
        std::fs::write(folder.path().join(path.file_name().unwrap()), bytes).unwrap();
    }
    assert!(found);
    folder
}

fn load(folder: &Path, portable: bool) -> LocalBackend {
    let mut options = LocalOptions::new(ModelSource::Named(folder.to_str().unwrap().to_owned()));
    (options.batch_size, options.portable) = (16, portable);
    LocalBackend::load(options, |_| {}).unwrap()
}

fn picture(seed: u32) -> Part {
    let pixel = |x: u32, y: u32| Rgb([(x * 7 + seed * 31) as u8, (y * 5 + seed) as u8, (x ^ y) as u8]);
    Part::Image(encode_image(&RgbImage::from_fn(70 + seed, 50, pixel).into()).unwrap())
}

fn ask(row: u64, image: Option<Part>, text: &str, new: u32) -> Request {
    let parts = image.into_iter().chain([Part::Text(text.to_owned())]).collect();
    let sampling = SamplingParams {
        max_new_tokens: Some(new),
        temperature: Some(if row.is_multiple_of(2) { 0.0 } else { 0.9 }),
        logprobs: true,
        ignore_eos: true,
        // A good row must not poison itself.
        logit_bias: [(POISON.1 as u32, -100.0)].into(),
        ..SamplingParams::default()
    };
    Request::new(row, vec![Message { role: Role::User, content: Content::Parts(parts) }], sampling)
}

type Outcome = Result<Response, Fault>;

fn run(backend: &LocalBackend, requests: &[Request]) -> BTreeMap<u64, Outcome> {
    let (send, receive) = mpsc::channel();
    for request in requests {
        let (send, row) = (send.clone(), request.row);
        backend.submit(request.clone(), Box::new(move |result| send.send((row, result)).unwrap()));
    }
    drop(send);
    receive.into_iter().collect()
}

/// Tokens and bits of their log-probabilities.
fn bits(outcome: &Outcome) -> Vec<(Vec<u32>, Vec<u32>)> {
    let one = |generation: &Result<vgen_core::Generation, Fault>| {
        let generation = generation.as_ref().unwrap();
        let logprobs = generation.logprobs.as_ref().unwrap().iter().map(|token| token.logprob.to_bits()).collect();
        (generation.token_ids.clone().unwrap(), logprobs)
    };
    outcome.as_ref().unwrap().generations.iter().map(one).collect()
}

/// The one fault of a row that failed, as a whole or in all its answers.
fn fault(outcome: &Outcome) -> Fault {
    match outcome {
        Err(fault) => fault.clone(),
        Ok(response) => response.generations[0].clone().unwrap_err(),
    }
}

fn neighbours() -> Vec<Request> {
    (0..10u32)
        .map(|n| {
            let image = (n % 3 > 0).then(|| picture(n % 4));
            let text = "what is shown here? ".repeat(n as usize % 5 + 1);
            Request { num_generations: 1 + n % 2, ..ask(u64::from(n), image, &text, 8) }
        })
        .collect()
}

#[test]
fn logits_that_are_no_numbers_fail_their_row_alone() {
    let folder = poisoned();
    for portable in [false, true] {
        let backend = load(folder.path(), portable);
        let good = neighbours();
        let alone: BTreeMap<_, _> = good
            .iter()
            .map(|request| (request.row, bits(&run(&backend, std::slice::from_ref(request))[&request.row])))
            .collect();
        let bad = [
            ask(100, None, &format!("tell me {POISON} now", POISON = POISON.0), 8),
            ask(101, Some(picture(1)), &format!("tell me {POISON} now", POISON = POISON.0), 8),
            Request { num_generations: 3, ..ask(102, None, POISON.0, 8) },
        ];
        // In between, so that they share steps, images and beginnings of prompts with the others.
        let mut mixed = good.clone();
        bad.iter().zip([1, 4, 6]).for_each(|(request, at)| mixed.insert(at, request.clone()));
        let outcomes = run(&backend, &mixed);
        for request in &bad {
            let fault = fault(&outcomes[&request.row]);
            assert_eq!(fault.code, "sample.nan", "{fault:?}");
            assert!(fault.message.starts_with(&format!("row {}: ", request.row)), "{fault:?}");
            let response = outcomes[&request.row].as_ref().unwrap();
            assert_eq!(response.generations.len(), request.num_generations as usize);
            assert!(response.generations.iter().all(Result::is_err));
        }
        for (row, alone) in &alone {
            assert_eq!(&bits(&outcomes[row]), alone, "row {row}, portable {portable}");
        }
        // What is kept between rows is not poisoned either.
        assert_eq!(bits(&run(&backend, &good[..1])[&0]), alone[&0]);
    }
}

#[test]
fn an_image_that_is_broken_fails_its_row_alone() {
    let backend = load(&fixture(), false);
    let good = neighbours();
    let alone = run(&load(&fixture(), false), &good);
    let missing = Part::Image(ImageRef::Path("no/such/image.png".into()));
    let broken = Part::Image(ImageRef::Bytes { bytes: b"\x89PNG\r\n\x1a\nno more"[..].into(), name: None });
    let mut mixed = good.clone();
    mixed.insert(2, ask(100, Some(missing), "what?", 8));
    mixed.insert(5, ask(101, Some(broken), "what?", 8));
    let outcomes = run(&backend, &mixed);
    assert_eq!(fault(&outcomes[&100]).code, "image.not_found");
    assert_eq!(fault(&outcomes[&101]).code, "image.decode");
    for (row, outcome) in &alone {
        assert_eq!(bits(outcome), bits(&outcomes[row]), "row {row}");
    }
}

#[test]
fn deadlines_and_cancelled_rows_leave_the_others_alone() {
    let backend = load(&fixture(), false);
    let good = neighbours();
    let alone = run(&load(&fixture(), false), &good);
    let mut mixed = good.clone();
    // One whose time is over before it begins, one in whose midst it is over, one that is given up in its midst.
    let late = Request { deadline: Some(Instant::now()), ..ask(100, None, "what?", 1500) };
    let slow = Request { deadline: Some(Instant::now() + Duration::from_millis(300)), ..ask(101, None, "what?", 1500) };
    let unwanted = ask(102, Some(picture(2)), "what?", 1500);
    let cancel = unwanted.cancel.clone();
    mixed.splice(0..0, [late, slow, unwanted]);
    let waiter = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(250));
        cancel.cancel();
    });
    let start = Instant::now();
    let outcomes = run(&backend, &mixed);
    waiter.join().unwrap();
    assert_eq!(fault(&outcomes[&100]).code, "row.deadline");
    for (row, reason, code) in
        [(101, FinishReason::Deadline, "row.deadline"), (102, FinishReason::Cancelled, "row.cancelled")]
    {
        // What it has by then is its answer; on a slow machine it may have nothing.
        match &outcomes[&row].as_ref().map(|response| response.generations[0].clone()) {
            Ok(Ok(generation)) => {
                assert_eq!(generation.finish_reason, Some(reason), "after {:?}", start.elapsed());
                assert!(generation.token_ids.as_ref().unwrap().len() < 1500);
            }
            Ok(Err(fault)) => assert_eq!(fault.code, code),
            Err(fault) => assert_eq!(fault.code, code),
        }
    }
    for (row, outcome) in &alone {
        assert_eq!(bits(outcome), bits(&outcomes[row]), "row {row}");
    }
}

/// A constrained answer parses, or its row says why not; here the ends that are not the form's own.
#[test]
fn a_constrained_answer_that_is_cut_says_so() {
    let backend = load(&fixture(), false);
    let object = r#"\{"a":1\}"#;
    let cut = |regex: &str, change: fn(&mut SamplingParams)| {
        let mut request = ask(0, None, "which?", 30);
        request.sampling.ignore_eos = false;
        request.sampling.constraint = Some(Constraint::Regex(regex.to_owned()));
        change(&mut request.sampling);
        let generation = backend.generate(request).unwrap().generations.swap_remove(0);
        generation.map(|generation| generation.text.unwrap()).map_err(|fault| fault.code.into_owned())
    };
    let whole = || Ok(r#"{"a":1}"#.to_owned());
    let code = |code: &str| Err(code.to_owned());
    assert_eq!(cut(object, |_| ()), whole());
    assert_eq!(cut(object, |p| p.stop = vec!["}".to_owned()]), code("constraint.cut"));
    assert_eq!(cut(object, |p| (p.stop, p.include_stop) = (vec!["}".to_owned()], true)), whole());
    assert_eq!(cut(object, |p| p.stop = vec!["a".to_owned()]), code("constraint.cut"));
    // An end token that is text.
    assert_eq!(cut(object, |p| p.stop_token_ids = vec![u32::from(b'}')]), code("constraint.cut"));
    assert_eq!(cut(object, |p| (p.stop_token_ids, p.include_stop) = (vec![u32::from(b'}')], true)), whole());
    // What is left has the form still.
    assert_eq!(
        cut("ab*!?", |p| (p.stop, p.logit_bias) = (vec!["b".to_owned()], [(98, 90.0)].into())),
        Ok("a".to_owned())
    );
    assert_eq!(cut(object, |p| p.max_new_tokens = Some(2)), code("constraint.incomplete"));
    assert_eq!(cut(object, |p| (p.echo, p.stop) = (true, vec!["}".to_owned()])), code("constraint.cut"));
}

/// Lets time pass with the first piece of an answer.
struct Slow(Instant, mpsc::Sender<Outcome>);

impl Reply for Slow {
    fn delta(&mut self, _: u32, _: &str) {
        std::thread::sleep(self.0.saturating_duration_since(Instant::now()));
    }

    fn done(self: Box<Self>, result: Outcome) {
        self.1.send(result).unwrap();
    }
}

#[test]
fn the_deadline_of_a_constrained_answer_is_no_matter_of_its_length() {
    let backend = load(&fixture(), false);
    let (send, receive) = mpsc::channel();
    let deadline = Instant::now() + Duration::from_millis(700);
    let mut request = Request { deadline: Some(deadline), ..ask(0, None, "which?", 200) };
    request.sampling.constraint = Some(Constraint::Regex("a{150}".to_owned()));
    request.sampling.ignore_eos = false;
    backend.submit(request, Box::new(Slow(deadline, send)));
    let fault = fault(&receive.recv().unwrap());
    assert_eq!(fault.code, "row.deadline", "{fault:?}");
    assert_eq!(fault.hint.as_deref(), Some("allow more time for a row"));
}

/// Everything that was submitted is answered when the backend goes.
#[test]
fn a_backend_that_goes_answers_first() {
    let backend = load(&fixture(), false);
    let (send, receive) = mpsc::channel();
    for request in neighbours() {
        let (send, row) = (send.clone(), request.row);
        backend.submit(request, Box::new(move |result| send.send((row, result)).unwrap()));
    }
    drop((backend, send));
    let outcomes: BTreeMap<u64, Outcome> = receive.into_iter().collect();
    assert_eq!(outcomes.len(), 10);
    assert!(outcomes.values().all(Result::is_ok));
}

/// A batch of rows that don't fit in what is allowed is answered in turns, and so are the answers to a row; one that never
/// fits fails with numbers.
#[test]
fn rows_wait_for_memory() {
    let mut options = LocalOptions::new(ModelSource::Named(fixture().to_str().unwrap().to_owned()));
    options.batch_size = 16;
    let plan = vgen_backends::local::inspect(&options).unwrap().plan;
    // Room for about two rows of the longest kind, beside kept and prepared images, which get an eighth and a sixteenth.
    let least = plan.weights + plan.workspace() + 3 * plan.max_tiles * plan.pixels_per_tile;
    options.memory = Some(least * 16 / 13 + plan.row(2048, 4, 1));
    let backend = LocalBackend::load(options, |_| {}).unwrap();
    let good = neighbours();
    let in_turns = Request { num_generations: 14, ..ask(101, None, "what?", 200) };
    let mut mixed = good.clone();
    mixed.insert(3, Request { num_generations: 14, ..ask(100, None, "what?", 1900) });
    mixed.insert(5, in_turns.clone());
    let alone = run(&load(&fixture(), false), &[&good[..], &[in_turns]].concat());
    let outcomes = run(&backend, &mixed);
    assert_eq!(fault(&outcomes[&100]).code, "row.memory");
    for (row, outcome) in &alone {
        assert_eq!(bits(outcome), bits(&outcomes[row]), "row {row}");
    }
}

#[test]
fn too_many_answers_are_refused() {
    let backend = load(&fixture(), false);
    let refused = backend.check(&SamplingParams::default(), 5000).unwrap_err();
    assert_eq!(refused.message, "num_generations is 5000, it can be 1 to 4096");
    let outcomes =
        run(&backend, &[0, 1, u32::MAX].map(|n| Request { num_generations: n, ..ask(u64::from(n), None, "what?", 4) }));
    assert_eq!(fault(&outcomes[&0]).code, "task.invalid_parameter");
    assert_eq!(fault(&outcomes[&u64::from(u32::MAX)]).code, "task.invalid_parameter");
    assert!(outcomes[&1].is_ok());
}

/// Also while an image comes from a server that says nothing.
#[test]
fn a_backend_that_is_given_up_goes_soon() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut options = LocalOptions::new(ModelSource::Named(fixture().to_str().unwrap().to_owned()));
    options.prepare.limits.allow_private_addresses = true;
    let backend = LocalBackend::load(options, |_| {}).unwrap();
    let url = format!("http://{}/image.png", listener.local_addr().unwrap());
    let (send, receive) = mpsc::channel();
    let requests: Vec<Request> =
        (0..4).map(|row| ask(row, Some(Part::Image(ImageRef::Url(url.as_str().into()))), "what?", 4)).collect();
    for request in &requests {
        let send = send.clone();
        backend.submit(request.clone(), Box::new(move |result| send.send(result).unwrap()));
    }
    // Until somebody asks for an image.
    let _connection = listener.accept().unwrap();
    let start = Instant::now();
    requests.iter().for_each(|request| request.cancel.cancel());
    drop((backend, send));
    assert!(start.elapsed() < Duration::from_secs(5), "after {:?}", start.elapsed());
    let codes: Vec<_> = receive.into_iter().map(|result: Outcome| fault(&result).code).collect();
    assert_eq!(codes, ["row.cancelled"; 4]);
}
