//! CPU kernels: matrix products with weights packed once, attention by tiles, fused element-wise steps, and the sums of
//! resizing pictures.
//!
//! What every kernel keeps:
//!
//! * **Fixed reduction order.** A result element is computed by the same sequence of operations whatever else is in
//!   the call: the number of rows, the row's place among them, the number of threads and the way the work is cut do
//!   not change one bit of it. Work is cut along outputs only, never along a sum.
//! * **Run-time choice by CPU feature** ([`cpu::Level`]), with a portable version of each kernel that is always
//!   compiled and is what the others are tested against. Bit equality holds within one level; the products of
//!   quantised weights, and resized pictures, are bit-equal across levels too.
//! * **One thread pool**: rayon's global one, within the limit set in [`threads`]. Small work stays on the caller.

pub mod activation;
mod aligned;
pub mod attention;
pub mod cpu;
pub mod encoder;
mod epilogue;
mod error;
mod exp;
mod linear;
mod linear_bf16;
mod linear_f32;
mod linear_quant;
mod multiversion;
pub mod norm;
mod panels;
mod product;
pub mod quant;
mod quantize_rows;
pub mod resample;
pub mod rope;
pub mod tensor;
pub mod threads;
pub mod token_mask;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use epilogue::Epilogue;
pub use error::{Error, Result};
pub use linear::{Element, Format, PackedLinear, Product, forward_each};
pub use product::ROWS_AT_ONCE;
