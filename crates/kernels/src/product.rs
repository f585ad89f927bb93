//! The loops around every matrix product `y[m,n] = x[m,k] · w[n,k]ᵀ`: how rows and outputs are cut and who computes
//! which part. What is computed for one tile is the [`Kernel`]'s business.
//!
//! Weights lie in *panels* of [`PANEL`] outputs, within a panel in order of k, and k is cut into *blocks* of a size
//! that depends on the kernel only. An output is `((b0 + b1) + b2) + …` where b0, b1, … are the sums of its k-blocks,
//! each computed by one tile call in the kernel's own fixed order. So the cut along m and n and the number of threads
//! can follow the machine without changing a bit of the result.
//!
//! Rows are first brought into the kernel's layout (interleaved by row block, rounded or quantised), at most
//! [`ROWS_AT_ONCE`] at a time to bound the scratch space.
#![allow(unsafe_code)] // tiles are computed through pointers by several threads

use crate::aligned::{self, Aligned};
use crate::threads::{self, Shared};

/// Outputs in one panel of packed weights.
pub(crate) const PANEL: usize = 32;

/// Rows whose packed form is held at one time.
const ROWS_AT_ONCE: usize = 768;

/// Bytes of one k-block of packed rows that should stay in the second-level cache while panels pass by.
const CACHED_BLOCK_BYTES: usize = 256 * 1024;

/// Bytes of whole packed rows up to which they stay in that cache, so that outputs are finished panel by panel.
const CACHED_ROWS_BYTES: usize = 640 * 1024;

/// Bytes ahead of their place at which the first row block asks for weights. It waits for memory, later row blocks
/// find the same weights in the cache and ask for the next ones.
const AHEAD: usize = 4096;

/// The most rows that any kernel takes at once.
pub(crate) const MAX_TILE_ROWS: usize = 12;

/// Consecutive rows that a kernel computes together.
#[derive(Clone, Copy)]
pub(crate) struct RowBlock {
    /// First row, counted within the packed rows.
    pub(crate) start: usize,
    /// Number of rows, at most [`Kernel::max_rows`].
    pub(crate) rows: usize,
}

/// One way to store weights and multiply by them.
pub(crate) trait Kernel: Sync {
    /// Largest row block.
    fn max_rows(&self) -> usize;
    /// Number of outputs.
    fn n_out(&self) -> usize;
    /// Length of an input row.
    fn k_in(&self) -> usize;
    /// Number of k-blocks.
    fn k_blocks(&self) -> usize;
    /// Bytes of one packed row. Must be a multiple of 4.
    fn row_bytes(&self) -> usize;
    /// Bytes of packed weights of one panel, for deciding on threads.
    fn panel_bytes(&self) -> usize;
    /// Rough multiply-adds per nanosecond and thread, for deciding on threads.
    fn macs_per_ns(&self) -> usize;

    /// Brings `rows` rows of `x` (`[rows, k_in]`) into the kernel's layout at `packed` (`rows * row_bytes()` bytes).
    fn pack_rows(&self, x: &[f32], rows: usize, packed: &mut [u8]);

    /// Where k-block `block` of a panel starts.
    fn weights(&self, panel: usize, block: usize) -> *const u8;

    /// Computes the sums of k-block `block` for one row block and one panel: sets (`block` 0) or adds to the
    /// `rows x PANEL` tile at `tile` with `stride` floats between rows. Meanwhile it asks for the weights at `ahead`, which
    /// may be any address.
    ///
    /// # Safety
    /// `packed` points at the row block's packed rows (aligned to 4), `tile` at a writable tile, `place` (panel and k-block)
    /// is in range, `rows` is 1 to `max_rows()`, and the machine has the kernel's instructions.
    unsafe fn tile(
        &self,
        packed: *const u8,
        rows: usize,
        place: (usize, usize),
        ahead: *const u8,
        tile: *mut f32,
        stride: usize,
    );
}

/// What is done to finished outputs while they are in the cache: called with the first column and the values of one row.
pub(crate) type Finish<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// Cuts `rows` rows into blocks of nearly equal size, none above `max`.
pub(crate) fn row_blocks(rows: usize, max: usize) -> Vec<RowBlock> {
    let count = rows.div_ceil(max);
    let mut start = 0;
    (0..count)
        .map(|i| {
            let size = rows / count + usize::from(i < rows % count);
            let block = RowBlock { start, rows: size };
            start += size;
            block
        })
        .collect()
}

/// `out[m,n] = finish(x[m,k] · w[n,k]ᵀ)`. The lengths were checked by the caller.
pub(crate) fn run<K: Kernel>(kernel: &K, x: &[f32], m: usize, out: &mut [f32], finish: Option<Finish<'_>>) {
    let (n, k) = (kernel.n_out(), kernel.k_in());
    if m == 0 || n == 0 {
        return;
    }
    let scratch = m.min(ROWS_AT_ONCE) * kernel.row_bytes();
    aligned::with_scratch(scratch, |scratch| {
        for (i, out) in out.chunks_mut(ROWS_AT_ONCE * n).enumerate() {
            let first = i * ROWS_AT_ONCE;
            let rows = out.len() / n;
            run_rows(kernel, &x[first * k..(first + rows) * k], rows, out, finish, scratch);
        }
    });
}

fn run_rows<K: Kernel>(
    kernel: &K,
    x: &[f32],
    m: usize,
    out: &mut [f32],
    finish: Option<Finish<'_>>,
    scratch: &mut Aligned,
) {
    let (n, k, row_bytes) = (kernel.n_out(), kernel.k_in(), kernel.row_bytes());
    let panels = n.div_ceil(PANEL);
    let bytes_per_ns = 12;
    let cost = (m * n * k / kernel.macs_per_ns()).max(panels * kernel.panel_bytes() / bytes_per_ns);
    let threads = threads::for_work(cost);

    // Pack: every row block is written by one task.
    let blocks = row_blocks(m, kernel.max_rows());
    let packed = Shared(scratch.as_mut_slice::<u8>().as_mut_ptr());
    let pack_threads = threads.min(threads::for_work(m * k));
    threads::run(pack_threads, blocks.len(), |i| {
        let RowBlock { start, rows } = blocks[i];
        // SAFETY: the scratch space holds m packed rows; row blocks don't overlap and each is packed by one task.
        let dst = unsafe { std::slice::from_raw_parts_mut(packed.get().add(start * row_bytes), rows * row_bytes) };
        kernel.pack_rows(&x[start * k..(start + rows) * k], rows, dst);
    });

    // Cut into tasks: groups of row blocks that fit the cache, and as many ranges of panels as keep all threads busy.
    let block_bytes = kernel.max_rows() * row_bytes.div_ceil(kernel.k_blocks());
    let group = (CACHED_BLOCK_BYTES / block_bytes.max(1)).clamp(1, blocks.len());
    let group = blocks.len().div_ceil(blocks.len().div_ceil(group));
    let groups = blocks.len().div_ceil(group);
    let ranges = if threads == 1 { 1 } else { (6 * threads).div_ceil(groups).min(panels) };
    let columns = panels.div_ceil(ranges);
    let ranges = panels.div_ceil(columns);

    let out = Shared(out.as_mut_ptr());
    threads::run(threads, groups * ranges, |task| {
        let (g, c) = (task / ranges, task % ranges);
        let blocks = &blocks[g * group..blocks.len().min((g + 1) * group)];
        let panels = c * columns..panels.min((c + 1) * columns);
        let whole_rows_cached = blocks.iter().map(|b| b.rows * row_bytes).sum::<usize>() <= CACHED_ROWS_BYTES;
        let place = Place { packed: packed.get(), out: out.get(), n };
        let k_blocks = kernel.k_blocks();
        // Both orders visit the blocks of k of one output in the same order.
        let visits = panels.len() * k_blocks;
        let visit = |i: usize| {
            if whole_rows_cached {
                (panels.start + i / k_blocks, i % k_blocks)
            } else {
                (panels.start + i % panels.len(), i / panels.len())
            }
        };
        for i in 0..visits {
            let (panel, block) = visit(i);
            let (next_panel, next_block) = visit((i + 1).min(visits - 1));
            for (pass, rows) in blocks.iter().enumerate() {
                let ahead = if pass == 0 {
                    kernel.weights(panel, block).wrapping_add(AHEAD)
                } else {
                    kernel.weights(next_panel, next_block)
                };
                // SAFETY: rows, panel and block are in range by construction; the tile of this row block and panel
                // belongs to this task alone; packed rows were written before and are only read now.
                unsafe { tile(kernel, place, *rows, (panel, block), ahead, finish) };
            }
        }
    });
}

#[derive(Clone, Copy)]
struct Place {
    packed: *const u8,
    out: *mut f32,
    n: usize,
}

/// One tile: straight into the output where the panel is full, by way of a buffer at the right edge.
///
/// # Safety
/// As for [`Kernel::tile`]; `place.out` has all rows of the row block, and nobody else uses this tile of it.
unsafe fn tile<K: Kernel>(
    kernel: &K,
    place: Place,
    block: RowBlock,
    (panel, k_block): (usize, usize),
    ahead: *const u8,
    finish: Option<Finish<'_>>,
) {
    let col = panel * PANEL;
    let cols = PANEL.min(place.n - col);
    // SAFETY: by the contract of this function.
    unsafe {
        let packed = place.packed.add(block.start * kernel.row_bytes());
        let dst = place.out.add(block.start * place.n + col);
        if cols == PANEL {
            kernel.tile(packed, block.rows, (panel, k_block), ahead, dst, place.n);
        } else {
            let mut edge = [0.0; MAX_TILE_ROWS * PANEL];
            for r in 0..block.rows {
                std::ptr::copy_nonoverlapping(dst.add(r * place.n), edge[r * PANEL..].as_mut_ptr(), cols);
            }
            kernel.tile(packed, block.rows, (panel, k_block), ahead, edge.as_mut_ptr(), PANEL);
            for r in 0..block.rows {
                std::ptr::copy_nonoverlapping(edge[r * PANEL..].as_ptr(), dst.add(r * place.n), cols);
            }
        }
        if k_block + 1 == kernel.k_blocks()
            && let Some(finish) = finish
        {
            for r in 0..block.rows {
                let values = std::slice::from_raw_parts_mut(dst.add(r * place.n), cols);
                finish(col, values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::row_blocks;

    #[test]
    fn row_blocks_cover_all_rows_evenly() {
        for rows in 1..100 {
            let blocks = row_blocks(rows, 12);
            let mut next = 0;
            for block in &blocks {
                assert_eq!(block.start, next);
                assert!(block.rows >= 1 && block.rows <= 12);
                next += block.rows;
            }
            assert_eq!(next, rows);
            let sizes: Vec<_> = blocks.iter().map(|b| b.rows).collect();
            assert!(sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0) <= 1);
        }
    }
}
