//! The choice from a row's highest logits is the one from all of them.

use proptest::prelude::*;
use vgen_core::SamplingParams;
use vgen_mllama::{TOP, Top};

use super::resolved;
use crate::local::shortlist::{Asked, highest, shortlist};
use crate::local::{Candidates, Sampler};

const VOCAB: usize = 700;

/// What a device gives: sorted, with any of those that are equal to the last, and a total that is slightly off.
fn top(logits: &[f32], temperature: f32, error: f64, last_first: bool) -> Top {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    if last_first {
        order.reverse();
    }
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    order.truncate(TOP);
    let most = logits[order[0] as usize];
    let total: f64 = logits.iter().map(|logit| f64::from((logit - most) / temperature).exp()).sum();
    let kept = order.iter().map(|&id| logits[id as usize]).collect();
    Top { logits: kept, ids: order, total: (total * (1.0 + error)) as f32 }
}

/// The token from the list and that from all logits; the first is `None` if the list doesn't tell.
fn both(params: &SamplingParams, logits: &[f32], row: u64, error: f64, last_first: bool) -> (Option<u32>, u32) {
    let params = resolved(params, logits.len());
    let mut sampler = Sampler::new(params.clone(), &[], row, 0);
    let asked = sampler.asked();
    let top = top(logits, asked.temperature(), error, last_first);
    let mut scratch = Candidates::new();
    let few = match asked {
        Asked::Highest => highest(&top, logits.len()),
        Asked::Top(warpers) => shortlist(&top, warpers, logits.len())
            .map(|few| sampler.clone().sample_few(&few, &mut scratch).unwrap().token),
        Asked::All => None,
    };
    (few, sampler.sample(&mut logits.to_vec(), &mut scratch).unwrap().token)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn few_logits_choose_what_all_choose(
        seed in any::<u64>(),
        row in 0..1000u64,
        // From flat to peaked, in steps that make many equal.
        spread in prop_oneof![Just(0.5f32), Just(3.0), Just(12.0), Just(60.0)],
        steps in prop_oneof![Just(3.0f32), Just(40.0), Just(1e6)],
        temperature in prop_oneof![Just(0.0), Just(0.6), Just(1.0), Just(1e-3), Just(2.5)],
        top_k in prop_oneof![Just(None), Just(Some(1u32)), Just(Some(40)), Just(Some(64)), Just(Some(65)), Just(Some(5000))],
        top_p in prop_oneof![Just(None), Just(Some(0.9)), Just(Some(0.5)), Just(Some(0.99)), Just(Some(1e-6))],
        min_p in prop_oneof![Just(None), Just(Some(0.1)), Just(Some(0.01))],
        typical_p in prop_oneof![4 => Just(None), 1 => Just(Some(0.7))],
        error in -5e-5..5e-5f64,
        last_first in any::<bool>(),
    ) {
        let mut random = fastrand::Rng::with_seed(seed);
        let logits: Vec<f32> = (0..VOCAB)
            .map(|_| (random.f32().powi(3) * spread * steps).round() / steps - spread / 3.0)
            .collect();
        let params = SamplingParams {
            temperature: Some(temperature),
            // Greedy takes none of them.
            top_k: top_k.filter(|_| temperature > 0.0),
            top_p: top_p.filter(|_| temperature > 0.0),
            min_p: min_p.filter(|_| temperature > 0.0),
            typical_p: typical_p.filter(|_| temperature > 0.0),
            seed: Some(seed),
            ..SamplingParams::default()
        };
        let (few, all) = both(&params, &logits, row, error, last_first);
        prop_assert!(few.is_none_or(|few| few == all), "{few:?} for {all}: {params:?}");
    }
}

/// A list that never told would be right as well.
#[test]
fn usual_settings_are_settled_by_the_list() {
    let usual =
        |top_k, top_p, min_p| SamplingParams { temperature: Some(0.6), top_k, top_p, min_p, ..Default::default() };
    for params in [usual(None, Some(0.9), None), usual(Some(40), Some(0.9), None), usual(None, None, Some(0.05))] {
        let told = (0..300).filter(|&seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            let logits: Vec<f32> = (0..VOCAB).map(|_| random.f32().powi(9) * 20.0).collect();
            let (few, all) = both(&params, &logits, seed, 0.0, false);
            assert!(few.is_none_or(|few| few == all));
            few.is_some()
        });
        let told = told.count();
        assert!(told > 290, "{told} of 300: {params:?}");
    }
}

/// What the list can't tell is not guessed.
#[test]
fn what_hangs_on_other_logits_is_left_open() {
    let flat = vec![1.0; VOCAB];
    let params = |top_k, top_p| SamplingParams { temperature: Some(1.0), top_k, top_p, ..Default::default() };
    for params in [params(None, Some(0.9)), params(Some(40), None), params(None, None), params(Some(100), None)] {
        assert_eq!(both(&params, &flat, 0, 0.0, false).0, None, "{params:?}");
    }
    let greedy = SamplingParams { temperature: Some(0.0), ..Default::default() };
    assert_eq!(both(&greedy, &flat, 0, 0.0, true).0, None);
    // Half of the probability each: whether one is enough hangs on the last bit of the sum.
    let mut two = vec![-80.0; VOCAB];
    (two[3], two[9]) = (5.0, 5.0);
    assert_eq!(both(&params(None, Some(0.5)), &two, 0, 0.0, false).0, None);
    let penalised = SamplingParams { frequency_penalty: Some(0.5), ..params(Some(4), None) };
    assert_eq!(both(&penalised, &two, 0, 0.0, false).0, None);
}
