//! A layer of an image encoder, in place, and what is made of such layers' states.
//!
//! What lies between the steps is there for one image at a time, and in the feed-forward network for some of its rows, in
//! memory that is used again: new memory costs as much time as a norm.

use std::ops::Range;

use crate::aligned;
use crate::attention::{Heads, vision_attention};
use crate::epilogue::Epilogue;
use crate::error::{Error, Result, check_len};
use crate::linear::{PackedLinear, Product, forward_each};
use crate::norm::{Norm, cut};
use crate::product::ROWS_AT_ONCE;
use crate::threads;

/// A product and what is added to it, by slices or by tensors.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, Values> {
    /// The weights.
    pub linear: &'a PackedLinear,
    /// Added to every row.
    pub bias: Option<Values>,
}

impl Affine<'_, &[f32]> {
    fn plain<'a>(&'a self, out: &'a mut [f32]) -> Product<'a> {
        Product { linear: self.linear, out, epilogue: self.bias.map_or(Epilogue::None, Epilogue::Bias) }
    }

    fn gelu<'a>(&'a self, out: &'a mut [f32]) -> Product<'a> {
        Product { linear: self.linear, out, epilogue: Epilogue::Gelu { bias: self.bias } }
    }

    fn residual<'a>(&'a self, h: &'a [f32], gate: f32, out: &'a mut [f32]) -> Product<'a> {
        Product { linear: self.linear, out, epilogue: Epilogue::Residual { bias: self.bias, h, gate } }
    }
}

/// `x += gate · o(attention(q, k, v))` of the norm of `x`, then `x += gate · fc2(gelu(fc1))` of another norm of `x`.
///
/// Of slices ([`Norm`] and [`Affine`]), or of tensors ([`crate::tensor::InputNorm`]).
#[derive(Clone, Copy, Debug)]
pub struct EncoderLayer<Norm, Affine> {
    /// Of the attention's input.
    pub attention_norm: Norm,
    /// Queries, keys and values.
    pub qkv: [Affine; 3],
    /// The attention's output.
    pub o: Affine,
    /// The attention's gate.
    pub attention_gate: f32,
    /// Of the network's input.
    pub mlp_norm: Norm,
    /// The network's first product.
    pub fc1: Affine,
    /// Its second one.
    pub fc2: Affine,
    /// Its gate.
    pub mlp_gate: f32,
}

/// An image's rows among others'.
#[derive(Clone, Debug)]
pub struct ImageRows<'a> {
    /// Which rows.
    pub rows: Range<usize>,
    /// How many of them, the first ones, are no padding. Padding doesn't see padding.
    pub live: usize,
    /// What is added to the scores of each row as a key.
    pub key_bias: &'a [f32],
}

impl ImageRows<'_> {
    /// Attention among the image's rows. `q`, `k`, `v` and `out` have no others, `[rows, heads · d]`.
    ///
    /// # Errors
    /// As [`vision_attention`].
    pub fn attend(&self, heads: &Heads, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) -> Result<()> {
        let padding: Vec<bool> = (0..self.rows.len()).map(|row| row >= self.live).collect();
        vision_attention(q, k, v, heads, Some(self.key_bias), Some(&padding), out)
    }
}

impl EncoderLayer<Norm<'_>, Affine<'_, &[f32]>> {
    /// Overwrites the images' rows of `x`, `[rows, heads · d]`. The bits are those of single steps.
    ///
    /// # Errors
    /// If the sizes don't fit each other, or an image's rows aren't there.
    pub fn forward(&self, heads: &Heads, images: &[ImageRows<'_>], x: &mut [f32]) -> Result<()> {
        let width = heads.query_row();
        for Affine { linear, .. } in self.qkv.iter().chain([&self.o, &self.fc2]) {
            check_len("an encoder's row", linear.n_out(), width)?;
        }
        for image in images {
            let rows = &image.rows;
            let Some(x) = x.get_mut(rows.start * width..rows.end * width) else {
                return Err(Error::Size { what: "an image's last row", got: rows.end, rule: "among the rows" });
            };
            self.image(heads, image, x)?;
        }
        Ok(())
    }

    fn image(&self, heads: &Heads, image: &ImageRows<'_>, x: &mut [f32]) -> Result<()> {
        let (width, inner_width, rows) = (heads.query_row(), self.fc1.linear.n_out(), image.rows.len());
        if rows * width == 0 {
            return Ok(());
        }
        let (whole, some) = (rows * width, ROWS_AT_ONCE.min(rows));
        let sizes = [whole, whole, whole, whole, some * width, some * inner_width];
        aligned::with_parts(sizes, |[q, k, v, attended, between, inner]| {
            let [to_q, to_k, to_v] = &self.qkv;
            let products = &mut [to_q.plain(q), to_k.plain(k), to_v.plain(v)];
            forward_each(x, rows, Some(self.attention_norm), products)?;
            image.attend(heads, q, k, v, attended)?;

            for (x, attended) in x.chunks_mut(some * width).zip(attended.chunks(some * width)) {
                let rows = x.len() / width;
                let (between, inner) = (&mut between[..x.len()], &mut inner[..rows * inner_width]);
                forward_each(attended, rows, None, &mut [self.o.residual(x, self.attention_gate, between)])?;
                forward_each(between, rows, Some(self.mlp_norm), &mut [self.fc1.gelu(inner)])?;
                forward_each(inner, rows, None, &mut [self.fc2.residual(between, self.mlp_gate, x)])?;
            }
            Ok(())
        })
    }
}

/// Rows of several states side by side, `[rows, width · (1 + states)]`: first the row of `last`, then the first elements of
/// the states' rows, their second ones, and so on.
///
/// # Errors
/// If the sizes don't fit.
pub fn interleave(last: &[f32], states: &[&[f32]], width: usize, out: &mut [f32]) -> Result<()> {
    let wide = width * (1 + states.len());
    check_len("the last state", last.len(), out.len().checked_div(wide).unwrap_or(0) * width)?;
    check_len("interleaved states", out.len(), last.len() * (1 + states.len()))?;
    for state in states {
        check_len("a state", state.len(), last.len())?;
    }
    let (rows, threads) = cut(out.len(), wide, 4);
    threads::run_chunks(threads, out, rows * wide, |task, out| {
        for (i, out) in out.chunks_exact_mut(wide).enumerate() {
            let row = (task * rows + i) * width..(task * rows + i + 1) * width;
            let (first, rest) = out.split_at_mut(width);
            first.copy_from_slice(&last[row.clone()]);
            for (place, state) in states.iter().enumerate() {
                for (out, value) in rest[place..].iter_mut().step_by(states.len()).zip(&state[row.clone()]) {
                    *out = *value;
                }
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;
    use crate::linear::Format;
    use crate::linear::tests::noise;

    #[test]
    fn bits_are_those_of_single_steps() {
        let (heads, width, inner_width) = (Heads::full(3, 20), 60, 130);
        let sizes = [(900, 880), (1, 1), (40, 33)];
        let total: usize = sizes.iter().map(|(rows, _)| rows).sum();
        let mut seed = 0;
        let mut values = |len: usize| {
            seed += 1;
            noise(len, seed)
        };
        let biases: [Vec<f32>; 6] = [width, width, width, width, inner_width, width].map(&mut values);
        for format in [Format::F32, Format::Bf16] {
            let mut linear = |n, k| PackedLinear::pack(format, &values(n * k), n, k).unwrap();
            let linears = [(); 4].map(|()| linear(width, width));
            let (fc1, fc2) = (linear(inner_width, width), linear(width, inner_width));
            let [q, k, v, o] = linears.each_ref();
            let [q, k, v, o, fc1, fc2] = std::array::from_fn(|i| Affine {
                linear: [q, k, v, o, &fc1, &fc2][i],
                bias: (i != 1).then_some(biases[i].as_slice()),
            });
            let [weight, bias] = [values(width), values(width)];
            let attention_norm = Norm::Layer { weight: &weight, bias: &bias, eps: 1e-5 };
            let mlp_norm = Norm::Rms { weight: &bias, eps: 1e-5 };
            let key_bias = values(900);
            let layer = EncoderLayer {
                attention_norm,
                qkv: [q, k, v],
                o,
                attention_gate: 0.7,
                mlp_norm,
                fc1,
                fc2,
                mlp_gate: 1.3,
            };

            let before = values(total * width);
            let mut found = before.clone();
            let mut start = 0;
            let images = sizes.map(|(rows, live)| {
                start += rows;
                ImageRows { rows: start - rows..start, live, key_bias: &key_bias[..rows] }
            });
            layer.forward(&heads, &images, &mut found).unwrap();

            let run = |x: &[f32], norm: Option<Norm<'_>>, affine: &Affine<'_, &[f32]>, epilogue: Epilogue<'_>| {
                let normed = norm.map(|norm| norm.of(x).unwrap());
                let (x, rows) = (normed.as_deref().unwrap_or(x), x.len() / affine.linear.k_in());
                let mut out = vec![0.0; rows * affine.linear.n_out()];
                affine.linear.forward_with(x, rows, &mut out, epilogue).unwrap();
                out
            };
            for image in images {
                let x = &before[image.rows.start * width..image.rows.end * width];
                let [q, k, v] = layer.qkv.map(|affine| {
                    run(x, Some(attention_norm), &affine, affine.bias.map_or(Epilogue::None, Epilogue::Bias))
                });
                let padding: Vec<bool> = (0..image.rows.len()).map(|row| row >= image.live).collect();
                let mut attended = vec![0.0; x.len()];
                vision_attention(&q, &k, &v, &heads, Some(image.key_bias), Some(&padding), &mut attended).unwrap();
                let h = run(&attended, None, &o, Epilogue::Residual { bias: o.bias, h: x, gate: 0.7 });
                let inner = run(&h, Some(mlp_norm), &fc1, Epilogue::Gelu { bias: fc1.bias });
                let y = run(&inner, None, &fc2, Epilogue::Residual { bias: fc2.bias, h: &h, gate: 1.3 });
                assert!(y == found[image.rows.start * width..image.rows.end * width], "{format:?} {:?}", image.rows);
            }
        }
    }

    #[test]
    fn states_lie_side_by_side() {
        let (rows, width) = (500, 70);
        let [last, a, b] = [4, 5, 6].map(|seed| noise(rows * width, seed));
        let mut out = vec![0.0; 3 * rows * width];
        interleave(&last, &[&a, &b], width, &mut out).unwrap();
        for (row, out) in out.chunks_exact(3 * width).enumerate() {
            for place in 0..width {
                let at = row * width + place;
                assert_eq!((out[place], out[width + 2 * place], out[width + 2 * place + 1]), (last[at], a[at], b[at]));
            }
        }
        let mut alone = vec![0.0; rows * width];
        interleave(&last, &[], width, &mut alone).unwrap();
        assert_eq!(alone, last);
        assert!(interleave(&last, &[&a[1..]], width, &mut out[..2 * rows * width]).is_err());
        assert!(interleave(&last, &[&a], width, &mut out).is_err());
    }

    #[test]
    fn images_beyond_the_rows_are_an_error() {
        let linear = PackedLinear::pack(Format::F32, &noise(16, 1), 4, 4).unwrap();
        let (affine, weight) = (Affine { linear: &linear, bias: None }, noise(4, 2));
        let norm = Norm::Rms { weight: &weight, eps: 1e-5 };
        let layer = EncoderLayer {
            attention_norm: norm,
            qkv: [affine; 3],
            o: affine,
            attention_gate: 1.0,
            mlp_norm: norm,
            fc1: affine,
            fc2: affine,
            mlp_gate: 1.0,
        };
        let image = |rows| [ImageRows { rows, live: 1, key_bias: &[0.0; 2] }];
        let mut x = noise(8, 3);
        assert!(layer.forward(&Heads::full(2, 2), &image(1..3), &mut x).is_err());
        assert!(layer.forward(&Heads::full(2, 3), &image(0..2), &mut x).is_err());
        layer.forward(&Heads::full(2, 2), &image(0..2), &mut x).unwrap();
        layer.forward(&Heads::full(2, 2), &[ImageRows { rows: 1..1, live: 0, key_bias: &[] }], &mut x).unwrap();
    }
}
