//! [`PackedLinear`]: a weight matrix in the layout that its product wants.

use crate::activation::gelu_all;
use crate::cpu::Level;
use crate::error::{Error, Result, check_len};
use crate::linear_bf16::Bf16;
use crate::linear_f32::F32;
use crate::linear_quant::Quant;
use crate::product;
use crate::quant::BlockFormat;

/// A number that weights can come as.
pub trait Element: Copy + Sync {
    /// Its value as f32 (exact).
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for half::bf16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

impl Element for half::f16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// bf16, activations rounded to bf16 as well (sums in f32).
    Bf16,
    /// bf16, activations kept in f32: the same bits as [`Format::F32`] with these weights.
    Bf16Wide,
    /// Blocks of 8 or 4 bits, activations quantised to 8 bits in blocks of 32. Same bits on every CPU.
    Block(BlockFormat),
}

/// What is done to the product's outputs while they are still in the cache.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// Adds a vector of `n_out` values to every row.
    Bias(&'a [f32]),
    /// Adds a vector of `n_out` values to every row, then takes gelu with the error function.
    BiasGelu(&'a [f32]),
}

enum Weights {
    F32(F32),
    Bf16(Bf16),
    Quant(Quant),
}

/// The weights `[n_out, k_in]` of a linear layer, packed once and used for any number of rows.
///
/// `forward` gives the same bits for a row whatever the other rows are, however many there are, and on any number of
/// threads.
pub struct PackedLinear {
    weights: Weights,
    n_out: usize,
    k_in: usize,
    format: Format,
}

impl std::fmt::Debug for PackedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedLinear({:?}, [{}, {}])", self.format, self.n_out, self.k_in)
    }
}

impl PackedLinear {
    /// Packs `weight` (`[n_out, k_in]`, row-major; f32, bf16 or f16) as f32.
    ///
    /// # Errors
    /// If the length of `weight` is not `n_out * k_in`.
    pub fn pack_f32<T: Element>(weight: &[T], n_out: usize, k_in: usize) -> Result<Self> {
        Self::pack(Format::F32, weight, n_out, k_in)
    }

    /// Packs `weight` (`[n_out, k_in]`, row-major; f32, bf16 or f16) in the given format.
    ///
    /// # Errors
    /// If the length of `weight` is not `n_out * k_in`, or the format can't hold rows of this length.
    pub fn pack<T: Element>(format: Format, weight: &[T], n_out: usize, k_in: usize) -> Result<Self> {
        check_len("weight", weight.len(), n_out * k_in)?;
        Self::pack_rows(format, n_out, k_in, |row, values| {
            for (to, from) in values.iter_mut().zip(&weight[row * k_in..(row + 1) * k_in]) {
                *to = from.to_f32();
            }
        })
    }

    /// Packs weights that `row` writes one row at a time, called with the row's number and room for `k_in` values,
    /// from several threads: a checkpoint is packed while it is read, without a second copy.
    ///
    /// # Errors
    /// If the format can't hold rows of this length.
    pub fn pack_rows(
        format: Format,
        n_out: usize,
        k_in: usize,
        row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        Self::pack_rows_at(Level::current(), format, n_out, k_in, &row)
    }

    pub(crate) fn pack_rows_at(
        level: Level,
        format: Format,
        n_out: usize,
        k_in: usize,
        row: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Result<Self> {
        if k_in == 0 {
            return Err(Error::Size { what: "k_in", got: 0, rule: "at least 1" });
        }
        let weights = match format {
            Format::F32 => Weights::F32(F32::pack(n_out, k_in, level, row)),
            Format::Bf16 => Weights::Bf16(Bf16::pack(n_out, k_in, true, level, row)),
            Format::Bf16Wide => Weights::Bf16(Bf16::pack(n_out, k_in, false, level, row)),
            Format::Block(format) => {
                let blocks = |r: usize, blocks: &mut [u8]| {
                    let mut values = vec![0.0; k_in];
                    row(r, &mut values);
                    format.quantize_row(&values, blocks)
                };
                Weights::Quant(Quant::pack(n_out, k_in, format, level, &blocks)?)
            }
        };
        Ok(Self { weights, n_out, k_in, format })
    }

    /// Packs weights that are quantised already: `row` gives each of the `n_out` rows as a GGUF file holds it.
    ///
    /// # Errors
    /// If a row has another length than the shape gives, or `k_in` is no multiple of the block.
    pub fn pack_blocks<'a>(
        format: BlockFormat,
        n_out: usize,
        k_in: usize,
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Result<Self> {
        if k_in == 0 || !k_in.is_multiple_of(format.block_len()) {
            return Err(Error::Size { what: "k_in", got: k_in, rule: "a multiple of the quantised block" });
        }
        let row = |r: usize, to: &mut [u8]| {
            let blocks = row(r);
            check_len("quantised row", blocks.len(), to.len())?;
            to.copy_from_slice(blocks);
            Ok(())
        };
        let weights = Weights::Quant(Quant::pack(n_out, k_in, format, Level::current(), &row)?);
        Ok(Self { weights, n_out, k_in, format: Format::Block(format) })
    }

    /// Number of outputs.
    #[must_use]
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Length of an input row.
    #[must_use]
    pub fn k_in(&self) -> usize {
        self.k_in
    }

    /// How the weights are held.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of memory that the packed weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.weights {
            Weights::F32(weights) => weights.bytes(),
            Weights::Bf16(weights) => weights.bytes(),
            Weights::Quant(weights) => weights.bytes(),
        }
    }

    /// `out[m, n_out] = x[m, k_in] · weightᵀ + bias`, all row-major.
    ///
    /// # Errors
    /// If a slice has another length than its shape gives.
    pub fn forward(&self, x: &[f32], m: usize, out: &mut [f32], bias: Option<&[f32]>) -> Result<()> {
        self.forward_with(x, m, out, bias.map_or(Epilogue::None, Epilogue::Bias))
    }

    /// `out[m, n_out] = epilogue(x[m, k_in] · weightᵀ)`, all row-major.
    ///
    /// # Errors
    /// If a slice has another length than its shape gives.
    pub fn forward_with(&self, x: &[f32], m: usize, out: &mut [f32], epilogue: Epilogue<'_>) -> Result<()> {
        check_len("x", x.len(), m * self.k_in)?;
        check_len("out", out.len(), m * self.n_out)?;
        if let Epilogue::Bias(bias) | Epilogue::BiasGelu(bias) = epilogue {
            check_len("bias", bias.len(), self.n_out)?;
        }
        let level = Level::current();
        match epilogue {
            Epilogue::None => self.product(x, m, out, None),
            Epilogue::Bias(bias) => self.product(x, m, out, Some(&|col, values| add(values, &bias[col..]))),
            Epilogue::BiasGelu(bias) => {
                let finish = |col: usize, values: &mut [f32]| {
                    add(values, &bias[col..]);
                    gelu_all(level, values);
                };
                self.product(x, m, out, Some(&finish));
            }
        }
        Ok(())
    }

    fn product(&self, x: &[f32], m: usize, out: &mut [f32], finish: Option<product::Finish<'_>>) {
        match &self.weights {
            Weights::F32(weights) => product::run(weights, x, m, out, finish),
            Weights::Bf16(weights) => product::run(weights, x, m, out, finish),
            Weights::Quant(weights) => product::run(weights, x, m, out, finish),
        }
    }
}

/// Adds `b` to `a`, element by element, as far as `a` goes.
fn add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

#[cfg(test)]
#[path = "linear_tests.rs"]
pub(crate) mod tests;
