//! The choice from a row's highest logits alone, for logits that lie on a device: the same token that [`Sampler`] would
//! choose from all of them, or the finding that these few don't tell.
//!
//! | the first limit | is settled if |
//! |---|---|
//! | none: the highest logit | the list holds all that are equal to it |
//! | `top_k` | the list goes on below the `top_k`-th highest |
//! | `top_p` | the list holds that much of the probability, and no share of its first ones is `top_p` but for rounding |
//! | `min_p` | the list goes on below it, and none is `min_p` times as probable but for rounding |
//!
//! What the first limit leaves goes through the others, and the draw, as it would on the host: bit for bit, as all they
//! look at is in the list. With a temperature alone, `typical_p` alone, or whatever changes logits or asks for their
//! probabilities (penalties, biases, bad words, a least length, constraints, log-probabilities) all logits are wanted.
//!
//! [`Sampler`]: super::Sampler

use vgen_mllama::{TOP, Top};

use super::sampling::Warpers;
use super::warpers;

/// How much of the logits a choice needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Asked {
    /// The highest one.
    Highest,
    /// The highest few, most likely.
    Top(Warpers),
    /// All.
    All,
}

impl Asked {
    /// Of a choice that looks at nothing but the model's own logits.
    pub(crate) fn of(warpers: Option<Warpers>, vocab_size: usize) -> Self {
        match warpers {
            None => Self::Highest,
            Some(w) if w.top_k > 0 && w.top_k < vocab_size.min(TOP) => Self::Top(w),
            Some(w) if (w.top_k == 0 || w.top_k >= vocab_size) && (w.top_p < 1.0 || w.min_p > 0.0) => Self::Top(w),
            Some(_) => Self::All,
        }
    }

    /// What the logits are divided by before they are compared.
    pub(crate) fn temperature(self) -> f32 {
        match self {
            Self::Top(warpers) => warpers.temperature,
            Self::Highest | Self::All => 1.0,
        }
    }
}

/// The tokens that a choice is among, by ascending id, and the limits that are left.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shortlist {
    pub(crate) ids: Vec<u32>,
    pub(crate) logits: Vec<f32>,
    pub(crate) warpers: Warpers,
}

/// Largest part of the sum of all weights that a device may be off by.
const TOTAL_ERROR: f64 = 1e-4;

/// The token with the highest logit, of equal ones the first; `None` if the list doesn't tell.
pub(crate) fn highest(top: &Top, vocab_size: usize) -> Option<u32> {
    let highest = *top.logits.first()?;
    let equal = top.logits.iter().take_while(|logit| **logit == highest).count();
    let told = equal < top.logits.len() || equal == vocab_size;
    told.then(|| top.ids[..equal].iter().copied().min()).flatten()
}

/// What the first limit leaves; `None` if the list doesn't tell.
pub(crate) fn shortlist(top: &Top, mut warpers: Warpers, vocab_size: usize) -> Option<Shortlist> {
    let mut scaled = top.logits.clone();
    warpers::temperature(&mut scaled, warpers.temperature);
    let (&highest, &last) = (scaled.first()?, scaled.last()?);
    // Others may be equal to the last one.
    let all = scaled.len() == vocab_size;
    let sure = if all { scaled.len() } else { scaled.iter().take_while(|logit| **logit > last).count() };
    // As the limits take them: of equal logits those with higher ids are the last to go.
    let mut order: Vec<usize> = (0..sure).collect();
    order.sort_by(|&a, &b| scaled[b].total_cmp(&scaled[a]).then(top.ids[b].cmp(&top.ids[a])));
    let weight = |at: usize| f64::from(warpers::exp(scaled[at] - highest));
    let kept = if warpers.top_k > 0 && warpers.top_k < vocab_size {
        (warpers.top_k <= sure).then_some(sure)?
    } else if warpers.top_p < 1.0 {
        let total = f64::from(top.total);
        if !total.is_finite() || total < 1.0 - TOTAL_ERROR {
            return None;
        }
        // Numbers of the size of `highest` are rounded before they are taken from each other.
        let margin = TOTAL_ERROR + 1e-6 * f64::from(highest.abs());
        let mut above = 0.0;
        let mut kept = None;
        for (count, &at) in order.iter().enumerate() {
            let share = above / total;
            // The first one always stays.
            if count > 0 && (share - warpers.top_p).abs() <= margin {
                return None;
            }
            if count > 0 && share > warpers.top_p {
                kept = Some(count);
                break;
            }
            above += weight(at);
        }
        let reached = kept.is_some() || all || above / total > warpers.top_p + margin;
        let kept = reached.then(|| kept.unwrap_or(sure))?;
        warpers.top_p = 1.0;
        kept
    } else if warpers.min_p > 0.0 {
        let ratio = |at: usize| weight(at) / f64::from(warpers.min_p);
        if (0..scaled.len()).any(|at| (ratio(at) - 1.0).abs() < 1e-5) || !(all || ratio(scaled.len() - 1) < 1.0) {
            return None;
        }
        let kept = order.iter().take_while(|at| ratio(**at) > 1.0).count();
        warpers.min_p = 0.0;
        kept
    } else {
        return None;
    };
    order.truncate(kept);
    order.sort_by_key(|&at| top.ids[at]);
    let ids = order.iter().map(|&at| top.ids[at]).collect();
    let logits = order.iter().map(|&at| top.logits[at]).collect();
    Some(Shortlist { ids, logits, warpers })
}
