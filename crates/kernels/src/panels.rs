//! The memory of packed weights: panels of [`PANEL`] outputs, one after another, each filled by one task.

use std::ops::Range;

use crate::aligned::{Aligned, Plain};
use crate::cpu::Level;
use crate::product::PANEL;
use crate::threads;

/// Weights `[n_out, k_in]` in panels, and the level whose kernels read them.
pub(crate) struct Panels {
    memory: Aligned,
    panel_bytes: usize,
    pub(crate) n_out: usize,
    pub(crate) k_in: usize,
    pub(crate) level: Level,
}

impl Panels {
    /// Panels of `len` numbers each; `fill` writes the outputs of a range into a zeroed panel.
    pub(crate) fn fill<T: Plain>(
        (n_out, k_in): (usize, usize),
        level: Level,
        len: usize,
        fill: impl Fn(Range<usize>, &mut [T]) + Sync,
    ) -> Self {
        let (panels, panel_bytes) = (n_out.div_ceil(PANEL), len * size_of::<T>());
        let mut memory = Aligned::zeroed(panels * panel_bytes);
        let all = &mut memory.as_mut_slice::<T>()[..panels * len];
        threads::run_chunks(threads::for_work(n_out * k_in), all, len.max(1), |p, panel| {
            fill(p * PANEL..n_out.min((p + 1) * PANEL), panel);
        });
        Self { memory, panel_bytes, n_out, k_in, level }
    }

    /// [`Panels::fill`] from rows of numbers: `place` gets a row, its place within the panel, and the panel.
    pub(crate) fn pack<T: Plain>(
        (n_out, k_in): (usize, usize),
        level: Level,
        len: usize,
        row: &(dyn Fn(usize, &mut [f32]) + Sync),
        place: impl Fn(&[f32], usize, &mut [T]) + Sync,
    ) -> Self {
        Self::fill((n_out, k_in), level, len, |outputs, panel| {
            let mut values = vec![0.0; k_in];
            for (j, output) in outputs.enumerate() {
                row(output, &mut values);
                place(&values, j, panel);
            }
        })
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Bytes of one panel.
    pub(crate) fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    /// The byte `at` of a panel. The address may lie outside, to be asked for ahead of its use.
    pub(crate) fn at(&self, panel: usize, at: usize) -> *const u8 {
        self.memory.as_slice::<u8>().as_ptr().wrapping_add(panel * self.panel_bytes + at)
    }
}
