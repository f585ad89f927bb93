//! Memory on cache-line boundaries, for packed weights and for the scratch space of a call.
//!
//! Large pieces are mapped and the system is asked for huge pages (Linux gives them only when asked): a product of one
//! row walks through all weights, and with 4 KiB pages it waits more for address translation than for the weights.
#![allow(unsafe_code)] // views of lines as numbers

use std::sync::{Mutex, PoisonError};

use memmap2::MmapMut;

/// A number type without padding for which every bit pattern is a value.
///
/// # Safety
/// Implementors must be valid for any bits, have no padding and an alignment of at most 64.
pub(crate) unsafe trait Plain: Copy + Send + Sync {}
// SAFETY: primitive integers and floats (and the `repr(transparent)` half types) take any bits and have no padding.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes from which memory is mapped: below two huge pages of 2 MiB there is nothing to gain.
const MAPPED: usize = 4 << 20;

enum Memory {
    Lines(Vec<Line>),
    Mapped(MmapMut),
}

/// Zeroed bytes that start on a cache line; read and written as numbers.
pub(crate) struct Aligned {
    memory: Memory,
}

impl Aligned {
    /// Room for at least `bytes` bytes, all zero.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        if bytes >= MAPPED
            && let Ok(map) = MmapMut::map_anon(bytes.next_multiple_of(64))
        {
            // A request only: without huge pages everything works the same, slower.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Self { memory: Memory::Mapped(map) };
        }
        Self { memory: Memory::Lines(vec![Line([0; 64]); bytes.div_ceil(64)]) }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match &self.memory {
            Memory::Lines(lines) => lines.len() * 64,
            Memory::Mapped(map) => map.len(),
        }
    }

    /// All of it as numbers.
    pub(crate) fn as_slice<T: Plain>(&self) -> &[T] {
        let start = match &self.memory {
            Memory::Lines(lines) => lines.as_ptr().cast(),
            Memory::Mapped(map) => map.as_ptr(),
        };
        // SAFETY: one initialised allocation of `bytes()` bytes, aligned to a line or a page; T is Plain.
        unsafe { std::slice::from_raw_parts(start.cast(), self.bytes() / size_of::<T>()) }
    }

    /// All of it as numbers, to write.
    pub(crate) fn as_mut_slice<T: Plain>(&mut self) -> &mut [T] {
        let len = self.bytes() / size_of::<T>();
        let start = match &mut self.memory {
            Memory::Lines(lines) => lines.as_mut_ptr().cast(),
            Memory::Mapped(map) => map.as_mut_ptr(),
        };
        // SAFETY: as in `as_slice`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), len) }
    }
}

static FREE: Mutex<Vec<Aligned>> = Mutex::new(Vec::new());

/// Scratch buffers kept for the next call; more are given back to the system.
const KEPT: usize = 8;

/// [`with_scratch`] for numbers, in parts of the given sizes; each starts on a cache line.
pub(crate) fn with_parts<T, const N: usize>(sizes: [usize; N], body: impl FnOnce([&mut [f32]; N]) -> T) -> T {
    let whole_lines = |size: usize| size.next_multiple_of(size_of::<Line>() / size_of::<f32>());
    let room: usize = sizes.iter().map(|&size| whole_lines(size)).sum();
    with_scratch(room * size_of::<f32>(), |scratch| {
        let mut rest = scratch.as_mut_slice::<f32>();
        body(sizes.map(|size| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(whole_lines(size));
            rest = tail;
            &mut part[..size]
        }))
    })
}

/// Runs `body` with scratch space of at least `bytes` bytes of unspecified content, reused between calls.
pub(crate) fn with_scratch<T>(bytes: usize, body: impl FnOnce(&mut Aligned) -> T) -> T {
    let fitting = {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that fits, else the largest, to be replaced by a larger one: there are never more than were in use
        // at a time.
        let best = (0..free.len()).filter(|i| free[*i].bytes() >= bytes).min_by_key(|i| free[*i].bytes());
        best.or_else(|| (0..free.len()).max_by_key(|i| free[*i].bytes())).map(|i| free.swap_remove(i))
    };
    let mut buffer = match fitting {
        Some(buffer) if buffer.bytes() >= bytes => buffer,
        too_small => {
            drop(too_small);
            Aligned::zeroed(bytes)
        }
    };
    let result = body(&mut buffer);
    let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
    if free.len() < KEPT {
        free.push(buffer);
    }
    result
}
