//! The detokeniser against `Tokenizer::decode`.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tokenizers::Tokenizer;

use super::super::{Detokenizer, Vocabulary};
use super::{byte_fallback, byte_level, tiny};

/// Random ids through both ways of decoding; `favour` makes ids from there on as likely as the bytes.
fn same_as_whole(tokenizer: &Tokenizer, favour: u32, rounds: u64) {
    let vocabulary = Arc::new(Vocabulary::new(tokenizer).unwrap());
    let size = vocabulary.len() as u32 + 2;
    let mut rng = ChaCha8Rng::seed_from_u64(favour.into());
    let mut detokenizer = Detokenizer::new(Arc::clone(&vocabulary));
    for _ in 0..rounds {
        let len = rng.next_u32() % 40;
        let ids: Vec<u32> = (0..len)
            .map(|_| {
                if rng.next_u32() % 2 == 0 { favour + rng.next_u32() % (size - favour) } else { rng.next_u32() % size }
            })
            .collect();
        let mut text = String::new();
        for &id in &ids {
            text.extend(detokenizer.push(id));
        }
        text.extend(detokenizer.finish());
        assert_eq!(text, tokenizer.decode(&ids, true).unwrap(), "ids {ids:?}");
    }
}

#[test]
fn byte_level_text_is_that_of_the_whole() {
    same_as_whole(&byte_level(), 0x80, 4000);
    same_as_whole(&byte_level(), 255, 4000);
    same_as_whole(&tiny(), 128, 4000);
}

#[test]
fn byte_fallback_text_is_that_of_the_whole() {
    for strip in [0, 1, 3] {
        same_as_whole(&byte_fallback(strip), 0xC0, 2000);
        same_as_whole(&byte_fallback(strip), 256, 2000);
    }
}

#[test]
fn no_half_characters_are_shown() {
    let vocabulary = Arc::new(Vocabulary::new(&byte_level()).unwrap());
    let mut detokenizer = Detokenizer::new(vocabulary);
    let shown: Vec<_> = "a😀你".bytes().map(|byte| detokenizer.push(byte.into())).collect();
    let text = |t: &str| Some(t.to_owned());
    assert_eq!(shown, [text("a"), None, None, None, text("😀"), None, None, text("你")]);
    assert_eq!(detokenizer.push(0xF0), None);
    assert_eq!(detokenizer.finish(), text("\u{FFFD}"));
    assert_eq!(detokenizer.finish(), None);
}

#[test]
fn special_tokens_have_names_but_no_text() {
    let tokenizer = byte_level();
    let vocabulary = Vocabulary::new(&tokenizer).unwrap();
    let end = tokenizer.token_to_id("<|end|>").unwrap();
    assert!(vocabulary.is_special(end));
    assert_eq!(vocabulary.text(end), "<|end|>");
    assert!(!vocabulary.is_special(end + 1));
    assert_eq!(Detokenizer::new(Arc::new(vocabulary)).push(end), None);
}

#[test]
fn other_decoders_are_refused() {
    let mut tokenizer = byte_level();
    tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
    let fault = vgen_core::Fault::from(Vocabulary::new(&tokenizer).unwrap_err());
    assert_eq!(fault.code, "tokenizer.decoder");
    assert!(fault.message.contains("WordPiece"), "{}", fault.message);
}
