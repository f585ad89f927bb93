//! Parameters: defaults of the model and checks.

use vgen_core::{Constraint, Fault, SamplingParams};

use super::super::{GenerationDefaults, ResolvedSampling, Warpers};
use super::{byte_level, tiny};

fn llama() -> GenerationDefaults {
    GenerationDefaults::from_json(include_str!("../../../../../tests/fixtures/mllama/tiny/generation_config.json"))
        .unwrap()
}

fn resolve(params: &SamplingParams, defaults: &GenerationDefaults) -> Result<ResolvedSampling, Fault> {
    Ok(ResolvedSampling::resolve(params, defaults, &defaults.eos_token_id, 544, &tiny())?)
}

#[test]
fn the_models_defaults_hold_where_nothing_is_given() {
    let defaults = llama();
    let resolved = resolve(&SamplingParams::default(), &defaults).unwrap();
    let llama = Warpers { temperature: 0.6, top_k: 0, top_p: 0.9, min_p: 0.0, typical_p: 1.0 };
    assert_eq!(resolved.warpers, Some(llama));
    assert_eq!(resolved.end_ids, [513, 520, 521]);
    let given =
        SamplingParams { temperature: Some(1.5), top_p: Some(0.5), min_p: Some(0.1), ..SamplingParams::default() };
    let given = resolve(&given, &defaults).unwrap();
    assert_eq!(given.warpers, Some(Warpers { temperature: 1.5, top_p: 0.5, min_p: 0.1, ..llama }));
}

#[test]
fn greedy_or_not() {
    let none = SamplingParams::default();
    let cold = SamplingParams { temperature: Some(0.0), ..none.clone() };
    let warm = SamplingParams { temperature: Some(0.5), ..none.clone() };
    let cut = SamplingParams { top_k: Some(5), ..none.clone() };
    let greedy = GenerationDefaults::from_json(r#"{"do_sample": false, "temperature": 0.6}"#).unwrap();
    let silent = GenerationDefaults::default();
    let samples = |params, defaults| resolve(params, defaults).unwrap().warpers.map(|w| w.temperature);
    for (params, defaults, expected) in [
        (&none, &llama(), Some(0.6)),
        (&none, &greedy, None),
        (&none, &silent, None),
        (&cold, &llama(), None),
        (&warm, &greedy, Some(0.5)),
        (&cut, &greedy, Some(0.6)),
        (&cut, &silent, Some(1.0)),
    ] {
        assert_eq!(samples(params, defaults), expected, "{params:?} with {defaults:?}");
    }
}

#[test]
fn one_end_token_or_several() {
    let one = GenerationDefaults::from_json(r#"{"eos_token_id": 5, "cache_implementation": "static"}"#).unwrap();
    assert_eq!(one.eos_token_id, [5]);
    assert_eq!(GenerationDefaults::from_json(r#"{"eos_token_id": null}"#).unwrap().eos_token_id, [0u32; 0]);
    let error = GenerationDefaults::from_json(r#"{"top_p": "high"}"#).unwrap_err();
    assert_eq!(Fault::from(error).code, "sampling.generation_config");
}

#[test]
fn what_else_the_model_says_holds_too() {
    let text = r#"{"bad_words_ids": [[7, 8], [513], [9, 600]], "suppress_tokens": [5], "sequence_bias": [[[3], -1.5]],
        "stop_strings": "END.", "num_beams": 1, "guidance_scale": null, "no_repeat_ngram_size": 0, "max_length": 20,
        "forced_eos_token_id": [], "epsilon_cutoff": 0.0, "renormalize_logits": true}"#;
    let defaults = GenerationDefaults { eos_token_id: vec![513], ..GenerationDefaults::from_json(text).unwrap() };
    let resolved = |params: &SamplingParams| resolve(params, &defaults).unwrap();
    let model = resolved(&SamplingParams::default());
    assert_eq!(model.bad_words, [vec![5], vec![7, 8]]);
    assert_eq!((model.logit_bias, model.stop), (vec![(3, -1.5)], vec!["END.".to_owned()]));
    let own = SamplingParams {
        bad_words: vec!["~".to_owned()],
        logit_bias: [(4, 1.0)].into(),
        stop: vec!["END".to_owned()],
        ..SamplingParams::default()
    };
    let own = resolved(&own);
    assert!(own.bad_words.contains(&vec![5]) && !own.bad_words.contains(&vec![7, 8]), "{:?}", own.bad_words);
    assert_eq!((own.logit_bias, own.stop), (vec![(4, 1.0)], vec!["END".to_owned()]));
}

#[test]
fn what_the_model_says_and_cant_be_honoured_is_refused() {
    let with = |text: &str, params: &SamplingParams| {
        let fault = resolve(params, &GenerationDefaults::from_json(text).unwrap()).unwrap_err();
        assert_eq!(fault.code, "sampling.generation_config");
        fault
    };
    let (none, sampled) = (SamplingParams::default(), SamplingParams { temperature: Some(1.0), ..Default::default() });
    for (text, key) in [
        (r#"{"num_beams": 4}"#, "num_beams = 4"),
        (r#"{"no_repeat_ngram_size": 3}"#, "no_repeat_ngram_size = 3"),
        (r#"{"begin_suppress_tokens": [220]}"#, "begin_suppress_tokens = [220]"),
        (r#"{"forced_bos_token_id": 5}"#, "forced_bos_token_id = 5"),
        (r#"{"guidance_scale": 1.5}"#, "guidance_scale = 1.5"),
        (r#"{"sequence_bias": [[[1, 2], 0.5]]}"#, "sequence_bias = [[1, 2], 0.5]"),
    ] {
        let fault = with(text, &none);
        let said = format!("the model's generation_config.json has {key}, which can't be honoured");
        assert_eq!(fault.message, said);
        assert!(fault.hint.unwrap().contains("take the key out"));
    }
    // Nothing of it in greedy answers.
    let cutoff = r#"{"epsilon_cutoff": 0.0003}"#;
    assert!(resolve(&none, &GenerationDefaults::from_json(cutoff).unwrap()).is_ok());
    assert!(with(cutoff, &sampled).message.contains("epsilon_cutoff = 0.0003"));
    let empty = resolve(&none, &GenerationDefaults::from_json(r#"{"stop_strings": [""]}"#).unwrap()).unwrap_err();
    assert_eq!((&*empty.code, &*empty.message), ("sampling.text", "stop_strings has \"\": it is empty"));
}

#[test]
fn what_cant_be_honoured_is_refused() {
    let with = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams::default();
        change(&mut params);
        match resolve(&params, &llama()) {
            Ok(_) => "accepted".to_owned(),
            Err(fault) => format!("{}: {}", fault.code, fault.message),
        }
    };
    let range = "sampling.range: ";
    assert_eq!(with(|p| p.temperature = Some(-1.0)), format!("{range}temperature is -1, it must be 0 or above"));
    assert_eq!(with(|p| p.temperature = Some(f64::NAN)), format!("{range}temperature is NaN, it must be 0 or above"));
    assert_eq!(with(|p| p.top_p = Some(1.1)), format!("{range}top_p is 1.1, it must be between 0 and 1"));
    assert_eq!(with(|p| p.min_p = Some(-0.1)), format!("{range}min_p is -0.1, it must be between 0 and 1"));
    assert_eq!(with(|p| p.typical_p = Some(0.0)), format!("{range}typical_p is 0, it must be above 0 and at most 1"));
    assert_eq!(
        with(|p| p.repetition_penalty = Some(0.0)),
        format!("{range}repetition_penalty is 0, it must be above 0")
    );
    assert!(with(|p| p.frequency_penalty = Some(2.5)).starts_with(range));
    assert!(with(|p| p.presence_penalty = Some(-3.0)).starts_with(range));
    assert!(with(|p| p.max_new_tokens = Some(0)).starts_with(range));
    assert!(with(|p| p.logit_bias = [(1, f32::NAN)].into()).starts_with(range));
    let token = "sampling.token_id: ";
    let last = "the model's vocabulary ends at 543";
    assert_eq!(with(|p| p.stop_token_ids = vec![544]), format!("{token}stop_token_ids names token 544, {last}"));
    assert_eq!(with(|p| p.logit_bias = [(9999, 1.0)].into()), format!("{token}logit_bias names token 9999, {last}"));
    let text = "sampling.text: ";
    assert_eq!(with(|p| p.stop = vec![String::new()]), format!("{text}stop has \"\": it is empty"));
    assert!(with(|p| p.bad_words = vec!["<|eot_id|>".to_owned()]).contains("it ends generations"));
    assert!(with(|p| p.bad_words = vec!["<|image|>".to_owned()]).contains("no tokens for it"));
    assert!(with(|p| p.bad_words = vec![" ".to_owned()]).starts_with(text));
    let conflict = "sampling.conflict: ";
    assert!(with(|p| p.top_logprobs = 2).starts_with(conflict));
    assert!(with(|p| (p.min_new_tokens, p.max_new_tokens) = (Some(3), Some(2))).starts_with(conflict));
    assert!(with(|p| (p.temperature, p.typical_p) = (Some(0.0), Some(0.5))).starts_with(conflict));
    assert!(
        with(|p| (p.constraint, p.ignore_eos) = (Some(Constraint::Regex("a".to_owned())), true)).starts_with(conflict)
    );
    assert!(
        with(|p| (p.constraint, p.min_new_tokens) = (Some(Constraint::Regex("a".to_owned())), Some(2)))
            .starts_with(conflict)
    );
    assert_eq!(with(|p| (p.top_p, p.min_new_tokens) = (Some(0.0), Some(2))), "accepted");
}

#[test]
fn bad_words_stand_at_the_start_and_after_a_space() {
    let params = SamplingParams { bad_words: vec!["the".to_owned()], ..SamplingParams::default() };
    let tokenizer = byte_level();
    let defaults = GenerationDefaults::default();
    let resolved = ResolvedSampling::resolve(&params, &defaults, &[0], 264, &tokenizer).unwrap();
    let space_the = tokenizer.token_to_id("Ġthe").unwrap();
    assert_eq!(resolved.bad_words, [b"the".iter().map(|&b| u32::from(b)).collect(), vec![space_the]]);
}
