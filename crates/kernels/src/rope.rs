//! Rotary position embedding, in the layout that pairs element j of a head with j + d/2.

use crate::error::{Error, Result, check_len};
use crate::norm::cut;
use crate::threads;

/// Turns every head of `x` (`[tokens, heads, d]`) by its token's angles, in place.
///
/// `cos` and `sin` are tables `[positions, d / 2]`; `positions` has each token's row in them. A multiply and an add or
/// subtraction per part, not fused: the same bits on every CPU.
///
/// # Errors
/// If the lengths don't fit or a position lies beyond the tables.
pub fn rope(x: &mut [f32], heads: usize, d: usize, cos: &[f32], sin: &[f32], positions: &[u32]) -> Result<()> {
    let half = d / 2;
    if half == 0 || !d.is_multiple_of(2) {
        return Err(Error::Size { what: "head dimension", got: d, rule: "even" });
    }
    let width = heads * d;
    check_len("rope input", x.len(), positions.len() * width)?;
    check_len("sine table", sin.len(), cos.len())?;
    let rows = cos.len() / half;
    if let Some(beyond) = positions.iter().find(|p| **p as usize >= rows) {
        return Err(Error::Size { what: "position", got: *beyond as usize, rule: "within the tables" });
    }
    let (per_task, threads) = cut(x.len(), width, 4);
    threads::run_chunks(threads, x, (per_task * width).max(1), |i, x| {
        for (token, x) in x.chunks_exact_mut(width).enumerate() {
            let at = positions[i * per_task + token] as usize * half;
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            for head in x.chunks_exact_mut(d) {
                let (first, second) = head.split_at_mut(half);
                for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;
    use crate::linear::tests::{bits, noise};

    #[test]
    fn pairs_turn_by_their_tokens_angle() {
        let (heads, d, table) = (3, 16, 40);
        let angle = |p: usize, j: usize| p as f64 * 500_000f64.powf(-2.0 * j as f64 / d as f64);
        let tabulated = |f: fn(f64) -> f64| -> Vec<f32> {
            (0..table).flat_map(|p| (0..d / 2).map(move |j| f(angle(p, j)) as f32)).collect()
        };
        let (cos, sin) = (tabulated(f64::cos), tabulated(f64::sin));
        let positions: Vec<u32> = vec![5, 0, 39, 5];
        let x = noise(positions.len() * heads * d, 1);
        let mut y = x.clone();
        rope(&mut y, heads, d, &cos, &sin, &positions).unwrap();
        for (t, p) in positions.iter().enumerate() {
            for h in 0..heads {
                for j in 0..d / 2 {
                    let at = (t * heads + h) * d + j;
                    let (a, b) = (f64::from(x[at]), f64::from(x[at + d / 2]));
                    let (sin, cos) = angle(*p as usize, j).sin_cos();
                    assert!((f64::from(y[at]) - (a * cos - b * sin)).abs() < 1e-6);
                    assert!((f64::from(y[at + d / 2]) - (b * cos + a * sin)).abs() < 1e-6);
                }
            }
        }
        let row = heads * d;
        let mut alone = x[2 * row..3 * row].to_vec();
        rope(&mut alone, heads, d, &cos, &sin, &[39]).unwrap();
        assert_eq!(bits(&alone), bits(&y[2 * row..3 * row]));
        assert!(rope(&mut y, heads, d, &cos, &sin, &[40, 0, 0, 0]).is_err(), "beyond the tables");
        assert!(rope(&mut y, heads, d, &cos, &sin, &[0]).is_err(), "tokens");
        assert!(rope(&mut y, heads, 15, &cos, &sin, &positions).is_err(), "odd");
    }
}
