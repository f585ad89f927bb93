//! The loops around every matrix product `y[m,n] = x[m,k] · w[n,k]ᵀ`: how rows and outputs are cut and who computes
//! which part. What is computed for one tile is the [`Kernel`]'s business.
//!
//! Weights lie in *panels* of [`PANEL`] outputs, within a panel in order of k, and k is cut into *blocks* of a size
//! that depends on the kernel only. An output is `((b0 + b1) + b2) + …` where b0, b1, … are the sums of its k-blocks,
//! each computed by one tile call in the kernel's own fixed order. So the cut along m and n and the number of threads
//! can follow the machine without changing a bit of the result.
//!
//! Rows are first brought into the kernel's layout (interleaved by row block, rounded or quantised, after a norm if there
//! is one), at most [`ROWS_AT_ONCE`] at a time to bound the scratch space. A call can take several weights that want the
//! same layout: queries, keys and values, for example.
#![allow(unsafe_code)] // tiles are computed through pointers by several threads

use crate::aligned::{self, Aligned};
use crate::cpu::Level;
use crate::epilogue::Epilogue;
use crate::linear_bf16::TILE_ROWS;
use crate::norm::Norm;
use crate::panels::Panels;
use crate::threads::{self, Shared};

/// Outputs in one panel of packed weights.
pub(crate) const PANEL: usize = 32;

/// Rows whose packed form, or whose results within a feed-forward network, are held at one time.
pub const ROWS_AT_ONCE: usize = 768;

/// Bytes of one k-block of packed rows that should stay in the second-level cache while panels pass by.
const CACHED_BLOCK_BYTES: usize = 256 * 1024;

/// Bytes of whole packed rows up to which they stay in that cache, so that outputs are finished panel by panel.
const CACHED_ROWS_BYTES: usize = 640 * 1024;

/// Bytes ahead of their place at which the first row block asks for weights. It waits for memory, later row blocks
/// find the same weights in the cache and ask for the next ones.
const AHEAD: usize = 4096;

/// The most rows that any kernel takes at once.
pub(crate) const MAX_TILE_ROWS: usize = 32;

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
    /// The packed weights.
    fn panels(&self) -> &Panels;
    /// Largest row block.
    fn max_rows(&self) -> usize;
    /// Number of k-blocks.
    fn k_blocks(&self) -> usize;
    /// Bytes of one packed row. Must be a multiple of 4.
    fn row_bytes(&self) -> usize;
    /// Where in a panel k-block `block` starts, in bytes.
    fn block_at(&self, block: usize) -> usize;
    /// Rough multiply-adds per nanosecond and thread, for deciding on threads.
    fn macs_per_ns(&self) -> usize;

    /// Whether [`Kernel::tile`] needs AMX's registers set up. Then a whole [`TILE_ROWS`] rows cost no more than one, and
    /// what is behind the last packed row is read up to as many, whatever it is.
    fn by_tiles(&self) -> bool {
        false
    }

    /// Brings `rows` rows of `x` (`[rows, k_in]`) into the kernel's layout at `packed` (`rows * row_bytes()` bytes).
    fn pack_rows(&self, x: &[f32], rows: usize, packed: &mut [u8]);

    /// Where k-block `block` of a panel starts.
    fn weights(&self, panel: usize, block: usize) -> *const u8 {
        self.panels().at(panel, self.block_at(block))
    }

    /// Computes the sums of k-block `block` for one row block and one panel: sets (`block` 0) or adds to the
    /// `rows x PANEL` tile at `tile` with `stride` floats between rows. Meanwhile it asks for the weights at `ahead`, which
    /// may be any address.
    ///
    /// # Safety
    /// `packed` points at the row block's packed rows (aligned to 4), `tile` at a writable tile, `place` (panel and k-block)
    /// is in range, `rows` is 1 to `max_rows()`, and the machine has the kernel's instructions (and this thread its tile
    /// registers, if `by_tiles()`).
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

/// The rows that are multiplied.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    /// `[rows, k]`.
    pub(crate) x: &'a [f32],
    pub(crate) rows: usize,
    /// Taken of every row before it is packed.
    pub(crate) norm: Option<Norm<'a>>,
}

/// One of the products of a call, with weights that want rows packed alike.
pub(crate) struct Part<'a, K> {
    pub(crate) kernel: &'a K,
    /// `[rows, n_out]`.
    pub(crate) out: &'a mut [f32],
    pub(crate) epilogue: Epilogue<'a>,
}

/// Cuts `rows` rows into blocks of nearly equal size, none above `max`, all but the last a multiple of `unit` (of which
/// `max` is one).
pub(crate) fn row_blocks(rows: usize, max: usize, unit: usize) -> Vec<RowBlock> {
    let (units, count) = (rows.div_ceil(unit), rows.div_ceil(max));
    let mut start = 0;
    (0..count)
        .map(|i| {
            let size = unit * (units / count + usize::from(i < units % count));
            let block = RowBlock { start, rows: size.min(rows - start) };
            start += size;
            block
        })
        .collect()
}

/// `out[m,n] = epilogue(norm(x[m,k]) · w[n,k]ᵀ)` for every part. The lengths were checked by the caller.
pub(crate) fn run<K: Kernel>(input: Input<'_>, parts: &mut [Part<'_, K>]) {
    let Some(kernel) = parts.first().map(|part| part.kernel) else { return };
    let k = kernel.panels().k_in;
    let rows = input.rows.min(ROWS_AT_ONCE);
    let rows = if kernel.by_tiles() { rows.next_multiple_of(TILE_ROWS) } else { rows };
    let bytes = rows * kernel.row_bytes();
    aligned::with_scratch(bytes, |scratch| {
        for first in (0..input.rows).step_by(ROWS_AT_ONCE) {
            let rows = ROWS_AT_ONCE.min(input.rows - first);
            let mut panels = 0;
            let places: Vec<Place<'_, K>> = parts
                .iter_mut()
                .map(|part| {
                    let n = part.kernel.panels().n_out;
                    let first_panel = panels;
                    panels += n.div_ceil(PANEL);
                    let out = Shared(part.out[first * n..(first + rows) * n].as_mut_ptr());
                    Place { kernel: part.kernel, first_panel, n, out, first_row: first, epilogue: part.epilogue }
                })
                .collect();
            run_rows(Input { x: &input.x[first * k..(first + rows) * k], rows, ..input }, &places, panels, scratch);
        }
    });
}

/// A part's rows that are computed at one time.
struct Place<'a, K> {
    kernel: &'a K,
    /// Panels of the parts before.
    first_panel: usize,
    n: usize,
    out: Shared<f32>,
    first_row: usize,
    epilogue: Epilogue<'a>,
}

fn run_rows<K: Kernel>(input: Input<'_>, places: &[Place<'_, K>], panels: usize, scratch: &mut Aligned) {
    let Some(kernel) = places.first().map(|place| place.kernel) else { return };
    if panels == 0 {
        return;
    }
    let (m, k, row_bytes) = (input.rows, kernel.panels().k_in, kernel.row_bytes());
    let level = Level::current();
    let bytes_per_ns = 12;
    let cost =
        (m * panels * PANEL * k / kernel.macs_per_ns()).max(panels * kernel.panels().panel_bytes() / bytes_per_ns);
    let threads = threads::for_work(cost);

    // Pack: every row block is written by one task.
    let (unit, cached_bytes) =
        if kernel.by_tiles() { (TILE_ROWS, 2 * CACHED_BLOCK_BYTES) } else { (1, CACHED_BLOCK_BYTES) };
    let blocks = row_blocks(m, kernel.max_rows(), unit);
    let packed = Shared(scratch.as_mut_slice::<u8>().as_mut_ptr());
    let pack_threads = threads.min(threads::for_work(m * k));
    threads::run(pack_threads, blocks.len(), |i| {
        let RowBlock { start, rows } = blocks[i];
        // SAFETY: the scratch space holds m packed rows; row blocks don't overlap and each is packed by one task.
        let dst = unsafe { std::slice::from_raw_parts_mut(packed.get().add(start * row_bytes), rows * row_bytes) };
        let x = &input.x[start * k..(start + rows) * k];
        match input.norm {
            None => kernel.pack_rows(x, rows, dst),
            Some(norm) => {
                let mut normed = vec![0.0; rows * k];
                norm.rows(level, x, &mut normed);
                kernel.pack_rows(&normed, rows, dst);
            }
        }
    });

    // Cut into tasks: groups of row blocks that fit the cache, and as many ranges of panels as keep all threads busy.
    let block_bytes = kernel.max_rows() * row_bytes.div_ceil(kernel.k_blocks());
    let group = (cached_bytes / block_bytes.max(1)).clamp(1, blocks.len());
    let group = blocks.len().div_ceil(blocks.len().div_ceil(group));
    let groups = blocks.len().div_ceil(group);
    let ranges = if threads == 1 { 1 } else { (6 * threads).div_ceil(groups).min(panels) };
    let columns = panels.div_ceil(ranges);
    let ranges = panels.div_ceil(columns);

    threads::run(threads, groups * ranges, |task| {
        let (g, c) = (task / ranges, task % ranges);
        // SAFETY: weights that are packed for AMX are on a machine that has it.
        #[cfg(target_arch = "x86_64")]
        let _tiles = kernel.by_tiles().then(|| unsafe { crate::x86::amx::Tiles::set_up() });
        let blocks = &blocks[g * group..blocks.len().min((g + 1) * group)];
        let panels = c * columns..panels.min((c + 1) * columns);
        let whole_rows_cached = blocks.iter().map(|b| b.rows * row_bytes).sum::<usize>() <= CACHED_ROWS_BYTES;
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
        // Panels are counted through all parts.
        let part_of = |panel: usize| {
            let part = places.iter().rposition(|place| place.first_panel <= panel).unwrap_or(0);
            (&places[part], panel - places[part].first_panel)
        };
        for i in 0..visits {
            let (panel, block) = visit(i);
            let (next, next_block) = visit((i + 1).min(visits - 1));
            let (place, panel) = part_of(panel);
            let (next, next_panel) = part_of(next);
            for (pass, rows) in blocks.iter().enumerate() {
                let ahead = if pass == 0 {
                    place.kernel.weights(panel, block).wrapping_add(AHEAD)
                } else {
                    next.kernel.weights(next_panel, next_block)
                };
                // SAFETY: rows, panel and block are in range by construction, tile registers are set up; the tile of this
                // row block and panel belongs to this task alone; packed rows were written before and are only read now.
                unsafe { tile(place, packed.get(), *rows, (panel, block), ahead, level) };
            }
        }
    });
}

/// One tile: straight into the output where the panel is full, by way of a buffer at the right edge.
///
/// # Safety
/// As for [`Kernel::tile`], with `packed` the packed rows of all row blocks; `place.out` has all rows of the row block,
/// and nobody else uses this tile of it.
unsafe fn tile<K: Kernel>(
    place: &Place<'_, K>,
    packed: *const u8,
    block: RowBlock,
    (panel, k_block): (usize, usize),
    ahead: *const u8,
    level: Level,
) {
    let (kernel, n, col) = (place.kernel, place.n, panel * PANEL);
    let cols = PANEL.min(n - col);
    // SAFETY: by the contract of this function.
    unsafe {
        let packed = packed.add(block.start * kernel.row_bytes());
        let dst = place.out.get().add(block.start * n + col);
        if cols == PANEL {
            kernel.tile(packed, block.rows, (panel, k_block), ahead, dst, n);
        } else {
            let mut edge = [0.0; MAX_TILE_ROWS * PANEL];
            for r in 0..block.rows {
                std::ptr::copy_nonoverlapping(dst.add(r * n), edge[r * PANEL..].as_mut_ptr(), cols);
            }
            kernel.tile(packed, block.rows, (panel, k_block), ahead, edge.as_mut_ptr(), PANEL);
            for r in 0..block.rows {
                std::ptr::copy_nonoverlapping(edge[r * PANEL..].as_ptr(), dst.add(r * n), cols);
            }
        }
        if k_block + 1 == kernel.k_blocks() && !matches!(place.epilogue, Epilogue::None) {
            for r in 0..block.rows {
                let at = (place.first_row + block.start + r) * n + col;
                place.epilogue.apply(level, (at, col), std::slice::from_raw_parts_mut(dst.add(r * n), cols));
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
            let blocks = row_blocks(rows, 12, 1);
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

    #[test]
    fn row_blocks_are_whole_units_but_for_the_last() {
        for rows in 1..200 {
            let blocks = row_blocks(rows, 32, 16);
            let mut next = 0;
            for (i, block) in blocks.iter().enumerate() {
                assert_eq!(block.start, next);
                assert!(block.rows >= 1 && block.rows <= 32);
                assert!(block.rows % 16 == 0 || i + 1 == blocks.len(), "{rows}: {}", block.rows);
                next += block.rows;
            }
            assert_eq!(next, rows);
        }
    }
}
