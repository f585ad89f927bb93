//! Where answers end and what is shown of them.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use vgen_core::{FinishReason, SamplingParams};

use super::super::{Answer, Step, StopChecker, Vocabulary};
use super::{byte_level, resolved};

fn params(stop: &[&str]) -> SamplingParams {
    SamplingParams { stop: stop.iter().map(|&s| s.to_owned()).collect(), ..SamplingParams::default() }
}

/// Pushes a text's bytes, which are the first tokens of the vocabulary; returns the shown pieces and the last step.
fn push(answer: &mut Answer, text: &str) -> (String, Step) {
    let mut shown = String::new();
    let mut last = Step::default();
    for byte in text.bytes() {
        last = answer.push(byte.into(), false);
        shown.push_str(&last.text);
        if last.finish.is_some() {
            break;
        }
    }
    (shown, last)
}

fn answer(params: &SamplingParams, room: u32) -> Answer {
    let vocabulary = Arc::new(Vocabulary::new(&byte_level()).unwrap());
    Answer::new(resolved(params, 264), vocabulary, room, "prompt ")
}

#[test]
fn a_stop_text_is_cut_across_tokens_and_never_shown_in_part() {
    let mut cut = answer(&params(&["###", "END!"]), 100);
    let mut shown = Vec::new();
    for byte in "a#b##c EN".bytes() {
        shown.push(cut.push(byte.into(), false).text);
    }
    assert_eq!(shown, ["a", "", "#b", "", "", "##c", " ", "", ""]);
    assert_eq!(cut.push(b'D'.into(), false), Step::default());
    assert_eq!(cut.push(b'!'.into(), false), Step { text: String::new(), finish: Some(FinishReason::Stop) });
    assert_eq!(cut.text(), "a#b##c ");
}

#[test]
fn a_stop_text_can_be_kept() {
    let mut kept = answer(&SamplingParams { include_stop: true, ..params(&["é!"]) }, 100);
    let (shown, last) = push(&mut kept, "caffé!x");
    assert_eq!((shown.as_str(), last.finish), ("caffé!", Some(FinishReason::Stop)));
}

#[test]
fn what_is_held_back_comes_at_the_end() {
    let mut short = answer(&SamplingParams { max_new_tokens: Some(4), ..params(&["abcdef"]) }, 100);
    let (shown, last) = push(&mut short, "abcdef");
    assert_eq!((shown.as_str(), last.finish), ("abcd", Some(FinishReason::Length)));
    // Half a character is given up at the end.
    let (shown, _) = push(&mut answer(&params(&[]), 2), "a😀");
    assert_eq!(shown, "a\u{FFFD}");
    let mut cut = answer(&params(&["abc"]), 100);
    push(&mut cut, "xab");
    assert_eq!(cut.text(), "x");
    assert_eq!(cut.cut(), "ab");
    assert_eq!(cut.text(), "xab");
}

#[test]
fn end_tokens_end_and_add_no_text() {
    // Token 0 ends; it is the byte 0.
    let mut ended = answer(&params(&["b"]), 100);
    assert_eq!(ended.push(b'a'.into(), false).text, "a");
    assert_eq!(ended.push(0, false), Step { text: String::new(), finish: Some(FinishReason::Stop) });
    assert_eq!((ended.text(), ended.tokens()), ("a", &[u32::from(b'a'), 0][..]));

    let ignore = SamplingParams { ignore_eos: true, stop_token_ids: vec![u32::from(b'z')], ..params(&[]) };
    let mut ignored = answer(&ignore, 100);
    assert_eq!(push(&mut ignored, "a\0b").1.finish, None);
    assert_eq!(ignored.push(b'z'.into(), false).finish, Some(FinishReason::Stop));
    assert_eq!(ignored.text(), "a\0b");

    let mut kept = answer(&SamplingParams { include_stop: true, ..ignore }, 100);
    assert_eq!(push(&mut kept, "az").0, "az");
}

#[test]
fn an_end_at_the_limit_is_a_stop() {
    assert_eq!(push(&mut answer(&params(&["c"]), 3), "abc").1.finish, Some(FinishReason::Stop));
    assert_eq!(push(&mut answer(&params(&[]), 3), "ab\0").1.finish, Some(FinishReason::Stop));
    assert_eq!(push(&mut answer(&params(&[]), 3), "abc").1.finish, Some(FinishReason::Length));
}

#[test]
fn nothing_stops_before_the_least_length() {
    let least = SamplingParams { min_new_tokens: Some(5), ..params(&["ab", "abab"]) };
    // The stop text that is complete with the second token does not count; the one with the sixth does.
    let (shown, last) = push(&mut answer(&least, 100), "abxxabz");
    assert_eq!((shown.as_str(), last.finish), ("abxx", Some(FinishReason::Stop)));
    let (shown, last) = push(&mut answer(&least, 100), "xxabzab");
    assert_eq!((shown.as_str(), last.finish), ("xxabz", Some(FinishReason::Stop)));
}

#[test]
fn a_finished_form_ends_the_answer() {
    let mut form = answer(&params(&["}x"]), 100);
    form.push(b'{'.into(), false);
    assert_eq!(form.push(b'}'.into(), true), Step { text: "}".to_owned(), finish: Some(FinishReason::Stop) });
}

#[test]
fn the_prompt_can_be_echoed() {
    let mut echo = answer(&SamplingParams { echo: true, ..params(&["prompt"]) }, 100);
    assert_eq!(push(&mut echo, "hi").0, "hi");
    assert_eq!((echo.text(), echo.own_text()), ("prompt hi", "hi"));
}

/// The text read character by character, by the definition.
fn by_definition(text: &str, stops: &[String], include: bool) -> (String, bool) {
    for (at, c) in text.char_indices() {
        let read = &text[..at + c.len_utf8()];
        if let Some(stop) = stops.iter().filter(|stop| read.ends_with(stop.as_str())).max_by_key(|stop| stop.len()) {
            let end = if include { read.len() } else { read.len() - stop.len() };
            return (read[..end].to_owned(), true);
        }
    }
    (text.to_owned(), false)
}

#[test]
fn how_the_text_is_cut_into_pieces_makes_no_difference() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut stopped = 0;
    for _ in 0..3000 {
        let mut below = |n: u32| rng.next_u32() % n;
        let mut word = |longest: u32| -> String {
            (0..1 + below(longest)).map(|_| ['a', 'b', 'é', '😀'][below(4) as usize]).collect()
        };
        let stops: Vec<String> = (0..3).map(|_| word(4)).collect();
        let text: String = (0..4).map(|_| word(5)).collect();
        let include = below(2) == 0;
        let params = SamplingParams { stop: stops.clone(), include_stop: include, ..SamplingParams::default() };
        let mut checker = StopChecker::new(resolved_once(&params));
        let chars: Vec<char> = text.chars().collect();
        let (mut shown, mut found) = (String::new(), false);
        let mut rest = &chars[..];
        while !rest.is_empty() && !found {
            let (piece, after) = rest.split_at((1 + below(4) as usize).min(rest.len()));
            rest = after;
            let checked = checker.push(&piece.iter().collect::<String>(), true);
            shown.push_str(&checked.text);
            found = checked.stopped;
        }
        if !found {
            shown.push_str(&checker.finish());
        }
        stopped += u32::from(found);
        assert_eq!((shown, found), by_definition(&text, &stops, include), "{text:?} with {stops:?}");
    }
    assert!((1000..3000).contains(&stopped), "{stopped} stopped");
}

/// As [`resolved`], with the same tokenizer for all.
fn resolved_once(params: &SamplingParams) -> Arc<super::ResolvedSampling> {
    thread_local!(static TOKENIZER: tokenizers::Tokenizer = byte_level());
    TOKENIZER.with(|tokenizer| {
        let defaults = super::GenerationDefaults::default();
        Arc::new(super::ResolvedSampling::resolve(params, &defaults, &[0], 264, tokenizer).unwrap())
    })
}
