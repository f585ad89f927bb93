//! [`PackedLinear`]: a weight matrix in the layout that its product wants.

use crate::cpu::Level;
use crate::epilogue::Epilogue;
use crate::error::{Error, Result, check_len};
use crate::linear_bf16::Bf16;
use crate::linear_f32::F32;
use crate::linear_quant::Quant;
use crate::norm::Norm;
use crate::panels::Panels;
use crate::product::{self, Input, Kernel, Part};
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
    format: Format,
}

impl std::fmt::Debug for PackedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedLinear({:?}, [{}, {}])", self.format, self.n_out(), self.k_in())
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
            Format::F32 => Weights::F32(F32::pack((n_out, k_in), level, row)),
            Format::Bf16 => Weights::Bf16(Bf16::pack((n_out, k_in), true, level, row)),
            Format::Bf16Wide => Weights::Bf16(Bf16::pack((n_out, k_in), false, level, row)),
            Format::Block(format) => {
                let blocks = |r: usize, blocks: &mut [u8]| {
                    let mut values = vec![0.0; k_in];
                    row(r, &mut values);
                    format.quantize_row(&values, blocks)
                };
                Weights::Quant(Quant::pack((n_out, k_in), format, level, &blocks)?)
            }
        };
        Ok(Self { weights, format })
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
        let weights = Weights::Quant(Quant::pack((n_out, k_in), format, Level::current(), &row)?);
        Ok(Self { weights, format: Format::Block(format) })
    }

    fn panels(&self) -> &Panels {
        match &self.weights {
            Weights::F32(weights) => weights.panels(),
            Weights::Bf16(weights) => weights.panels(),
            Weights::Quant(weights) => weights.panels(),
        }
    }

    /// Number of outputs.
    #[must_use]
    pub fn n_out(&self) -> usize {
        self.panels().n_out
    }

    /// Length of an input row.
    #[must_use]
    pub fn k_in(&self) -> usize {
        self.panels().k_in
    }

    /// How the weights are held.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of memory that the packed weights take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.panels().bytes()
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
        forward_each(x, m, None, &mut [Product { linear: self, out, epilogue }])
    }

    /// Whether rows that are packed for the one can be used with the other.
    fn takes_rows_of(&self, other: &Self) -> bool {
        let same = |linear: &Self| (linear.format, linear.k_in(), linear.panels().level);
        same(self) == same(other)
    }
}

/// One of several products of the same rows.
#[derive(Debug)]
pub struct Product<'a> {
    /// The weights.
    pub linear: &'a PackedLinear,
    /// Its outputs, `[m, n_out]`.
    pub out: &'a mut [f32],
    /// What is done to them.
    pub epilogue: Epilogue<'a>,
}

/// `out = epilogue(norm(x) · weightᵀ)` for several weights. Where they are of one format, rows are normed, rounded or
/// quantised once for all, and the threads meet once. The bits are those of single steps.
///
/// # Errors
/// If a slice has another length than its shape gives.
pub fn forward_each(x: &[f32], m: usize, norm: Option<Norm<'_>>, products: &mut [Product<'_>]) -> Result<()> {
    let Some(first) = products.first().map(|product| product.linear) else { return Ok(()) };
    for Product { linear, out, epilogue } in &*products {
        check_len("x", x.len(), m * linear.k_in())?;
        check_len("out", out.len(), m * linear.n_out())?;
        epilogue.check(m, linear.n_out())?;
    }
    if let Some(norm) = norm {
        norm.check(first.k_in())?;
    }
    if !products.iter().all(|product| product.linear.takes_rows_of(first)) {
        let normed = norm.map(|norm| norm.of(x)).transpose()?;
        let x = normed.as_deref().unwrap_or(x);
        return products.iter_mut().try_for_each(|Product { linear, out, epilogue }| {
            forward_each(x, m, None, &mut [Product { linear, out, epilogue: *epilogue }])
        });
    }
    let input = Input { x, rows: m, norm };
    macro_rules! run {
        ($kind:ident) => {{
            let parts = products.iter_mut().filter_map(|Product { linear, out, epilogue }| match &linear.weights {
                Weights::$kind(kernel) => Some(Part { kernel, out, epilogue: *epilogue }),
                _ => None,
            });
            product::run(input, &mut parts.collect::<Vec<_>>());
        }};
    }
    match &first.weights {
        Weights::F32(_) => run!(F32),
        Weights::Bf16(_) => run!(Bf16),
        Weights::Quant(_) => run!(Quant),
    }
    Ok(())
}

#[cfg(test)]
#[path = "linear_tests.rs"]
pub(crate) mod tests;
