//! Constraints with a model that says anything.

use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use vgen_core::{Constraint, Fault, SamplingParams};

use super::super::{
    Candidates, ConstraintCompiler, ConstraintState, GenerationDefaults, ResolvedSampling, Sampler, Vocabulary,
};
use super::tiny;

const VOCAB: usize = 544;
const ENDS: [u32; 3] = [513, 520, 521];

fn compiler(tokenizer: &Tokenizer) -> ConstraintCompiler {
    ConstraintCompiler::new(tokenizer, &Vocabulary::new(tokenizer).unwrap(), VOCAB, &ENDS).unwrap()
}

/// Random logits with a little weight on what closes things, so that answers end.
fn anything(rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..VOCAB)
        .map(|id| {
            let random = f64::from(rng.next_u32()) / f64::from(u32::MAX) * 6.0;
            let closing = b"\"}],".iter().any(|&c| id == usize::from(c) - 33) || ENDS.contains(&(id as u32));
            (random + if closing { 4.0 } else { 0.0 }) as f32
        })
        .collect()
}

/// Generates until the form ends; `None` if it has not after `limit` tokens.
fn generate(tokenizer: &Tokenizer, state: ConstraintState, seed: u64, limit: usize) -> (String, bool) {
    let params = SamplingParams { temperature: Some(1.0), seed: Some(seed), ..SamplingParams::default() };
    let defaults = GenerationDefaults::default();
    let params = ResolvedSampling::resolve(&params, &defaults, &ENDS, VOCAB, tokenizer).unwrap();
    let mut sampler = Sampler::new(params.into(), &[512], 0, 0).with_constraint(state);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut scratch = Candidates::new();
    let mut ids = Vec::new();
    for _ in 0..limit {
        let token = sampler.sample(&mut anything(&mut rng), &mut scratch).unwrap().token;
        ids.push(token);
        if ENDS.contains(&token) || sampler.constraint().unwrap().is_finished() {
            break;
        }
    }
    let complete = sampler.constraint_mut().unwrap().is_complete();
    (tokenizer.decode(&ids, true).unwrap(), complete)
}

#[test]
fn json_is_of_its_schema() {
    let tokenizer = tiny();
    let compiler = compiler(&tokenizer);
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "n": {"type": "integer", "minimum": -5, "maximum": 500},
            "kind": {"enum": ["cat", "dog", "<|eot_id|>"]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["name", "n", "kind", "tags"],
        "additionalProperties": false,
    });
    let constraint = Constraint::JsonSchema(schema);
    let mut kinds = [0; 3];
    for seed in 0..150 {
        let (text, complete) = generate(&tokenizer, compiler.start(&constraint).unwrap(), seed, 400);
        assert!(complete, "{text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
        let object = value.as_object().unwrap();
        assert_eq!(object.len(), 4);
        assert!(value["name"].as_str().unwrap().chars().count() <= 12);
        // "-0" is an integer of JSON schema, but a float of serde_json.
        let n = value["n"].as_f64().unwrap();
        assert!(n.fract() == 0.0 && (-5.0..=500.0).contains(&n), "{n}");
        let kind = ["cat", "dog", "<|eot_id|>"].iter().position(|kind| value["kind"] == *kind).unwrap();
        kinds[kind] += 1;
        let tags = value["tags"].as_array().unwrap();
        assert!(tags.len() <= 3 && tags.iter().all(Value::is_boolean));
        assert!(!text.contains("  ") || text.contains('\n'), "more than one space in {text:?}");
    }
    assert!(kinds.iter().all(|&n| n > 0), "{kinds:?}");
}

#[test]
fn regular_expressions_match_whole() {
    let tokenizer = tiny();
    let compiler = compiler(&tokenizer);
    for pattern in [r"[a-c]{2,5}/\d+", r"^(?:yes|no), (?:sir|madam)!?$", r"é+\\?"] {
        let whole = regex(pattern);
        for seed in 0..40 {
            let state = compiler.start(&Constraint::Regex(pattern.to_owned())).unwrap();
            let (text, complete) = generate(&tokenizer, state, seed, 200);
            assert!(!complete || whole(&text), "{text:?} is no {pattern}");
            assert!(complete || text.chars().count() > 50, "{text:?} ended early");
        }
    }
}

/// A matcher of the patterns above, by the tokenizer library's own engine.
fn regex(pattern: &str) -> impl Fn(&str) -> bool {
    let whole = tokenizers::normalizers::replace::ReplacePattern::Regex(format!(r"\A(?:{pattern})\z"));
    let replace = tokenizers::normalizers::Replace::new(whole, "<matched>").unwrap();
    move |text| {
        let mut text = tokenizers::NormalizedString::from(text);
        tokenizers::Normalizer::normalize(&replace, &mut text).unwrap();
        text.get() == "<matched>"
    }
}

#[test]
fn choices_are_taken_whole() {
    let tokenizer = tiny();
    let compiler = compiler(&tokenizer);
    let choices = ["yes", "yesterday", "no (a.b|c)*", "/x\\n\n{}", "日本"];
    let constraint = Constraint::Choice(choices.iter().map(|&c| c.to_owned()).collect());
    let mut counts = [0; 5];
    for seed in 0..200 {
        let (text, complete) = generate(&tokenizer, compiler.start(&constraint).unwrap(), seed, 60);
        assert!(complete, "{text:?}");
        counts[choices.iter().position(|&c| c == text).unwrap_or_else(|| panic!("{text:?} is no choice"))] += 1;
    }
    assert!(counts.iter().all(|&n| n > 0), "{counts:?}");
}

#[test]
fn the_end_is_allowed_exactly_where_the_form_may_end() {
    let tokenizer = tiny();
    let compiler = compiler(&tokenizer);
    let mut state = compiler.start(&Constraint::Regex("ab?(cd)?".to_owned())).unwrap();
    let id = |text: &str| tokenizer.encode(text, false).unwrap().get_ids()[0];
    let allowed = |state: &mut ConstraintState| {
        let mut logits = vec![0.0; VOCAB];
        let mut ids = Vec::new();
        state.allow(&mut logits, &mut ids).unwrap();
        if ids.is_empty() {
            ids.extend((0..VOCAB as u32).filter(|&id| logits[id as usize] == 0.0));
        }
        (ids.contains(&ENDS[0]), ENDS.iter().all(|end| ids.contains(end) == ids.contains(&ENDS[0])), ids)
    };
    let (end, all_alike, ids) = allowed(&mut state);
    assert!(!end && all_alike && !state.is_complete());
    assert!(ids.contains(&id("a")));
    state.accept(id("a")).unwrap();
    let (end, all_alike, ids) = allowed(&mut state);
    assert!(end && all_alike && state.is_complete() && !state.is_finished());
    assert!(ids.contains(&id("b")) && ids.contains(&id("c")) && !ids.contains(&id("d")));
    // Two samples part here.
    let mut other = state.clone();
    other.accept(ENDS[1]).unwrap();
    assert!(other.is_finished() && !state.is_finished());
    state.accept(id("c")).unwrap();
    let (end, _, ids) = allowed(&mut state);
    assert!(!end && !state.is_complete());
    assert!(!state.is_form_of("ac"));
    assert_eq!(ids, [id("d")]);
    let error = state.clone().accept(id("a")).unwrap_err();
    assert_eq!(Fault::from(error).code, "constraint.stopped");
    state.accept(id("d")).unwrap();
    assert!(state.is_finished() && state.is_form_of("acd"));
}

#[test]
fn a_text_that_was_cut_is_held_to_its_form() {
    let tokenizer = tiny();
    let compiler = compiler(&tokenizer);
    let answer = |constraint: &Constraint, text: &str| {
        let mut state = compiler.start(constraint).unwrap();
        tokenizer.encode(text, false).unwrap().get_ids().iter().for_each(|&id| state.accept(id).unwrap());
        state
    };
    let schema =
        Constraint::JsonSchema(json!({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}));
    let mut object = answer(&schema, "{\"a\":1}");
    assert!(object.is_form_of("{\"a\":1}") && object.is_form_of("{\"a\": 1}"));
    assert!(!object.is_form_of("{\"a\":1") && !object.is_form_of("{\"a\":1}}") && !object.is_form_of(""));
    // What is left may be of the form, though the answer as a whole is not, or not yet.
    let mut pairs = answer(&Constraint::Regex("(ab)+".to_owned()), "aba");
    assert!(!pairs.is_complete() && !pairs.is_form_of("aba") && pairs.is_form_of("ab"));
}

#[test]
fn nobody_waits_while_another_constraint_is_compiled() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let compiler = compiler(&tiny());
    let quick = Constraint::Choice(vec!["a".to_owned()]);
    compiler.start(&quick).unwrap();
    let slow = Constraint::JsonSchema(json!({"enum": (0..20_000).collect::<Vec<u32>>()}));
    let (begun, compiled) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            begun.store(true, Ordering::Release);
            let state = compiler.start(&slow);
            compiled.store(true, Ordering::Release);
            state.unwrap();
        });
        while !begun.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(10));
        compiler.start(&quick).unwrap();
        assert!(!compiled.load(Ordering::Acquire), "the slow one was to be compiled yet");
    });
}

#[test]
fn what_means_nothing_is_refused_with_the_place() {
    let compiler = compiler(&tiny());
    let message = |constraint: Constraint| {
        let fault = Fault::from(compiler.start(&constraint).unwrap_err());
        assert_eq!(fault.code, "constraint.invalid", "{fault:?}");
        assert!(!fault.message.contains('\n'), "{fault:?}");
        fault.message
    };
    assert_eq!(
        message(Constraint::Regex("ab(c".to_owned())),
        r#"regex constraint: unclosed group in "ab(c" at byte 2"#
    );
    assert!(message(Constraint::Regex("ab\\".to_owned())).contains("at byte 2"));
    assert!(message(Constraint::Regex(r"a\bc".to_owned())).starts_with("regex constraint: "));
    assert_eq!(message(Constraint::Choice(vec![])), "choice constraint: there is nothing to choose from");
    assert_eq!(
        message(Constraint::Choice(vec!["a".to_owned(), String::new()])),
        "choice constraint: choice 1 is empty"
    );
    let schema = |schema| message(Constraint::JsonSchema(schema));
    assert!(schema(json!(5)).ends_with("a schema is an object, true or false"));
    let wrong = schema(json!({"type": "object", "properties": {"age": {"type": "integr"}}}));
    assert_eq!(wrong, "json_schema constraint: Invalid type: integr at /properties/age/type");
    let wrong = schema(json!({"type": "object", "properties": {"age": {"$ref": "#/$defs/missing"}}}));
    assert!(wrong.contains("missing") && wrong.contains(" at /properties/age"), "{wrong}");
    let wrong = schema(json!({"type": "integer", "minimum": 5, "maximum": 2}));
    assert!(wrong.contains('5') || wrong.contains("minimum"), "{wrong}");
    // Two mistakes of a kind: the first; names as JSON pointers write them; a schema that another refers to.
    let twice =
        json!({"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "integr"}}, {"type": "integr"}]});
    assert!(schema(twice).ends_with("Invalid type: integr at /anyOf/1/items/type"));
    let named = json!({"type": "object", "properties": {"b": {}, "a/b~c": {"type": "string", "pattern": "("}}});
    let wrong = schema(named);
    assert!(wrong.ends_with(" at /properties/a~1b~0c/pattern"), "{wrong}");
    let inner = json!({"type": "object", "required": ["deep"], "properties": {
        "deep": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 5, "maximum": 2}}, "required": ["n"]}}});
    let wrong = schema(inner);
    assert!(wrong.ends_with(" at /properties/deep/properties/n"), "{wrong}");
    let referred = json!({"$defs": {"n": {"type": "integr"}}, "type": "array", "items": {"$ref": "#/$defs/n"}});
    let wrong = schema(referred);
    assert!(wrong.contains(" at /$defs/n"), "{wrong}");
}

/// Reports what a token costs with a real vocabulary: `VGEN_TOKENIZER` is the path of its `tokenizer.json`.
#[test]
#[ignore = "needs a large tokenizer and an optimised build; reports only"]
#[allow(clippy::print_stderr, reason = "a report")]
fn report_time_per_token() {
    let tokenizer = Tokenizer::from_file(std::env::var("VGEN_TOKENIZER").unwrap()).unwrap();
    let vocab_size = 128_256;
    let start = Instant::now();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let read = start.elapsed();
    let compiler = ConstraintCompiler::new(&tokenizer, &vocabulary, vocab_size, &[128_001, 128_008, 128_009]).unwrap();
    eprintln!("vocabulary {read:?}, compiler {:?}", start.elapsed() - read);
    let schema = json!({"type": "object", "required": ["caption", "objects", "count"], "properties": {
        "caption": {"type": "string"},
        "objects": {"type": "array", "items": {"type": "object", "required": ["name", "color"], "properties": {
            "name": {"type": "string"}, "color": {"enum": ["red", "green", "blue"]}}}},
        "count": {"type": "integer"}}});
    let text = r#"{"caption": "A small dog sits on a red chair, looking at \"the\" camera; its näme is unknown.",
        "objects": [{"name": "small dog", "color": "red"}, {"name": "chair with four legs", "color": "blue"}], "count": 2}"#
        .replace("\n        ", " ");
    let ids = tokenizer.encode(text.as_str(), false).unwrap().get_ids().to_vec();
    for (name, constraint) in [
        ("schema", Constraint::JsonSchema(schema)),
        ("regex", Constraint::Regex(r#"\{("[^"]*"|[^"])*\}"#.to_owned())),
        ("choice", Constraint::Choice(vec![text.clone(), "no".to_owned()])),
    ] {
        let start = Instant::now();
        let first = compiler.start(&constraint).unwrap();
        let compile = start.elapsed();
        for round in ["first", "second"] {
            let start = Instant::now();
            let mut state = compiler.start(&constraint).unwrap();
            let copy = start.elapsed();
            let mut times = Vec::with_capacity(ids.len());
            let mut logits = vec![0f32; vocab_size];
            let mut few = Vec::new();
            for &id in &ids {
                logits.fill(0.0);
                let start = Instant::now();
                state.allow(&mut logits, &mut few).unwrap();
                let masked = start.elapsed();
                let allowed = if few.is_empty() { logits[id as usize] == 0.0 } else { few.contains(&id) };
                assert!(allowed, "{name} forbids {:?}", vocabulary.text(id));
                state.accept(id).unwrap();
                times.push((masked, start.elapsed()));
            }
            assert!(state.is_complete());
            times.sort();
            let mean = times.iter().map(|(_, both)| *both).sum::<Duration>() / times.len() as u32;
            eprintln!(
                "{name} ({round} answer): compile {compile:?}, copy {copy:?}; of {} tokens mask and accept: median {:?}, \
                 mean {mean:?}, worst {:?}",
                times.len(),
                times[times.len() / 2].1,
                times[times.len() - 1].1
            );
        }
        drop(first);
    }
}
