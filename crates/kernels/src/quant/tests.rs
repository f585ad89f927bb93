//! Blocks against candle's reading of the same bytes, and the size of the quantisation errors.
#![allow(clippy::unwrap_used)] // a failed call is a failed test

use std::borrow::Cow;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};

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

#[test]
fn errors_are_no_larger_than_those_of_candles_quantisation() {
    let row = weights(64 * 256, 3);
    let size = rms(row.iter().copied());
    for (format, kind, most) in [
        (BlockFormat::Q8_0, GgmlDType::Q8_0, 0.006),
        (BlockFormat::Q4_0, GgmlDType::Q4_0, 0.11),
        (BlockFormat::Q4_1, GgmlDType::Q4_1, 0.085),
        (BlockFormat::Q4K, GgmlDType::Q4K, 0.075),
    ] {
        let ours = rms(quantized(format, &row).1.iter().zip(&row).map(|(a, b)| a - b)) / size;
        let mut theirs = QStorage::from_data(Cow::Owned(vec![0; format.row_bytes(row.len())]), &Device::Cpu, kind)
            .map(|s| QTensor::new(s, row.len()).unwrap())
            .unwrap();
        let tensor = candle_core::Tensor::from_slice(&row, row.len(), &Device::Cpu).unwrap();
        theirs = QTensor::quantize(&tensor, theirs.dtype()).unwrap();
        let theirs = theirs.dequantize(&Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
        let theirs = rms(theirs.iter().zip(&row).map(|(a, b)| a - b)) / size;
        assert!(ours <= most, "{format:?}: relative error {ours}");
        assert!(ours <= theirs * 1.01, "{format:?}: {ours} against candle's {theirs}");
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
