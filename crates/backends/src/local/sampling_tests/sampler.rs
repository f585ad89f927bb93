//! The sampler as a whole.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use vgen_core::{Fault, SamplingParams};

use super::super::{Candidates, SampleError, Sampler};
use super::resolved;

const VOCAB: usize = 200;

fn logits(seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..VOCAB).map(|_| (f64::from(rng.next_u32()) / f64::from(u32::MAX) * 8.0) as f32).collect()
}

fn sampled() -> SamplingParams {
    SamplingParams {
        temperature: Some(0.8),
        top_p: Some(0.9),
        top_k: Some(50),
        seed: Some(3),
        ..SamplingParams::default()
    }
}

/// `steps` tokens of a row.
fn tokens(params: &SamplingParams, row: u64, sample: u32, steps: u64, scratch: &mut Candidates) -> Vec<u32> {
    let mut sampler = Sampler::new(resolved(params, VOCAB), &[1, 2], row, sample);
    (0..steps).map(|step| sampler.sample(&mut logits(step), scratch).unwrap().token).collect()
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let params = SamplingParams { frequency_penalty: Some(0.5), ..sampled() };
    let alone: Vec<_> = (0..8).map(|row| tokens(&params, row, 0, 20, &mut Candidates::new())).collect();
    // In steps together, last row first, with one scratch space.
    let mut scratch = Candidates::new();
    let mut rows: Vec<_> =
        (0..8).map(|row| (Sampler::new(resolved(&params, VOCAB), &[1, 2], row, 0), vec![])).collect();
    for step in 0..20 {
        for (sampler, tokens) in rows.iter_mut().rev() {
            tokens.push(sampler.sample(&mut logits(step), &mut scratch).unwrap().token);
        }
    }
    assert_eq!(rows.into_iter().map(|(_, tokens)| tokens).collect::<Vec<_>>(), alone);
    assert_ne!(alone[0], alone[1]);
    assert_ne!(tokens(&params, 0, 1, 20, &mut scratch), alone[0]);
}

#[test]
fn draws_follow_the_probabilities() {
    let params = SamplingParams { temperature: Some(1.0), seed: Some(1), ..SamplingParams::default() };
    let params = resolved(&params, 4);
    // Probabilities 0.1, 0.2, 0.3, 0.4.
    let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
    let mut counts = [0u32; 4];
    let mut scratch = Candidates::new();
    for row in 0..20_000 {
        let sampled = Sampler::new(params.clone(), &[], row, 0).sample(&mut logits.clone(), &mut scratch).unwrap();
        counts[sampled.token as usize] += 1;
    }
    for (count, expected) in counts.into_iter().zip([2000.0, 4000.0, 6000.0, 8000.0]) {
        // Four standard deviations.
        assert!((f64::from(count) - expected).abs() < 4.0 * (20_000f64 * 0.25).sqrt(), "{counts:?}");
    }
}

#[test]
fn greedy_takes_the_lowest_of_equal_ids() {
    let params = SamplingParams { temperature: Some(0.0), ..SamplingParams::default() };
    let mut logits = vec![0.0; VOCAB];
    (logits[150], logits[30], logits[31]) = (2.0, 2.0, 1.0);
    let mut sampler = Sampler::new(resolved(&params, VOCAB), &[], 0, 0);
    assert_eq!(sampler.sample(&mut logits, &mut Candidates::new()).unwrap().token, 30);
    assert_eq!(sampler.steps(), 1);
}

#[test]
fn penalties_follow_the_answer() {
    let scratch = &mut Candidates::new();
    let mut choose = |params: SamplingParams, prompt: &[u32], steps: usize| -> Vec<u32> {
        let mut sampler = Sampler::new(resolved(&params, VOCAB), prompt, 0, 0);
        let mut logits = vec![0.0; VOCAB];
        (logits[7], logits[8], logits[9]) = (3.0, 2.5, 2.0);
        (0..steps).map(|_| sampler.sample(&mut logits.clone(), scratch).unwrap().token).collect()
    };
    let none = SamplingParams::default();
    assert_eq!(choose(none.clone(), &[7], 2), [7, 7]);
    assert_eq!(choose(SamplingParams { repetition_penalty: Some(2.0), ..none.clone() }, &[7, 500], 2), [8, 9]);
    assert_eq!(choose(SamplingParams { presence_penalty: Some(0.7), ..none.clone() }, &[7], 3), [7, 8, 7]);
    assert_eq!(choose(SamplingParams { frequency_penalty: Some(0.4), ..none.clone() }, &[7], 4), [7, 7, 8, 7]);
    assert_eq!(choose(SamplingParams { logit_bias: [(9, 1.5)].into(), ..none.clone() }, &[], 1), [9]);
    // Token 7 ends the answer, and may after three others.
    let least = SamplingParams { min_new_tokens: Some(3), stop_token_ids: vec![7], ..none.clone() };
    assert_eq!(choose(least, &[], 4), [8, 8, 8, 7]);
}

/// By hand, where the other order of two neighbours would give something else.
#[test]
fn steps_come_in_their_order() {
    let logits = [0.50f32, 0.20, 0.12, 0.09, 0.09].map(f32::ln);
    let mut scratch = Candidates::new();
    let mut left = |params: SamplingParams| -> Vec<u32> {
        let mut sampler = Sampler::new(resolved(&params, 5), &[], 0, 0);
        sampler.sample(&mut logits.clone(), &mut scratch).unwrap();
        scratch.probabilities().map(|(id, _)| id).collect()
    };
    let warm = SamplingParams { temperature: Some(1.0), ..SamplingParams::default() };
    let top_p = SamplingParams { top_p: Some(0.8), ..warm.clone() };
    assert_eq!(left(top_p.clone()), [0, 1, 2]);
    assert_eq!(left(SamplingParams { temperature: Some(2.0), ..top_p.clone() }), [0, 1, 2, 4]);
    assert_eq!(left(SamplingParams { top_k: Some(3), ..top_p.clone() }), [0, 1]);
    assert_eq!(left(SamplingParams { min_p: Some(0.2), ..top_p }), [0, 1, 2]);
    assert_eq!(left(SamplingParams { min_p: Some(0.2), typical_p: Some(0.75), ..warm }), [0, 1]);

    // The logit 1 of a token in prompt and answer.
    let processed = |params: SamplingParams| {
        let mut sampler = Sampler::new(resolved(&params, 5), &[3], 0, 0);
        sampler.push(3);
        let mut logits = [1.0; 5];
        sampler.sample(&mut logits, &mut Candidates::new()).unwrap();
        logits[3]
    };
    let repeated = SamplingParams { repetition_penalty: Some(2.0), ..SamplingParams::default() };
    assert_eq!(processed(SamplingParams { logit_bias: [(3, -2.0)].into(), ..repeated.clone() }), -2.0);
    assert_eq!(processed(SamplingParams { presence_penalty: Some(2.0), ..repeated }), -1.5);
}

#[test]
fn bad_words_are_not_generated() {
    let params = SamplingParams { bad_words: vec!["ab".to_owned(), "x".to_owned()], ..SamplingParams::default() };
    let mut sampler = Sampler::new(resolved(&params, VOCAB), &[], 0, 0);
    let mut next = |high: &[(char, f32)]| {
        let mut logits = vec![0.0; VOCAB];
        high.iter().for_each(|&(c, logit)| logits[c as usize] = logit);
        char::from(sampler.sample(&mut logits, &mut Candidates::new()).unwrap().token as u8)
    };
    assert_eq!(next(&[('b', 3.0), ('a', 2.0)]), 'b');
    assert_eq!(next(&[('x', 3.0), ('a', 2.0)]), 'a');
    assert_eq!(next(&[('b', 3.0), ('c', 2.0)]), 'c');
}

#[test]
fn log_probabilities_are_the_models_own() {
    let params = SamplingParams {
        logprobs: true,
        top_logprobs: 3,
        logit_bias: [(2, 9.0)].into(),
        temperature: Some(0.3),
        ..SamplingParams::default()
    };
    let mut logits = [0.1f32, 0.2, 0.3, 0.2, 0.2].map(|p| p.ln() + 5.0).to_vec();
    let sampled = Sampler::new(resolved(&params, 5), &[], 0, 0).sample(&mut logits, &mut Candidates::new()).unwrap();
    assert_eq!(sampled.token, 2);
    assert!((sampled.logprob - 0.3f32.ln()).abs() < 1e-6, "{}", sampled.logprob);
    assert_eq!(sampled.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [2, 1, 3]);
    assert!((sampled.top[1].1 - 0.2f32.ln()).abs() < 1e-6, "{:?}", sampled.top);
}

#[test]
fn any_number_of_log_probabilities_comes_in_order() {
    const MANY: usize = 20_000;
    // Ascending, the worst for who keeps the best so far; many are equal.
    let logits: Vec<f32> = (0..MANY).map(|id| (id / 3) as f32 * 1e-3).collect();
    let mut expected: Vec<u32> = (0..MANY as u32).collect();
    expected.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    for count in [1, 7, 200, MANY] {
        let params = SamplingParams { logprobs: true, top_logprobs: count as u32, ..SamplingParams::default() };
        let sampled = Sampler::new(resolved(&params, MANY), &[], 0, 0)
            .sample(&mut logits.clone(), &mut Candidates::new())
            .unwrap();
        let ids: Vec<u32> = sampled.top.iter().map(|&(id, _)| id).collect();
        assert!(ids == expected[..count], "{count}: {:?}", &ids[..count.min(10)]);
    }
}

#[test]
fn broken_logits_fail_their_row_alone() {
    for params in [sampled(), SamplingParams::default()] {
        let mut sampler = Sampler::new(resolved(&params, VOCAB), &[], 0, 0);
        let mut scratch = Candidates::new();
        for value in [f32::NAN, f32::INFINITY] {
            let mut logits = logits(1);
            logits[77] = value;
            let error = sampler.sample(&mut logits, &mut scratch).unwrap_err();
            assert!(matches!(error, SampleError::NotFinite { token: 77, step: 0, .. }), "{error}");
            assert_eq!(Fault::from(error).code, "sample.nan");
        }
        let error = sampler.sample(&mut vec![f32::NEG_INFINITY; VOCAB], &mut scratch).unwrap_err();
        assert_eq!(Fault::from(error).code, "sample.no_token");
        assert!(matches!(sampler.sample(&mut [0.0; 3], &mut scratch), Err(SampleError::Length { given: 3, .. })));
        assert!(sampler.sample(&mut logits(1), &mut scratch).is_ok());
    }
}

#[test]
fn a_tiny_temperature_is_greedy() {
    let params = SamplingParams { temperature: Some(1e-45), ..SamplingParams::default() };
    let mut logits = logits(4);
    logits[120] = 9.0;
    let mut sampler = Sampler::new(resolved(&params, VOCAB), &[], 0, 0);
    assert_eq!(sampler.sample(&mut logits, &mut Candidates::new()).unwrap().token, 120);
}

/// Reports what a step costs with a real vocabulary.
#[test]
#[ignore = "needs an optimised build; reports only"]
#[allow(clippy::print_stderr, reason = "a report")]
fn report_time_per_step() {
    let vocab_size = 128_256;
    let base = SamplingParams { temperature: Some(0.6), ..SamplingParams::default() };
    let ways = [
        ("greedy", SamplingParams::default()),
        ("greedy, 5 logprobs", SamplingParams { logprobs: true, top_logprobs: 5, ..SamplingParams::default() }),
        ("temperature", base.clone()),
        ("top_p 0.9", SamplingParams { top_p: Some(0.9), ..base.clone() }),
        ("top_k 50, top_p 0.9", SamplingParams { top_k: Some(50), top_p: Some(0.9), ..base.clone() }),
        ("min_p 0.05", SamplingParams { min_p: Some(0.05), ..base.clone() }),
        ("typical_p 0.9", SamplingParams { typical_p: Some(0.9), ..base.clone() }),
        (
            "top_p 0.9, penalties",
            SamplingParams { top_p: Some(0.9), repetition_penalty: Some(1.1), frequency_penalty: Some(0.1), ..base },
        ),
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut normal = || (0..12).map(|_| f64::from(rng.next_u32()) / f64::from(u32::MAX)).sum::<f64>() - 6.0;
    let prompt: Vec<u32> = (0..2000).collect();
    for (shape, scale, peak) in [("peaked", 2.5, 18.0), ("flat", 0.01, 0.0)] {
        let mut logits: Vec<f32> = (0..vocab_size).map(|_| (normal() * scale) as f32).collect();
        logits[5000] += peak;
        let mut work = logits.clone();
        for (name, params) in &ways {
            let mut sampler = Sampler::new(resolved(params, vocab_size), &prompt, 0, 0);
            let mut scratch = Candidates::new();
            let mut times: Vec<_> = (0..60)
                .map(|_| {
                    work.copy_from_slice(&logits);
                    let start = std::time::Instant::now();
                    sampler.sample(&mut work, &mut scratch).unwrap();
                    start.elapsed()
                })
                .collect();
            times.sort();
            eprintln!("{shape}, {name}: median {:?}, 90th percentile {:?}", times[30], times[54]);
        }
    }
}
