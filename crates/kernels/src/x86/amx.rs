//! Products of tiles in AMX: 16 or 32 rows by 16 or 32 columns, summed in the units' own registers.
//!
//! A step takes 32 k of bf16. Its sum is made in f32 from zero, pair by pair, and then added to what is there; products
//! and sums are rounded to nearest, subnormal numbers count as zero (Intel's architecture instruction set extensions
//! reference, TDPBF16PS). So a row's bits depend on nothing but the row, however many rows the tile has.
//!
//! The compiler knows nothing of tile registers: a whole loop over k is one piece of assembly, and a thread's tiles are
//! in order while it has [`Tiles`].
#![allow(unsafe_code)] // system call and assembly

use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;

use crate::linear_bf16::{TILE_K, TILE_ROWS};

/// Whether this machine has AMX with bf16 and the system lets this process use it.
pub(crate) fn is_usable() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    let has_leaf = __cpuid(0).eax >= 7;
    has_leaf && __cpuid_count(7, 0).edx & (BF16 | TILES) == BF16 | TILES && is_permitted()
}

/// Asks Linux for the tile registers, which a process has only on request.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes nothing but what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// The shape of all eight tiles: 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPE: Shape = {
    let mut shape = Shape { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut i = 0;
    while i < 8 {
        shape.row_bytes[i] = 2 * TILE_K as u16;
        shape.rows[i] = TILE_ROWS as u8;
        i += 1;
    }
    shape
};

/// This thread's tile registers, set up for [`multiply`] until it is dropped. Not to be nested.
pub(crate) struct Tiles(PhantomData<*const ()>);

impl Tiles {
    /// Sets them up.
    ///
    /// # Safety
    /// [`is_usable`] has said yes.
    pub(crate) unsafe fn set_up() -> Self {
        // SAFETY: the shape is a valid one, and the process may use the registers.
        unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const SHAPE, options(nostack, readonly)) };
        Self(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they were set up. Registers that are not in use cost a change of threads nothing.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// What is multiplied, step by step. Distances are in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// Rows of [`TILE_K`] bf16, in order of k.
    pub(crate) a: *const u8,
    /// From one row to the next.
    pub(crate) a_row: usize,
    /// From one step to the next.
    pub(crate) a_step: usize,
    /// Rows of 32 words of two bf16 that follow each other in k.
    pub(crate) b: *const u8,
    /// From one pair of k to the next.
    pub(crate) b_row: usize,
    /// From one step to the next.
    pub(crate) b_step: usize,
    pub(crate) steps: usize,
}

/// A function of a product: what begins, ends and repeats.
macro_rules! product {
    ($(#[$doc:meta])* $name:ident,
     zero: $zero:literal, load: $load:literal, body: $body:literal, store: $store:literal) => {
        $(#[$doc])*
        unsafe fn $name(o: Operands, out: *mut f32, stride: usize, first: bool, ahead: *const u8) {
            // SAFETY: by the contract of this function; prefetching never faults.
            unsafe {
                std::arch::asm!(
                    "test {first:e}, {first:e}",
                    "jz 2f",
                    $zero,
                    "jmp 3f",
                    "2:",
                    $load,
                    "3:",
                    $body,
                    // Weights that are wanted next: as many as were used.
                    "test {ahead}, {ahead}",
                    "jz 5f",
                    "mov {first:e}, 8",
                    "4:",
                    "prefetcht1 [{ahead}]",
                    "prefetcht1 [{ahead} + 64]",
                    "prefetcht1 [{ahead} + 128]",
                    "prefetcht1 [{ahead} + 192]",
                    "add {ahead}, 256",
                    "dec {first:e}",
                    "jnz 4b",
                    "5:",
                    "add {a}, {a_step}",
                    "add {a2}, {a_step}",
                    "add {b}, {b_step}",
                    "dec {steps}",
                    "jnz 3b",
                    $store,
                    first = inout(reg) u64::from(first) => _,
                    a = inout(reg) o.a => _,
                    a2 = inout(reg) o.a.wrapping_add(TILE_ROWS * o.a_row) => _,
                    a_row = in(reg) o.a_row,
                    a_step = in(reg) o.a_step,
                    b = inout(reg) o.b => _,
                    b_row = in(reg) o.b_row,
                    b_step = in(reg) o.b_step,
                    steps = inout(reg) o.steps => _,
                    ahead = inout(reg) ahead => _,
                    out = in(reg) out,
                    out2 = in(reg) out.wrapping_byte_add(TILE_ROWS * stride),
                    stride = in(reg) stride,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// [`multiply_32x32`] for a part of it: one tile up to 16 rows or columns, else two.
///
/// # Safety
/// As there, for whole tiles.
pub(crate) unsafe fn multiply(
    o: Operands,
    (rows, columns): (usize, usize),
    out: *mut f32,
    stride: usize,
    first: bool,
    ahead: *const u8,
) {
    let multiply = match (rows > TILE_ROWS, columns > 16) {
        (true, true) => multiply_32x32,
        (false, true) => multiply_16x32,
        (true, false) => multiply_32x16,
        (false, false) => multiply_16x16,
    };
    // SAFETY: by the contract of this function.
    unsafe { multiply(o, out, stride, first, ahead) };
}

product! {
    /// Sets (`first`) or adds to the `32 x 32` floats at `out`, whose rows are `stride` bytes apart; asks for the weights at
    /// `ahead` meanwhile.
    ///
    /// # Safety
    /// The operands can be read for all steps (at least one), the output can be written, and this thread has its [`Tiles`].
    multiply_32x32,
    zero: "tilezero tmm0
           tilezero tmm1
           tilezero tmm2
           tilezero tmm3",
    load: "tileloadd tmm0, [{out} + {stride} * 1]
           tileloadd tmm1, [{out} + {stride} * 1 + 64]
           tileloadd tmm2, [{out2} + {stride} * 1]
           tileloadd tmm3, [{out2} + {stride} * 1 + 64]",
    body: "tileloadd tmm6, [{b} + {b_row} * 1]
           tileloadd tmm4, [{a} + {a_row} * 1]
           tdpbf16ps tmm0, tmm4, tmm6
           tileloadd tmm7, [{b} + {b_row} * 1 + 64]
           tdpbf16ps tmm1, tmm4, tmm7
           tileloadd tmm5, [{a2} + {a_row} * 1]
           tdpbf16ps tmm2, tmm5, tmm6
           tdpbf16ps tmm3, tmm5, tmm7",
    store: "tilestored [{out} + {stride} * 1], tmm0
            tilestored [{out} + {stride} * 1 + 64], tmm1
            tilestored [{out2} + {stride} * 1], tmm2
            tilestored [{out2} + {stride} * 1 + 64], tmm3"
}

product! {
    /// [`multiply_32x32`] for 16 rows.
    ///
    /// # Safety
    /// As there.
    multiply_16x32,
    zero: "tilezero tmm0
           tilezero tmm1",
    load: "tileloadd tmm0, [{out} + {stride} * 1]
           tileloadd tmm1, [{out} + {stride} * 1 + 64]",
    body: "tileloadd tmm6, [{b} + {b_row} * 1]
           tileloadd tmm4, [{a} + {a_row} * 1]
           tdpbf16ps tmm0, tmm4, tmm6
           tileloadd tmm7, [{b} + {b_row} * 1 + 64]
           tdpbf16ps tmm1, tmm4, tmm7",
    store: "tilestored [{out} + {stride} * 1], tmm0
            tilestored [{out} + {stride} * 1 + 64], tmm1
            // {out2}"
}

product! {
    /// [`multiply_32x32`] for 16 columns.
    ///
    /// # Safety
    /// As there.
    multiply_32x16,
    zero: "tilezero tmm0
           tilezero tmm2",
    load: "tileloadd tmm0, [{out} + {stride} * 1]
           tileloadd tmm2, [{out2} + {stride} * 1]",
    body: "tileloadd tmm6, [{b} + {b_row} * 1]
           tileloadd tmm4, [{a} + {a_row} * 1]
           tdpbf16ps tmm0, tmm4, tmm6
           tileloadd tmm5, [{a2} + {a_row} * 1]
           tdpbf16ps tmm2, tmm5, tmm6",
    store: "tilestored [{out} + {stride} * 1], tmm0
            tilestored [{out2} + {stride} * 1], tmm2"
}

product! {
    /// [`multiply_32x32`] for 16 rows and 16 columns.
    ///
    /// # Safety
    /// As there.
    multiply_16x16,
    zero: "tilezero tmm0",
    load: "tileloadd tmm0, [{out} + {stride} * 1]",
    body: "tileloadd tmm6, [{b} + {b_row} * 1]
           tileloadd tmm4, [{a} + {a_row} * 1]
           tdpbf16ps tmm0, tmm4, tmm6",
    store: "tilestored [{out} + {stride} * 1], tmm0
            // {out2}"
}
