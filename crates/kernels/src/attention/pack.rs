//! Keys and values of a block in the layout of the tiles.
//!
//! Keys become panels `[d][PANEL]` and values rows filled up to whole vectors, as f32; or, where products take bf16,
//! panels `[d / 2][PANEL]` and rows of every two keys, as words of two bf16. What is missing is zero; for tiles, d and
//! the keys are filled up to whole ones.
#![allow(unsafe_code)] // words of either kind in one scratch space

use super::tile::LANES;
use super::{BLOCK, BLOCK_OF_TILES};
use crate::cpu::Level;
use crate::linear::Element;
use crate::linear_bf16::{TILE_K, round};
use crate::multiversion::by_level;
use crate::product::PANEL;

/// What the products take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    /// f32.
    Floats,
    /// Two bf16 at a time.
    Pairs,
    /// Tiles of bf16.
    Tiles,
}

/// How a block is packed.
#[derive(Clone, Copy)]
pub(super) struct Packing {
    /// Length of a head's vectors.
    pub(super) d: usize,
    pub(super) words: Words,
}

impl Packing {
    /// Keys of a block.
    pub(super) fn keys(self) -> usize {
        if self.words == Words::Tiles { BLOCK_OF_TILES } else { BLOCK }
    }

    /// Length of a packed row of values.
    pub(super) fn width(self) -> usize {
        self.d.next_multiple_of(LANES)
    }

    /// Words of one key or query.
    pub(super) fn depth(self) -> usize {
        match self.words {
            Words::Floats => self.d,
            Words::Pairs => self.d.div_ceil(2),
            Words::Tiles => self.d.next_multiple_of(TILE_K) / 2,
        }
    }

    /// Words of a packed block of keys, and of one of values.
    pub(super) fn sizes(self) -> (usize, usize) {
        let values = self.keys() * self.width();
        (self.keys() * self.depth(), if self.words == Words::Floats { values } else { values / 2 })
    }

    /// Packs `keys` rows that start `stride` apart.
    pub(super) fn block<T: Element>(
        self,
        level: Level,
        (k, v): (&[T], &[T]),
        (keys, stride): (usize, usize),
        k_block: &mut [f32],
        v_block: &mut [f32],
    ) {
        let (d, width) = (self.d, self.width());
        let depth = self.depth();
        let filled = width.max(2 * depth);
        let mut row = vec![0.0; 2 * filled];
        let panels = k_block.chunks_exact_mut(depth * PANEL).take(keys.div_ceil(PANEL));
        for (p, panel) in panels.enumerate() {
            let here = PANEL.min(keys - p * PANEL);
            if here < PANEL {
                panel.fill(0.0);
            }
            for j in 0..here {
                widen(&k[(p * PANEL + j) * stride..][..d], &mut row);
                if self.words != Words::Floats {
                    let (row, words) = row.split_at_mut(filled);
                    let words = &mut as_words(words)[..depth];
                    round_pairs(level, &row[..2 * depth], words);
                    for (to, from) in as_words(panel)[j..].iter_mut().step_by(PANEL).zip(words) {
                        *to = *from;
                    }
                } else {
                    for (to, from) in panel[j..].iter_mut().step_by(PANEL).zip(&row[..d]) {
                        *to = *from;
                    }
                }
            }
        }
        if self.words != Words::Floats {
            row.fill(0.0);
            let (first, second) = row[..2 * width].split_at_mut(width);
            for (j, to) in v_block.chunks_exact_mut(width).take(keys.div_ceil(2)).enumerate() {
                widen(&v[2 * j * stride..][..d], first);
                if 2 * j + 1 < keys {
                    widen(&v[(2 * j + 1) * stride..][..d], second);
                } else {
                    second.fill(0.0);
                }
                round_two(level, first, second, as_words(to));
            }
            if self.words == Words::Tiles {
                let filled = keys.next_multiple_of(TILE_K) / 2;
                v_block[keys.div_ceil(2) * width..filled * width].fill(0.0);
            }
        } else {
            for (j, to) in v_block.chunks_exact_mut(width).take(keys).enumerate() {
                widen(&v[j * stride..][..d], to);
                to[d..].fill(0.0);
            }
        }
    }
}

fn widen<T: Element>(from: &[T], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_f32();
    }
}

/// The same memory as words.
pub(super) fn as_words(floats: &mut [f32]) -> &mut [u32] {
    // SAFETY: both types have 4 bytes, the same alignment, and take any bits.
    unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), floats.len()) }
}

by_level! {
    /// Every two neighbours to a word of bf16.
    pub(super) fn round_pairs(row: &[f32], words: &mut [u32]) = round_pairs_body
}

#[inline(always)]
fn round_pairs_body<const FUSED: bool>(row: &[f32], words: &mut [u32]) {
    for (word, pair) in words.iter_mut().zip(row.chunks_exact(2)) {
        *word = round(pair[0].to_bits()) | round(pair[1].to_bits()) << 16;
    }
}

by_level! {
    /// The elements of two rows to words of bf16.
    fn round_two(first: &[f32], second: &[f32], words: &mut [u32]) = round_two_body
}

#[inline(always)]
fn round_two_body<const FUSED: bool>(first: &[f32], second: &[f32], words: &mut [u32]) {
    for ((word, first), second) in words.iter_mut().zip(first).zip(second) {
        *word = round(first.to_bits()) | round(second.to_bits()) << 16;
    }
}
