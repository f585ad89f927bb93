//! Attention by tiles with a running softmax: scores of a block of query rows and a block of `BLOCK` keys at a
//! time, no score matrix, no mask tensor.
//!
//! A query row's result is a function of that row and its keys alone. Key blocks start at key 0 of their slice
//! whatever the call holds, the maximum and the sum of a block are taken over fixed lanes, and a key that a row may not
//! see adds exact zeros, so it does not matter which other rows share the pass.
//!
//! Layouts: queries and results `[rows, heads, d]`, keys and values `[keys, kv_heads, d]`, row-major. Queries are f32;
//! keys and values may be f32, bf16 or f16.

mod causal;
mod cross;
mod pack;
pub(crate) mod tile;
mod vision;

pub use causal::{CausalSequence, causal_attention};
pub use cross::{CrossSpan, ImageKeys, cross_attention};
pub use vision::vision_attention;

/// Keys in one block.
pub(crate) const BLOCK: usize = 64;

/// Keys in one block of tiles, whose sums are loaded and stored for each.
pub(crate) const BLOCK_OF_TILES: usize = 128;

/// How precise the products inside attention are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Inside {
    /// All in f32.
    #[default]
    F32,
    /// Queries, keys, values and softmax weights rounded to bf16 where the CPU multiplies bf16 (elsewhere as
    /// [`Inside::F32`]); scores, maxima and sums stay in f32.
    Bf16,
}

/// Heads and what a head's scores are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; query heads `i * query / kv ..` share key head `i`.
    pub kv: usize,
    /// Length of a head's vectors.
    pub dim: usize,
    /// Factor of the scores, usually `dim^-0.5`.
    pub scale: f32,
    /// Precision of the products.
    pub inside: Inside,
}

impl Heads {
    /// As many key heads as query heads, scores times `dim^-0.5`.
    #[must_use]
    pub fn full(heads: usize, dim: usize) -> Self {
        Self::grouped(heads, heads, dim)
    }

    /// `kv` key heads for `query` query heads, scores times `dim^-0.5`.
    #[must_use]
    pub fn grouped(query: usize, kv: usize, dim: usize) -> Self {
        Self { query, kv, dim, scale: (dim as f32).sqrt().recip(), inside: Inside::F32 }
    }

    /// The same with another precision.
    #[must_use]
    pub fn inside(self, inside: Inside) -> Self {
        Self { inside, ..self }
    }

    /// What the products of a level take.
    fn words(&self, level: crate::cpu::Level) -> pack::Words {
        use crate::cpu::Level;
        match (self.inside, level) {
            (Inside::Bf16, Level::Amx) => pack::Words::Tiles,
            (Inside::Bf16, Level::Avx512Bf16) => pack::Words::Pairs,
            _ => pack::Words::Floats,
        }
    }

    fn check(&self) -> crate::Result<()> {
        use crate::Error::Size;
        if self.dim == 0 {
            return Err(Size { what: "head dimension", got: 0, rule: "at least 1" });
        }
        if self.kv == 0 || !self.query.is_multiple_of(self.kv) {
            return Err(Size { what: "key heads", got: self.kv, rule: "a divisor of the query heads" });
        }
        Ok(())
    }

    fn group(&self) -> usize {
        self.query / self.kv
    }

    pub(crate) fn query_row(&self) -> usize {
        self.query * self.dim
    }

    fn key_row(&self) -> usize {
        self.kv * self.dim
    }
}

#[cfg(test)]
mod tests;
