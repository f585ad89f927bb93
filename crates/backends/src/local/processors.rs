//! Processors: edits of the logits that come before any choice, greedy or not.
//!
//! All take the logits of one row, `[vocab_size]`, in place; a forbidden token gets minus infinity. Sources: the
//! classes of the same names in transformers' `generation/logits_process.py`, and vLLM for the frequency and presence
//! penalties, which transformers doesn't have. Arithmetic is in single precision, as there.

/// What the processors need to know of a row: its prompt and answer so far.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The tokens of prompt and answer, in order.
    context: Vec<u32>,
    /// How many of them are the prompt.
    prompt: usize,
    /// The different tokens of prompt and answer, in order of appearance.
    seen: Vec<u32>,
    /// A bit for each token in `seen`.
    is_seen: Vec<u64>,
    /// The different tokens of the answer and how often each is in it, in order of appearance.
    counts: Vec<(u32, u32)>,
}

impl History {
    /// The history of a row that has only its prompt yet.
    pub fn new(prompt: &[u32]) -> Self {
        let mut history = Self { prompt: prompt.len(), ..Self::default() };
        for &id in prompt {
            history.see(id);
        }
        history
    }

    /// Adds a generated token.
    pub fn push(&mut self, id: u32) {
        self.see(id);
        match self.counts.iter_mut().find(|(counted, _)| *counted == id) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((id, 1)),
        }
    }

    /// How many tokens were generated.
    pub fn generated(&self) -> usize {
        self.context.len() - self.prompt
    }

    fn see(&mut self, id: u32) {
        self.context.push(id);
        let (word, bit) = (id as usize / 64, 1 << (id % 64));
        if word >= self.is_seen.len() {
            self.is_seen.resize(word + 1, 0);
        }
        if self.is_seen[word] & bit == 0 {
            self.is_seen[word] |= bit;
            self.seen.push(id);
        }
    }
}

/// Adds to the logits of single tokens (`SequenceBiasLogitsProcessor` with sequences of one).
pub fn logit_bias(logits: &mut [f32], bias: &[(u32, f32)]) {
    for &(id, bias) in bias {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit += bias;
        }
    }
}

/// Divides positive and multiplies negative logits of tokens in prompt or answer by `penalty`, above 0
/// (`RepetitionPenaltyLogitsProcessor`). Tokens that have no logit, as `<|image|>`, are passed over.
pub fn repetition_penalty(logits: &mut [f32], history: &History, penalty: f32) {
    for &id in &history.seen {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// Takes `frequency` for each time and `presence` once from tokens in the answer; the prompt does not count (vLLM's
/// `apply_penalties`, OpenAI's definition).
pub fn frequency_and_presence(logits: &mut [f32], history: &History, frequency: f32, presence: f32) {
    for &(id, count) in &history.counts {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit -= frequency * count as f32;
            *logit -= presence;
        }
    }
}

/// Forbids the last token of each sequence where prompt and answer end with the others
/// (`NoBadWordsLogitsProcessor`).
pub fn bad_words(logits: &mut [f32], history: &History, sequences: &[Vec<u32>]) {
    for sequence in sequences {
        let Some((&last, before)) = sequence.split_last() else { continue };
        if history.context.ends_with(before)
            && let Some(logit) = logits.get_mut(last as usize)
        {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Forbids the tokens that end the answer (`MinNewTokensLengthLogitsProcessor`, before the least length is reached).
pub fn forbid(logits: &mut [f32], ids: &[u32]) {
    for &id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}
