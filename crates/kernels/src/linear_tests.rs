//! Tests of the products: against f64, across levels, and that a row's bits depend on nothing but the row.
#![allow(clippy::unwrap_used)] // a failed call is a failed test

use candle_core::{Device, Tensor};

use super::*;
use crate::quant::BlockFormat;
use crate::threads;

/// Numbers in [-1, 1) that look random, from a fixed seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x1234_5678_9ABC_DEF1);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn pack(level: Level, format: Format, w: &[f32], n: usize, k: usize) -> PackedLinear {
    PackedLinear::pack_rows_at(level, format, n, k, &|r, to| to.copy_from_slice(&w[r * k..(r + 1) * k])).unwrap()
}

fn forward(linear: &PackedLinear, x: &[f32], m: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * linear.n_out()];
    linear.forward(x, m, &mut out, None).unwrap();
    out
}

/// Product in f64 and the sum of the absolute terms, which scales the error bound.
fn reference(x: &[f32], w: &[f32], n: usize, k: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for x in x.chunks_exact(k) {
        for w in w.chunks_exact(k).take(n) {
            let terms = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            out.push((terms().sum(), terms().map(f64::abs).sum()));
        }
    }
    out
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn f32_product_is_close_to_f64_at_every_level() {
    for level in Level::available() {
        for (m, n, k) in [(1, 1, 1), (3, 31, 7), (13, 33, 255), (29, 96, 256), (5, 70, 257), (2, 64, 1100)] {
            let (x, w) = (noise(m * k, 1), noise(n * k, 2));
            let out = forward(&pack(level, Format::F32, &w, n, k), &x, m);
            for (got, (want, scale)) in out.iter().zip(reference(&x, &w, n, k)) {
                let error = (f64::from(*got) - want).abs();
                // 256-long chains and the sum of blocks: far below the bound of (256 + blocks) half-ulps.
                assert!(error <= 1e-6 * scale, "{level:?} {m}x{n}x{k}: {got} against {want}");
            }
        }
    }
}

/// The key property, for every format and level.
fn rows_keep_their_bits(format: Format, n: usize, k: usize) {
    const MOST: usize = 70;
    let (x, w) = (noise(MOST * k, 3), noise(n * k, 4));
    for level in Level::available() {
        let linear = pack(level, format, &w, n, k);
        let alone: Vec<Vec<u32>> =
            x.chunks_exact(k).map(|row| bits(&threads::with_limit(1, || forward(&linear, row, 1)))).collect();
        for m in 1..=MOST {
            for count in [1, 2] {
                let out = threads::with_limit(count, || forward(&linear, &x[..m * k], m));
                for (i, row) in out.chunks_exact(n).enumerate() {
                    assert_eq!(bits(row), alone[i], "{format:?} {level:?}: row {i} of {m} on {count} threads");
                }
            }
        }
        // Any order of rows: 37 is coprime to 70, so this is a permutation.
        let order: Vec<usize> = (0..MOST).map(|i| i * 37 % MOST).collect();
        let permuted: Vec<f32> = order.iter().flat_map(|i| x[i * k..(i + 1) * k].to_vec()).collect();
        let out = forward(&linear, &permuted, MOST);
        for (row, i) in out.chunks_exact(n).zip(&order) {
            assert_eq!(bits(row), alone[*i], "{format:?} {level:?}: row {i} after a permutation");
        }
    }
}

#[test]
fn f32_rows_keep_their_bits() {
    rows_keep_their_bits(Format::F32, 200, 600);
}

#[test]
fn bf16_rows_keep_their_bits() {
    rows_keep_their_bits(Format::Bf16, 70, 1100);
    rows_keep_their_bits(Format::Bf16Wide, 70, 601);
}

#[test]
fn bf16_with_wide_activations_has_the_bits_of_f32() {
    for (m, n, k) in [(1, 40, 601), (7, 33, 256), (13, 64, 1030), (2, 1, 1)] {
        let w: Vec<f32> = noise(n * k, 14).iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
        let x = noise(m * k, 15);
        for level in Level::available() {
            let narrow = forward(&pack(level, Format::Bf16Wide, &w, n, k), &x, m);
            let wide = forward(&pack(level, Format::F32, &w, n, k), &x, m);
            assert_eq!(bits(&narrow), bits(&wide), "{level:?} {m}x{n}x{k}");
        }
    }
}

#[test]
fn bf16_is_the_product_of_rounded_numbers() {
    for (m, n, k) in [(1, 40, 601), (7, 33, 256), (13, 64, 1030), (29, 32, 64), (2, 1, 1)] {
        let (x, w) = (noise(m * k, 16), noise(n * k, 17));
        let rounded = |v: &[f32]| -> Vec<f32> { v.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect() };
        let want = reference(&rounded(&x), &rounded(&w), n, k);
        for level in Level::available() {
            let out = forward(&pack(level, Format::Bf16, &w, n, k), &x, m);
            for (got, (want, scale)) in out.iter().zip(&want) {
                assert!((f64::from(*got) - want).abs() <= 1e-6 * scale, "{level:?} {m}x{n}x{k}: {got} against {want}");
            }
        }
    }
}

#[test]
fn rounding_to_bf16_is_that_of_half() {
    for bits in (0..=u32::MAX).step_by(9973).chain([0x7F80_0000, 0x7F80_0001, 0xFFFF_FFFF, 0x3F80_8000, 0x3F81_8000]) {
        let want = half::bf16::from_f32(f32::from_bits(bits)).to_bits();
        assert_eq!(crate::linear_bf16::round(bits), u32::from(want), "{bits:08x}");
    }
}

const BLOCKS: [BlockFormat; 4] = [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q4K];

#[test]
fn quantised_rows_keep_their_bits() {
    for format in BLOCKS {
        rows_keep_their_bits(Format::Block(format), 70, 1312);
    }
}

#[test]
fn quantised_products_have_the_same_bits_at_every_level() {
    for format in BLOCKS {
        for (m, n, k) in [(1, 40, 32), (7, 33, 256), (13, 64, 1500), (6, 31, 2048), (2, 1, 1)] {
            let (x, w) = (noise(m * k, 18), noise(n * k, 19));
            let portable = forward(&pack(Level::Portable, Format::Block(format), &w, n, k), &x, m);
            for level in Level::available() {
                let out = forward(&pack(level, Format::Block(format), &w, n, k), &x, m);
                assert_eq!(bits(&out), bits(&portable), "{format:?} {level:?} {m}x{n}x{k}");
            }
        }
    }
}

#[test]
fn quantised_products_are_those_of_the_dequantised_weights() {
    for format in BLOCKS {
        let (m, n, k) = (5, 50, 768);
        let (x, w) = (noise(m * k, 20), noise(n * k, 21));
        let mut values = vec![0.0; n * k];
        let mut blocks = vec![0; n * format.row_bytes(k)];
        for r in 0..n {
            let blocks = &mut blocks[r * format.row_bytes(k)..(r + 1) * format.row_bytes(k)];
            format.quantize_row(&w[r * k..(r + 1) * k], blocks).unwrap();
            format.dequantize_row(blocks, &mut values[r * k..(r + 1) * k]).unwrap();
        }
        let linear =
            PackedLinear::pack_blocks(format, n, k, |r| &blocks[r * format.row_bytes(k)..][..format.row_bytes(k)])
                .unwrap();
        let out = forward(&linear, &x, m);
        assert_eq!(bits(&out), bits(&forward(&pack(Level::current(), Format::Block(format), &w, n, k), &x, m)));
        let mut square = 0.0;
        for (i, (got, (want, _))) in out.iter().zip(reference(&x, &values, n, k)).enumerate() {
            // Each activation is off by at most half a step of its group: e / 2 with e = max|x| / 127 ≤ 1 / 127.
            let bound: f64 =
                values[i % n * k..(i % n + 1) * k].iter().map(|w| f64::from(w.abs()) / 254.0).sum::<f64>() + 1e-3;
            let error = f64::from(*got) - want;
            assert!(error.abs() <= bound, "{format:?}: {got} against {want}");
            square += error * error;
        }
        // Errors of 768 terms mostly cancel: 1 / 127 / sqrt(12) · sqrt(k / 3) · rms(w).
        let typical = (square / (m * n) as f64).sqrt();
        let expected = 1.0 / 127.0 / 12f64.sqrt() * (k as f64 / 3.0).sqrt();
        assert!(typical < 1.2 * expected, "{format:?}: typical error {typical}, expected {expected}");
        assert!(typical > 0.3 * expected, "{format:?}: typical error {typical} is too good to be true");
    }
}

#[test]
fn extremes_of_quantised_numbers_do_not_overflow() {
    // All weights and activations at their largest, of either sign, and a Q8_0 file with −128.
    let k = 64;
    for (sx, sw) in [(1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)] {
        let x = vec![sx * 3.0; k];
        let w = vec![sw * 2.0; 2 * k];
        for level in Level::available() {
            let out = forward(&pack(level, Format::Block(BlockFormat::Q8_0), &w, 2, k), &x, 1);
            assert!((out[0] - sx * sw * 6.0 * k as f32).abs() < 0.2, "{level:?}: {out:?}");
        }
    }
    let mut blocks = vec![0x80u8; 34];
    blocks[..2].copy_from_slice(&half::f16::from_f32(1.0).to_le_bytes());
    let row = |_: usize, to: &mut [u8]| {
        to.copy_from_slice(&blocks);
        Ok(())
    };
    for level in Level::available() {
        let quant = Quant::pack((1, 32), BlockFormat::Q8_0, level, &row).unwrap();
        let linear = PackedLinear { weights: Weights::Quant(quant), format: Format::Block(BlockFormat::Q8_0) };
        assert_eq!(forward(&linear, &[127.0; 32], 1), [-128.0 * 127.0 * 32.0], "{level:?}");
        assert_eq!(forward(&linear, &[-127.0; 32], 1), [128.0 * 127.0 * 32.0], "{level:?}");
    }
}

#[test]
fn nan_passes_through_quantised_products() {
    let (n, k) = (3, 96);
    let mut x = noise(2 * k, 22);
    x[40] = f32::NAN;
    x[k + 70] = f32::INFINITY;
    for format in BLOCKS {
        let out = forward(&pack(Level::current(), Format::Block(format), &noise(n * k, 23), n, k), &x, 2);
        assert!(out.iter().all(|v| v.is_nan()), "{format:?}: {out:?}");
    }
}

#[test]
fn more_rows_than_fit_the_scratch_keep_their_bits() {
    let (m, n, k) = (1700, 40, 300);
    let (x, w) = (noise(m * k, 5), noise(n * k, 6));
    let linear = pack(Level::current(), Format::F32, &w, n, k);
    let out = forward(&linear, &x, m);
    for i in [0, 1, 191, 192, 767, 768, 769, 1535, 1536, 1699] {
        assert_eq!(bits(&out[i * n..(i + 1) * n]), bits(&forward(&linear, &x[i * k..(i + 1) * k], 1)), "row {i}");
    }
}

#[test]
fn bias_is_added_once_per_element() {
    let (m, n, k) = (14, 45, 700);
    let (x, w, bias) = (noise(m * k, 7), noise(n * k, 8), noise(n, 9));
    let linear = pack(Level::current(), Format::F32, &w, n, k);
    let plain = forward(&linear, &x, m);
    let mut out = vec![0.0; m * n];
    linear.forward(&x, m, &mut out, Some(&bias)).unwrap();
    for (i, (with, without)) in out.iter().zip(&plain).enumerate() {
        assert_eq!(*with, without + bias[i % n], "element {i}");
    }
    let mut want = out.clone();
    crate::activation::gelu_erf(&mut want);
    linear.forward_with(&x, m, &mut out, Epilogue::Gelu { bias: Some(&bias) }).unwrap();
    assert_eq!(bits(&out), bits(&want));
}

#[test]
fn several_products_of_normed_rows_have_the_bits_of_single_steps() {
    let (m, k) = (19, 320);
    let x = noise(m * k, 30);
    let (weight, bias) = (noise(k, 31), noise(k, 32));
    let (rms, layer) =
        (Norm::Rms { weight: &weight, eps: 1e-5 }, Norm::Layer { weight: &weight, bias: &bias, eps: 1e-6 });
    let formats = [Format::F32, Format::Bf16, Format::Bf16Wide, Format::Block(BlockFormat::Q8_0)];
    for (norm, mixed) in [(None, false), (Some(rms), false), (Some(layer), false), (Some(rms), true)] {
        for (i, format) in formats.into_iter().enumerate() {
            // The last outputs of one weight are no full panel.
            let sizes = [70, 33, 1];
            let linears: Vec<_> = (0..3)
                .map(|p| {
                    let format = if mixed { formats[(i + p) % formats.len()] } else { format };
                    pack(Level::current(), format, &noise(sizes[p] * k, p as u64), sizes[p], k)
                })
                .collect();
            let (offset, h) = (noise(70, 33), noise(m * 33, 34));
            let epilogues = [
                Epilogue::Gelu { bias: Some(&offset) },
                Epilogue::Residual { bias: None, h: &h, gate: 0.3 },
                Epilogue::None,
            ];
            let mut outs: Vec<_> = sizes.iter().map(|n| vec![f32::NAN; m * n]).collect();
            let mut products: Vec<_> = linears
                .iter()
                .zip(&mut outs)
                .zip(epilogues)
                .map(|((linear, out), epilogue)| Product { linear, out, epilogue })
                .collect();
            forward_each(&x, m, norm, &mut products).unwrap();
            let normed = norm.map_or(x.clone(), |norm| norm.of(&x).unwrap());
            let mut want = vec![0.0; m * 70];
            linears[0].forward(&normed, m, &mut want, Some(&offset)).unwrap();
            crate::activation::gelu_erf(&mut want);
            assert_eq!(bits(&outs[0]), bits(&want), "{format:?} {norm:?}");
            let mut want = h.clone();
            crate::activation::add_gated(&mut want, &forward(&linears[1], &normed, m), 0.3, 33, None).unwrap();
            assert_eq!(bits(&outs[1]), bits(&want), "{format:?} {norm:?}");
            assert_eq!(bits(&outs[2]), bits(&forward(&linears[2], &normed, m)), "{format:?} {norm:?}");
        }
    }
}

#[test]
fn half_sources_give_the_same_as_their_f32_values() {
    let (n, k) = (35, 64);
    let w: Vec<half::bf16> = noise(n * k, 10).into_iter().map(half::bf16::from_f32).collect();
    let as_f32: Vec<f32> = w.iter().map(|v| v.to_f32()).collect();
    let x = noise(3 * k, 11);
    let a = forward(&PackedLinear::pack_f32(&w, n, k).unwrap(), &x, 3);
    let b = forward(&PackedLinear::pack_f32(&as_f32, n, k).unwrap(), &x, 3);
    assert_eq!(bits(&a), bits(&b));
}

#[test]
fn tensors_of_any_leading_shape() {
    let (n, k) = (33, 48);
    let (x, w) = (noise(2 * 3 * k, 12), noise(n * k, 13));
    let linear = PackedLinear::pack_f32(&w, n, k).unwrap();
    let tensor = Tensor::from_slice(&x, (2, 3, k), &Device::Cpu).unwrap();
    let out = linear.forward_tensor(&tensor).unwrap();
    assert_eq!(out.dims(), [2, 3, n]);
    let flat = out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(bits(&flat), bits(&forward(&linear, &x, 6)));
    // A part that starts later in its storage.
    let part = linear.forward_tensor(&tensor.narrow(0, 1, 1).unwrap()).unwrap().flatten_all().unwrap();
    assert_eq!(bits(&part.to_vec1::<f32>().unwrap()), bits(&flat[3 * n..]));
    assert!(linear.forward_tensor(&tensor.transpose(0, 1).unwrap()).is_err());
    assert!(linear.forward_tensor(&tensor.narrow(2, 0, 8).unwrap().contiguous().unwrap()).is_err());
}

#[test]
fn wrong_lengths_are_errors() {
    let linear = PackedLinear::pack_f32(&[0.0f32; 6], 2, 3).unwrap();
    assert!(linear.forward(&[0.0; 5], 2, &mut [0.0; 4], None).is_err());
    assert!(linear.forward(&[0.0; 6], 2, &mut [0.0; 5], None).is_err());
    assert!(linear.forward(&[0.0; 6], 2, &mut [0.0; 4], Some(&[0.0; 3])).is_err());
    assert!(PackedLinear::pack_f32(&[0.0f32; 5], 2, 3).is_err());
    let mut out = [0.0; 4];
    let mut with =
        |norm, epilogue| forward_each(&[0.0; 6], 2, norm, &mut [Product { linear: &linear, out: &mut out, epilogue }]);
    assert!(with(Some(Norm::Rms { weight: &[0.0; 3], eps: 1.0 }), Epilogue::None).is_ok());
    assert!(with(Some(Norm::Rms { weight: &[0.0; 2], eps: 1.0 }), Epilogue::None).is_err());
    assert!(with(Some(Norm::Layer { weight: &[0.0; 3], bias: &[0.0; 2], eps: 1.0 }), Epilogue::None).is_err());
    assert!(with(None, Epilogue::Residual { bias: None, h: &[0.0; 3], gate: 1.0 }).is_err());
    assert!(with(None, Epilogue::Residual { bias: Some(&[0.0; 1]), h: &[0.0; 4], gate: 1.0 }).is_err());
}
