//! The highest logit of each row, found on the device: what a step of greedy answers copies back is a number a row.

use std::sync::atomic::Ordering;

use candle_core::{D, DType, Tensor};

use crate::error::Result;
use crate::model::Model;

/// The highest logit of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Highest {
    /// It is this token's, and of equal ones the first.
    Token(u32),
    /// The row has logits that are no numbers, or infinite: look at them.
    NotFinite,
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
        let places = Tensor::arange(0f32, vocabulary as f32, logits.device())?.broadcast_as((rows, vocabulary))?;
        let none = Tensor::new(vocabulary as f32, logits.device())?.broadcast_as((rows, vocabulary))?;
        let first = logits.broadcast_eq(&highest)?.where_cond(&places, &none)?.min(D::Minus1)?;
        // Zero, or no number.
        let finite = logits.affine(0.0, 0.0)?.sum(D::Minus1)?;
        let both = Tensor::stack(&[first, finite], 0)?;
        self.counters.copies_to_host.fetch_add(1, Ordering::Relaxed);
        let both = both.to_vec2::<f32>()?;
        let token = |(&first, &finite): (&f32, &f32)| match finite == 0.0 && (first as usize) < vocabulary {
            // Whole numbers up to 2²⁴ are exact.
            true => Highest::Token(first as u32),
            false => Highest::NotFinite,
        };
        Ok(both[0].iter().zip(&both[1]).map(token).collect())
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
            false => logits.index_select(&Tensor::new(rows, logits.device())?, 0)?,
        };
        self.counters.copies_to_host.fetch_add(1, Ordering::Relaxed);
        Ok(wanted.to_dtype(DType::F32)?.to_vec2::<f32>()?)
    }
}
