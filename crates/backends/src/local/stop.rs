//! When an answer ends, and what of its text may be shown.
//!
//! [`StopChecker`] looks for stop texts across the borders of tokens and holds back whatever may still become one, so
//! that text once shown never has to be taken back. [`Answer`] joins it with the detokenizer: tokens in, text and the
//! reason of the end out.

use std::sync::Arc;

use vgen_core::FinishReason;

use super::detokenize::Detokenizer;
use super::sampling::ResolvedSampling;
use super::vocabulary::Vocabulary;

/// Looks for stop texts in a text that comes in pieces.
///
/// The first stop text to be complete ends the text, reading it character by character; of several that end at the
/// same place, the longest. So the result does not depend on how the text is cut into pieces.
#[derive(Clone, Debug)]
pub struct StopChecker {
    params: Arc<ResolvedSampling>,
    /// Text that may be the start of a stop text.
    held: String,
}

/// What a piece of text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Text that may be shown.
    pub text: String,
    /// Whether a stop text was found; nothing follows then.
    pub stopped: bool,
}

impl StopChecker {
    /// A checker at the start of a text.
    pub fn new(params: Arc<ResolvedSampling>) -> Self {
        Self { params, held: String::new() }
    }

    /// Takes a piece of text. With `armed` false a stop text that ends in it is text like any other (before
    /// `min_new_tokens`).
    pub fn push(&mut self, piece: &str, armed: bool) -> Checked {
        if self.params.stop.is_empty() {
            return Checked { text: piece.to_owned(), stopped: false };
        }
        let old = self.held.len();
        self.held.push_str(piece);
        if armed && let Some((start, end)) = self.find(old) {
            let end = if self.params.include_stop { end } else { start };
            self.held.truncate(end);
            return Checked { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.held.len() - self.doubtful();
        let rest = self.held.split_off(keep);
        Checked { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// Ends the text; returns what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop text that ends first after byte `from`, as a range of `held`.
    fn find(&self, from: usize) -> Option<(usize, usize)> {
        let mut best: Option<(usize, usize)> = None;
        for stop in &self.params.stop {
            // A match that ends after `from` starts at most its own length, less one, before.
            let mut at = (from + 1).saturating_sub(stop.len());
            while !self.held.is_char_boundary(at) {
                at += 1;
            }
            let Some(offset) = self.held[at..].find(stop.as_str()) else { continue };
            let start = at + offset;
            let end = start + stop.len();
            if best.is_none_or(|(first_start, first_end)| (end, start) < (first_end, first_start)) {
                best = Some((start, end));
            }
        }
        best
    }

    /// Length of the longest end of `held` that a stop text starts with, in bytes.
    fn doubtful(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let stop = stop.as_bytes();
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&len| held.ends_with(&stop[..len])).unwrap_or(0)
        };
        self.params.stop.iter().map(longest).max().unwrap_or(0)
    }
}

/// What a token led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Text that may be shown, complete characters only; may be empty.
    pub text: String,
    /// Why the answer ended; no token may follow then.
    pub finish: Option<FinishReason>,
}

/// One sample's answer in the making.
#[derive(Clone, Debug)]
pub struct Answer {
    params: Arc<ResolvedSampling>,
    detokenizer: Detokenizer,
    checker: StopChecker,
    limit: u32,
    tokens: Vec<u32>,
    text: String,
    /// Bytes of the prompt before the answer.
    echoed: usize,
}

impl Answer {
    /// An empty answer. `room` is how many tokens the context still takes; with `max_new_tokens` it gives the limit.
    /// `prompt` is put before the answer if the parameters say `echo`; it is part of [`Self::text`], not of a step's.
    pub fn new(params: Arc<ResolvedSampling>, vocabulary: Arc<Vocabulary>, room: u32, prompt: &str) -> Self {
        let text = if params.echo { prompt.to_owned() } else { String::new() };
        Self {
            detokenizer: Detokenizer::new(vocabulary),
            checker: StopChecker::new(Arc::clone(&params)),
            limit: params.max_new_tokens.map_or(room, |max| max.min(room)),
            tokens: Vec::new(),
            echoed: text.len(),
            text,
            params,
        }
    }

    /// Takes a generated token. `complete` says that the constraint's form has ended with it
    /// ([`ConstraintState::is_finished`](super::ConstraintState::is_finished)).
    pub fn push(&mut self, token: u32, complete: bool) -> Step {
        self.tokens.push(token);
        let count = self.tokens.len() as u32;
        let armed = count >= self.params.min_new_tokens;
        if armed && self.params.ends(token) {
            // The text of an end token is cut, unless stop texts are kept.
            let last = if self.params.include_stop { self.detokenizer.push(token) } else { None };
            return self.end(FinishReason::Stop, last.unwrap_or_default(), false);
        }
        let piece = self.detokenizer.push(token).unwrap_or_default();
        if complete {
            return self.end(FinishReason::Stop, piece, armed);
        }
        if count >= self.limit {
            return self.end(FinishReason::Length, piece, armed);
        }
        let checked = self.checker.push(&piece, armed);
        self.text.push_str(&checked.text);
        Step { text: checked.text, finish: checked.stopped.then_some(FinishReason::Stop) }
    }

    /// Ends the answer early (deadline, cancelled); returns the text that was held back.
    pub fn cut(&mut self) -> String {
        // The reason is the caller's, so the one here is of no account.
        self.end(FinishReason::Cancelled, String::new(), false).text
    }

    /// The answer's text so far, with the prompt before it if it was asked for.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// As [`Self::text`], without the prompt.
    pub fn own_text(&self) -> &str {
        self.text.get(self.echoed..).unwrap_or_default()
    }

    /// The answer's tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The most tokens that the answer can have.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Ends the answer with a last piece of text; a stop text in it still counts if `armed`.
    fn end(&mut self, reason: FinishReason, mut piece: String, armed: bool) -> Step {
        piece.extend(self.detokenizer.finish());
        let mut checked = self.checker.push(&piece, armed);
        if !checked.stopped {
            checked.text.push_str(&self.checker.finish());
        }
        self.text.push_str(&checked.text);
        Step { text: checked.text, finish: Some(if checked.stopped { FinishReason::Stop } else { reason }) }
    }
}
