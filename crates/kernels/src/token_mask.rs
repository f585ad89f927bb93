//! Forbidding most of a vocabulary at once: sets of tokens as bits, 32 to a word, the lowest bit first.

use crate::cpu::Level;
use crate::multiversion::by_level;

/// How many tokens a set has.
#[must_use]
pub fn count(allowed: &[u32]) -> usize {
    let mut total = 0;
    count_ones(Level::current(), allowed, &mut total);
    total
}

by_level! { fn count_ones(words: &[u32], total: &mut usize) = count_ones_body }

#[inline(always)]
fn count_ones_body<const FUSED: bool>(words: &[u32], total: &mut usize) {
    *total = words.iter().map(|word| word.count_ones()).sum::<u32>() as usize;
}

/// Sets the logits of all tokens outside the set to minus infinity; logits beyond the set's words are left alone.
pub fn forbid_others(logits: &mut [f32], allowed: &[u32]) {
    forbid(Level::current(), logits, allowed);
}

by_level! { fn forbid(logits: &mut [f32], allowed: &[u32]) = forbid_body }

#[inline(always)]
fn forbid_body<const FUSED: bool>(logits: &mut [f32], allowed: &[u32]) {
    let (chunks, rest) = logits.as_chunks_mut::<32>();
    for (logits, &word) in chunks.iter_mut().zip(allowed) {
        for (bit, logit) in logits.iter_mut().enumerate() {
            *logit = if word & (1 << bit) != 0 { *logit } else { f32::NEG_INFINITY };
        }
    }
    if let Some(&word) = allowed.get(chunks.len()) {
        for (bit, logit) in rest.iter_mut().enumerate() {
            *logit = if word & (1 << bit) != 0 { *logit } else { f32::NEG_INFINITY };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::tests::noise;

    #[test]
    fn every_level_forbids_what_is_not_in_the_set() {
        for len in [0, 1, 31, 32, 33, 1000, 4096] {
            let logits = noise(len, 1);
            let words: Vec<u32> =
                noise(len.div_ceil(32), 2).iter().map(|v| v.to_bits().wrapping_mul(0x9E37_79B9)).collect();
            let is_in = |id: usize| words[id / 32] >> (id % 32) & 1 == 1;
            for level in Level::available() {
                let mut found = logits.clone();
                forbid(level, &mut found, &words);
                for (id, (found, logit)) in found.iter().zip(&logits).enumerate() {
                    assert_eq!(*found, if is_in(id) { *logit } else { f32::NEG_INFINITY }, "{level:?} {id} of {len}");
                }
                let mut total = 0;
                count_ones(level, &words, &mut total);
                assert_eq!(total, words.iter().map(|word| word.count_ones() as usize).sum::<usize>());
            }
        }
        let mut beyond = [1.0; 40];
        forbid_others(&mut beyond, &[u32::MAX]);
        assert_eq!(beyond, [1.0; 40]);
        assert_eq!(count(&[7, 0, 1 << 31]), 4);
    }
}
