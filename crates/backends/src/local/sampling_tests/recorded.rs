//! Every processor and warper against what transformers does (tests/peers/record_processors.py).

use base64::Engine;
use serde::Deserialize;
use serde_json::Value;
use vgen_core::SamplingParams;

use super::super::processors::{self, History};
use super::super::warpers::{self, Candidates};
use super::super::{GenerationDefaults, ResolvedSampling, Sampler};
use super::byte_level;

#[derive(Deserialize)]
struct Case {
    form: String,
    logits: String,
    prompt: Vec<u32>,
    answer: Vec<u32>,
    ends: Vec<u32>,
    params: Value,
    stages: Vec<Stage>,
}

#[derive(Deserialize)]
struct Stage {
    name: String,
    /// Bit mask in hexadecimal, token 0 its lowest bit.
    kept: String,
    /// Of kept tokens only.
    probs: String,
}

fn floats(text: &str) -> Vec<f32> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect()
}

impl Stage {
    /// Kept tokens and their probabilities.
    fn expected(&self) -> Vec<(u32, f32)> {
        let digits = self.kept.chars().rev().flat_map(|c| {
            let digit = c.to_digit(16).unwrap();
            (0..4).map(move |bit| digit >> bit & 1 == 1)
        });
        let ids = digits.enumerate().filter_map(|(id, keep)| keep.then_some(id as u32));
        ids.zip(floats(&self.probs)).collect()
    }
}

/// Softmax of logits, forbidden tokens left out.
fn softmax(logits: &[f32]) -> Vec<(u32, f32)> {
    let highest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let exp = |logit: f32| f64::from(logit - highest).exp();
    let total: f64 = logits.iter().map(|&logit| exp(logit)).sum();
    let kept = logits.iter().enumerate().filter(|(_, logit)| **logit > f32::NEG_INFINITY);
    kept.map(|(id, &logit)| (id as u32, (exp(logit) / total) as f32)).collect()
}

/// Runs the case's stages; calls `compare` with the tokens left after each.
fn run(case: &Case, mut compare: impl FnMut(&Stage, Vec<(u32, f32)>)) {
    let mut logits = floats(&case.logits);
    let mut history = History::new(&case.prompt);
    case.answer.iter().for_each(|&id| history.push(id));
    let number = |name: &str| case.params[name].as_f64().unwrap_or(0.0);
    let mut candidates = Candidates::new();
    // Warpers after the temperature work on the candidates and no longer on the logits.
    let mut started = false;
    for stage in &case.stages {
        if !started && ["top_p", "min_p", "typical_p"].contains(&stage.name.as_str()) {
            candidates.start(&logits, 0);
            started = true;
        }
        match stage.name.as_str() {
            "logit_bias" => {
                let bias = case.params["logit_bias"].as_object().unwrap().iter();
                let bias: Vec<_> = bias.map(|(id, b)| (id.parse().unwrap(), b.as_f64().unwrap() as f32)).collect();
                processors::logit_bias(&mut logits, &bias);
            }
            "repetition_penalty" => {
                processors::repetition_penalty(&mut logits, &history, number("repetition_penalty") as f32);
            }
            "bad_words" => {
                let words: Vec<Vec<u32>> = serde_json::from_value(case.params["bad_words"].clone()).unwrap();
                processors::bad_words(&mut logits, &history, &words);
            }
            "min_new_tokens" => {
                if history.generated() < number("min_new_tokens") as usize {
                    processors::forbid(&mut logits, &case.ends);
                }
            }
            "frequency_and_presence" => {
                let (frequency, presence) = (number("frequency_penalty") as f32, number("presence_penalty") as f32);
                processors::frequency_and_presence(&mut logits, &history, frequency, presence);
            }
            "temperature" => warpers::temperature(&mut logits, number("temperature") as f32),
            "top_k" => {
                candidates.start(&logits, number("top_k") as usize);
                started = true;
            }
            "top_p" => candidates.top_p(number("top_p")),
            "min_p" => candidates.min_p(number("min_p") as f32),
            "typical_p" => candidates.typical_p(number("typical_p") as f32),
            other => panic!("unknown stage {other}"),
        }
        let left = if started { candidates.probabilities().collect() } else { softmax(&logits) };
        compare(stage, left);
    }
}

fn cases() -> Vec<Case> {
    let text = include_str!("../../../../../tests/fixtures/sampling/processors.jsonl");
    let cases: Vec<Case> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(cases.len(), 200);
    cases
}

/// Compares the tokens left with those recorded; returns the largest difference of probabilities.
fn compare(case: &Case, stage: &Stage, left: &[(u32, f32)]) -> f32 {
    let place = format!("({}), {}, {}", case.form, stage.name, case.params);
    let expected = stage.expected();
    let ids = |tokens: &[(u32, f32)]| tokens.iter().map(|&(id, _)| id).collect::<Vec<_>>();
    assert_eq!(ids(left), ids(&expected), "kept tokens at {place}");
    let mut worst = 0f32;
    for (&(id, ours), &(_, theirs)) in left.iter().zip(&expected) {
        worst = worst.max((ours - theirs).abs());
        assert!((ours - theirs).abs() <= 2e-6, "token {id} has {ours}, not {theirs}, at {place}");
    }
    worst
}

#[test]
fn probabilities_are_those_of_transformers() {
    let mut worst = 0f32;
    for case in cases() {
        run(&case, |stage, left| worst = worst.max(compare(&case, stage, &left)));
    }
    // Far below the limit, so that the limit says something.
    assert!(worst < 1e-6, "largest difference is {worst}");
}

/// The whole way, from parameters to what a token is drawn from: the steps and their order are the sampler's own.
#[test]
fn the_sampler_draws_from_the_probabilities_of_transformers() {
    let tokenizer = byte_level();
    let mut candidates = Candidates::new();
    for case in cases() {
        let mut params = case.params.clone();
        let bad_words = params.as_object_mut().unwrap().remove("bad_words").unwrap_or(Value::Array(vec![]));
        let params: SamplingParams = serde_json::from_value(params).unwrap();
        let defaults = GenerationDefaults {
            bad_words_ids: serde_json::from_value(bad_words).unwrap(),
            ..GenerationDefaults::default()
        };
        let mut logits = floats(&case.logits);
        let resolved = ResolvedSampling::resolve(&params, &defaults, &case.ends, logits.len(), &tokenizer).unwrap();
        let greedy = resolved.warpers.is_none();
        let mut sampler = Sampler::new(resolved.into(), &case.prompt, 0, 0);
        case.answer.iter().for_each(|&id| sampler.push(id));
        let token = sampler.sample(&mut logits, &mut candidates).unwrap().token;
        let left: Vec<_> = if greedy { softmax(&logits) } else { candidates.probabilities().collect() };
        let Some(last) = case.stages.last() else { continue };
        compare(&case, last, &left);
        assert!(left.iter().any(|&(id, _)| id == token));
    }
}

#[test]
fn a_row_without_choice_has_no_token() {
    let mut candidates = Candidates::new();
    candidates.start(&[f32::NEG_INFINITY; 70], 5);
    candidates.top_p(0.5);
    candidates.min_p(0.5);
    candidates.typical_p(0.5);
    assert_eq!((candidates.len(), candidates.draw(0.5)), (0, None));
}

/// The direct way, with a sort, on vocabularies that make the selections take all their turns.
#[test]
fn selections_agree_with_sorting() {
    use rand_chacha::rand_core::{RngCore, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    for round in 0..60 {
        let n = 1500 + (rng.next_u32() % 3000) as usize;
        let spread = [0.0, 1e-3, 0.1, 1.0, 5.0, 20.0][round % 6];
        let mut uniform = || f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5;
        let logits: Vec<f32> = (0..n).map(|_| ((uniform() + uniform() + uniform()) * spread) as f32 + 0.0).collect();
        let mut candidates = Candidates::new();

        let k = 1 + round * 7;
        candidates.start(&logits, k);
        // Sorting by all bits would put -0 before 0; adding 0 above made them one.
        let mut sorted = logits.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let expected: Vec<u32> = (0..n as u32).filter(|&id| logits[id as usize] >= sorted[k - 1]).collect();
        assert_eq!(
            candidates.probabilities().map(|(id, _)| id).collect::<Vec<_>>(),
            expected,
            "top_k {k}, round {round}"
        );

        let top_p = [0.3, 0.9, 0.99][round % 3];
        candidates.start(&logits, 0);
        let mut order: Vec<(u32, f32)> = candidates.probabilities().collect();
        order.sort_by(|a, b| logits[a.0 as usize].total_cmp(&logits[b.0 as usize]).then(a.0.cmp(&b.0)));
        let mut sum = 0.0;
        let mut expected: Vec<u32> = order
            .iter()
            .filter(|(_, p)| {
                sum += f64::from(*p);
                sum as f32 > (1.0 - top_p) as f32
            })
            .map(|&(id, _)| id)
            .collect();
        expected.sort_unstable();
        candidates.top_p(top_p);
        let kept: Vec<u32> = candidates.probabilities().map(|(id, _)| id).collect();
        // Sums in another order may part in the last bit, which moves the border by one token at most.
        let differing = kept.iter().filter(|id| expected.binary_search(id).is_err()).count()
            + expected.iter().filter(|id| kept.binary_search(id).is_err()).count();
        assert!(differing <= 1, "{differing} tokens differ, top_p {top_p}, round {round}");
    }
}

#[test]
fn exponentials_are_exact_to_two_units() {
    for i in 0..870_000 {
        let x = -(i as f32) * 1e-4;
        let (ours, exact) = (warpers::exp(x), f64::from(x).exp());
        let error = (f64::from(ours) - exact).abs() / exact;
        assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) is {ours}, {error} off");
    }
    assert_eq!(warpers::exp(0.0), 1.0);
    assert_eq!(warpers::exp(f32::NEG_INFINITY), 0.0);
}
