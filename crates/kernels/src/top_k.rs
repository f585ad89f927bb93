//! The largest of many logits without sorting them all.

use std::cmp::Ordering;

/// Logits whose maximum is compared before any of them is looked at.
const RUN: usize = 64;

/// The `k` largest values with their indices, largest first, equal values by index.
///
/// NaN and −∞ (tokens that may not come) are left out, so there may be fewer than `k`. One pass over the values; only
/// those above the k-th largest so far are kept, and now and then cut down to k.
#[must_use]
pub fn top_k(values: &[f32], k: usize) -> Vec<(u32, f32)> {
    if k == 0 {
        return Vec::new();
    }
    let room = (2 * k).max(RUN);
    let mut kept: Vec<(u32, f32)> = Vec::with_capacity(room + RUN);
    let mut threshold = f32::NEG_INFINITY;
    for (run, chunk) in values.chunks(RUN).enumerate() {
        let mut lanes = [f32::NEG_INFINITY; 16];
        for part in chunk.chunks(16) {
            for (lane, v) in lanes.iter_mut().zip(part) {
                *lane = if *v > *lane { *v } else { *lane };
            }
        }
        if !lanes.iter().any(|lane| *lane > threshold) {
            continue;
        }
        for (i, v) in chunk.iter().enumerate() {
            // A later value equal to the threshold comes after k others.
            if *v > threshold {
                kept.push(((run * RUN + i) as u32, *v));
            }
        }
        if kept.len() >= room {
            kept.select_nth_unstable_by(k - 1, order);
            kept.truncate(k);
            threshold = kept[k - 1].1;
        }
    }
    if kept.len() > k {
        kept.select_nth_unstable_by(k - 1, order);
        kept.truncate(k);
    }
    kept.sort_unstable_by(order);
    kept
}

fn order(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::tests::noise;

    fn by_sorting(values: &[f32], k: usize) -> Vec<(u32, f32)> {
        let mut all: Vec<_> = values.iter().enumerate().map(|(i, v)| (i as u32, *v)).collect();
        all.retain(|(_, v)| *v > f32::NEG_INFINITY);
        all.sort_by(order);
        all.truncate(k);
        all
    }

    #[test]
    fn same_as_sorting() {
        for len in [0, 1, 63, 64, 65, 1000, 128_256] {
            let smooth = noise(len, 1);
            // Many equal values, hidden ones, and an order in which every value is a new maximum.
            let coarse: Vec<f32> = smooth.iter().map(|v| (v * 8.0).round()).collect();
            let hidden: Vec<f32> = smooth.iter().map(|v| if *v < 0.9 { f32::NEG_INFINITY } else { *v }).collect();
            let rising: Vec<f32> = (0..len).map(|i| i as f32).collect();
            for values in [&smooth, &coarse, &hidden, &rising] {
                for k in [0, 1, 2, 50, 100, 1000, 200_000] {
                    assert_eq!(top_k(values, k), by_sorting(values, k), "{k} of {len}");
                }
            }
        }
    }

    #[test]
    fn nan_is_left_out() {
        assert_eq!(top_k(&[f32::NAN, 1.0, f32::NAN, 2.0, f32::NEG_INFINITY], 5), [(3, 2.0), (1, 1.0)]);
    }
}
