//! Blocks against candle's reading of the same bytes, and the size of the quantisation errors.
#![allow(clippy::unwrap_used)] // a failed call is a failed test

use std::borrow::Cow;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};

use super::write::put_half;
use super::*;
use crate::linear::tests::noise;

const FORMATS: [(BlockFormat, GgmlDType); 4] = [
    (BlockFormat::Q8_0, GgmlDType::Q8_0),
    (BlockFormat::Q4_0, GgmlDType::Q4_0),
    (BlockFormat::Q4_1, GgmlDType::Q4_1),
    (BlockFormat::Q4K, GgmlDType::Q4K),
];

fn by_candle(bytes: &[u8], kind: GgmlDType, len: usize) -> Vec<f32> {
    let storage = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, kind).unwrap();
    QTensor::new(storage, len).unwrap().dequantize(&Device::Cpu).unwrap().to_vec1().unwrap()
}

fn quantized(format: BlockFormat, row: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = vec![0xAA; format.row_bytes(row.len())];
    format.quantize_row(row, &mut bytes).unwrap();
    let mut back = vec![f32::NAN; row.len()];
    format.dequantize_row(&bytes, &mut back).unwrap();
    (bytes, back)
}

/// Numbers as weights have them: nearly normal.
fn weights(len: usize, seed: u64) -> Vec<f32> {
    noise(12 * len, seed).chunks_exact(12).map(|c| c.iter().sum::<f32>() * 0.02).collect()
}

fn rms(values: impl Iterator<Item = f32>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for v in values {
        sum += f64::from(v) * f64::from(v);
        count += 1.0;
    }
    (sum / count).sqrt()
}

#[test]
fn candle_reads_the_same_numbers() {
    let row = weights(2048, 1);
    for (format, kind) in FORMATS {
        let (bytes, back) = quantized(format, &row);
        for (a, b) in back.iter().zip(by_candle(&bytes, kind, row.len())) {
            assert!((a - b).abs() <= 1e-6, "{format:?}: {a} against {b}");
        }
    }
}

#[test]
fn any_block_of_bytes_is_read_as_candle_reads_it() {
    for (format, kind) in FORMATS {
        let mut bytes: Vec<u8> =
            noise(format.block_bytes() * 50, 2).iter().map(|x| (x * 1000.0) as i32 as u8).collect();
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            // Scales that are ordinary numbers.
            put_half(block, 0, f16::from_f32(0.01));
            if matches!(format, BlockFormat::Q4_1 | BlockFormat::Q4K) {
                put_half(block, 2, f16::from_f32(0.02));
            }
        }
        let mut row = vec![0.0; 50 * format.block_len()];
        format.dequantize_row(&bytes, &mut row).unwrap();
        for (a, b) in row.iter().zip(by_candle(&bytes, kind, row.len())) {
            assert!((a - b).abs() <= 1e-5, "{format:?}: {a} against {b}");
        }
    }
}

/// Mean squared error of a row and its blocks.
fn square_error(row: &[f32], back: &[f32]) -> f64 {
    rms(row.iter().zip(back).map(|(a, b)| a - b)).powi(2)
}

#[test]
fn errors_are_no_larger_than_those_of_candles_quantisation() {
    let normal = weights(64 * 256, 3);
    // Flat, with long tails, and of one sign.
    let flat = noise(64 * 256, 4);
    let tails: Vec<f32> = normal.iter().map(|v| v * v * v).collect();
    let positive: Vec<f32> = normal.iter().map(|v| v.abs()).collect();
    for (name, row, bounded) in
        [("normal", normal, true), ("flat", flat, false), ("long tails", tails, false), ("positive", positive, false)]
    {
        let size = rms(row.iter().copied()).powi(2);
        for (format, kind, most) in [
            (BlockFormat::Q8_0, GgmlDType::Q8_0, 0.006f64),
            (BlockFormat::Q4_0, GgmlDType::Q4_0, 0.11),
            (BlockFormat::Q4_1, GgmlDType::Q4_1, 0.085),
            (BlockFormat::Q4K, GgmlDType::Q4K, 0.075),
        ] {
            let ours = square_error(&row, &quantized(format, &row).1) / size;
            let tensor = candle_core::Tensor::from_slice(&row, row.len(), &Device::Cpu).unwrap();
            let theirs = QTensor::quantize(&tensor, kind).unwrap().dequantize(&Device::Cpu).unwrap();
            let theirs = square_error(&row, &theirs.to_vec1::<f32>().unwrap()) / size;
            assert!(!bounded || ours <= most * most, "{format:?}: relative error {ours}");
            assert!(ours <= theirs * 1.01, "{name}, {format:?}: {ours} against candle's {theirs}");
        }
    }
}

#[test]
fn every_level_writes_the_same_blocks() {
    for (format, _) in FORMATS {
        for len in [1, 32, 40, 256, 300, 512, 2048, 2049] {
            let mut row = weights(len, 7);
            // Groups of one sign, of equal values, of nothing, and huge ones.
            row.iter_mut().skip(64).take(32).for_each(|v| *v = v.abs() + 1.0);
            row.iter_mut().skip(96).take(32).for_each(|v| *v = -0.5);
            row.iter_mut().skip(128).take(32).for_each(|v| *v = 0.0);
            row.iter_mut().skip(160).take(3).for_each(|v| *v *= 1e4);
            let all = |level| {
                let mut blocks = vec![0xAA; format.row_bytes(len)];
                write::write_row(level, format, &row, &mut blocks);
                blocks
            };
            let want = all(Level::Portable);
            for level in Level::available() {
                assert!(all(level) == want, "{format:?} {level:?}, {len} values");
            }
        }
    }
}

#[test]
fn what_is_no_number_does_not_pass_unseen() {
    for (format, _) in FORMATS {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = weights(512, 8);
            row[300] = wrong;
            let (_, back) = quantized(format, &row);
            assert!(back[300].is_nan(), "{format:?}: {wrong} became {}", back[300]);
            assert!(back[..256].iter().all(|v| v.is_finite()), "{format:?}");
        }
    }
}

#[test]
fn odd_rows() {
    for (format, _) in FORMATS {
        let (_, zeros) = quantized(format, &[0.0; 40]);
        assert!(zeros.iter().all(|v| *v == 0.0), "{format:?}");
        let (_, same) = quantized(format, &[0.25; 300]);
        assert!(same.iter().all(|v| (v - 0.25).abs() < 0.02), "{format:?}: {same:?}");
        let (_, tiny) = quantized(format, &[1e-30; 32]);
        assert!(tiny.iter().all(|v| v.is_finite()), "{format:?}");
        assert!(format.quantize_row(&[0.0; 32], &mut [0; 3]).is_err());
        assert!(format.dequantize_row(&[0; 3], &mut [0.0; 32]).is_err());
    }
}
