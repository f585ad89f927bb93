//! Warpers: temperature and the truncations (top-k, top-p, min-p, typical-p) that decide which tokens a draw is among.
//!
//! Sources: the `LogitsWarper` classes of transformers' `generation/logits_process.py`, with their rounding: softmax in
//! single precision, cumulative sums in double precision compared in single. Where tokens with equal logits straddle
//! the border of a top-p set, those with higher ids stay, as after torch's stable sort.
//!
//! None sorts the vocabulary. The border of a top-p or typical-p set is found by a radix selection: probability mass is
//! summed in buckets of the sort key, then once more within the one bucket that the border falls into.

/// Buckets of a round of the selection, as a power of two.
const BUCKET_BITS: u32 = 11;

/// Tokens that can still be drawn, with scratch space. One serves any number of rows, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    /// By ascending id.
    ids: Vec<u32>,
    /// Of the tokens in `ids`, all finite.
    logits: Vec<f32>,
    /// `exp(logit - highest logit)` of the tokens in `ids`.
    weights: Vec<f32>,
    /// Sum of `weights`.
    total: f64,
    keys: Vec<u32>,
    group: Vec<u32>,
    buckets: Vec<Bucket>,
    largest: Vec<f32>,
    /// Lent to the caller for a list of tokens.
    few: Vec<u32>,
}

/// Tokens of a range of keys.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    mass: f64,
    count: u32,
}

/// Divides logits by `temperature`, above 0 (`TemperatureLogitsWarper`). Where that overflows, logits are first moved
/// so that the highest is 0, which leaves the probabilities as they are.
pub fn temperature(logits: &mut [f32], temperature: f32) {
    if temperature == 1.0 {
        return;
    }
    let highest = highest(logits);
    if (highest / temperature).is_finite() {
        logits.iter_mut().for_each(|logit| *logit /= temperature);
    } else {
        logits.iter_mut().for_each(|logit| *logit = (*logit - highest) / temperature);
    }
}

/// The highest logit; minus infinity if there is none, NaN is passed over.
pub(crate) fn highest(logits: &[f32]) -> f32 {
    // Lanes let the compiler compare several at a time.
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| a.max(b))
}

/// `exp(x)` for `x` at most 0, within two units in the last place; 0 below -87. The compiler can do several at a time,
/// which it can't with the library's.
pub(crate) fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to an integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, so that n times the first is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    // The Taylor series to the seventh power; the first one left out is below 2^-27.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x > -87.0 { p * power } else { 0.0 }
}

/// Sum of `exp(logit - highest)`. The order of summation is fixed, whatever the machine.
pub(crate) fn sum_exp(logits: &[f32], highest: f32) -> f64 {
    let mut weights = [0f32; 256];
    logits
        .chunks(256)
        .map(|chunk| {
            let weights = &mut weights[..chunk.len()];
            weights.iter_mut().zip(chunk).for_each(|(weight, &logit)| *weight = exp(logit - highest));
            sum(weights)
        })
        .sum()
}

/// Sum in double precision, in a fixed order.
fn sum(weights: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let (chunks, rest) = weights.as_chunks::<8>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &weight)| *lane += f64::from(weight));
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&weight| f64::from(weight)).sum::<f64>()
}

/// Bits of a finite number or infinity that sort as the number does; both zeros are the same.
fn key(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// Where a cumulative sum stops.
struct Border {
    /// The key at the border.
    key: u32,
    /// Mass of all lower keys.
    below: f64,
    /// How many have the key.
    count: u32,
    /// Mass of those.
    mass: f64,
}

impl Candidates {
    /// Empty; `start` fills it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Space for a list of tokens that callers may use between two rows.
    pub(crate) fn few(&mut self) -> &mut Vec<u32> {
        &mut self.few
    }

    /// Takes the tokens of a row's logits, `[vocab_size]`, that are not forbidden. With `top_k` above 0 only those that
    /// are at least as high as the `top_k`-th highest (`TopKLogitsWarper`; equal ones all stay).
    pub fn start(&mut self, logits: &[f32], top_k: usize) {
        let least = if top_k == 0 { f32::NEG_INFINITY } else { self.kth_largest(logits, top_k) };
        self.ids.clear();
        self.logits.clear();
        if least == f32::NEG_INFINITY && !logits.contains(&least) {
            self.ids.extend(0..logits.len() as u32);
            self.logits.extend_from_slice(logits);
        } else if least == f32::NEG_INFINITY {
            for (id, &logit) in logits.iter().enumerate() {
                if logit > f32::NEG_INFINITY {
                    self.ids.push(id as u32);
                    self.logits.push(logit);
                }
            }
        } else {
            let (chunks, _) = logits.as_chunks::<16>();
            let mut take = |id: usize, logit: f32| {
                if logit >= least {
                    self.ids.push(id as u32);
                    self.logits.push(logit);
                }
            };
            for (i, chunk) in chunks.iter().enumerate() {
                if chunk.iter().fold(false, |any, &logit| any | (logit >= least)) {
                    chunk.iter().enumerate().for_each(|(j, &logit)| take(i * 16 + j, logit));
                }
            }
            (chunks.len() * 16..logits.len()).for_each(|id| take(id, logits[id]));
        }
        let highest = highest(&self.logits);
        self.weights.clear();
        self.weights.extend(self.logits.iter().map(|&logit| exp(logit - highest)));
        self.total = sum(&self.weights);
    }

    /// Keeps the smallest set of most probable tokens that reaches `top_p`, and at least one (`TopPLogitsWarper`).
    pub fn top_p(&mut self, top_p: f64) {
        if top_p >= 1.0 || self.ids.len() < 2 {
            return;
        }
        let limit = (1.0 - top_p) as f32;
        let total = self.total as f32;
        let mut below = 0.0;
        if self.ids.len() > 1024 {
            // Tokens that all together stay under the limit need no selection; worth a pass only if they are many.
            let small = (0.999 * (1.0 - top_p) / self.ids.len() as f64 * self.total) as f32;
            let many = self.weights.iter().filter(|&&weight| weight <= small).count();
            if many > self.ids.len() / 2 {
                let all = self.total;
                self.retain(|_, weight| weight > small);
                below = (all - sum(&self.weights)) / all;
            }
        }
        self.keys.clear();
        self.keys.extend(self.logits.iter().map(|&logit| key(logit)));
        let highest = self.keys.iter().copied().max().unwrap_or(0);
        let border = self.border(below, total, |cumulative| cumulative as f32 <= limit);
        // If rounding let all go, the most probable one with the highest id stays.
        let (at, mut drop) = match border {
            Some(Border { key, below, count, mass }) => {
                let each = mass / f64::from(count);
                let dropped = (1..=count).take_while(|&n| (below + f64::from(n) * each) as f32 <= limit).count() as u32;
                (key, if key == highest { dropped.min(count - 1) } else { dropped })
            }
            None => (highest, self.keys.iter().filter(|&&key| key == highest).count() as u32 - 1),
        };
        self.retain(|key, _| {
            if key == at && drop > 0 {
                drop -= 1;
                return false;
            }
            key >= at
        });
        self.total = sum(&self.weights);
    }

    /// Keeps tokens at least `min_p` times as probable as the most probable (`MinPLogitsWarper`).
    pub fn min_p(&mut self, min_p: f32) {
        if min_p <= 0.0 {
            return;
        }
        let total = self.total as f32;
        let least = min_p * (self.weights.iter().fold(0f32, |a, &b| a.max(b)) / total);
        self.retain(|_, weight| weight / total >= least);
        self.total = sum(&self.weights);
    }

    /// Keeps the tokens whose information is nearest the distribution's entropy, until they reach `mass`
    /// (`TypicalLogitsWarper`; Meister and others, "Locally Typical Sampling", 2022).
    pub fn typical_p(&mut self, mass: f32) {
        if mass >= 1.0 || self.ids.len() < 2 {
            return;
        }
        let highest = highest(&self.logits);
        let log_total = self.total.ln() as f32;
        let normalized = |logit: f32| (logit - highest) - log_total;
        let total = self.total as f32;
        let terms = self.logits.iter().zip(&self.weights);
        let entropy =
            -terms.map(|(&logit, &weight)| f64::from(normalized(logit) * (weight / total))).sum::<f64>() as f32;
        self.keys.clear();
        self.keys.extend(self.logits.iter().map(|&logit| key((-normalized(logit) - entropy).abs())));
        if let Some(Border { key: last, .. }) = self.border(0.0, total, |cumulative| (cumulative as f32) < mass) {
            self.retain(|key, _| key <= last);
            self.total = sum(&self.weights);
        }
    }

    /// The token at `uniform`, in `[0, 1)`, of the cumulative distribution in order of ids. `None` if there is none.
    pub fn draw(&self, uniform: f64) -> Option<u32> {
        let mut rest = uniform * self.total;
        // Whole blocks are passed over by their sums.
        let mut at = 0;
        for block in self.weights.chunks(256) {
            let mass = sum(block);
            if rest < mass {
                break;
            }
            rest -= mass;
            at += block.len();
        }
        for (&id, &weight) in self.ids[at..].iter().zip(&self.weights[at..]) {
            rest -= f64::from(weight);
            if rest < 0.0 {
                return Some(id);
            }
        }
        // Rounding may leave a trace of `rest`.
        self.ids.iter().zip(&self.weights).rev().find(|(_, weight)| **weight > 0.0).map(|(&id, _)| id)
    }

    /// Ids and probabilities of the tokens that are left, by ascending id.
    pub fn probabilities(&self) -> impl Iterator<Item = (u32, f32)> {
        self.ids.iter().zip(&self.weights).map(|(&id, &weight)| (id, (f64::from(weight) / self.total) as f32))
    }

    /// How many tokens are left.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether no token is left.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The `k`-th highest logit (from 1); minus infinity if there are no more than `k`.
    fn kth_largest(&mut self, logits: &[f32], k: usize) -> f32 {
        if k >= logits.len() {
            return f32::NEG_INFINITY;
        }
        // Holds the k highest so far and newcomers; halved when full, so the work per logit is constant on average.
        let full = (4 * k).max(512);
        let largest = &mut self.largest;
        largest.clear();
        let mut least = f32::NEG_INFINITY;
        for chunk in logits.chunks(16) {
            if !chunk.iter().fold(false, |any, &logit| any | (logit > least)) {
                continue;
            }
            largest.extend(chunk.iter().filter(|&&logit| logit > least));
            if largest.len() >= full {
                largest.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
                largest.truncate(k);
                least = largest[k - 1];
            }
        }
        if largest.len() < k {
            // Fewer than k are not forbidden, or equal ones were passed over: the border is where it was.
            return least;
        }
        *largest.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    }

    /// Walks up the keys, adding up probabilities (`weight / total`) to `below`, as long as `goes_on` holds for the sum.
    /// Returns the key where it ceases to hold, or `None` if it never does.
    fn border(&mut self, mut below: f64, total: f32, goes_on: impl Fn(f64) -> bool) -> Option<Border> {
        // Rounds over ever narrower ranges of keys, each cut into buckets of equal width; a range of 32 bits takes
        // three. The first is over all keys, later ones over a `group` of places in them.
        let total = f64::from(total);
        for round in 0.. {
            let (keys, weights, group) = (&self.keys, &self.weights, &self.group);
            let wider = |(low, high): (u32, u32), key: u32| (low.min(key), high.max(key));
            let bounds = match round {
                0 => keys.iter().fold((u32::MAX, 0), |bounds, &key| wider(bounds, key)),
                _ => group.iter().fold((u32::MAX, 0), |bounds, &place| wider(bounds, keys[place as usize])),
            };
            let (low, range) = (bounds.0, bounds.1.checked_sub(bounds.0)?);
            let shift = (u32::BITS - range.leading_zeros()).saturating_sub(BUCKET_BITS);
            let bucket = |key: u32| ((key - low) >> shift) as usize;
            let buckets = &mut self.buckets;
            buckets.clear();
            buckets.resize(1 << BUCKET_BITS, Bucket::default());
            let mut add = |key: u32, weight: f32| {
                let bucket = &mut buckets[bucket(key) & ((1 << BUCKET_BITS) - 1)];
                bucket.mass += f64::from(weight);
                bucket.count += 1;
            };
            match round {
                0 => keys.iter().zip(weights).for_each(|(&key, &weight)| add(key, weight)),
                _ => group.iter().for_each(|&place| add(keys[place as usize], weights[place as usize])),
            }
            let mut found = None;
            for (at, Bucket { mass, count }) in buckets.iter_mut().enumerate() {
                if *count == 0 {
                    continue;
                }
                *mass /= total;
                if !goes_on(below + *mass) {
                    found = Some(at);
                    break;
                }
                below += *mass;
            }
            // Sums in another order may differ in the last bit: what was found in the round before is then its last.
            let at = match found {
                Some(at) => at,
                None if round == 0 => return None,
                None => {
                    let at = buckets.iter().rposition(|bucket| bucket.count > 0)?;
                    below -= buckets[at].mass;
                    at
                }
            };
            if shift == 0 {
                let Bucket { mass, count } = buckets[at];
                return Some(Border { key: low + at as u32, below, count, mass });
            }
            if round == 0 {
                self.group.clear();
                let of_bucket = keys.iter().enumerate().filter(|&(_, &key)| bucket(key) == at);
                self.group.extend(of_bucket.map(|(place, _)| place as u32));
            } else {
                self.group.retain(|&place| bucket(keys[place as usize]) == at);
            }
        }
        None
    }

    /// Keeps the tokens for which `keep(key, weight)` holds; the key is 0 where there are none.
    fn retain(&mut self, mut keep: impl FnMut(u32, f32) -> bool) {
        let keyed = self.keys.len() == self.ids.len();
        let mut kept = 0;
        for i in 0..self.ids.len() {
            // Moved in any case, since a branch would be guessed wrong half of the time.
            let keeps = keep(if keyed { self.keys[i] } else { 0 }, self.weights[i]);
            self.ids[kept] = self.ids[i];
            self.logits[kept] = self.logits[i];
            self.weights[kept] = self.weights[i];
            kept += usize::from(keeps);
        }
        self.ids.truncate(kept);
        self.logits.truncate(kept);
        self.weights.truncate(kept);
        self.keys.clear();
    }
}
