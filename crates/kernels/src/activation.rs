//! Element-wise steps between products: gelu, silu(gate)·up, the gated residual.

use crate::cpu::Level;
use crate::error::{Result, check_len};
use crate::exp::{exp, exp2};
use crate::multiversion::{by_level, mul_add};
use crate::norm::cut;
use crate::threads;

/// Elements of one task.
const TASK: usize = 1 << 15;

/// `x·Φ(x)`, Φ the normal distribution: gelu with the error function, in place.
///
/// Computed as `max(x, 0) − |x|·Φ(−|x|)`, so that small results are not lost in `1 + erf`. Against f64 the error is at
/// most 2e-7 for |x| up to 10 (3e-7 times |result| for larger results). Where the result is negative and above 1e-30
/// the error is at most 1e-5 of it: the exponent `x²/2` has two roundings, up to 8e-6 at x = −11.7, less near 0.
pub fn gelu_erf(values: &mut [f32]) {
    gelu_erf_at(Level::current(), values);
}

pub(crate) fn gelu_erf_at(level: Level, values: &mut [f32]) {
    let (_, threads) = cut(values.len(), 1, 10);
    threads::run_chunks(threads, values, TASK, |_, values| gelu_all(level, values));
}

by_level! { pub(crate) fn gelu_all(values: &mut [f32]) = gelu_all_body }

#[inline(always)]
fn gelu_all_body<const FUSED: bool>(values: &mut [f32]) {
    for v in values {
        *v = gelu::<FUSED>(*v);
    }
}

#[inline(always)]
fn gelu<const FUSED: bool>(x: f32) -> f32 {
    // Beyond 14 the tail is below 1e-44. NaN stays NaN by way of the first term.
    let size = if x.abs() < 14.0 { x.abs() } else { 14.0 };
    let positive = if x < 0.0 { 0.0 } else { x };
    positive - size * tail::<FUSED>(size)
}

/// Φ(−x) for x from 0 to 14: `2^(−x²·log2(e)/2) · t·p(t)` with `t = 1 / (1 + 0.35·x)` and p of degree 8, which is within a
/// relative 4e-8 of `erfcx(x/√2)/2` on 0 to 14 (weighted least squares, reweighted to the minimax).
#[inline(always)]
fn tail<const FUSED: bool>(x: f32) -> f32 {
    let t = 1.0 / mul_add::<FUSED>(0.35, x, 1.0);
    let p = mul_add::<FUSED>(C8, t, C7);
    let p = mul_add::<FUSED>(p, t, C6);
    let p = mul_add::<FUSED>(p, t, C5);
    let p = mul_add::<FUSED>(p, t, C4);
    let p = mul_add::<FUSED>(p, t, C3);
    let p = mul_add::<FUSED>(p, t, C2);
    let p = mul_add::<FUSED>(p, t, C1);
    let p = mul_add::<FUSED>(p, t, C0);
    (p * t) * exp2::<FUSED>((x * x) * (-0.5 * std::f32::consts::LOG2_E))
}

const C0: f32 = 0.1396214;
const C1: f32 = 0.13986187;
const C2: f32 = 0.119832836;
const C3: f32 = 0.10550813;
const C4: f32 = -0.02311014;
const C5: f32 = 0.15917462;
const C6: f32 = -0.25571468;
const C7: f32 = 0.1439719;
const C8: f32 = -0.029145977;

/// `out = gate / (1 + e^−gate) · up`: SwiGLU's product. `out` may start as anything.
///
/// # Errors
/// If the lengths differ.
pub fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) -> Result<()> {
    silu_mul_at(Level::current(), gate, up, out)
}

pub(crate) fn silu_mul_at(level: Level, gate: &[f32], up: &[f32], out: &mut [f32]) -> Result<()> {
    check_len("up", up.len(), gate.len())?;
    check_len("silu output", out.len(), gate.len())?;
    let (_, threads) = cut(out.len(), 1, 10);
    threads::run_chunks(threads, out, TASK, |i, out| {
        let at = i * TASK..i * TASK + out.len();
        silu_part(level, &gate[at.clone()], &up[at], out);
    });
    Ok(())
}

by_level! { fn silu_part(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_part_body }

#[inline(always)]
fn silu_part_body<const FUSED: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp::<FUSED>(-gate)) * up;
    }
}

/// `h += gate · x` on rows of `width`; rows for which `keep` is false stay as they are.
///
/// # Errors
/// If the lengths don't fit.
pub fn add_gated(h: &mut [f32], x: &[f32], gate: f32, width: usize, keep: Option<&[bool]>) -> Result<()> {
    check_len("residual", x.len(), h.len())?;
    let rows = h.len().checked_div(width).unwrap_or(0);
    check_len("residual", h.len(), rows * width)?;
    if let Some(keep) = keep {
        check_len("row marks", keep.len(), rows)?;
    }
    let (per_task, threads) = cut(h.len(), width, 3);
    threads::run_chunks(threads, h, per_task * width, |i, h| {
        for (r, h) in h.chunks_exact_mut(width).enumerate() {
            let row = i * per_task + r;
            if keep.is_none_or(|keep| keep[row]) {
                for (h, x) in h.iter_mut().zip(&x[row * width..]) {
                    *h += gate * x;
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
    use crate::linear::tests::noise;

    #[test]
    fn gelu_is_within_its_documented_error() {
        let x: Vec<f32> = (0..400_001).map(|i| -20.0 + 40.0 * (i as f32 / 400_000.0)).collect();
        for level in Level::available() {
            let mut y = x.clone();
            gelu_erf_at(level, &mut y);
            let mut worst = (0.0f64, 0.0f64);
            for (x, y) in x.iter().zip(&y) {
                let (x, y) = (f64::from(*x), f64::from(*y));
                let want = 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2);
                let error = (y - want).abs();
                assert!(error <= 2e-7f64.max(3e-7 * want.abs()), "{level:?} gelu({x}) = {y}, not {want}");
                if x < 0.0 && want.abs() > 1e-30 {
                    assert!(error <= 1e-5 * want.abs(), "{level:?} gelu({x}) = {y}, not {want}");
                    worst.1 = worst.1.max(error / want.abs());
                }
                worst.0 = worst.0.max(error);
            }
            // The bounds are not idle.
            assert!(worst.0 > 1e-8 && worst.1 > 1e-8, "{worst:?}");
        }
        let mut odd = [0.0, -0.0, f32::INFINITY, -100.0, f32::NAN];
        gelu_erf(&mut odd);
        assert_eq!(odd[..4], [0.0, 0.0, f32::INFINITY, 0.0]);
        assert!(odd[4].is_nan());
    }

    #[test]
    fn silu_is_close_to_f64() {
        let gate: Vec<f32> = noise(70_000, 1).iter().map(|v| v * 30.0).collect();
        let up = noise(70_000, 2);
        for level in Level::available() {
            let mut out = vec![f32::NAN; gate.len()];
            silu_mul_at(level, &gate, &up, &mut out).unwrap();
            for ((out, gate), up) in out.iter().zip(&gate).zip(&up) {
                let gate = f64::from(*gate);
                let want = gate / (1.0 + (-gate).exp()) * f64::from(*up);
                assert!((f64::from(*out) - want).abs() <= 5e-7 * want.abs() + 1e-30, "{level:?} {gate}: {out} {want}");
            }
        }
        let mut ends = [0.0; 2];
        silu_mul(&[-200.0, 200.0], &[1.0, 1.0], &mut ends).unwrap();
        assert_eq!(ends, [0.0, 200.0]);
    }

    #[test]
    fn gated_residual() {
        let mut h = vec![1.0; 6];
        add_gated(&mut h, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.5, 2, Some(&[true, false, true])).unwrap();
        assert_eq!(h, [1.5, 2.0, 1.0, 1.0, 3.5, 4.0]);
        add_gated(&mut h, &[1.0; 6], 2.0, 3, None).unwrap();
        assert_eq!(h, [3.5, 4.0, 3.0, 3.0, 5.5, 6.0]);
        assert!(add_gated(&mut h, &[1.0; 6], 2.0, 4, None).is_err());
        assert!(add_gated(&mut h, &[1.0; 6], 2.0, 3, Some(&[true])).is_err());
        assert!(silu_mul(&[0.0; 2], &[0.0; 3], &mut [0.0; 2]).is_err());
    }
}
