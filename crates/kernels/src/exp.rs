//! The exponential function on which softmax, silu and the error function rest.
//!
//! `exp2(x) = 2^n · p(x − n)` with n the nearest whole number and p a polynomial of degree 6 that is 1 at 0 and has a
//! relative error below 2e-9 on [−1/2, 1/2] (weighted least squares at Chebyshev nodes, reweighted to the minimax).
//! With the rounding of its evaluation the relative error is at most 1.5 units in the last place for results in the
//! normal range. Results below 2^-126 are 0 and above the range infinite; NaN is not kept.
//!
//! `exp(x) = 2^(x·log2(e))` in two parts, at most 2 units in the last place.

use crate::multiversion::mul_add;

/// log2(e), to bring arguments of exp to those of exp2.
pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// 1.5 · 2^23: adding it rounds to a whole number in the low bits of the mantissa.
const ROUND: f32 = 12_582_912.0;

/// 2^x.
#[inline(always)]
pub(crate) fn exp2<const FUSED: bool>(x: f32) -> f32 {
    // Beyond these the result is 0 or infinite; within them the exponent below stays in range.
    let inside = if x > -126.0 { x } else { -126.0 };
    let inside = if inside < 128.0 { inside } else { 128.0 };
    let n = inside + ROUND;
    let r = inside - (n - ROUND);
    let scaled = scale(poly::<FUSED>(r), n);
    let result = if x < -126.0 { 0.0 } else { scaled };
    if x >= 128.0 { f32::INFINITY } else { result }
}

/// e^x.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    // x·log2(e) = n + r with r exact to about 2^-30: ln(2) is split so that n times its upper part is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let inside = if x > -87.3 { x } else { -87.3 };
    let inside = if inside < 88.7 { inside } else { 88.7 };
    let n = mul_add::<FUSED>(inside, LOG2_E, ROUND);
    let whole = n - ROUND;
    let r = mul_add::<FUSED>(whole, -LN2_LO, mul_add::<FUSED>(whole, -LN2_HI, inside));
    let scaled = scale(poly_e::<FUSED>(r), n);
    let result = if x < -87.3 { 0.0 } else { scaled };
    if x > 88.7 { f32::INFINITY } else { result }
}

/// `value · 2^n` for n in the low bits of `rounded`.
#[inline(always)]
fn scale(value: f32, rounded: f32) -> f32 {
    f32::from_bits(value.to_bits().wrapping_add(rounded.to_bits() << 23))
}

#[inline(always)]
fn poly<const FUSED: bool>(r: f32) -> f32 {
    let p = mul_add::<FUSED>(1.535_332_8e-4, r, 1.339_887_5e-3);
    let p = mul_add::<FUSED>(p, r, 9.618_438e-3);
    let p = mul_add::<FUSED>(p, r, 5.550_332_4e-2);
    let p = mul_add::<FUSED>(p, r, 2.402_264_8e-1);
    let p = mul_add::<FUSED>(p, r, 6.931_472e-1);
    mul_add::<FUSED>(p, r, 1.0)
}

#[inline(always)]
fn poly_e<const FUSED: bool>(r: f32) -> f32 {
    let p = mul_add::<FUSED>(1.384_362_2e-3, r, 8.374_156e-3);
    let p = mul_add::<FUSED>(p, r, 4.166_8e-2);
    let p = mul_add::<FUSED>(p, r, 1.666_643_2e-1);
    let p = mul_add::<FUSED>(p, r, 4.999_999_4e-1);
    let p = mul_add::<FUSED>(p, r, 1.0);
    mul_add::<FUSED>(p, r, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Level;
    use crate::multiversion::by_level;

    by_level! { fn exp_all(values: &mut [f32]) = exp_all_body }
    #[inline(always)]
    fn exp_all_body<const FUSED: bool>(values: &mut [f32]) {
        for value in values {
            *value = exp::<FUSED>(*value);
        }
    }

    by_level! { fn exp2_all(values: &mut [f32]) = exp2_all_body }
    #[inline(always)]
    fn exp2_all_body<const FUSED: bool>(values: &mut [f32]) {
        for value in values {
            *value = exp2::<FUSED>(*value);
        }
    }

    /// Largest error in units in the last place of the exact result.
    fn worst(got: &[f32], want: impl Fn(usize) -> f64) -> f64 {
        let mut worst = 0.0f64;
        for (i, got) in got.iter().enumerate() {
            let want = want(i);
            let ulp = f64::from(f32::EPSILON) * 2f64.powi((want.log2().floor()) as i32);
            worst = worst.max((f64::from(*got) - want).abs() / ulp);
        }
        worst
    }

    #[test]
    fn errors_are_within_the_documented_bounds() {
        for level in Level::available() {
            let x: Vec<f32> = (0..2_000_003).map(|i| -125.9 + 253.8 * (i as f32 / 2_000_002.0)).collect();
            let mut y = x.clone();
            exp2_all(level, &mut y);
            let error = worst(&y, |i| f64::from(x[i]).exp2());
            assert!(error <= 1.5, "exp2 at {level:?}: {error} ulp");
            let x: Vec<f32> = (0..2_000_003).map(|i| -87.2 + 175.8 * (i as f32 / 2_000_002.0)).collect();
            let mut y = x.clone();
            exp_all(level, &mut y);
            let error = worst(&y, |i| f64::from(x[i]).exp());
            assert!(error <= 2.0, "exp at {level:?}: {error} ulp");
        }
    }

    #[test]
    fn ends_of_the_range() {
        for level in Level::available() {
            let mut y = [0.0, -0.0, -200.0, f32::NEG_INFINITY, 200.0, f32::INFINITY, 1.0];
            let mut z = y;
            exp_all(level, &mut y);
            assert_eq!(y[..6], [1.0, 1.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY]);
            exp2_all(level, &mut z);
            assert_eq!(z, [1.0, 1.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY, 2.0]);
        }
    }
}
