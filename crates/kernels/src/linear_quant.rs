//! Products with weights in 8-bit and 4-bit blocks, activations quantised to 8 bits in blocks of 32.
//!
//! Of each 32 k: the whole-number dot product `i = Σ q·x` is exact; the output then gains `(d·e)·i`, and with an offset
//! m also `m·(e·Σx)`, where d is the scale of the weights, e = max|x| / 127 that of the activations. Groups are added in
//! the order of k within blocks of 1024 k, blocks in their order, with a multiply and an add, never fused: so the
//! result has the same bits on every level, the portable one included.
//!
//! Panels are a sequence of groups of 32 k, each `[words][32][4]` bytes of weights and then the scales of the 32
//! outputs. Q8_0 weights are stored with 128 added, as the dot product of AVX512-VNNI wants one side unsigned; nibbles
//! hold k and k + 16 of the group. In Q4_K the two f16 of 256 weights follow their eight groups.
#![allow(unsafe_code)] // tiles are written through pointers

use half::f16;

use crate::cpu::Level;
use crate::error::Result;
use crate::panels::Panels;
use crate::product::{Kernel, PANEL};
use crate::quant::{BlockFormat, GROUP, half_at};
use crate::quantize_rows::{ROW_GROUP, quantize_rows};

/// Groups in one block of k.
const BLOCK_GROUPS: usize = 32;

/// Most rows of a tile.
pub(crate) const TILE_ROWS: usize = 6;

/// Multiplies packed rows by groups of a panel: `(packed rows, panel, groups, tile, stride, set or
/// add, weights to ask for)`.
#[cfg(target_arch = "x86_64")]
pub(crate) type TileQuant = unsafe fn(*const u8, *const u8, usize, *mut f32, usize, bool, *const u8);

/// How a panel is laid out; the numbers stand for the format in the tiles' const parameters.
pub(crate) const Q8_0: u8 = 0;
pub(crate) const Q4_0: u8 = 1;
pub(crate) const Q4_1: u8 = 2;
pub(crate) const Q4_K: u8 = 3;

/// Bytes of the weights of one group of a panel.
pub(crate) const fn weight_bytes(kind: u8) -> usize {
    if kind == Q8_0 { GROUP * PANEL } else { GROUP * PANEL / 2 }
}

/// Bytes of one group of a panel with its scales.
pub(crate) const fn group_bytes(kind: u8) -> usize {
    weight_bytes(kind) + if kind == Q4_1 { 4 * PANEL } else { 2 * PANEL }
}

/// Groups that share what follows them, and its bytes (0 where nothing does).
pub(crate) const fn shared_scales(kind: u8) -> (usize, usize) {
    if kind == Q4_K { (8, 4 * PANEL) } else { (1, 0) }
}

/// Where group `g` starts in a panel.
pub(crate) const fn group_at(kind: u8, g: usize) -> usize {
    let (every, bytes) = shared_scales(kind);
    g * group_bytes(kind) + g / every * bytes
}

/// Weights `[n_out, k_in]` in quantised panels.
pub(crate) struct Quant {
    panels: Panels,
    format: BlockFormat,
}

fn kind(format: BlockFormat) -> u8 {
    match format {
        BlockFormat::Q8_0 => Q8_0,
        BlockFormat::Q4_0 => Q4_0,
        BlockFormat::Q4_1 => Q4_1,
        BlockFormat::Q4K => Q4_K,
    }
}

/// Groups of a row, filled up to whole blocks.
fn groups(format: BlockFormat, k_in: usize) -> usize {
    k_in.div_ceil(format.block_len()) * format.block_len() / GROUP
}

impl Quant {
    /// Packs rows of blocks; `row` writes the blocks of a row.
    pub(crate) fn pack(
        (n_out, k_in): (usize, usize),
        format: BlockFormat,
        level: Level,
        row: &(dyn Fn(usize, &mut [u8]) -> Result<()> + Sync),
    ) -> Result<Self> {
        let panel_bytes = group_at(kind(format), groups(format, k_in));
        let failed = std::sync::Mutex::new(None);
        let panels = Panels::fill((n_out, k_in), level, panel_bytes, |outputs, panel| {
            let mut blocks = vec![0; format.row_bytes(k_in)];
            for (j, output) in outputs.enumerate() {
                match row(output, &mut blocks) {
                    Ok(()) => place(format, &blocks, j, panel),
                    Err(error) => *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error),
                }
            }
        });
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(Self { panels, format }),
        }
    }

    fn groups(&self) -> usize {
        groups(self.format, self.panels.k_in)
    }
}

/// Writes the blocks of one row as output `j` of a panel.
fn place(format: BlockFormat, blocks: &[u8], j: usize, panel: &mut [u8]) {
    let kind = kind(format);
    let per_block = format.block_len() / GROUP;
    for (b, block) in blocks.chunks_exact(format.block_bytes()).enumerate() {
        for i in 0..per_block {
            let g = b * per_block + i;
            let to = &mut panel[group_at(kind, g)..][..group_bytes(kind)];
            let (weights, scales) = to.split_at_mut(weight_bytes(kind));
            let q = format.group(block, i).q;
            for (word, to) in weights.chunks_exact_mut(4 * PANEL).enumerate() {
                let byte = |byte: usize| {
                    let k = 4 * word + byte;
                    if kind == Q8_0 {
                        q[k].cast_unsigned() ^ 0x80
                    } else {
                        q[k].cast_unsigned() | q[k + GROUP / 2].cast_unsigned() << 4
                    }
                };
                to[4 * j..4 * j + 4].copy_from_slice(&std::array::from_fn::<u8, 4, _>(byte));
            }
            if kind == Q4_K {
                let (scale, min) = BlockFormat::small_scales(block, i);
                scales[j] = scale;
                scales[PANEL + j] = min;
            } else {
                scales[2 * j..2 * j + 2].copy_from_slice(&half_at(block, 0).to_ne_bytes());
                if kind == Q4_1 {
                    scales[2 * (PANEL + j)..][..2].copy_from_slice(&half_at(block, 2).to_ne_bytes());
                }
            }
        }
        if kind == Q4_K {
            let shared = &mut panel[group_at(kind, (b + 1) * per_block) - 4 * PANEL..][..4 * PANEL];
            shared[2 * j..2 * j + 2].copy_from_slice(&half_at(block, 0).to_ne_bytes());
            shared[2 * (PANEL + j)..][..2].copy_from_slice(&half_at(block, 2).to_ne_bytes());
        }
    }
}

impl Kernel for Quant {
    fn panels(&self) -> &Panels {
        &self.panels
    }

    fn max_rows(&self) -> usize {
        TILE_ROWS
    }

    fn k_blocks(&self) -> usize {
        self.groups().div_ceil(BLOCK_GROUPS)
    }

    fn block_at(&self, block: usize) -> usize {
        group_at(kind(self.format), block * BLOCK_GROUPS)
    }

    fn row_bytes(&self) -> usize {
        self.groups() * ROW_GROUP
    }

    fn macs_per_ns(&self) -> usize {
        if self.panels.level >= Level::Avx512Vnni { 150 } else { 50 }
    }

    fn pack_rows(&self, x: &[f32], rows: usize, packed: &mut [u8]) {
        // What the stored numbers have added, to be taken off the dot products.
        let zero = match self.format {
            BlockFormat::Q8_0 => 128,
            BlockFormat::Q4_0 => 8,
            BlockFormat::Q4_1 | BlockFormat::Q4K => 0,
        };
        quantize_rows(self.panels.level, x, (rows, self.panels.k_in), zero, packed);
    }

    unsafe fn tile(
        &self,
        packed: *const u8,
        rows: usize,
        (panel, block): (usize, usize),
        ahead: *const u8,
        tile: *mut f32,
        stride: usize,
    ) {
        let kind = kind(self.format);
        let from = block * BLOCK_GROUPS;
        let groups = BLOCK_GROUPS.min(self.groups() - from);
        // SAFETY: panel and block are in range, packed rows are as `pack_rows` leaves them.
        unsafe {
            let a = packed.add(from * ROW_GROUP * rows);
            let w = self.weights(panel, block);
            #[cfg(target_arch = "x86_64")]
            {
                let kind = usize::from(kind);
                if self.panels.level >= Level::Avx512Vnni {
                    let tiles = &crate::x86::quant::TILES_VNNI[kind];
                    return tiles[rows - 1](a, w, groups, tile, stride, block == 0, ahead);
                }
                if self.panels.level >= Level::Avx2 {
                    let tiles = &crate::x86::quant::TILES_AVX2[kind];
                    return tiles[rows - 1](a, w, groups, tile, stride, block == 0, ahead);
                }
            }
            let _ = ahead;
            let a = std::slice::from_raw_parts(a, groups * ROW_GROUP * rows);
            let w = std::slice::from_raw_parts(w, group_at(kind, groups));
            for r in 0..rows {
                let out = std::slice::from_raw_parts_mut(tile.add(r * stride), PANEL);
                row_portable(kind, a, rows, r, w, groups, out, block == 0);
            }
        }
    }
}

/// One row of a tile. Whole numbers are exact and the floats are taken in the same steps as on the vector levels.
#[allow(clippy::too_many_arguments)] // a row of a tile
fn row_portable(kind: u8, a: &[u8], rows: usize, r: usize, w: &[u8], groups: usize, out: &mut [f32], first: bool) {
    let mut totals = [0.0f32; PANEL];
    for g in 0..groups {
        let a = &a[g * ROW_GROUP * rows..][..ROW_GROUP * rows];
        let word = |i: usize| [a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]];
        let tail = GROUP / 4 * rows;
        let scale = f32::from_ne_bytes(word(tail + r));
        let start = i32::from_ne_bytes(word(tail + rows + r));
        let sum = f32::from_ne_bytes(word(tail + 2 * rows + r));
        let group = &w[group_at(kind, g)..][..group_bytes(kind)];
        for (j, total) in totals.iter_mut().enumerate() {
            let mut dot = start;
            for i in 0..GROUP / 4 {
                for (byte, x) in word(i * rows + r).into_iter().enumerate() {
                    let q = match kind {
                        Q8_0 => group[(i * PANEL + j) * 4 + byte],
                        _ if i < 4 => group[(i * PANEL + j) * 4 + byte] & 15,
                        _ => group[((i - 4) * PANEL + j) * 4 + byte] >> 4,
                    };
                    dot += i32::from(q) * i32::from(x.cast_signed());
                }
            }
            let (d, m) = scales_portable(kind, w, g, j);
            *total += (d * scale) * dot as f32;
            if let Some(m) = m {
                *total += m * sum;
            }
        }
    }
    for (out, total) in out.iter_mut().zip(totals) {
        *out = if first { total } else { *out + total };
    }
}

/// Scale and offset of output `j` in group `g` of a panel.
fn scales_portable(kind: u8, panel: &[u8], g: usize, j: usize) -> (f32, Option<f32>) {
    let half = |at: usize| f16::from_ne_bytes([panel[at], panel[at + 1]]).to_f32();
    let at = group_at(kind, g) + weight_bytes(kind);
    match kind {
        Q4_1 => (half(at + 2 * j), Some(half(at + 2 * (PANEL + j)))),
        Q4_K => {
            let shared = group_at(kind, (g / 8 + 1) * 8) - 4 * PANEL;
            let (scale, min) = (f32::from(panel[at + j]), f32::from(panel[at + PANEL + j]));
            (half(shared + 2 * j) * scale, Some(-(half(shared + 2 * (PANEL + j)) * min)))
        }
        _ => (half(at + 2 * j), None),
    }
}
