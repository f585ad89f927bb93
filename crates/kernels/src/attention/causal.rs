//! Self-attention of text: ragged sequences, each over its own store of keys and values.

use std::ops::Range;

use super::Heads;
use super::tile::{Keys, ROWS_AND_PACK, Rows, attend};
use crate::cpu::Level;
use crate::error::{Result, check_len};
use crate::linear::Element;
use crate::threads::{self, Shared};

/// One sequence of a step: its new tokens in the flat queries, and all its keys up to the last of them.
#[derive(Clone, Copy, Debug)]
pub struct CausalSequence<'a, T> {
    /// First of its rows in the queries.
    pub q_start: usize,
    /// Number of its rows: tokens computed in this step.
    pub q_len: usize,
    /// Tokens that came before them. New token i sees keys `0 ..= past_len + i`.
    pub past_len: usize,
    /// Keys `[past_len + q_len, kv_heads, d]` or longer; what is beyond is not read.
    pub k: &'a [T],
    /// Values, laid out as the keys.
    pub v: &'a [T],
}

struct CausalRows<'a> {
    heads: &'a Heads,
    /// First query row and how many keys it sees.
    first: usize,
    visible: usize,
    kv_head: usize,
}

impl Rows for CausalRows<'_> {
    fn offset(&self, row: usize) -> usize {
        let (token, head) = (row / self.heads.group(), row % self.heads.group());
        ((self.first + token) * self.heads.query + self.kv_head * self.heads.group() + head) * self.heads.dim
    }

    fn visible(&self, row: usize) -> usize {
        self.visible + row / self.heads.group()
    }

    fn bias(&self, _row: usize, _keys: Range<usize>) -> Option<&[f32]> {
        None
    }
}

/// Causal attention of several sequences in one call, prefill and decode mixed.
///
/// `q` and `out` are `[total rows, heads, d]`; rows that belong to no sequence are zero in `out`.
///
/// # Errors
/// If the lengths don't fit the heads, or a sequence reaches beyond the queries or its keys.
pub fn causal_attention<T: Element>(
    q: &[f32],
    sequences: &[CausalSequence<'_, T>],
    heads: &Heads,
    out: &mut [f32],
) -> Result<()> {
    causal_attention_at(Level::current(), q, sequences, heads, out)
}

pub(super) fn causal_attention_at<T: Element>(
    level: Level,
    q: &[f32],
    sequences: &[CausalSequence<'_, T>],
    heads: &Heads,
    out: &mut [f32],
) -> Result<()> {
    heads.check()?;
    check_len("attention output", out.len(), q.len())?;
    let rows = q.len() / heads.query_row();
    check_len("queries", q.len(), rows * heads.query_row())?;
    super::cross::check_spans(rows, sequences.iter().map(|s| (s.q_start, s.q_len)))?;
    out.fill(0.0);
    let per_pass = (ROWS_AND_PACK / heads.group()).max(1);
    let (mut passes, mut cost) = (Vec::new(), 0);
    for sequence in sequences {
        let keys = (sequence.past_len + sequence.q_len) * heads.key_row();
        check_len("keys of a sequence", sequence.k.len().min(keys), keys)?;
        check_len("values of a sequence", sequence.v.len().min(keys), keys)?;
        cost += sequence.q_len * keys * heads.group() / 20;
        for kv_head in 0..heads.kv {
            passes.extend((0..sequence.q_len).step_by(per_pass).map(|token| (sequence, kv_head, token)));
        }
    }
    // The longest first, so that no thread is left with one at the end.
    passes.sort_by_key(|(sequence, _, token)| std::cmp::Reverse(sequence.past_len + token));

    let shared = Shared(out.as_mut_ptr());
    threads::run(threads::for_work(cost), passes.len(), |task| {
        let (sequence, kv_head, token) = passes[task];
        let tokens = per_pass.min(sequence.q_len - token);
        let rows =
            CausalRows { heads, first: sequence.q_start + token, visible: sequence.past_len + token + 1, kv_head };
        let at = kv_head * heads.dim;
        let keys = Keys::Rows {
            k: &sequence.k[at..],
            v: &sequence.v[at..],
            len: sequence.past_len + sequence.q_len,
            stride: heads.key_row(),
        };
        // SAFETY: offsets lie in `out`, sequences don't overlap (both checked), and no two passes have the same
        // sequence, key head and token.
        #[allow(unsafe_code)]
        unsafe {
            attend(level, heads, q, &rows, tokens * heads.group(), &[keys], shared);
        }
    });
    Ok(())
}
