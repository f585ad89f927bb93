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
