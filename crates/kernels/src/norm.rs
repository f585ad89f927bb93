//! RMSNorm, LayerNorm and softmax over the rows of `[rows, width]`.
//!
//! A row's sums are taken over `LANES` lanes, element i in lane i mod LANES, and the lanes are folded by halves: the
//! same order at every vector length and whatever the other rows are.

use crate::cpu::Level;
use crate::error::{Result, check_len};
use crate::exp::exp;
use crate::multiversion::by_level;
use crate::threads;

/// Lanes over which a row is summed.
const LANES: usize = 32;

/// Elements of rows that one task takes at a time.
const TASK: usize = 1 << 15;

/// Rows of one task, and threads for `len` elements at about `per_element` tenths of a nanosecond each.
pub(crate) fn cut(len: usize, width: usize, per_element: usize) -> (usize, usize) {
    ((TASK / width.max(1)).max(1), threads::for_work(len * per_element / 10))
}

fn check_rows(what: &'static str, len: usize, width: usize) -> Result<()> {
    check_len(what, len, len.checked_div(width).unwrap_or(0) * width)
}

/// A norm of every row, for products that take it of their input.
#[derive(Clone, Copy, Debug)]
pub enum Norm<'a> {
    /// [`rms_norm`].
    Rms {
        /// Factors, one for each place of a row.
        weight: &'a [f32],
        /// Added to the mean square.
        eps: f32,
    },
    /// [`layer_norm`].
    Layer {
        /// Factors, one for each place of a row.
        weight: &'a [f32],
        /// Added last, one for each place of a row.
        bias: &'a [f32],
        /// Added to the variance.
        eps: f32,
    },
}

impl Norm<'_> {
    /// Checks the lengths for rows of `width`.
    pub(crate) fn check(self, width: usize) -> Result<()> {
        match self {
            Self::Rms { weight, .. } => check_len("norm weight", weight.len(), width),
            Self::Layer { weight, bias, .. } => {
                check_len("norm weight", weight.len(), width)?;
                check_len("norm bias", bias.len(), width)
            }
        }
    }

    /// Of a few rows, on this thread.
    pub(crate) fn rows(self, level: Level, x: &[f32], out: &mut [f32]) {
        match self {
            Self::Rms { weight, eps } => rms_rows(level, x, weight, eps, out),
            Self::Layer { weight, bias, eps } => layer_rows(level, x, weight, bias, eps, out),
        }
    }

    /// Of any number of rows.
    pub(crate) fn of(self, x: &[f32]) -> Result<Vec<f32>> {
        let mut out = vec![0.0; x.len()];
        match self {
            Self::Rms { weight, eps } => rms_norm(x, weight, eps, &mut out)?,
            Self::Layer { weight, bias, eps } => layer_norm(x, weight, bias, eps, &mut out)?,
        }
        Ok(out)
    }
}

/// `out = x / sqrt(mean(x²) + eps) · weight` for every row of `x`, whose width is the length of `weight`.
///
/// # Errors
/// If `x` is not whole rows or `out` has another length.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> Result<()> {
    rms_norm_at(Level::current(), x, weight, eps, out)
}

pub(crate) fn rms_norm_at(level: Level, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> Result<()> {
    let width = weight.len();
    check_rows("norm input", x.len(), width)?;
    check_len("norm output", out.len(), x.len())?;
    let (rows, threads) = cut(x.len(), width, 4);
    threads::run_chunks(threads, out, rows * width, |i, out| {
        rms_rows(level, &x[i * rows * width..][..out.len()], weight, eps, out);
    });
    Ok(())
}

by_level! { fn rms_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_rows_body }

#[inline(always)]
fn rms_rows_body<const FUSED: bool>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = sum_of(x, |v| v * v) / width as f32;
        let factor = 1.0 / (mean + eps).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = (x * factor) * weight;
        }
    }
}

/// `out = (x − mean) / sqrt(variance + eps) · weight + bias` for every row of `x`, whose width is that of `weight`.
///
/// The variance is the mean square of what is left after taking the mean away (two passes).
///
/// # Errors
/// If `x` is not whole rows, or `bias` or `out` have another length than `weight` or `x`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) -> Result<()> {
    layer_norm_at(Level::current(), x, weight, bias, eps, out)
}

pub(crate) fn layer_norm_at(
    level: Level,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    out: &mut [f32],
) -> Result<()> {
    let width = weight.len();
    check_len("norm bias", bias.len(), width)?;
    check_rows("norm input", x.len(), width)?;
    check_len("norm output", out.len(), x.len())?;
    let (rows, threads) = cut(x.len(), width, 6);
    threads::run_chunks(threads, out, rows * width, |i, out| {
        layer_rows(level, &x[i * rows * width..][..out.len()], weight, bias, eps, out);
    });
    Ok(())
}

by_level! { fn layer_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = layer_rows_body }

#[inline(always)]
fn layer_rows_body<const FUSED: bool>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let mean = sum_of(x, |v| v) / width as f32;
        let variance = sum_of(x, |v| (v - mean) * (v - mean)) / width as f32;
        let factor = 1.0 / (variance + eps).sqrt();
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = ((x - mean) * factor) * weight + bias;
        }
    }
}

/// Softmax of every row of `values`, in place.
///
/// A row of nothing but −∞ becomes zeros.
///
/// # Errors
/// If `values` is not whole rows of `width`.
pub fn softmax(values: &mut [f32], width: usize) -> Result<()> {
    softmax_at(Level::current(), values, width)
}

pub(crate) fn softmax_at(level: Level, values: &mut [f32], width: usize) -> Result<()> {
    check_rows("softmax input", values.len(), width)?;
    let (rows, threads) = cut(values.len(), width, 10);
    threads::run_chunks(threads, values, rows * width, |_, values| softmax_rows(level, values, width));
    Ok(())
}

by_level! { fn softmax_rows(values: &mut [f32], width: usize) = softmax_rows_body }

#[inline(always)]
fn softmax_rows_body<const FUSED: bool>(values: &mut [f32], width: usize) {
    for row in values.chunks_exact_mut(width) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let mut chunks = row.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *lane = if *v > *lane { *v } else { *lane };
            }
        }
        for (lane, v) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane = if *v > *lane { *v } else { *lane };
        }
        let max = lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
        for v in row.iter_mut() {
            *v = exp::<FUSED>(*v - base);
        }
        let total = sum_of(row, |v| v);
        let factor = if total > 0.0 { 1.0 / total } else { 0.0 };
        for v in row.iter_mut() {
            *v *= factor;
        }
    }
}

/// Sum of `f` over a row, in lanes.
#[inline(always)]
fn sum_of(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f(*v);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;
    use crate::linear::tests::{bits, noise};

    fn close(got: &[f32], want: &[f64], what: &str) {
        for (got, want) in got.iter().zip(want) {
            // A few roundings, of which the mean of up to 5000 squares is the largest.
            assert!((f64::from(*got) - want).abs() <= 4e-6 * want.abs().max(0.5), "{what}: {got} against {want}");
        }
    }

    #[test]
    fn norms_and_softmax_are_close_to_f64_at_every_level() {
        for width in [1, 7, 32, 80, 1280, 4999] {
            let x: Vec<f32> = noise(3 * width, 1).iter().map(|v| v * 3.0 + 0.5).collect();
            let (weight, bias) = (noise(width, 2), noise(width, 3));
            let (eps, n) = (1e-5f64, width as f64);
            let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            let (mut rms, mut layer, mut soft) = (Vec::new(), Vec::new(), Vec::new());
            for row in wide.chunks_exact(width) {
                let mean = row.iter().sum::<f64>() / n;
                let square = row.iter().map(|v| v * v).sum::<f64>() / n;
                let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
                let max = row.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = row.iter().map(|v| (v - max).exp()).sum();
                for (i, v) in row.iter().enumerate() {
                    let (weight, bias) = (f64::from(weight[i]), f64::from(bias[i]));
                    rms.push(v / (square + eps).sqrt() * weight);
                    layer.push((v - mean) / (variance + eps).sqrt() * weight + bias);
                    soft.push((v - max).exp() / total);
                }
            }
            for level in Level::available() {
                let mut out = vec![f32::NAN; x.len()];
                rms_norm_at(level, &x, &weight, 1e-5, &mut out).unwrap();
                close(&out, &rms, &format!("rms {level:?} {width}"));
                if width > 1 {
                    layer_norm_at(level, &x, &weight, &bias, 1e-5, &mut out).unwrap();
                    close(&out, &layer, &format!("layer {level:?} {width}"));
                }
                out.copy_from_slice(&x);
                softmax_at(level, &mut out, width).unwrap();
                close(&out, &soft, &format!("softmax {level:?} {width}"));
                let total: f32 = out[..width].iter().sum();
                assert!((total - 1.0).abs() < 1e-5, "{level:?} {width}: sums to {total}");
            }
        }
    }

    #[test]
    fn rows_keep_their_bits() {
        let (rows, width) = (300, 777);
        let (x, weight, bias) = (noise(rows * width, 4), noise(width, 5), noise(width, 6));
        let all = |x: &[f32]| {
            let (mut a, mut b, mut c) = (vec![0.0; x.len()], vec![0.0; x.len()], x.to_vec());
            rms_norm(x, &weight, 1e-5, &mut a).unwrap();
            layer_norm(x, &weight, &bias, 1e-5, &mut b).unwrap();
            softmax(&mut c, width).unwrap();
            [bits(&a), bits(&b), bits(&c)]
        };
        let together = all(&x);
        assert_eq!(together, crate::threads::with_limit(1, || all(&x)));
        for i in [0, 1, 41, 42, 43, 299] {
            let at = i * width..(i + 1) * width;
            for (alone, together) in all(&x[at.clone()]).iter().zip(&together) {
                assert_eq!(alone[..], together[at.clone()], "row {i}");
            }
        }
    }

    #[test]
    fn softmax_of_hidden_values() {
        let hidden = f32::NEG_INFINITY;
        let mut x = [1.0, hidden, 1.0, hidden, hidden, hidden];
        softmax(&mut x, 3).unwrap();
        assert_eq!(x, [0.5, 0.0, 0.5, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn wrong_lengths_are_errors() {
        assert!(rms_norm(&[0.0; 5], &[0.0; 2], 1e-5, &mut [0.0; 5]).is_err());
        assert!(rms_norm(&[0.0; 4], &[0.0; 2], 1e-5, &mut [0.0; 5]).is_err());
        assert!(layer_norm(&[0.0; 4], &[0.0; 2], &[0.0; 1], 1e-5, &mut [0.0; 4]).is_err());
        assert!(softmax(&mut [0.0; 4], 3).is_err());
        assert!(rms_norm(&[], &[], 1e-5, &mut []).is_ok());
    }
}
