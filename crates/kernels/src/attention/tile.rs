//! One pass: some query rows of one key head over all their keys.
#![allow(unsafe_code)] // tiles are computed through pointers, results written by several threads

use std::ops::Range;

use super::pack::{Packing, Words, as_words, round_pairs};
use super::{BLOCK, BLOCK_OF_TILES, Heads};
use crate::aligned;
use crate::cpu::Level;
use crate::exp::{LOG2_E, exp2};
use crate::linear::Element;
use crate::linear_bf16::{TILE_K, TILE_ROWS};
#[cfg(target_arch = "x86_64")]
use crate::linear_f32::TileF32;
use crate::linear_f32::tile_portable;
use crate::multiversion::by_level;
use crate::product::{PANEL, RowBlock, row_blocks};
use crate::threads::Shared;

/// Query rows of one pass over keys that were packed before: a multiple of the rows that the products take. Tiles are so
/// fast that reading the keys again would take longer than the products, if there were few.
pub(super) fn rows_of_pass(words: Words) -> usize {
    if words == Words::Tiles { 384 } else { 96 }
}

/// Query rows of one pass that packs its keys itself: enough to pay for it, few enough for the second-level cache.
pub(super) const ROWS_AND_PACK: usize = 480;

/// Query rows of a product of tiles.
const ROWS_OF_TILES: usize = 2 * TILE_ROWS;

/// Lanes over which maxima and sums are taken.
pub(super) const LANES: usize = 16;

/// Keys and values of one head.
pub(super) enum Keys<'a, T> {
    /// `len` rows that start `stride` apart.
    Rows { k: &'a [T], v: &'a [T], len: usize, stride: usize },
    /// `len` rows as [`Packing::block`] leaves them, block by block.
    Packed { k: &'a [f32], v: &'a [f32], len: usize },
}

impl<T> Keys<'_, T> {
    fn len(&self) -> usize {
        match self {
            Self::Rows { len, .. } | Self::Packed { len, .. } => *len,
        }
    }
}

/// The rows of a pass, by their number in it.
pub(super) trait Rows: Sync {
    /// Where the row's head starts in the queries and in the results.
    fn offset(&self, row: usize) -> usize;
    /// How many keys, counted over all slices, the row may see.
    fn visible(&self, row: usize) -> usize;
    /// What is added to the row's scores of keys from the first on, times log2(e), if not all of it is zero. Keys are those
    /// of a block.
    fn bias(&self, row: usize, keys: Range<usize>) -> Option<&[f32]>;
}

/// `out += p[rows, BLOCK] · v[keys, width]` on top of `out * factor`:
/// `(p, v, keys, factors, out, width, rows)`.
pub(crate) type TileValues = unsafe fn(*const f32, *const f32, usize, *const f32, *mut f32, usize, usize);

/// What is known of some rows so far.
struct Running<'a> {
    /// What scores are measured from: at most a little below the largest.
    bases: &'a mut [f32],
    /// Sums of weights, in [`LANES`] parts a row.
    totals: &'a mut [f32],
    /// What the last block multiplies earlier sums with.
    factors: &'a mut [f32],
    /// Sums of weighted values, [`Packing::width`] a row.
    sums: &'a mut [f32],
}

/// Computes `count` rows and writes them to `out`.
///
/// # Safety
/// `out` has room at `rows.offset(r) .. + heads.dim` for every row below `count`, and nobody else uses those places.
pub(super) unsafe fn attend<T: Element, R: Rows>(
    level: Level,
    heads: &Heads,
    q: &[f32],
    rows: &R,
    count: usize,
    slices: &[Keys<'_, T>],
    out: Shared<f32>,
) {
    let d = heads.dim;
    let packing = Packing { d, words: heads.words(level) };
    let (depth, width, (k_size, v_size)) = (packing.depth(), packing.width(), packing.sizes());
    let (tiles, block_keys) = (packing.words == Words::Tiles, packing.keys());
    // Tiles are computed whole: rows up to the next one are there, of any content.
    let all = if tiles { count.next_multiple_of(TILE_ROWS) } else { count };
    let blocks = match packing.words {
        Words::Tiles => row_blocks(count, ROWS_OF_TILES, TILE_ROWS),
        _ => row_blocks(count, if level >= Level::Avx512 { 12 } else { 6 }, 1),
    };
    // Blocks whose scores and weights are there at a time.
    let (together, area) = match tiles {
        true => (1, ROWS_OF_TILES.min(all) * block_keys),
        false => (blocks.len().max(1), all * block_keys),
    };
    let sizes = [all * depth, k_size, v_size, area, area / 2, all * width, count, count * LANES, count];
    // SAFETY: words are for tiles only at a level that the machine has.
    #[cfg(target_arch = "x86_64")]
    let _tiles = tiles.then(|| unsafe { crate::x86::amx::Tiles::set_up() });
    aligned::with_parts(sizes, |parts| {
        let [queries, k_space, v_space, scores, weights, sums, bases, totals, factors] = parts;
        pack_queries(level, heads, packing, q, rows, &blocks, queries);
        sums.fill(0.0);
        bases.fill(f32::MIN);
        totals.fill(0.0);

        let furthest = (0..count).map(|r| rows.visible(r)).max().unwrap_or(0);
        let mut before = 0;
        for slice in slices {
            let len = slice.len().min(furthest.saturating_sub(before));
            for first in (0..len).step_by(block_keys) {
                let keys = block_keys.min(len - first);
                let (k_block, v_block) = match slice {
                    Keys::Rows { k, v, stride, .. } => {
                        let at = first * stride;
                        packing.block(level, (&k[at..], &v[at..]), (keys, *stride), k_space, v_space);
                        (&*k_space, &*v_space)
                    }
                    Keys::Packed { k, v, .. } => {
                        let block = first / block_keys;
                        (&k[block * k_size..], &v[block * v_size..])
                    }
                };
                for blocks in blocks.chunks(together) {
                    let start = blocks.first().map_or(0, |block| block.start);
                    let end = blocks.last().map_or(0, |block| block.start + block.rows);
                    for block in blocks {
                        for panel in 0..keys.div_ceil(PANEL) {
                            // SAFETY: the parts were sized above for these counts; the level is the machine's at most.
                            unsafe {
                                let a = queries.as_ptr().add(block.start * if tiles { TILE_K / 2 } else { depth });
                                let w = k_block.as_ptr().add(panel * depth * PANEL);
                                let tile = scores.as_mut_ptr().add((block.start - start) * block_keys + panel * PANEL);
                                score_tile(level, packing, (a, all), w, block.rows, tile);
                            }
                        }
                    }
                    let scores = &mut scores[..(end - start) * block_keys];
                    let of_block = before + first..before + first + block_keys;
                    let is_plain = |r| rows.bias(r, of_block.clone()).is_none() && rows.visible(r) >= of_block.end;
                    if keys < block_keys || !(start..end).all(is_plain) {
                        adjust(level, scores, start, (of_block, keys), rows);
                    }
                    let running = Running {
                        bases: &mut bases[start..end],
                        totals: &mut totals[start * LANES..end * LANES],
                        factors: &mut factors[start..end],
                        sums: &mut sums[start * width..],
                    };
                    add_values(level, packing, scores, as_words(weights), (v_block, keys), running);
                }
            }
            before += slice.len();
        }
        for r in 0..count {
            let lanes = std::array::from_fn(|lane| totals[r * LANES + lane]);
            let total = fold(lanes, |a, b| a + b);
            // A row that sees nothing is zero.
            let inverse = if total > 0.0 { total.recip() } else { 0.0 };
            // SAFETY: by the contract of this function.
            let to = unsafe { std::slice::from_raw_parts_mut(out.get().add(rows.offset(r)), d) };
            for (to, sum) in to.iter_mut().zip(&sums[r * width..]) {
                // Adding 0 turns −0 into 0: exact zeros of unseen keys may have changed the sign of a zero.
                *to = sum * inverse + 0.0;
            }
        }
    });
}

/// Scores of one block of keys to weights, and the values by these weights onto the sums.
fn add_values(
    level: Level,
    packing: Packing,
    scores: &mut [f32],
    weights: &mut [u32],
    (v, keys): (&[f32], usize),
    running: Running<'_>,
) {
    let Running { bases, totals, factors, sums } = running;
    let (rows, width) = (bases.len(), packing.width());
    // SAFETY: all has the size that `attend` gave it; words are for what the machine has.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if packing.words != Words::Floats {
            use crate::x86::attention::{scale_rows, softmax_step_bf16, values_bf16};
            let v = v.as_ptr().cast();
            if packing.words == Words::Tiles {
                if softmax_step_bf16::<{ BLOCK_OF_TILES / 16 }>(scores, weights, bases, totals, factors) {
                    scale_rows(&mut sums[..rows * width], factors);
                }
                return value_tiles(weights.as_ptr(), v, keys, sums.as_mut_ptr(), width, rows);
            }
            softmax_step_bf16::<{ BLOCK / 16 }>(scores, weights, bases, totals, factors);
            return values_bf16(weights.as_ptr(), v, keys, factors.as_ptr(), sums.as_mut_ptr(), width, rows);
        }
        let _ = weights;
        softmax_step(level, scores, bases, totals, factors);
        tile_values(level)(scores.as_ptr(), v.as_ptr(), keys, factors.as_ptr(), sums.as_mut_ptr(), width, rows);
    }
}

by_level! {
    /// Adds the rows' biases to a block of scores, and hides what a row may not see. `first_row` is the number of the first
    /// row, `keys` are the block's, and how many of them are there.
    fn adjust(scores: &mut [f32], first_row: usize, keys: (Range<usize>, usize), rows: &dyn Rows) = adjust_body
}

#[inline(always)]
fn adjust_body<const FUSED: bool>(
    scores: &mut [f32],
    first_row: usize,
    (of_block, keys): (Range<usize>, usize),
    rows: &dyn Rows,
) {
    for (r, row) in scores.chunks_exact_mut(of_block.len()).enumerate() {
        if let Some(bias) = rows.bias(first_row + r, of_block.clone()) {
            for (score, bias) in row.iter_mut().zip(bias) {
                *score += bias;
            }
        }
        let seen = rows.visible(first_row + r).saturating_sub(of_block.start).min(keys);
        row[seen..].fill(f32::NEG_INFINITY);
    }
}

/// Queries times scale and log2(e), interleaved by row block; for tiles `[d / 32][rows][32]` over all rows.
fn pack_queries<R: Rows>(
    level: Level,
    heads: &Heads,
    packing: Packing,
    q: &[f32],
    rows: &R,
    blocks: &[RowBlock],
    packed: &mut [f32],
) {
    let (d, depth) = (heads.dim, packing.depth());
    let factor = heads.scale * LOG2_E;
    let mut row = vec![0.0; d.next_multiple_of(2)];
    let mut words = vec![0; depth];
    let all = packed.len() / depth;
    for (block, r) in blocks.iter().flat_map(|block| (0..block.rows).map(move |r| (block, r))) {
        for (row, q) in row.iter_mut().zip(&q[rows.offset(block.start + r)..][..d]) {
            *row = q * factor;
        }
        if packing.words != Words::Floats {
            round_pairs(level, &row, &mut words);
        }
        let of_block = block.start * depth..(block.start + block.rows) * depth;
        match packing.words {
            Words::Floats => {
                for (to, from) in packed[of_block][r..].iter_mut().step_by(block.rows).zip(&row) {
                    *to = *from;
                }
            }
            Words::Pairs => {
                for (to, from) in as_words(&mut packed[of_block])[r..].iter_mut().step_by(block.rows).zip(&words) {
                    *to = *from;
                }
            }
            Words::Tiles => {
                for (step, from) in words.chunks_exact(TILE_K / 2).enumerate() {
                    let at = (step * all + block.start + r) * TILE_K / 2;
                    as_words(packed)[at..][..TILE_K / 2].copy_from_slice(from);
                }
            }
        }
    }
}

/// Scores of up to `max_rows` rows and one panel of keys.
///
/// # Safety
/// `a` has `rows x depth` words (for tiles, one step of `all` rows after the other), `w` `depth x PANEL`, `tile` rows of
/// PANEL floats, the keys of a block apart.
unsafe fn score_tile(
    level: Level,
    packing: Packing,
    (a, all): (*const f32, usize),
    w: *const f32,
    rows: usize,
    tile: *mut f32,
) {
    let next = w.wrapping_add(packing.depth() * PANEL);
    // SAFETY: by the contract of this function.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            if packing.words == Words::Tiles {
                use crate::x86::amx::{Operands, multiply};
                let operands = Operands {
                    a: a.cast(),
                    a_row: 2 * TILE_K,
                    a_step: 2 * TILE_K * all,
                    b: w.cast(),
                    b_row: 4 * PANEL,
                    b_step: 2 * TILE_K * PANEL,
                    steps: packing.depth() / (TILE_K / 2),
                };
                return multiply(operands, (rows, PANEL), tile, 4 * BLOCK_OF_TILES, true, std::ptr::null());
            }
            if packing.words == Words::Pairs {
                let run = crate::x86::avx512::TILES_BF16[rows - 1];
                return run(a.cast(), w.cast(), packing.depth(), tile, BLOCK, true, next.cast());
            }
            let tiles: &[TileF32] = if level >= Level::Avx512 {
                &crate::x86::avx512::TILES_F32
            } else if level >= Level::Avx2 {
                &crate::x86::avx2::TILES_F32
            } else {
                &[]
            };
            if let Some(run) = tiles.get(rows - 1) {
                return run(a, w, packing.d, tile, BLOCK, true, next.cast());
            }
        }
        let _ = (level, all, next);
        tile_portable(a, w, rows, packing.d, tile, BLOCK, true);
    }
}

/// `sums += p · v`, in tiles.
///
/// # Safety
/// `p` has BLOCK_OF_TILES / 2 words for each row, `v` `keys / 2 x width` filled up to whole steps, `sums` `width` floats a
/// row, all rows filled up to whole tiles; width divides by LANES; this thread has AMX's registers set up.
#[cfg(target_arch = "x86_64")]
unsafe fn value_tiles(p: *const u32, v: *const u32, keys: usize, sums: *mut f32, width: usize, rows: usize) {
    use crate::x86::amx::{Operands, multiply};
    for column in (0..width).step_by(PANEL) {
        // SAFETY: by the contract of this function.
        unsafe {
            let operands = Operands {
                a: p.cast(),
                a_row: 2 * BLOCK_OF_TILES,
                a_step: 2 * TILE_K,
                b: v.add(column).cast(),
                b_row: 4 * width,
                b_step: 2 * TILE_K * width,
                steps: keys.div_ceil(TILE_K),
            };
            let columns = PANEL.min(width - column);
            multiply(operands, (rows, columns), sums.add(column), 4 * width, false, std::ptr::null());
        }
    }
}

fn tile_values(level: Level) -> TileValues {
    #[cfg(target_arch = "x86_64")]
    {
        if level >= Level::Avx512 {
            return crate::x86::attention::values_avx512;
        }
        if level >= Level::Avx2 {
            return crate::x86::attention::values_avx2;
        }
    }
    let _ = level;
    values_portable
}

/// # Safety
/// `p` has `rows x BLOCK` floats, `v` `keys x width`, `factors` rows, `out` `rows x width`; width divides by LANES.
unsafe fn values_portable(
    p: *const f32,
    v: *const f32,
    keys: usize,
    factors: *const f32,
    out: *mut f32,
    width: usize,
    rows: usize,
) {
    // SAFETY: by the contract of this function.
    let (p, v, factors, out) = unsafe {
        (
            std::slice::from_raw_parts(p, rows * BLOCK),
            std::slice::from_raw_parts(v, keys * width),
            std::slice::from_raw_parts(factors, rows),
            std::slice::from_raw_parts_mut(out, rows * width),
        )
    };
    for ((p, out), factor) in p.chunks_exact(BLOCK).zip(out.chunks_exact_mut(width)).zip(factors) {
        for (lane, out) in out.chunks_exact_mut(LANES).enumerate() {
            let mut sums = [0.0f32; LANES];
            for (p, v) in p.iter().zip(v.chunks_exact(width)) {
                for (sum, v) in sums.iter_mut().zip(&v[lane * LANES..(lane + 1) * LANES]) {
                    *sum += p * v;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = *out * factor + sum;
            }
        }
    }
}

by_level! {
    /// Scores of one block to weights: `p = 2^(s − base)`, the base being the row's largest score so far, with the totals
    /// brought up to date, and the factor for what the row has summed before.
    fn softmax_step(scores: &mut [f32], bases: &mut [f32], totals: &mut [f32], factors: &mut [f32]) = softmax_body
}

#[inline(always)]
fn softmax_body<const FUSED: bool>(scores: &mut [f32], bases: &mut [f32], totals: &mut [f32], factors: &mut [f32]) {
    let state = bases.iter_mut().zip(totals.as_chunks_mut::<LANES>().0).zip(factors);
    for (row, ((base, totals), factor)) in scores.chunks_exact_mut(BLOCK).zip(state) {
        let mut lanes = [*base; LANES];
        for chunk in row.chunks_exact(LANES) {
            for (lane, score) in lanes.iter_mut().zip(chunk) {
                *lane = if *score > *lane { *score } else { *lane };
            }
        }
        let highest = fold(lanes, |a, b| if a > b { a } else { b });
        *factor = exp2::<FUSED>(*base - highest);
        *base = highest;
        totals.iter_mut().for_each(|total| *total *= *factor);
        for chunk in row.chunks_exact_mut(LANES) {
            for (total, score) in totals.iter_mut().zip(chunk) {
                *score = exp2::<FUSED>(*score - highest);
                *total += *score;
            }
        }
    }
}

/// Folds lanes by halves, always in the same order.
#[inline(always)]
fn fold(lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}
