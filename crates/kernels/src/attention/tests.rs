//! Attention against f64, across levels, and that a row's bits depend on nothing but the row and its keys.
#![allow(clippy::unwrap_used)] // a failed call is a failed test

use half::bf16;

use super::causal::causal_attention_at;
use super::cross::cross_attention_at;
use super::vision::vision_attention_at;
use super::*;
use crate::cpu::Level;
use crate::linear::tests::{bits, noise};
use crate::threads;

/// Softmax-weighted sum in f64 for one row and head; `score_bias(j)` is added, `None` hides the key. With it, the
/// error that f32 may have: values are in [-1, 1], so the result moves by at most twice what a score does, and a score
/// is a sum whose rounding is a few times 2^-24 of its absolute terms.
fn reference(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    stride: usize,
    scale: f32,
    score_bias: impl Fn(usize) -> Option<f64>,
) -> (Vec<f64>, f64) {
    let d = q.len();
    let (mut weights, mut largest) = (Vec::new(), 0.0f64);
    for (j, key) in k.chunks(stride).enumerate() {
        let size: f64 = q.iter().zip(key).map(|(a, b)| f64::from((a * b * scale).abs())).sum();
        largest = largest.max(size);
        let dot: f64 = q.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        weights.push(score_bias(j).map_or(f64::NEG_INFINITY, |bias| dot * f64::from(scale) + bias));
    }
    let max = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut out = vec![0.0; d];
    if max == f64::NEG_INFINITY {
        return (out, 0.0);
    }
    let total: f64 = weights.iter().map(|w| (w - max).exp()).sum();
    for (w, value) in weights.iter().zip(v.chunks(stride)) {
        for (out, value) in out.iter_mut().zip(value) {
            *out += (w - max).exp() / total * f64::from(*value);
        }
    }
    (out, 1e-6 + 4.0 * largest * f64::from(f32::EPSILON) / 2.0)
}

fn close(got: &[f32], (want, error): &(Vec<f64>, f64), what: &str) {
    for (got, want) in got.iter().zip(want) {
        assert!((f64::from(*got) - want).abs() < *error, "{what}: {got} against {want}");
    }
}

fn loud(len: usize, seed: u64) -> Vec<f32> {
    noise(len, seed).into_iter().map(|x| x * 3.0).collect()
}

#[test]
fn vision_is_close_to_f64_at_every_level() {
    for (tokens, heads, d) in [(1, 1, 4), (70, 2, 20), (130, 3, 80), (257, 1, 16), (121, 2, 36)] {
        let heads = Heads::full(heads, d);
        let row = heads.query_row();
        let (q, k, v) = (loud(tokens * row, 1), loud(tokens * row, 2), noise(tokens * row, 3));
        let bias: Vec<f32> = (0..tokens).map(|t| if t % 9 == 4 { 28f32.ln() } else { 0.0 }).collect();
        let pad: Vec<bool> = (0..tokens).map(|t| t % 9 == 4 || t > 240).collect();
        for level in Level::available() {
            for (bias, pad) in [(None, None), (Some(&bias), None), (None, Some(&pad)), (Some(&bias), Some(&pad))] {
                let mut out = vec![f32::NAN; q.len()];
                let (b, p) = (bias.map(Vec::as_slice), pad.map(Vec::as_slice));
                vision_attention_at(level, &q, &k, &v, &heads, b, p, &mut out).unwrap();
                for i in 0..tokens {
                    for h in 0..heads.query {
                        let at = i * row + h * d;
                        let want = reference(&q[at..at + d], &k[h * d..], &v[h * d..], row, heads.scale, |j| {
                            let hidden = pad.is_some_and(|pad| pad[i] && pad[j]);
                            (!hidden).then(|| bias.map_or(0.0, |bias| f64::from(bias[j])))
                        });
                        close(&out[at..at + d], &want, &format!("{level:?} {tokens}x{}x{d} row {i}", heads.query));
                    }
                }
            }
        }
    }
}

#[test]
fn vision_with_counts_equals_vision_with_copies() {
    let heads = Heads::full(2, 80);
    let row = heads.query_row();
    let (tokens, copies) = (100, 28);
    let (q, k, v) = (loud(tokens * row, 4), loud(tokens * row, 5), noise(tokens * row, 6));
    let repeat = |x: &[f32]| {
        let mut long = x.to_vec();
        (1..copies).for_each(|_| long.extend_from_slice(&x[(tokens - 1) * row..]));
        long
    };
    let mut bias = vec![0.0; tokens];
    bias[tokens - 1] = (copies as f32).ln();
    let mut short = vec![0.0; q.len()];
    vision_attention(&q, &k, &v, &heads, Some(&bias), None, &mut short).unwrap();
    let (q, k, v) = (repeat(&q), repeat(&k), repeat(&v));
    let mut long = vec![0.0; q.len()];
    vision_attention(&q, &k, &v, &heads, None, None, &mut long).unwrap();
    for (a, b) in short.iter().zip(&long) {
        assert!((a - b).abs() < 2e-6, "{a} against {b}");
    }
}

#[test]
fn vision_rows_keep_their_bits_on_any_number_of_threads() {
    let heads = Heads::full(4, 80);
    let len = 333 * heads.query_row();
    let (q, k, v) = (loud(len, 7), loud(len, 8), noise(len, 9));
    for level in Level::available() {
        let run = |count| {
            let mut out = vec![0.0; len];
            threads::with_limit(count, || vision_attention_at(level, &q, &k, &v, &heads, None, None, &mut out))
                .unwrap();
            bits(&out)
        };
        assert_eq!(run(1), run(2), "{level:?}");
    }
}

/// Sequences `(past, new)` computed in one call.
struct Text {
    heads: Heads,
    lens: Vec<(usize, usize)>,
    q: Vec<Vec<f32>>,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl Text {
    fn new(heads: Heads, lens: &[(usize, usize)]) -> Self {
        let of = |width: usize, seed: u64, make: fn(usize, u64) -> Vec<f32>| -> Vec<Vec<f32>> {
            lens.iter().enumerate().map(|(i, (past, new))| make((past + new) * width, seed + i as u64)).collect()
        };
        let (q, k) = (of(heads.query_row(), 10, loud), of(heads.key_row(), 20, loud));
        Self { heads, lens: lens.to_vec(), q, k, v: of(heads.key_row(), 30, noise) }
    }

    /// Results of the new tokens of the sequences `which`, each from its own `(past, new)`.
    fn run(&self, level: Level, which: &[(usize, usize, usize)]) -> Vec<Vec<f32>> {
        let row = self.heads.query_row();
        let (mut q, mut sequences) = (Vec::new(), Vec::new());
        for (i, past, new) in which {
            sequences.push(CausalSequence {
                q_start: q.len() / row,
                q_len: *new,
                past_len: *past,
                k: &self.k[*i],
                v: &self.v[*i],
            });
            q.extend_from_slice(&self.q[*i][past * row..(past + new) * row]);
        }
        let mut out = vec![f32::NAN; q.len()];
        causal_attention_at(level, &q, &sequences, &self.heads, &mut out).unwrap();
        sequences.iter().map(|s| out[s.q_start * row..(s.q_start + s.q_len) * row].to_vec()).collect()
    }
}

/// What bf16 inside may cost: q, k, v and the weights are each off by up to 2^-9 of themselves, at random.
#[test]
fn bf16_inside_is_close_to_f64() {
    for (tokens, d) in [(70, 20), (257, 80), (130, 16), (65, 36), (64, 7)] {
        let heads = Heads::full(2, d).inside(Inside::Bf16);
        let row = heads.query_row();
        let (q, k, v) = (loud(tokens * row, 1), loud(tokens * row, 2), noise(tokens * row, 3));
        let pad: Vec<bool> = (0..tokens).map(|t| t % 9 == 4).collect();
        let bias: Vec<f32> = pad.iter().map(|pad| if *pad { 28f32.ln() } else { 0.0 }).collect();
        for level in Level::available() {
            let mut out = vec![f32::NAN; q.len()];
            vision_attention_at(level, &q, &k, &v, &heads, Some(&bias), Some(&pad), &mut out).unwrap();
            let (mut square, mut worst) = (0.0f64, 0.0f64);
            for i in 0..tokens {
                for h in 0..2 {
                    let at = i * row + h * d;
                    let (want, _) = reference(&q[at..at + d], &k[h * d..], &v[h * d..], row, heads.scale, |j| {
                        (!(pad[i] && pad[j])).then(|| f64::from(bias[j]))
                    });
                    for (got, want) in out[at..at + d].iter().zip(want) {
                        let error = (f64::from(*got) - want).abs();
                        square += error * error;
                        worst = worst.max(error);
                    }
                }
            }
            let rms = (square / q.len() as f64).sqrt();
            // A score's terms are up to 9 / sqrt(d) with independent errors: sqrt(d / 3) · 9 / sqrt(d) · 2^-9 / 2.
            let score_error = 9.0 / 3f64.sqrt() / 1024.0;
            assert!(rms < score_error && worst < 8.0 * score_error, "{level:?} {tokens}x{d}: rms {rms}, worst {worst}");
            let rounded = level >= Level::Avx512Bf16;
            assert_eq!(worst > 1e-4, rounded, "{level:?}: bf16 is used where there is an instruction for it");
        }
    }
}

#[test]
fn causal_is_close_to_f64_at_every_level() {
    for heads in [Heads::grouped(4, 2, 16), Heads::grouped(8, 2, 128), Heads::grouped(3, 1, 64)] {
        let text = Text::new(heads, &[(0, 5), (70, 1), (0, 130), (33, 40), (0, 1)]);
        let (row, d) = (heads.query_row(), heads.dim);
        for level in Level::available() {
            let which: Vec<_> = text.lens.iter().enumerate().map(|(i, (p, n))| (i, *p, *n)).collect();
            for ((i, past, new), out) in which.iter().zip(text.run(level, &which)) {
                for t in 0..*new {
                    for h in 0..heads.query {
                        let kv = h / heads.group() * d;
                        let at = (past + t) * row + h * d;
                        let want = reference(
                            &text.q[*i][at..at + d],
                            &text.k[*i][kv..],
                            &text.v[*i][kv..],
                            heads.key_row(),
                            heads.scale,
                            |j| (j <= past + t).then_some(0.0),
                        );
                        close(&out[t * row + h * d..][..d], &want, &format!("{level:?} sequence {i} token {t}"));
                    }
                }
            }
        }
    }
}

#[test]
fn causal_rows_keep_their_bits_however_they_are_computed() {
    causal_rows_keep_their_bits(Heads::grouped(8, 2, 128));
    causal_rows_keep_their_bits(Heads::grouped(8, 2, 128).inside(Inside::Bf16));
}

fn causal_rows_keep_their_bits(heads: Heads) {
    let text = Text::new(heads, &[(0, 200), (0, 37), (0, 150)]);
    let row = heads.query_row();
    for level in Level::available() {
        // One token at a time, alone, on one thread.
        let alone: Vec<Vec<f32>> = threads::with_limit(1, || {
            let tokens = |i: usize| (0..text.lens[i].1).flat_map(move |t| [(i, t, 1)]);
            (0..3).map(|i| tokens(i).flat_map(|one| text.run(level, &[one]).concat()).collect()).collect()
        });
        let check = |which: &[(usize, usize, usize)]| {
            for ((i, past, new), out) in which.iter().zip(text.run(level, which)) {
                let want = &alone[*i][past * row..(past + new) * row];
                assert_eq!(bits(&out), bits(want), "{level:?} sequence {i} tokens {past}+{new} of {which:?}");
            }
        };
        check(&[(0, 0, 200)]);
        check(&[(0, 0, 200), (1, 0, 37), (2, 0, 150)]);
        check(&[(2, 0, 150), (0, 0, 200)]);
        check(&[(1, 36, 1), (0, 0, 64), (2, 149, 1)]);
        check(&[(0, 64, 136), (2, 63, 3)]);
        check(&[(0, 13, 90), (1, 30, 7), (2, 100, 50)]);
    }
}

#[test]
fn cross_is_close_to_f64_and_keeps_bits() {
    let heads = Heads::grouped(8, 4, 128);
    let (row, key_row, d) = (heads.query_row(), heads.key_row(), heads.dim);
    let q = loud(60 * row, 40);
    let ks = [loud(100 * key_row, 41), loud(65 * key_row, 42)];
    let vs = [noise(100 * key_row, 43), noise(65 * key_row, 44)];
    let image = |i: usize| ImageKeys { k: ks[i].as_slice(), v: vs[i].as_slice() };
    let (none, first, both) = ([], [image(0)], [image(0), image(1)]);
    let spans = [
        CrossSpan { q_start: 3, q_len: 1, images: &first },
        CrossSpan { q_start: 10, q_len: 40, images: &both },
        CrossSpan { q_start: 50, q_len: 5, images: &none },
    ];
    for level in Level::available() {
        let mut out = vec![f32::NAN; q.len()];
        cross_attention_at(level, &q, &spans, &heads, &mut out).unwrap();
        for t in 0..60 {
            let result = &out[t * row..(t + 1) * row];
            let (k, v) = match t {
                3 => (ks[0].clone(), vs[0].clone()),
                10..50 => (ks.concat(), vs.concat()),
                _ => {
                    assert!(result.iter().all(|x| x.to_bits() == 0), "row {t} sees nothing");
                    continue;
                }
            };
            for h in 0..heads.query {
                let kv = h / heads.group() * d;
                let at = h * d;
                let q = &q[t * row + at..][..d];
                let want = reference(q, &k[kv..], &v[kv..], key_row, heads.scale, |_| Some(0.0));
                close(&result[at..at + d], &want, &format!("{level:?} row {t} head {h}"));
            }
            // The same row alone.
            let images: &[_] = if t == 3 { &first } else { &both };
            let mut alone = vec![0.0; row];
            let span = CrossSpan { q_start: 0, q_len: 1, images };
            cross_attention_at(level, &q[t * row..(t + 1) * row], &[span], &heads, &mut alone).unwrap();
            assert_eq!(bits(&alone), bits(result), "{level:?} row {t} alone");
        }
    }
}

#[test]
fn half_keys_give_the_same_as_their_f32_values() {
    let heads = Heads::grouped(4, 1, 64);
    let q = loud(7 * heads.query_row(), 50);
    let half = |seed| -> Vec<bf16> { noise(90 * heads.key_row(), seed).into_iter().map(bf16::from_f32).collect() };
    let (k, v) = (half(51), half(52));
    let wide = |x: &[bf16]| -> Vec<f32> { x.iter().map(|x| x.to_f32()).collect() };
    let (k32, v32) = (wide(&k), wide(&v));
    let (mut a, mut b) = (vec![0.0; q.len()], vec![0.0; q.len()]);
    let seq = CausalSequence { q_start: 0, q_len: 7, past_len: 83, k: &k, v: &v };
    causal_attention(&q, &[seq], &heads, &mut a).unwrap();
    let seq = CausalSequence { q_start: 0, q_len: 7, past_len: 83, k: &k32, v: &v32 };
    causal_attention(&q, &[seq], &heads, &mut b).unwrap();
    assert_eq!(bits(&a), bits(&b));
}

#[test]
fn calls_that_do_not_fit_are_errors() {
    let heads = Heads::grouped(4, 2, 8);
    let (q, kv) = (vec![0.0f32; 3 * 32], vec![0.0f32; 3 * 16]);
    let mut out = q.clone();
    let seq = |q_start, q_len, past_len| CausalSequence { q_start, q_len, past_len, k: &kv, v: &kv };
    assert!(causal_attention(&q, &[seq(0, 3, 0)], &heads, &mut out).is_ok());
    assert!(causal_attention(&q, &[seq(0, 3, 1)], &heads, &mut out).is_err(), "too few keys");
    assert!(causal_attention(&q, &[seq(1, 3, 0)], &heads, &mut out).is_err(), "beyond the queries");
    assert!(causal_attention(&q, &[seq(0, 2, 0), seq(1, 1, 0)], &heads, &mut out).is_err(), "overlap");
    assert!(causal_attention(&q, &[seq(0, 1, 0)], &Heads::grouped(4, 3, 8), &mut out).is_err(), "heads");
    assert!(vision_attention(&q, &q, &q, &heads, None, None, &mut out).is_err(), "grouped");
    let heads = Heads::full(4, 8);
    assert!(vision_attention(&q, &q, &q, &heads, Some(&[0.0]), None, &mut out).is_err(), "bias");
    assert!(vision_attention(&q, &q, &q, &heads, None, Some(&[true]), &mut out).is_err(), "pad");
    assert!(vision_attention(&[], &[], &[], &heads, None, None, &mut []).is_ok(), "nothing to do");
}
