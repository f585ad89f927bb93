//! Activations as the products of quantised weights want them: 8 bits in groups of 32, rows of a block interleaved.
//!
//! A group of R rows is `[8][R][4]` numbers, then of each row `e = max|x| / 127`, `−zero·Σq` and `e·Σq`. Numbers are
//! rounded to the nearest, ties to even. Every level gives the same bits.

use crate::cpu::Level;
use crate::quant::GROUP;

/// Bytes of a packed row for one group: 32 numbers, `e`, what the dot product starts from, and `e·Σq`.
pub(crate) const ROW_GROUP: usize = GROUP + 12;

/// Adding it moves a small number's nearest whole number into the lowest bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// Quantises `rows` rows of `k` numbers; `zero` is what the weights' stored numbers have added.
///
/// A row with a NaN or an infinity in a group gets NaN as the group's scale, so that it does not pass unseen.
pub(crate) fn quantize_rows(level: Level, x: &[f32], (rows, k): (usize, usize), zero: i32, packed: &mut [u8]) {
    for (r, row) in x.chunks_exact(k).enumerate() {
        let (whole, rest) = row.as_chunks::<GROUP>();
        let (mut packed, after) = packed.split_at_mut(whole.len() * ROW_GROUP * rows);
        run(level, whole, (r, rows), zero, packed);
        // The last group is filled up with zeros, as are those that fill up a block.
        packed = after;
        let mut last = [0.0; GROUP];
        last[..rest.len()].copy_from_slice(rest);
        for group in packed.chunks_exact_mut(ROW_GROUP * rows) {
            run(level, &[last], (r, rows), zero, group);
            last = [0.0; GROUP];
        }
    }
}

#[allow(unsafe_code)] // calls of what was compiled for the machine's instructions
fn run(level: Level, groups: &[[f32; GROUP]], place: (usize, usize), zero: i32, packed: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        let level = level.min(Level::of_machine());
        if level >= Level::Avx512 {
            // SAFETY: the machine has this level's instructions.
            return unsafe { crate::x86::quantize_rows::avx512(groups, place, zero, packed) };
        }
        if level >= Level::Avx2 {
            // SAFETY: as above.
            return unsafe { crate::x86::quantize_rows::avx2(groups, place, zero, packed) };
        }
    }
    let _ = level;
    portable(groups, place, zero, packed);
}

/// What a group's numbers are multiplied by, from its largest magnitude.
#[inline(always)]
pub(crate) fn inverse(largest: f32) -> f32 {
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    // 127 / largest overflows for subnormal groups: they are nothing next to the others.
    if inverse < f32::INFINITY { inverse } else { 0.0 }
}

/// Writes a quantised group as row `r` of `rows`.
#[inline(always)]
pub(crate) fn put(
    packed: &mut [u8],
    (r, rows): (usize, usize),
    q: &[[u8; 4]; GROUP / 4],
    (scale, sum, zero): (f32, i32, i32),
) {
    let (words, _) = packed.as_chunks_mut::<4>();
    for (run, q) in words.chunks_exact_mut(rows).zip(q) {
        run[r] = *q;
    }
    let tail = &mut words[GROUP / 4 * rows..][..3 * rows];
    tail[r] = scale.to_ne_bytes();
    tail[rows + r] = zero.wrapping_mul(sum).wrapping_neg().to_ne_bytes();
    tail[2 * rows + r] = (scale * sum as f32).to_ne_bytes();
}

fn portable(groups: &[[f32; GROUP]], place: (usize, usize), zero: i32, packed: &mut [u8]) {
    for (values, packed) in groups.iter().zip(packed.chunks_exact_mut(ROW_GROUP * place.1)) {
        let largest = values.iter().fold(0.0, |a: f32, b| if b.abs() > a { b.abs() } else { a });
        let inverse = inverse(largest);
        let finite = values.iter().all(|v| v.is_finite());
        let scale = if finite { largest / 127.0 } else { f32::NAN };
        let mut q = [[0; 4]; GROUP / 4];
        let mut sum = 0i32;
        for (q, value) in q.as_flattened_mut().iter_mut().zip(values) {
            let whole = (value * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
            sum = sum.wrapping_add(whole.cast_signed());
            *q = whole as u8;
        }
        put(packed, place, &q, (scale, sum, zero));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::tests::noise;

    #[test]
    fn every_level_gives_the_same_bits() {
        for (rows, k) in [(1, 32), (1, 1), (2, 100), (3, 1024), (5, 31), (6, 4096), (4, 65)] {
            let mut x: Vec<f32> = noise(rows * k, 1).iter().map(|v| v * 9.0).collect();
            // Ties, zeros of both signs, subnormal numbers.
            for (i, v) in x.iter_mut().enumerate().filter(|(i, _)| i / 32 % 5 == 3) {
                *v = [127.0, 0.5, -1.5, -0.0, 2.5][i % 5];
            }
            x.iter_mut().take(7).for_each(|v| *v *= 1e-44);
            // Room for the groups that fill up a block of 256.
            let bytes = k.div_ceil(256) * 8 * ROW_GROUP * rows;
            let all = |level| {
                let mut packed = vec![0xAB; bytes];
                quantize_rows(level, &x, (rows, k), 128, &mut packed);
                packed
            };
            let want = all(Level::Portable);
            for level in Level::available() {
                assert_eq!(all(level), want, "{level:?} {rows} x {k}");
            }
        }
    }
}
