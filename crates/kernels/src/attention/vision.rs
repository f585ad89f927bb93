//! Attention of one image's tokens among themselves.

use std::ops::Range;

use super::Heads;
use super::pack::Packing;
use super::tile::{Keys, Rows, attend, rows_of_pass};
use crate::aligned;
use crate::cpu::Level;
use crate::error::{Error, Result, check_len};
use crate::exp::LOG2_E;
use crate::threads::{self, Shared};

struct VisionRows<'a> {
    heads: &'a Heads,
    first: usize,
    head: usize,
    tokens: usize,
    pad: Option<&'a [bool]>,
    bias: &'a Biases,
    bias_of_pad: &'a Biases,
}

/// What is added to scores, in the units of exp2.
struct Biases {
    /// One for each key, to the end of the last block.
    of_keys: Vec<f32>,
    /// The first that is not zero.
    first: usize,
}

impl Biases {
    fn new(of_keys: Vec<f32>) -> Self {
        let first = of_keys.iter().position(|bias| *bias != 0.0).unwrap_or(of_keys.len());
        Self { of_keys, first }
    }
}

impl Rows for VisionRows<'_> {
    fn offset(&self, row: usize) -> usize {
        ((self.first + row) * self.heads.query + self.head) * self.heads.dim
    }

    fn visible(&self, _row: usize) -> usize {
        self.tokens
    }

    fn bias(&self, row: usize, keys: Range<usize>) -> Option<&[f32]> {
        let biases = match self.pad {
            Some(pad) if pad[self.first + row] => self.bias_of_pad,
            _ => self.bias,
        };
        (keys.end > biases.first).then(|| &biases.of_keys[keys])
    }
}

/// Every token sees every token, except that padding does not see padding.
///
/// `q`, `k`, `v` and `out` are `[tokens, heads, d]`. `key_bias`, if given, has one value per token that is added to the
/// scaled scores of that token as a key (the logarithm of a count where one token stands for several equal ones).
/// `pad`, if given, marks padding: query i sees key j unless both are marked.
///
/// # Errors
/// If the lengths don't fit the heads and each other, or `heads` has fewer key than query heads.
#[allow(clippy::too_many_arguments)] // the tensors of the operation
pub fn vision_attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    heads: &Heads,
    key_bias: Option<&[f32]>,
    pad: Option<&[bool]>,
    out: &mut [f32],
) -> Result<()> {
    vision_attention_at(Level::current(), q, k, v, heads, key_bias, pad, out)
}

#[allow(clippy::too_many_arguments)] // as above
pub(super) fn vision_attention_at(
    level: Level,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    heads: &Heads,
    key_bias: Option<&[f32]>,
    pad: Option<&[bool]>,
    out: &mut [f32],
) -> Result<()> {
    heads.check()?;
    if heads.query != heads.kv {
        return Err(Error::Size { what: "key heads", got: heads.kv, rule: "the number of query heads" });
    }
    let tokens = q.len() / heads.query_row();
    check_len("queries", q.len(), tokens * heads.query_row())?;
    check_len("keys", k.len(), q.len())?;
    check_len("values", v.len(), q.len())?;
    check_len("attention output", out.len(), q.len())?;
    if let Some(bias) = key_bias {
        check_len("key bias", bias.len(), tokens)?;
    }
    if let Some(pad) = pad {
        check_len("pad marks", pad.len(), tokens)?;
    }

    let packing = Packing { d: heads.dim, words: heads.words(level) };
    let block_keys = packing.keys();
    // For ordinary and for padding queries, filled up to whole blocks.
    let padded = tokens.next_multiple_of(block_keys);
    let mut bias: Vec<f32> = key_bias.unwrap_or_default().iter().map(|bias| bias * LOG2_E).collect();
    bias.resize(padded, 0.0);
    let mut bias_of_pad = bias.clone();
    for (bias, _) in bias_of_pad.iter_mut().zip(pad.unwrap_or_default()).filter(|(_, pad)| **pad) {
        *bias = f32::NEG_INFINITY;
    }
    let (bias, bias_of_pad) = (Biases::new(bias), Biases::new(bias_of_pad));

    // Keys are packed once for all passes, block by block over all heads, as they lie in memory.
    let (k_size, v_size) = packing.sizes();
    let blocks = tokens.div_ceil(block_keys);
    let head_size = blocks * (k_size + v_size);
    let threads = threads::for_work(2 * tokens * tokens * heads.query_row() / 40);
    aligned::with_scratch(heads.query * head_size * size_of::<f32>(), |scratch| {
        let packed = scratch.as_mut_slice::<f32>();
        let shared = Shared(packed.as_mut_ptr());
        threads::run(threads, blocks, |block| {
            let first = block * block_keys;
            let keys = block_keys.min(tokens - first);
            for head in 0..heads.query {
                let at = first * heads.key_row() + head * heads.dim;
                let base = head * head_size;
                // SAFETY: the scratch space was sized for all heads and blocks; each block is packed by one task.
                #[allow(unsafe_code)]
                let (k_block, v_block) = unsafe {
                    let k_at = shared.get().add(base + block * k_size);
                    let v_at = shared.get().add(base + blocks * k_size + block * v_size);
                    (std::slice::from_raw_parts_mut(k_at, k_size), std::slice::from_raw_parts_mut(v_at, v_size))
                };
                packing.block(level, (&k[at..], &v[at..]), (keys, heads.key_row()), k_block, v_block);
            }
        });

        let rows_of_pass = rows_of_pass(packing.words);
        let passes = tokens.div_ceil(rows_of_pass);
        let shared = Shared(out.as_mut_ptr());
        threads::run(threads, passes * heads.query, |task| {
            let (head, first) = (task / passes, task % passes * rows_of_pass);
            let rows = VisionRows { heads, first, head, tokens, pad, bias: &bias, bias_of_pad: &bias_of_pad };
            let (k, v) = packed[head * head_size..(head + 1) * head_size].split_at(blocks * k_size);
            let keys: Keys<'_, f32> = Keys::Packed { k, v, len: tokens };
            let count = rows_of_pass.min(tokens - first);
            // SAFETY: offsets lie in `out`, whose length was checked; no two tasks have the same head and token.
            #[allow(unsafe_code)]
            unsafe {
                attend(level, heads, q, &rows, count, &[keys], shared);
            }
        });
    });
    Ok(())
}
