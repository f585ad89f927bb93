//! Whether a device computes: drivers open GPUs that the kernels of a build were not made for.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};

use crate::error::Result;
use crate::operations;

/// Rows and columns of what is computed.
const SIDE: usize = 64;

/// Computes a product, one with a weight of 8 bits, a norm and a softmax on the device and on the host. Returns what the
/// device gets wrong, if anything.
///
/// # Errors
/// The device's.
pub fn self_check(device: &Device) -> Result<Option<&'static str>> {
    let of = |seed: usize, device: &Device| -> Result<Tensor> {
        let values = (0..SIDE * SIDE).map(|i| ((i * seed) % 101) as f32 / 50.0 - 1.0).collect::<Vec<_>>();
        Ok(Tensor::from_vec(values, (SIDE, SIDE), device)?)
    };
    let here = Device::Cpu;
    let blocks =
        |device: &Device| -> Result<QTensor> { Ok(QTensor::quantize_onto(&of(13, &here)?, GgmlDType::Q8_0, device)?) };
    let results = |device: &Device, plain: bool| -> Result<[(&'static str, Tensor); 4]> {
        let (a, b, ops) = (of(7, device)?, of(11, device)?, operations::of(device, false));
        let weight = blocks(device)?;
        let product = match plain {
            // The CPU's own product rounds the other side too.
            true => a.matmul(&weight.dequantize(device)?.t()?)?,
            false => ops.quantised(&a, &weight)?,
        };
        let ones = Tensor::ones(SIDE, DType::F32, device)?;
        Ok([
            ("a product", a.matmul(&b.t()?)?),
            ("a product with quantised weights", product),
            ("a norm", ops.rms_norm(&a, &ones, 1e-5)?),
            ("a softmax", ops.softmax(&a)?),
        ])
    };
    for ((name, found), (_, expected)) in results(device, false)?.into_iter().zip(results(&here, true)?) {
        let expected = expected.flatten_all()?.to_vec1::<f32>()?;
        let found = found.flatten_all()?.to_vec1::<f32>()?;
        let scale = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
        // A kernel that doesn't fit gives nothing like the result; TF32 and blocks of 8 bits are this near.
        if !found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 0.02 * scale) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;

    #[test]
    fn this_processor_computes() {
        assert_eq!(self_check(&Device::Cpu).unwrap(), None);
    }
}
