//! Copies from the host to the device, counted: each is a call of the driver, and none may depend on how many layers or
//! rows a step has.

use std::cell::Cell;

use candle_core::{Device, Shape, Tensor, WithDType};

use crate::error::Result;

thread_local! {
    /// By thread, so that models on several threads don't count each other's.
    static COPIES: Cell<u64> = const { Cell::new(0) };
}

/// `values` as a tensor of the device.
pub(crate) fn to_device<T: WithDType>(values: Vec<T>, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    COPIES.set(COPIES.get() + 1);
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// The copies that this thread has made.
pub(crate) fn copies_to_device() -> u64 {
    COPIES.get()
}
