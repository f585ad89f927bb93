//! Cross-attention: ragged text queries over the keys of images, which many rows may share.

use std::ops::Range;

use super::Heads;
use super::tile::{Keys, ROWS_AND_PACK, Rows, attend};
use crate::cpu::Level;
use crate::error::{Error, Result, check_len};
use crate::linear::Element;
use crate::threads::{self, Shared};

/// Keys and values of one image, or of some of its tiles: `[tokens, kv_heads, d]` each.
#[derive(Clone, Copy, Debug)]
pub struct ImageKeys<'a, T> {
    /// Keys.
    pub k: &'a [T],
    /// Values.
    pub v: &'a [T],
}

/// Consecutive query rows that see the same images.
#[derive(Clone, Copy, Debug)]
pub struct CrossSpan<'a, T> {
    /// First row in the queries.
    pub q_start: usize,
    /// Number of rows.
    pub q_len: usize,
    /// What they see, in order; with nothing to see the result is zero.
    pub images: &'a [ImageKeys<'a, T>],
}

struct CrossRows<'a> {
    heads: &'a Heads,
    first: usize,
    kv_head: usize,
}

impl Rows for CrossRows<'_> {
    fn offset(&self, row: usize) -> usize {
        let (token, head) = (row / self.heads.group(), row % self.heads.group());
        ((self.first + token) * self.heads.query + self.kv_head * self.heads.group() + head) * self.heads.dim
    }

    fn visible(&self, _row: usize) -> usize {
        usize::MAX
    }

    fn bias(&self, _row: usize, _keys: Range<usize>) -> Option<&[f32]> {
        None
    }
}

/// Attention of ragged queries over their images' keys; every key of a span's images is seen.
///
/// `q` and `out` are `[total rows, heads, d]`; rows in no span, or in one without images, are zero in `out`.
///
/// # Errors
/// If the lengths don't fit the heads, spans overlap or reach beyond the queries.
pub fn cross_attention<T: Element>(
    q: &[f32],
    spans: &[CrossSpan<'_, T>],
    heads: &Heads,
    out: &mut [f32],
) -> Result<()> {
    cross_attention_at(Level::current(), q, spans, heads, out)
}

pub(super) fn cross_attention_at<T: Element>(
    level: Level,
    q: &[f32],
    spans: &[CrossSpan<'_, T>],
    heads: &Heads,
    out: &mut [f32],
) -> Result<()> {
    heads.check()?;
    check_len("attention output", out.len(), q.len())?;
    let rows = q.len() / heads.query_row();
    check_len("queries", q.len(), rows * heads.query_row())?;
    check_spans(rows, spans.iter().map(|s| (s.q_start, s.q_len)))?;
    out.fill(0.0);
    let per_pass = (ROWS_AND_PACK / heads.group()).max(1);
    let (mut passes, mut cost) = (Vec::new(), 0);
    for span in spans {
        let mut keys = 0;
        for image in span.images {
            keys += image.k.len();
            check_len("values of an image", image.v.len(), image.k.len())?;
            check_len("keys of an image", image.k.len() / heads.key_row() * heads.key_row(), image.k.len())?;
        }
        if keys > 0 {
            cost += span.q_len * keys * heads.group() / 20;
            for kv_head in 0..heads.kv {
                passes.extend((0..span.q_len).step_by(per_pass).map(|token| (span, kv_head, token)));
            }
        }
    }

    let shared = Shared(out.as_mut_ptr());
    threads::run(threads::for_work(cost), passes.len(), |task| {
        let (span, kv_head, token) = passes[task];
        let tokens = per_pass.min(span.q_len - token);
        let at = kv_head * heads.dim;
        let stride = heads.key_row();
        let seen = span.images.iter().filter(|image| !image.k.is_empty());
        let keys: Vec<_> = seen
            .map(|image| Keys::Rows { k: &image.k[at..], v: &image.v[at..], len: image.k.len() / stride, stride })
            .collect();
        let rows = CrossRows { heads, first: span.q_start + token, kv_head };
        // SAFETY: offsets lie in `out`, spans don't overlap (both checked), and no two passes have the same span, key
        // head and token.
        #[allow(unsafe_code)]
        unsafe {
            attend(level, heads, q, &rows, tokens * heads.group(), &keys, shared);
        }
    });
    Ok(())
}

/// Spans `(start, length)` of query rows must lie within `rows` and not overlap: each row has one writer.
pub(super) fn check_spans(rows: usize, spans: impl Iterator<Item = (usize, usize)>) -> Result<()> {
    let mut spans: Vec<_> = spans.filter(|(_, len)| *len > 0).collect();
    spans.sort_unstable();
    let mut end = 0;
    for (start, len) in spans {
        let after = start.saturating_add(len);
        if start < end {
            return Err(Error::Size { what: "start of a span of queries", got: start, rule: "after the span before" });
        }
        if after > rows {
            return Err(Error::Size { what: "end of a span of queries", got: after, rule: "within the queries" });
        }
        end = after;
    }
    Ok(())
}
