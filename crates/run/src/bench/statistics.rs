//! Quantiles, and whether two sets of readings differ by more than noise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::random::Random;

/// Times a pair of readings is drawn again for the interval of their ratio.
const DRAWS: usize = 4000;

/// Below this the difference is not noise.
pub const SIGNIFICANCE: f64 = 0.05;

/// The quantile `share` of `sorted`, by linear interpolation between its neighbours; `None` of nothing.
pub(super) fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = share.clamp(0.0, 1.0) * last as f64;
    let low = sorted[place as usize];
    let high = sorted[(place as usize + 1).min(last)];
    Some(low + (high - low) * place.fract())
}

/// A distribution in a few numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Quantiles {
    /// Of how many values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Half are below.
    pub p50: f64,
    /// 90 of 100 are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Quantiles {
    /// Of some values; `None` of nothing.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |share| quantile(&values, share);
        Some(Self {
            count: values.len() as u64,
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p50: at(0.5)?,
            p90: at(0.9)?,
            p99: at(0.99)?,
            max: at(1.0)?,
        })
    }
}

/// What repeated readings came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spread {
    /// The median of the repeats.
    pub median: f64,
    /// A quarter is below.
    pub q1: f64,
    /// A quarter is above.
    pub q3: f64,
}

impl Spread {
    /// Of some readings; `None` of nothing.
    pub fn of(readings: &[f64]) -> Option<Self> {
        let mut sorted = readings.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        Some(Self { median: at(0.5)?, q1: at(0.25)?, q3: at(0.75)? })
    }
}

fn median(values: &[f64]) -> f64 {
    Spread::of(values).map_or(f64::NAN, |spread| spread.median)
}

/// Two sets of readings of the same thing, one against the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ratio {
    /// Median of the second set by that of the first.
    pub ratio: f64,
    /// Lower end of the ratio's 95 % interval: bootstrap over the readings.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Probability of readings that differ so much if nothing differs: Mann-Whitney U, exact, two-sided.
    pub p: f64,
    /// What that says.
    pub verdict: Verdict,
}

/// What a difference is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The second set has the larger values.
    Larger,
    /// The second set has the smaller values.
    Smaller,
    /// They may as well be the same.
    WithinNoise,
    /// With so few readings no difference could be told from noise.
    TooFewRepeats,
}

impl Ratio {
    /// Of `other` to `base`; `None` if one of them is empty or the base's median is 0.
    pub fn of(base: &[f64], other: &[f64]) -> Option<Self> {
        let ratio = median(other) / median(base);
        if !ratio.is_finite() {
            return None;
        }
        let mut random = Random::new(b"bootstra", 0, 0);
        let mut draw = |values: &[f64]| {
            let drawn: Vec<f64> = values.iter().map(|_| values[random.below(values.len())]).collect();
            median(&drawn)
        };
        let mut ratios: Vec<f64> = (0..DRAWS).map(|_| draw(other) / draw(base)).filter(|r| r.is_finite()).collect();
        ratios.sort_by(f64::total_cmp);
        let p = mann_whitney(base, other);
        let verdict = if smallest_p(base.len(), other.len()) > SIGNIFICANCE {
            Verdict::TooFewRepeats
        } else if p > SIGNIFICANCE {
            Verdict::WithinNoise
        } else if ratio > 1.0 {
            Verdict::Larger
        } else {
            Verdict::Smaller
        };
        let low = quantile(&ratios, 0.025).unwrap_or(ratio);
        let high = quantile(&ratios, 0.975).unwrap_or(ratio);
        Some(Self { ratio, low, high, p, verdict })
    }
}

/// How many orders of `n` and `m` readings have each value of U: of the pairs, those where the second is the larger.
fn orders(n: usize, m: usize) -> Vec<f64> {
    // ways[j][u] for the readings of the first set so far, and j of the second.
    let mut ways = vec![vec![0.0; n * m + 1]; m + 1];
    ways.iter_mut().for_each(|ways| ways[0] = 1.0);
    for i in 1..=n {
        for j in 1..=m {
            // The largest is of the first set (it adds nothing) or of the second (it beats all i).
            for u in (0..=n * m).rev() {
                let of_second = if u >= i { ways[j - 1][u - i] } else { 0.0 };
                ways[j][u] += of_second;
            }
        }
    }
    ways.swap_remove(m)
}

/// Exact two-sided p of U, ties counting half and the next rarer U taken for them.
fn mann_whitney(base: &[f64], other: &[f64]) -> f64 {
    let pairs = base.iter().flat_map(|a| other.iter().map(move |b| (a, b)));
    let beats: f64 = pairs
        .map(|(a, b)| {
            if b > a {
                1.0
            } else if b == a {
                0.5
            } else {
                0.0
            }
        })
        .sum();
    let most = (base.len() * other.len()) as f64;
    let extreme = beats.min(most - beats).ceil() as usize;
    let ways = orders(base.len(), other.len());
    let all: f64 = ways.iter().sum();
    (2.0 * ways[..=extreme].iter().sum::<f64>() / all).min(1.0)
}

/// The smallest p that so many readings can have.
fn smallest_p(n: usize, m: usize) -> f64 {
    let ways = orders(n, m);
    2.0 * ways[0] / ways.iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numpys() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        let found = [0.0, 0.25, 0.5, 0.9, 1.0].map(|share| quantile(&sorted, share).unwrap_or_default());
        assert_eq!(found, [1.0, 1.75, 3.0, 6.800000000000001, 8.0]);
        assert_eq!(quantile(&[], 0.5), None);
    }

    /// scipy.stats.mannwhitneyu(..., method="exact") gives these.
    #[test]
    fn mann_whitney_is_exact() {
        let first = [1.0, 2.0, 3.0, 4.0, 5.0];
        let p = |other: [f64; 5]| mann_whitney(&first, &other);
        assert!((p([6.0, 7.0, 8.0, 9.0, 10.0]) - 2.0 / 252.0).abs() < 1e-12);
        assert!((p([2.5, 6.0, 7.0, 8.0, 9.0]) - 14.0 / 252.0).abs() < 1e-12);
        assert!((p([1.5, 2.5, 3.5, 4.5, 5.5]) - 0.6904761904761905).abs() < 1e-12);
        assert!((smallest_p(3, 3) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn verdicts() {
        let verdict = |a: &[f64], b: &[f64]| Ratio::of(a, b).map(|ratio| ratio.verdict);
        let (slow, fast) = ([10.0, 10.1, 9.9, 10.2, 10.0], [20.0, 20.3, 19.8, 20.1, 19.9]);
        assert_eq!(verdict(&slow, &fast), Some(Verdict::Larger));
        assert_eq!(verdict(&fast, &slow), Some(Verdict::Smaller));
        assert_eq!(verdict(&slow, &slow), Some(Verdict::WithinNoise));
        assert_eq!(verdict(&slow[..3], &fast[..3]), Some(Verdict::TooFewRepeats));
        assert_eq!(verdict(&slow, &[]), None);
        let Some(ratio) = Ratio::of(&slow, &fast) else { unreachable!("both have readings") };
        assert!(ratio.low < ratio.ratio && ratio.ratio < ratio.high && ratio.low > 1.9 && ratio.high < 2.1);
    }
}
