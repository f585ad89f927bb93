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

use crate::aligned::Aligned;
use crate::cpu::Level;
use crate::error::Result;
use crate::multiversion::by_level;
use crate::product::{Kernel, PANEL};
use crate::quant::{BlockFormat, GROUP, half_at};
use crate::threads;

/// Groups in one block of k.
const BLOCK_GROUPS: usize = 32;

/// Bytes of a packed row for one group: 32 numbers, `e`, what the dot product starts from, and `e·Σx`.
pub(crate) const ROW_GROUP: usize = GROUP + 12;

/// Most rows of a tile.
pub(crate) const TILE_ROWS: usize = 6;

/// Multiplies packed rows by groups of a panel: `(packed rows, panel, groups, tile, stride, set or
/// add, weights to ask for)`.
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
    panels: Aligned,
    format: BlockFormat,
    n_out: usize,
    k_in: usize,
    level: Level,
}

fn kind(format: BlockFormat) -> u8 {
    match format {
        BlockFormat::Q8_0 => Q8_0,
        BlockFormat::Q4_0 => Q4_0,
        BlockFormat::Q4_1 => Q4_1,
        BlockFormat::Q4K => Q4_K,
    }
}

impl Quant {
    /// Packs rows of blocks; `row` writes the blocks of a row.
    pub(crate) fn pack(
        n_out: usize,
        k_in: usize,
        format: BlockFormat,
        level: Level,
        row: &(dyn Fn(usize, &mut [u8]) -> Result<()> + Sync),
    ) -> Result<Self> {
        let groups = k_in.div_ceil(format.block_len()) * format.block_len() / GROUP;
        let panel_bytes = group_at(kind(format), groups);
        let mut panels = Aligned::zeroed(n_out.div_ceil(PANEL) * panel_bytes);
        let failed = std::sync::Mutex::new(None);
        let all = &mut panels.as_mut_slice::<u8>()[..n_out.div_ceil(PANEL) * panel_bytes];
        threads::run_chunks(threads::for_work(n_out * k_in), all, panel_bytes, |p, panel| {
            let mut blocks = vec![0; format.row_bytes(k_in)];
            for j in 0..PANEL.min(n_out - p * PANEL) {
                match row(p * PANEL + j, &mut blocks) {
                    Ok(()) => place(format, &blocks, j, panel),
                    Err(error) => *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error),
                }
            }
        });
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(Self { panels, format, n_out, k_in, level }),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.panels.bytes()
    }

    fn groups(&self) -> usize {
        self.k_in.div_ceil(self.format.block_len()) * self.format.block_len() / GROUP
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
                for (byte, to) in to[4 * j..4 * j + 4].iter_mut().enumerate() {
                    let k = 4 * word + byte;
                    *to = if kind == Q8_0 {
                        q[k].cast_unsigned() ^ 0x80
                    } else {
                        q[k].cast_unsigned() | q[k + GROUP / 2].cast_unsigned() << 4
                    };
                }
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
    fn max_rows(&self) -> usize {
        TILE_ROWS
    }

    fn n_out(&self) -> usize {
        self.n_out
    }

    fn k_in(&self) -> usize {
        self.k_in
    }

    fn k_blocks(&self) -> usize {
        self.groups().div_ceil(BLOCK_GROUPS)
    }

    fn row_bytes(&self) -> usize {
        self.groups() * ROW_GROUP
    }

    fn panel_bytes(&self) -> usize {
        group_at(kind(self.format), self.groups())
    }

    fn macs_per_ns(&self) -> usize {
        if self.level >= Level::Avx512Vnni { 150 } else { 50 }
    }

    fn pack_rows(&self, x: &[f32], rows: usize, packed: &mut [u8]) {
        let zero = if self.format == BlockFormat::Q8_0 { 128 } else { 8 };
        let zero = if matches!(self.format, BlockFormat::Q8_0 | BlockFormat::Q4_0) { zero } else { 0 };
        quantize_rows(self.level, x, rows, self.k_in, zero, packed);
    }

    fn weights(&self, panel: usize, block: usize) -> *const u8 {
        let at = panel * self.panel_bytes() + group_at(kind(self.format), block * BLOCK_GROUPS);
        self.panels.as_slice::<u8>().as_ptr().wrapping_add(at)
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
                if self.level >= Level::Avx512Vnni {
                    return crate::x86::quant::TILES_VNNI[kind][rows - 1](
                        a,
                        w,
                        groups,
                        tile,
                        stride,
                        block == 0,
                        ahead,
                    );
                }
                if self.level >= Level::Avx2 {
                    return crate::x86::quant::TILES_AVX2[kind][rows - 1](
                        a,
                        w,
                        groups,
                        tile,
                        stride,
                        block == 0,
                        ahead,
                    );
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

by_level! {
    /// `[rows, k]` to groups: `[8][rows][4]` numbers, then of each row `e`, `−zero·Σx` and `e·Σx`.
    ///
    /// A row with a NaN or an infinity in a group gets NaN as the group's scale, so that it does not pass unseen.
    fn quantize_rows(x: &[f32], rows: usize, k: usize, zero: i32, packed: &mut [u8]) = quantize_rows_body
}

#[inline(always)]
fn quantize_rows_body<const FUSED: bool>(x: &[f32], rows: usize, k: usize, zero: i32, packed: &mut [u8]) {
    const ROUND: f32 = 12_582_912.0;
    for (r, row) in x.chunks_exact(k).enumerate() {
        for (g, packed) in packed.chunks_exact_mut(ROW_GROUP * rows).enumerate() {
            let mut values = [0.0f32; GROUP];
            if let Some(from) = row.get(g * GROUP..(g + 1) * GROUP) {
                values.copy_from_slice(from);
            } else if let Some(from) = row.get(g * GROUP..) {
                values[..from.len()].copy_from_slice(from);
            }
            let (mut largest, mut probe) = ([0.0f32; 8], [0.0f32; 8]);
            for chunk in values.chunks_exact(8) {
                for i in 0..8 {
                    let size = chunk[i].abs();
                    largest[i] = if size > largest[i] { size } else { largest[i] };
                    probe[i] += chunk[i] * 0.0;
                }
            }
            let largest = largest.into_iter().fold(0.0, |a, b| if b > a { b } else { a });
            let probe: f32 = probe.into_iter().sum();
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            // 127 / largest overflows for subnormal groups: they are nothing next to the others.
            let inverse = if inverse < f32::INFINITY { inverse } else { 0.0 };
            let scale = largest / 127.0 + probe;
            let (mut q, mut sums) = ([0i32; GROUP], [0i32; 8]);
            for (q, value) in q.iter_mut().zip(values) {
                // The whole number stands in the low bits; |value·inverse| ≤ 127 up to rounding.
                *q = (value * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
            }
            for chunk in q.chunks_exact(8) {
                for i in 0..8 {
                    sums[i] = sums[i].wrapping_add(chunk[i]);
                }
            }
            let sum = sums.into_iter().fold(0i32, i32::wrapping_add);
            for (word, q) in q.chunks_exact(4).enumerate() {
                let bytes = [q[0] as u8, q[1] as u8, q[2] as u8, q[3] as u8];
                packed[(word * rows + r) * 4..][..4].copy_from_slice(&bytes);
            }
            let tail = GROUP * rows + 4 * r;
            packed[tail..][..4].copy_from_slice(&scale.to_ne_bytes());
            packed[tail + 4 * rows..][..4].copy_from_slice(&zero.wrapping_mul(sum).wrapping_neg().to_ne_bytes());
            packed[tail + 8 * rows..][..4].copy_from_slice(&(scale * sum as f32).to_ne_bytes());
        }
    }
}
