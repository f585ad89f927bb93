//! Steps that fail: what reaches the engine from outside is checked before, so these rows are made by hand.
#![allow(clippy::unwrap_used)] // what is wrong with the repository's own files stops the test

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;

use vgen_core::{CancelToken, Response, SamplingParams};
use vgen_mllama::{Checkpoint, LoadOptions};
use vgen_task::prepare::Prepared;

use super::super::queue::JobQueue;
use super::super::{GenerationDefaults, ModelSource, ResolvedSampling, inspect};
use super::*;

/// A token that the fixture's network doesn't know.
const UNKNOWN: u32 = 5000;

/// Tokens of each row's answers, or its fault's code, from an engine that has all rows at once.
fn run(rows: &[(u64, u32, &[u32])], portable: bool) -> BTreeMap<u64, Result<Vec<Vec<u32>>, String>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/mllama/tiny-hublike");
    let mut options = LocalOptions::new(ModelSource::Named(folder.to_str().unwrap().to_owned()));
    (options.batch_size, options.portable) = (16, portable);
    let plan = inspect(&options).unwrap().plan;
    let load = LoadOptions { portable, ..LoadOptions::default() };
    let model = Model::load(&Checkpoint::folder(&folder), &load, &|_, _| {}).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let sampling = SamplingParams { max_new_tokens: Some(6), ignore_eos: true, ..SamplingParams::default() };
    let vocab_size = model.config().text.vocab_size;
    let sampling =
        ResolvedSampling::resolve(&sampling, &GenerationDefaults::default(), &[2], vocab_size, &tokenizer).unwrap();
    let sampling = Arc::new(sampling);

    let queue = JobQueue::new(rows.len());
    let (jobs, producer) = (queue.consumer(0), queue.producer());
    let (send, receive) = mpsc::channel();
    for &(row, num_generations, ids) in rows {
        let send = send.clone();
        producer.push(Job {
            row,
            num_generations,
            prompt: Prepared { ids: ids.to_vec(), images: vec![], image_positions: vec![], text: String::new() },
            visible: vec![0..0; ids.len()],
            sampling: Arc::clone(&sampling),
            constraint: None,
            deadline: None,
            cancel: CancelToken::default(),
            submitted: Instant::now(),
            prepare: 0.0,
            reply: Box::new(move |result: Result<Response, Fault>| send.send((row, result)).unwrap()),
        });
    }
    drop((producer, send));
    let vocabulary = Arc::new(Vocabulary::new(&tokenizer).unwrap());
    Engine::new(model, vocabulary, jobs, &options, plan, Arc::default(), Arc::default()).run();
    let answers = |response: Response| {
        let tokens = |generation: vgen_core::Generation| generation.token_ids.unwrap_or_default();
        response.generations.into_iter().map(|generation| generation.map(tokens)).collect::<Result<_, _>>()
    };
    receive.into_iter().map(|(row, result)| (row, result.and_then(answers).map_err(|f| f.code.into_owned()))).collect()
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
