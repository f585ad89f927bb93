//! Quantiles, and whether two sets of readings differ by more than noise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::random::Random;

/// Times a pair of readings is drawn again for the interval of their ratio.
const DRAWS: usize = 4000;

/// Readings of a set beyond which U is taken for normal.
pub(super) const MOST_EXACT: usize = 50;

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
    /// Median of the second set by that of the first; `None` if that is 0.
    pub ratio: Option<f64>,
    /// Lower end of the ratio's 95 % interval: bootstrap over the readings.
    pub low: Option<f64>,
    /// Its upper end.
    pub high: Option<f64>,
    /// Probability of readings that differ so much if nothing differs: Mann-Whitney U, two-sided; exact for up to 50
    /// readings each, beyond that by the normal distribution.
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
    /// Of `other` to `base`; `None` if one of them is empty.
    pub fn of(base: &[f64], other: &[f64]) -> Option<Self> {
        if base.is_empty() || other.is_empty() {
            return None;
        }
        let ratio = Some(median(other) / median(base)).filter(|ratio| ratio.is_finite());
        let mut random = Random::new(b"bootstra", 0, 0);
        let mut draw = |values: &[f64]| {
            let drawn: Vec<f64> = values.iter().map(|_| values[random.below(values.len())]).collect();
            median(&drawn)
        };
        let mut ratios: Vec<f64> = match ratio {
            Some(_) => (0..DRAWS).map(|_| draw(other) / draw(base)).filter(|ratio| ratio.is_finite()).collect(),
            None => Vec::new(),
        };
        ratios.sort_by(f64::total_cmp);
        let beats = beats(base, other);
        let (n, m) = (base.len(), other.len());
        let p = mann_whitney(base, other, beats);
        let verdict = if smallest_p(n, m) >= SIGNIFICANCE {
            Verdict::TooFewRepeats
        } else if p >= SIGNIFICANCE {
            Verdict::WithinNoise
        } else if beats > (n * m) as f64 / 2.0 {
            Verdict::Larger
        } else {
            Verdict::Smaller
        };
        let low = quantile(&ratios, 0.025).or(ratio);
        let high = quantile(&ratios, 0.975).or(ratio);
        Some(Self { ratio, low, high, p, verdict })
    }

    /// The ratio as tables have it.
    pub(super) fn in_words(&self) -> String {
        self.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.3}"))
    }

    /// The interval as tables have it.
    pub(super) fn interval(&self) -> String {
        match (self.low, self.high) {
            (Some(low), Some(high)) => format!("{low:.3} to {high:.3}"),
            _ => "–".to_owned(),
        }
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

/// Pairs in which the second set's reading is the larger; equal ones count half.
fn beats(base: &[f64], other: &[f64]) -> f64 {
    let pairs = base.iter().flat_map(|a| other.iter().map(move |b| (a, b)));
    pairs
        .map(|(a, b)| {
            if b > a {
                1.0
            } else if b == a {
                0.5
            } else {
                0.0
            }
        })
        .sum()
}

/// Two-sided p of U: exact, ties counting half and the next rarer U taken for them; of many readings by the normal
/// distribution, corrected for ties and for U being whole.
fn mann_whitney(base: &[f64], other: &[f64], beats: f64) -> f64 {
    if base.len().max(other.len()) > MOST_EXACT {
        return normal_p(base, other, beats);
    }
    let most = (base.len() * other.len()) as f64;
    let extreme = beats.min(most - beats).ceil() as usize;
    let ways = orders(base.len(), other.len());
    let all: f64 = ways.iter().sum();
    (2.0 * ways[..=extreme].iter().sum::<f64>() / all).min(1.0)
}

/// The same by the normal distribution.
fn normal_p(base: &[f64], other: &[f64], beats: f64) -> f64 {
    let deviation = deviation(base, other);
    let off = ((beats - (base.len() * other.len()) as f64 / 2.0).abs() - 0.5).max(0.0);
    if deviation > 0.0 { libm::erfc(off / deviation / std::f64::consts::SQRT_2) } else { 1.0 }
}

/// Standard deviation of U if nothing differs.
fn deviation(base: &[f64], other: &[f64]) -> f64 {
    let mut all: Vec<f64> = base.iter().chain(other).copied().collect();
    all.sort_by(f64::total_cmp);
    let ties: f64 = all.chunk_by(|a, b| a == b).map(|same| (same.len() as f64).powi(3) - same.len() as f64).sum();
    let (pairs, count) = ((base.len() * other.len()) as f64, all.len() as f64);
    (pairs / 12.0 * (count + 1.0 - ties / (count * (count - 1.0)))).sqrt()
}

/// The smallest p that so many readings can have.
fn smallest_p(n: usize, m: usize) -> f64 {
    // Of n + m readings, n can be the smallest in one way only.
    let ways: f64 = (1..=n).map(|k| (m + k) as f64 / k as f64).product();
    2.0 / ways
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
        let p = |other: [f64; 5]| mann_whitney(&first, &other, beats(&first, &other));
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
        let Some(found) = Ratio::of(&slow, &fast) else { unreachable!("both have readings") };
        let [low, ratio, high] = [found.low, found.ratio, found.high].map(Option::unwrap_or_default);
        assert!(low < ratio && ratio < high && low > 1.9 && high < 2.1);
    }

    #[test]
    fn what_was_never_there_is_told_when_it_comes() {
        let (none, some) = ([0.0; 5], [0.1, 0.2, 0.1, 0.3, 0.2]);
        let Some(found) = Ratio::of(&none, &some) else { unreachable!("both have readings") };
        assert_eq!((found.ratio, found.low, found.verdict), (None, None, Verdict::Larger));
        assert_eq!(Ratio::of(&some, &none).map(|found| found.verdict), Some(Verdict::Smaller));
        assert_eq!(Ratio::of(&none, &none).map(|found| found.verdict), Some(Verdict::WithinNoise));
    }

    #[test]
    fn many_readings_are_judged_as_few_are() {
        let set = |count: usize, shift: f64| -> Vec<f64> { (0..count).map(|at| at as f64 + shift).collect() };
        // The formula, worked out apart from this program.
        let (first, second) = (set(60, 0.0), set(60, 9.5));
        let p = mann_whitney(&first, &second, beats(&first, &second));
        assert!((p - 0.005906794153805787).abs() < 1e-9, "{p}");
        // Both ways where both can be gone.
        let (first, second) = (set(MOST_EXACT, 0.0), set(MOST_EXACT, 8.5));
        let beats = beats(&first, &second);
        let (exact, normal) = (mann_whitney(&first, &second, beats), normal_p(&first, &second, beats));
        assert!((normal / exact - 1.0).abs() < 0.1, "{exact} {normal}");
        let many = Ratio::of(&set(600, 0.0), &set(600, 1000.0)).map(|found| (found.p < 1e-9, found.verdict));
        assert_eq!(many, Some((true, Verdict::Larger)));
    }
}
