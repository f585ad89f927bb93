//! What is done to a product's outputs while they are still in the cache.

use crate::activation::gelu_all;
use crate::cpu::Level;
use crate::error::{Result, check_len};

/// What is done to a product's outputs while they are still in the cache.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// Adds a vector of `n_out` values to every row.
    Bias(&'a [f32]),
    /// Gelu with the error function, after adding a vector to every row if there is one.
    Gelu {
        /// As for [`Epilogue::Bias`].
        bias: Option<&'a [f32]>,
    },
    /// `h + gate · output`, after adding a vector to every row if there is one: the gated residual.
    Residual {
        /// As for [`Epilogue::Bias`].
        bias: Option<&'a [f32]>,
        /// Of the outputs' shape.
        h: &'a [f32],
        /// A factor for all outputs.
        gate: f32,
    },
}

impl<'a> Epilogue<'a> {
    fn bias(self) -> Option<&'a [f32]> {
        match self {
            Self::None => None,
            Self::Bias(bias) => Some(bias),
            Self::Gelu { bias } | Self::Residual { bias, .. } => bias,
        }
    }

    /// Checks the lengths for outputs `[rows, n_out]`.
    pub(crate) fn check(self, rows: usize, n_out: usize) -> Result<()> {
        if let Some(bias) = self.bias() {
            check_len("bias", bias.len(), n_out)?;
        }
        match self {
            Self::Residual { h, .. } => check_len("residual", h.len(), rows * n_out),
            _ => Ok(()),
        }
    }

    /// Finishes consecutive outputs of a row: `at` is the place of the first among all outputs, `col` within the row.
    pub(crate) fn apply(self, level: Level, (at, col): (usize, usize), values: &mut [f32]) {
        if let Some(bias) = self.bias() {
            for (value, bias) in values.iter_mut().zip(&bias[col..]) {
                *value += bias;
            }
        }
        match self {
            Self::Gelu { .. } => gelu_all(level, values),
            Self::Residual { h, gate, .. } => {
                for (value, h) in values.iter_mut().zip(&h[at..]) {
                    *value = h + gate * *value;
                }
            }
            _ => {}
        }
    }
}
