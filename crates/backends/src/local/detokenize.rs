//! [`Detokenizer`]: text from tokens as they come, whole characters only.
//!
//! What was pushed and then finished is, joined, exactly `Tokenizer::decode(ids, skip_special_tokens = true)`. Each push
//! costs the token's own length.

use std::sync::Arc;

use super::vocabulary::{Form, Vocabulary};

/// Text from one answer's tokens.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    vocabulary: Arc<Vocabulary>,
    /// Bytes that are not text yet: of a byte-level vocabulary the start of a character (at most three bytes), of a
    /// byte-fallback vocabulary the run of byte tokens so far.
    pending: Vec<u8>,
    /// Spaces still to be taken from the start of the text.
    strip: usize,
}

impl Detokenizer {
    /// A detokenizer at the start of a text.
    pub fn new(vocabulary: Arc<Vocabulary>) -> Self {
        let strip = match vocabulary.form() {
            Form::ByteLevel => 0,
            Form::ByteFallback { strip } => strip,
        };
        Self { vocabulary, pending: Vec::new(), strip }
    }

    /// Takes a token; returns the text that is complete by it, if any. Special tokens and unknown ids add nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let vocabulary = Arc::clone(&self.vocabulary);
        let bytes = vocabulary.bytes(id);
        if bytes.is_empty() || vocabulary.is_special(id) {
            return None;
        }
        let mut text = String::new();
        match vocabulary.form() {
            Form::ByteLevel => {
                self.pending.extend_from_slice(bytes);
                self.take_characters(&mut text);
            }
            // Whether a run of byte tokens is text or not is only known at its end.
            Form::ByteFallback { .. } if vocabulary.is_byte(id) => self.pending.extend_from_slice(bytes),
            Form::ByteFallback { .. } => {
                self.take_run(&mut text);
                text.push_str(&String::from_utf8_lossy(bytes));
                self.take_spaces(&mut text);
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// Ends the text; returns what was held back. The detokenizer then stands at the start of a new text.
    pub fn finish(&mut self) -> Option<String> {
        let mut text = String::new();
        match self.vocabulary.form() {
            Form::ByteLevel => text.push_str(&String::from_utf8_lossy(&self.pending)),
            Form::ByteFallback { .. } => {
                self.take_run(&mut text);
                self.take_spaces(&mut text);
            }
        }
        *self = Self::new(Arc::clone(&self.vocabulary));
        (!text.is_empty()).then_some(text)
    }

    /// Moves whole characters and broken parts from `pending` to `text`; the start of a character stays.
    fn take_characters(&mut self, text: &mut String) {
        let mut done = 0;
        while done < self.pending.len() {
            let rest = &self.pending[done..];
            let (valid, broken) = match std::str::from_utf8(rest) {
                Ok(_) => (rest.len(), Some(0)),
                Err(error) => (error.valid_up_to(), error.error_len()),
            };
            text.push_str(&String::from_utf8_lossy(&rest[..valid]));
            done += valid;
            match broken {
                Some(0) => {}
                Some(len) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    done += len;
                }
                None => break,
            }
        }
        self.pending.drain(..done);
    }

    /// Moves a run of byte tokens to `text`.
    fn take_run(&mut self, text: &mut String) {
        match std::str::from_utf8(&self.pending) {
            Ok(run) => text.push_str(run),
            Err(_) => text.extend(self.pending.iter().map(|_| char::REPLACEMENT_CHARACTER)),
        }
        self.pending.clear();
    }

    /// Takes the spaces from the start of the whole text that the decoder strips.
    fn take_spaces(&mut self, text: &mut String) {
        if self.strip == 0 || text.is_empty() {
            return;
        }
        let spaces = text.bytes().take(self.strip).take_while(|&byte| byte == b' ').count();
        let only_spaces = spaces == text.len();
        text.drain(..spaces);
        self.strip = if only_spaces { self.strip - spaces } else { 0 };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "tests stop at the first surprise")]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};
    use serde_json::json;
    use tokenizers::Tokenizer;

    use super::*;

    /// A byte-level tokenizer: all bytes, some pieces that end or start inside a character, added tokens.
    pub(crate) fn byte_level() -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        let mut next = 0x100;
        let mut letters = Vec::new();
        for byte in 0..=255u32 {
            let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            let c = if printable { byte } else { next };
            next += u32::from(!printable);
            letters.push(char::from_u32(c).unwrap().to_string());
            vocab.insert(letters[byte as usize].clone(), json!(byte));
        }
        let join = |bytes: &[u8]| bytes.iter().map(|&b| letters[usize::from(b)].as_str()).collect::<String>();
        let pieces: [&[u8]; 9] = [
            b" the",
            b"Hello",
            "é".as_bytes(),
            &[0xE4, 0xBD],
            &[0xA0, 0xE5],
            &[0xF0, 0x9F],
            b"\n\n",
            &[0x98, 0x80, b'!'],
            b" ",
        ];
        for piece in pieces {
            let id = vocab.len();
            vocab.entry(join(piece)).or_insert(json!(id));
        }
        let size = vocab.len() as u32;
        let added = |id: u32, content: &str, special: bool| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special})
        };
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            // The ids from `size + 3` on leave a gap of one.
            "added_tokens": [added(size, "<|end|>", true), added(size + 1, "<tool>", false),
                             added(size + 2, "a b\u{4F60}", false)],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
                      "vocab": vocab, "merges": []},
        });
        tokenizer.to_string().parse().unwrap()
    }

    /// A byte-fallback tokenizer as Llama 2's.
    fn byte_fallback(strip: usize) -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        vocab.insert("<unk>".to_owned(), json!(0));
        for byte in 0..=255u32 {
            vocab.insert(format!("<0x{byte:02X}>"), json!(byte + 1));
        }
        for piece in ["▁", "▁▁", "▁the", "Hello", "é", "你", "<0x1>", "<0xZZ>"] {
            let id = vocab.len();
            vocab.insert(piece.to_owned(), json!(id));
        }
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if strip > 0 {
            decoders.push(json!({"type": "Strip", "content": " ", "start": strip, "stop": 0}));
        }
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}],
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                      "vocab": vocab, "merges": []},
        });
        tokenizer.to_string().parse().unwrap()
    }

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
                    if rng.next_u32() % 2 == 0 {
                        favour + rng.next_u32() % (size - favour)
                    } else {
                        rng.next_u32() % size
                    }
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
}
