//! The kernels' inner loops for x86-64.

pub(crate) mod amx;
pub(crate) mod attention;
pub(crate) mod avx2;
pub(crate) mod avx512;
pub(crate) mod quant;
pub(crate) mod quantize_rows;
pub(crate) mod resample;
