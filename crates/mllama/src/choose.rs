//! What is needed of the logits of a step, found on the device: the highest logit of each row, or its highest ones, so
//! that what a step copies back is a number or half a kilobyte a row and not the vocabulary.

use std::sync::atomic::Ordering;

use candle_core::{D, DType, Device, Tensor};

use crate::error::Result;
use crate::model::Model;
use crate::transfer::to_device;

/// How many of the highest logits [`Model::top`] gives.
pub const TOP: usize = 65;

/// Logits that are sorted at a time: Metal sorts with a thread for each, of which a group has 1024.
const SORTED: usize = 1024;

/// The highest logit of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Highest {
    /// It is this token's, and of equal ones the first.
    Token(u32),
    /// The row has logits that are no numbers, or infinite: look at them.
    NotFinite,
}

/// The highest logits of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Top {
    /// [`TOP`] of them or the whole vocabulary, highest first. If several are equal to the last, which of them are here
    /// is left open.
    pub logits: Vec<f32>,
    /// Their tokens.
    pub ids: Vec<u32>,
    /// Sum of `exp((logit - highest) / temperature)` over the vocabulary, in f32 and in an order that the device chooses:
    /// good to four digits.
    pub total: f32,
}

/// Constants of a device, put there once.
#[derive(Debug)]
pub(crate) struct Chooser {
    /// `[vocabulary]`: the number of each token. Whole numbers up to 2²⁴ are exact.
    places: Tensor,
    /// `[1]`: more than any of them.
    none: Tensor,
    /// `[1]`: less than any logit.
    lowest: Tensor,
    /// `[1, pieces, 1]`: the first token of each piece that is sorted by itself.
    first: Tensor,
}

impl Chooser {
    pub(crate) fn new(vocabulary: usize, device: &Device) -> Result<Self> {
        let (pieces, width) = pieces_of(vocabulary);
        let first = (0..pieces).map(|piece| (piece * width) as f32).collect();
        Ok(Self {
            places: to_device((0..vocabulary).map(|token| token as f32).collect(), vocabulary, device)?,
            none: to_device(vec![vocabulary as f32], 1, device)?,
            lowest: to_device(vec![f32::MIN], 1, device)?,
            first: to_device(first, (1, pieces, 1), device)?,
        })
    }
}

/// What [`Model::top`] copies back, by row: [`TOP`] logits or the whole vocabulary, as many tokens, the total, and 0 for
/// finite logits.
type Found = Vec<Vec<f32>>;

/// How many pieces of which width `count` logits are sorted in; the last one may need filling up.
fn pieces_of(count: usize) -> (usize, usize) {
    let least = count.div_ceil(SORTED).max(1);
    let even = (least..=2 * least).find(|pieces| count.is_multiple_of(*pieces));
    let pieces = even.unwrap_or(least);
    (pieces, count.div_ceil(pieces))
}

impl Model {
    /// The highest logit of each row of `[rows, vocabulary]` in f32, with one copy from the device.
    ///
    /// # Errors
    /// The device's.
    pub fn highest(&self, logits: &Tensor) -> Result<Vec<Highest>> {
        let (rows, vocabulary) = logits.dims2()?;
        // Of equal values argmax takes any; here it is to be the first, as on the CPU.
        let highest = logits.max_keepdim(D::Minus1)?;
        let places = self.chooser.places.broadcast_as((rows, vocabulary))?;
        let none = self.chooser.none.broadcast_as((rows, vocabulary))?;
        let first = logits.broadcast_eq(&highest)?.where_cond(&places, &none)?.min(D::Minus1)?;
        let both = Tensor::stack(&[first, finite(logits)?], 0)?;
        self.counters.copies_to_host.fetch_add(1, Ordering::Relaxed);
        let both = both.to_vec2::<f32>()?;
        let token = |(&first, &finite): (&f32, &f32)| match finite == 0.0 && (first as usize) < vocabulary {
            true => Highest::Token(first as u32),
            false => Highest::NotFinite,
        };
        Ok(both[0].iter().zip(&both[1]).map(token).collect())
    }

    /// The highest logits of each row of `[rows, vocabulary]` in f32, with one copy from the device; `None` for a row that
    /// has logits that are no numbers, or infinite.
    ///
    /// # Errors
    /// The device's.
    pub fn top(&self, logits: &Tensor, temperatures: &[f32]) -> Result<Vec<Option<Top>>> {
        let (rows, vocabulary) = logits.dims2()?;
        let temperatures = self.to_device(temperatures.to_vec(), (rows, 1), logits)?;
        self.counters.copies_to_host.fetch_add(1, Ordering::Relaxed);
        let found = self.chooser.top(logits, &temperatures)?;
        Ok(found.iter().map(|row| Top::new(row, TOP.min(vocabulary), vocabulary)).collect())
    }

    /// The logits of some rows.
    ///
    /// # Errors
    /// The device's.
    pub fn logits(&self, logits: &Tensor, rows: &[u32]) -> Result<Vec<Vec<f32>>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = match rows.len() == logits.dim(0)? {
            true => logits.clone(),
            false => logits.index_select(&self.to_device(rows.to_vec(), rows.len(), logits)?, 0)?,
        };
        self.counters.copies_to_host.fetch_add(1, Ordering::Relaxed);
        Ok(wanted.to_dtype(DType::F32)?.to_vec2::<f32>()?)
    }
}

impl Chooser {
    /// Of logits `[rows, vocabulary]` with temperatures `[rows, 1]`.
    fn top(&self, logits: &Tensor, temperatures: &Tensor) -> Result<Found> {
        let (rows, vocabulary) = logits.dims2()?;
        let finite = finite(logits)?.unsqueeze(1)?;
        let Self { lowest, first, .. } = self;
        // A sort wants numbers.
        let lowest_each = lowest.broadcast_as((rows, vocabulary))?;
        let logits = logits.eq(logits)?.where_cond(logits, &lowest_each)?;
        let scaled = logits.broadcast_div(temperatures)?;
        let weights = scaled.broadcast_sub(&scaled.max_keepdim(D::Minus1)?)?.exp()?;

        // Each piece by itself, then the best of all pieces, until it is one. Sums go by pieces too: short ones are exact.
        let (mut pieces, mut width) = pieces_of(vocabulary);
        let missing = pieces * width - vocabulary;
        let (mut values, weights) = match missing {
            0 => (logits, weights),
            _ => {
                let filler = lowest.broadcast_as((rows, missing))?.contiguous()?;
                (Tensor::cat(&[&logits, &filler], 1)?, weights.pad_with_zeros(1, 0, missing)?)
            }
        };
        let total = weights.reshape((rows, pieces, width))?.sum(2)?.sum_keepdim(1)?;
        let mut ids: Option<Tensor> = None;
        loop {
            let sorted = values.reshape((rows * pieces, width))?;
            let keep = TOP.min(width);
            let order = sorted.arg_sort_last_dim(false)?.narrow(1, 0, keep)?.contiguous()?;
            values = sorted.gather(&order, 1)?.reshape((rows, pieces * keep))?;
            let kept = match ids {
                Some(ids) => ids.reshape((rows * pieces, width))?.gather(&order, 1)?,
                None => order.to_dtype(DType::F32)?.reshape((rows, pieces, keep))?.broadcast_add(first)?,
            };
            let kept = kept.reshape((rows, pieces * keep))?;
            if pieces == 1 {
                return Ok(Tensor::cat(&[&values, &kept, &total, &finite], 1)?.to_vec2()?);
            }
            ids = Some(kept);
            let count = pieces * keep;
            (pieces, width) = pieces_of(count);
            if pieces * width > count {
                let filler = lowest.broadcast_as((rows, pieces * width - count))?.contiguous()?;
                values = Tensor::cat(&[&values, &filler], 1)?;
                ids = ids.map(|ids| ids.pad_with_zeros(1, 0, pieces * width - count)).transpose()?;
            }
        }
    }
}

/// For each row 0, or no number.
fn finite(logits: &Tensor) -> Result<Tensor> {
    Ok(logits.affine(0.0, 0.0)?.sum(D::Minus1)?)
}

impl Top {
    /// Of `keep` logits, as many tokens, the total and what is 0 for finite logits.
    fn new(row: &[f32], keep: usize, vocabulary: usize) -> Option<Self> {
        let (logits, rest) = row.split_at_checked(keep)?;
        let (ids, rest) = rest.split_at_checked(keep)?;
        let [total, 0.0] = *rest else { return None };
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        let known = ids.iter().all(|&id| (id as usize) < vocabulary);
        known.then(|| Self { logits: logits.to_vec(), ids, total })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;

    /// In pieces that fill up and in those that don't, in one round and in several, with equal ones.
    #[test]
    fn the_highest_of_any_vocabulary() {
        for vocabulary in [3, 65, 544, 1024, 3001, 128_256] {
            let chooser = Chooser::new(vocabulary, &Device::Cpu).unwrap();
            let of = |seed: usize| -> Vec<f32> {
                (0..vocabulary).map(|i| ((i * seed) % 9973) as f32 / if seed == 7919 { 500.0 } else { 3.0 }).collect()
            };
            let rows = [of(7919), of(31), vec![0.25; vocabulary]];
            let logits = Tensor::from_vec(rows.concat(), (3, vocabulary), &Device::Cpu).unwrap();
            let temperatures = [0.6f32, 1.0, 2.0];
            let found = chooser.top(&logits, &Tensor::new(&temperatures, &Device::Cpu).unwrap().unsqueeze(1).unwrap());
            for ((found, row), temperature) in found.unwrap().iter().zip(&rows).zip(temperatures) {
                let count = TOP.min(vocabulary);
                let top = Top::new(found, count, vocabulary).unwrap();
                let mut sorted = row.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                assert_eq!(top.logits, sorted[..count], "{vocabulary}");
                assert!(top.logits.iter().zip(&top.ids).all(|(logit, id)| row[*id as usize] == *logit), "{vocabulary}");
                let distinct: std::collections::BTreeSet<_> = top.ids.iter().collect();
                assert_eq!(distinct.len(), count);
                let weights = row.iter().map(|logit| f64::from((logit - sorted[0]) / temperature).exp());
                let total: f64 = weights.sum();
                assert!((f64::from(top.total) / total - 1.0).abs() < 1e-4, "{} for {total}", top.total);
            }
        }
    }

    #[test]
    fn what_is_no_number_is_said() {
        let chooser = Chooser::new(500, &Device::Cpu).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = vec![1.0; 500];
            row[77] = bad;
            let logits = Tensor::from_vec(row, (1, 500), &Device::Cpu).unwrap();
            let one = Tensor::ones((1, 1), DType::F32, &Device::Cpu).unwrap();
            assert_eq!(Top::new(&chooser.top(&logits, &one).unwrap()[0], TOP, 500), None, "{bad}");
        }
    }
}
