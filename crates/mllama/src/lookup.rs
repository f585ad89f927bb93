//! Attention of many rows with one query each over keys and values in pages, by a number of operations that does not
//! depend on the number of rows: the keys of all rows are gathered into one tensor, shorter rows filled up with slot 0
//! and masked.

use candle_core::{DType, Device, Tensor};

use crate::error::Result;
use crate::operations::Operations;
use crate::transfer::to_device;

/// Keys of a gathered row are a multiple of this.
const KEYS: usize = 64;

/// Keys that are gathered at a time, of all rows together: bounds the memory, at 8 heads of 128 values of two bytes to
/// half a gigabyte for keys and as much for values.
const GATHERED: usize = 1 << 18;

/// Where paged attention finds its sequences.
#[derive(Debug)]
pub(crate) struct PageTables {
    /// `[sequences + 1]`: where the queries of each begin and end, and likewise for keys.
    pub(crate) query_ends: Tensor,
    pub(crate) key_ends: Tensor,
    /// `[sequences, pages]`.
    pub(crate) pages: Tensor,
    #[cfg_attr(not(feature = "flash-attn"), expect(dead_code, reason = "for the kernel that reads pages"))]
    pub(crate) most_queries: usize,
    #[cfg_attr(not(feature = "flash-attn"), expect(dead_code, reason = "for the kernel that reads pages"))]
    pub(crate) most_keys: usize,
}

impl PageTables {
    /// For sequences of `(queries, keys, pages)`.
    pub(crate) fn new(sequences: &[(usize, usize, Vec<u32>)], device: &Device) -> Result<Self> {
        let ends = |counts: &mut dyn Iterator<Item = usize>| {
            let mut ends = vec![0u32];
            ends.extend(counts.scan(0, |end, count| {
                *end += count as u32;
                Some(*end)
            }));
            let count = ends.len();
            to_device(ends, count, device)
        };
        let width = sequences.iter().map(|(_, _, pages)| pages.len()).max().unwrap_or(0).max(1);
        let pages: Vec<u32> = sequences
            .iter()
            .flat_map(|(_, _, pages)| pages.iter().copied().chain(std::iter::repeat(0)).take(width))
            .collect();
        Ok(Self {
            query_ends: ends(&mut sequences.iter().map(|s| s.0))?,
            key_ends: ends(&mut sequences.iter().map(|s| s.1))?,
            pages: to_device(pages, (sequences.len(), width), device)?,
            most_queries: sequences.iter().map(|s| s.0).max().unwrap_or(0),
            most_keys: sequences.iter().map(|s| s.1).max().unwrap_or(0),
        })
    }
}

/// What spreads slots over the key heads, made once for a model.
#[derive(Debug)]
pub(crate) struct KeyHeads {
    /// `[1]`.
    count: Tensor,
    /// `[1, heads, 1]`.
    places: Tensor,
}

impl KeyHeads {
    pub(crate) fn new(count: usize, device: &Device) -> Result<Self> {
        let places = (0..count as u32).collect();
        Ok(Self { count: to_device(vec![count as u32], 1, device)?, places: to_device(places, (1, count, 1), device)? })
    }
}

/// Rows with one query each, and the slots of their keys.
#[derive(Debug)]
pub(crate) struct Lookup {
    groups: Vec<Group>,
    /// Puts the rows of the groups back in order.
    order: Option<Tensor>,
}

/// Rows whose keys are gathered together.
#[derive(Debug)]
struct Group {
    /// Which of the queries; `None` if it is all.
    select: Option<Tensor>,
    rows: usize,
    keys: usize,
    /// `[rows * kv_heads * keys]`: where each head's keys are among `[slots * kv_heads]`.
    gather: Tensor,
    /// `[rows, 1, keys]`.
    mask: Tensor,
}

impl Lookup {
    /// For rows with the given slots. With `fixed_shapes` a row's keys are filled up to a number that depends on the
    /// row alone.
    pub(crate) fn new(rows: &[Vec<u32>], heads: &KeyHeads, fixed_shapes: bool, device: &Device) -> Result<Self> {
        let most = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |row: &Vec<u32>| match fixed_shapes {
            true => row.len().max(KEYS).next_power_of_two(),
            false => most.max(1).next_multiple_of(KEYS),
        };
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&row| width(&rows[row]));
        let mut groups = Vec::new();
        for same in order.chunk_by(|&a, &b| width(&rows[a]) == width(&rows[b])) {
            let keys = width(&rows[same[0]]);
            for part in same.chunks((GATHERED / keys).max(1)) {
                groups.push(Group::new(rows, part, keys, heads, device)?);
            }
        }
        let back = if order.iter().enumerate().all(|(at, &row)| at == row) {
            None
        } else {
            let mut back = vec![0u32; rows.len()];
            order.iter().enumerate().for_each(|(at, &row)| back[row] = at as u32);
            Some(to_device(back, rows.len(), device)?)
        };
        Ok(Self { groups, order: back })
    }

    /// Queries `[rows, heads, d]` over keys and values `[pages, PAGE, kv_heads, d]`.
    pub(crate) fn attend(&self, ops: &dyn Operations, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            parts.push(group.attend(ops, q, k, v)?);
        }
        let out = if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 0)? };
        match &self.order {
            Some(order) => Ok(out.index_select(order, 0)?),
            None => Ok(out),
        }
    }
}

impl Group {
    fn new(rows: &[Vec<u32>], part: &[usize], keys: usize, heads: &KeyHeads, device: &Device) -> Result<Self> {
        let mut slots = Vec::with_capacity(part.len() * keys);
        let mut mask = Vec::with_capacity(part.len() * keys);
        for &row in part {
            slots.extend_from_slice(&rows[row]);
            slots.resize(slots.len().next_multiple_of(keys), 0);
            mask.resize(mask.len() + rows[row].len(), 0f32);
            mask.resize(slots.len(), f32::NEG_INFINITY);
        }
        // Spread over the heads on the device: that many indices needn't be copied.
        let slots = to_device(slots, (part.len(), 1, keys), device)?;
        let gather = slots.broadcast_mul(&heads.count)?.broadcast_add(&heads.places)?.flatten_all()?;
        let select = match part.len() == rows.len() && part.is_sorted() {
            true => None,
            false => Some(to_device(part.iter().map(|&row| row as u32).collect(), part.len(), device)?),
        };
        let mask = to_device(mask, (part.len(), 1, keys), device)?;
        Ok(Self { select, rows: part.len(), keys, gather, mask })
    }

    fn attend(&self, ops: &dyn Operations, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (pages, page, kv_heads, d) = k.dims4()?;
        let heads = q.dim(1)?;
        let group = heads / kv_heads;
        let q = match &self.select {
            Some(rows) => q.index_select(rows, 0)?,
            None => q.contiguous()?,
        };
        let gathered = |x: &Tensor| -> Result<Tensor> {
            let rows = x.reshape((pages * page * kv_heads, d))?.index_select(&self.gather, 0)?;
            Ok(rows.to_dtype(q.dtype())?.reshape((self.rows * kv_heads, self.keys, d))?)
        };
        let scale = 1.0 / (d as f64).sqrt();
        let scores = (q.reshape((self.rows * kv_heads, group, d))?.matmul(&gathered(k)?.transpose(1, 2)?)? * scale)?;
        let scores = scores.to_dtype(DType::F32)?.reshape((self.rows, heads, self.keys))?;
        let weights = ops.softmax(&scores.broadcast_add(&self.mask)?)?.to_dtype(q.dtype())?;
        let out = weights.reshape((self.rows * kv_heads, group, self.keys))?.matmul(&gathered(v)?)?;
        Ok(out.reshape((self.rows, heads, d))?)
    }
}
