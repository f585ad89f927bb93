#![allow(clippy::unwrap_used)] // a failed call is a failed test

use std::io::Write as _;

use candle_core::quantized::GgmlDType;

use super::*;
use crate::pages::PAGE;

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
}

fn assert_close(a: &Tensor, b: &Tensor, tolerance: f32) {
    assert_eq!(a.dims(), b.dims());
    let error = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    assert!(error < tolerance, "off by {error}");
}

#[test]
fn the_fused_operations_are_the_plain_ones() {
    let (x, w, b) = (random(&[5, 3, 16]), random(&[16]), random(&[16]));
    assert_close(&Candle.rms_norm(&x, &w, 1e-5).unwrap(), &Plain.rms_norm(&x, &w, 1e-5).unwrap(), 1e-5);
    let (fused, plain) = (Candle.layer_norm(&x, &w, &b, 1e-5), Plain.layer_norm(&x, &w, &b, 1e-5));
    assert_close(&fused.unwrap(), &plain.unwrap(), 1e-5);
    let (cos, sin) = (random(&[5, 8]), random(&[5, 8]));
    assert_close(&Candle.rope(&x, &cos, &sin).unwrap(), &Plain.rope(&x, &cos, &sin).unwrap(), 1e-5);
    assert_close(&Candle.softmax(&x).unwrap(), &Plain.softmax(&x).unwrap(), 1e-6);
}

/// The head sizes of the released models: 128 of text, 80 of images, whose padding asks alone and without a bias.
#[test]
fn what_metal_has_a_kernel_for() {
    assert_eq!(sdpa_head(1, 6404, 128, false), Some(128));
    assert_eq!(sdpa_head(256, 6404, 128, false), Some(128));
    assert_eq!(sdpa_head(6404, 6405, 80, true), Some(96));
    assert_eq!(sdpa_head(1, 6404, 80, false), None);
    assert_eq!(sdpa_head(1, 6405, 80, true), Some(96));
    assert_eq!(sdpa_head(7, 6, 128, false), None);
    assert_eq!(sdpa_head(2, 6, 16, false), None);
}

/// Inputs on a device in a type, and what they are rounded to, in f32 on the CPU.
struct Inputs<'a> {
    device: &'a Device,
    dtype: DType,
}

impl Inputs<'_> {
    fn random(&self, shape: &[usize]) -> (Tensor, Tensor) {
        let rounded = random(shape).to_dtype(self.dtype).unwrap();
        (rounded.to_device(self.device).unwrap(), rounded.to_dtype(DType::F32).unwrap())
    }

    /// Relative to the largest value. Scores of attention may be rounded to the type, and differences of large ones count.
    fn assert(&self, what: &str, found: &Tensor, expected: &Tensor) {
        let found = found.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(found.dims(), expected.dims(), "{what}");
        let most = |x: &Tensor| x.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        let error = most(&(&found - expected).unwrap()) / most(expected);
        let tolerance = match (self.dtype, what.contains("attention")) {
            (DType::BF16, true) => 0.16,
            (DType::BF16, false) => 0.03,
            (DType::F16, true) => 0.02,
            (DType::F16, false) => 0.005,
            _ => 0.002,
        };
        assert!(error < tolerance, "{what} in {:?}: off by {error}", self.dtype);
    }
}

/// Holds the operations of a device to the plain formulas in f32, at the shapes of the released models.
fn assert_operations(device: &Device, dtypes: &[DType]) {
    let ops = of(device, false);
    for &dtype in dtypes {
        let inputs = Inputs { device, dtype };
        let ((x, x_f32), (w, w_f32), (b, b_f32)) =
            (inputs.random(&[3, 1280]), inputs.random(&[1280]), inputs.random(&[1280]));
        inputs.assert("rms norm", &ops.rms_norm(&x, &w, 1e-5).unwrap(), &Plain.rms_norm(&x_f32, &w_f32, 1e-5).unwrap());
        let plain = Plain.layer_norm(&x_f32, &w_f32, &b_f32, 1e-5).unwrap();
        inputs.assert("layer norm", &ops.layer_norm(&x, &w, &b, 1e-5).unwrap(), &plain);
        let (x, x_f32) = inputs.random(&[5, 32, 128]);
        let ((cos, cos_f32), (sin, sin_f32)) = (inputs.random(&[5, 64]), inputs.random(&[5, 64]));
        inputs.assert("rope", &ops.rope(&x, &cos, &sin).unwrap(), &Plain.rope(&x_f32, &cos_f32, &sin_f32).unwrap());

        // Text over text: four queries to a key head.
        for (queries, keys) in [(64, 300), (1, 1100), (40, 40)] {
            let (q, q_f32) = inputs.random(&[queries, 32, 128]);
            let ((k, k_f32), (v, v_f32)) = (inputs.random(&[keys, 8, 128]), inputs.random(&[keys, 8, 128]));
            let found = causal(ops, &q, &k, &v, &OnceCell::new()).unwrap();
            let plain = causal(&Plain, &q_f32, &k_f32, &v_f32, &OnceCell::new()).unwrap();
            inputs.assert("causal attention", &found, &plain);
        }
        // Within an image: tokens with the weight of padding, and padding alone.
        for (queries, keys, biased) in [(130, 1101, true), (1, 1100, false), (1, 1101, true)] {
            let (q, q_f32) = inputs.random(&[queries, 16, 80]);
            let ((k, k_f32), (v, v_f32)) = (inputs.random(&[keys, 16, 80]), inputs.random(&[keys, 16, 80]));
            let mut bias = vec![0f32; keys];
            bias[keys - 1] = 28f32.ln();
            let bias = |device| KeyBias::new(Tensor::new(bias.as_slice(), device).unwrap());
            let (there, here) = (bias(device), bias(&Device::Cpu));
            let found = open(ops, &q, &k, &v, biased.then_some(&there)).unwrap();
            let plain = open(&Plain, &q_f32, &k_f32, &v_f32, biased.then_some(&here)).unwrap();
            inputs.assert("attention within an image", &found, &plain);
        }
        // Over pages: texts that go on, a prompt, and their images.
        if ops.reads_pages(dtype, dtype) {
            let (k, k_f32) = inputs.random(&[9, PAGE, 8, 128]);
            let (v, v_f32) = inputs.random(&[9, PAGE, 8, 128]);
            let sequences = [(1, 33, vec![3, 1]), (20, 90, vec![8, 2, 5]), (1, 7, vec![4])];
            let (q, q_f32) = inputs.random(&[22, 32, 128]);
            for is_causal in [true, false] {
                let tables = |device| PageTables::new(&sequences, device).unwrap();
                let found = ops.paged(&q, &k, &v, &tables(device), is_causal).unwrap();
                let plain = Paged.paged(&q_f32, &k_f32, &v_f32, &tables(&Device::Cpu), is_causal).unwrap();
                inputs.assert("attention over pages", &found, &plain);
            }
        }
    }
    // What a quantised product is off by is that the other side may be rounded to 8 bits.
    let inputs = Inputs { device, dtype: DType::BF16 };
    for block in [GgmlDType::Q8_0, GgmlDType::Q4K] {
        let weight = |device| QTensor::quantize_onto(&weights(), block, device).unwrap();
        let (there, here) = (weight(device), weight(&Device::Cpu));
        for rows in [1, 8, 64] {
            let x = random(&[rows, 1024]);
            let found = ops.quantised(&x.to_device(device).unwrap(), &there).unwrap();
            inputs.assert("a quantised product", &found, &Plain.quantised(&x, &here).unwrap());
        }
    }
}

/// `[256, 1024]`, the same at each call.
fn weights() -> Tensor {
    let values: Vec<f32> = (0..256 * 1024).map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0).collect();
    Tensor::from_vec(values, (256, 1024), &Device::Cpu).unwrap()
}

#[test]
fn the_operations_of_this_processor_are_the_plain_ones() {
    assert_operations(&Device::Cpu, &[DType::F32, DType::F16]);
}

#[test]
fn gpu_operations_are_the_plain_ones() {
    // A driver's library may panic where it finds nothing.
    let opened = [|| Device::new_cuda(0), || Device::new_metal(0)].map(std::panic::catch_unwind);
    let Some(device) = opened.into_iter().flatten().find_map(Result::ok) else {
        // Not by a macro, whose text would be kept back.
        writeln!(std::io::stderr(), "skipped: this build has no GPU, or there is none").unwrap();
        return;
    };
    assert_operations(&device, &[DType::F32, DType::F16, DType::BF16]);
}
