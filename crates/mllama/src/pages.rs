//! Keys and values in pages of one tensor a layer, for the path that every device has: many sequences are read and
//! written by single operations, whatever their number and wherever their pages lie.
//!
//! A page has [`PAGE`] tokens, a slot is the place of one token. Page 0 belongs to nobody and stays zero: rows of a
//! batch that are shorter than others read it, because a masked value must still be a number (a freed page may hold
//! what a broken image left there).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use crate::error::Result;

/// Tokens of a page: what paged flash attention wants is a multiple of 32.
pub(crate) const PAGE: usize = 32;

/// Pages that a pool starts with.
const FIRST_PAGES: usize = 64;

/// A pool that grows gets this part more than it had, so that it grows seldom; what nobody asked for is within the memory
/// plan.
pub(crate) const SLACK: usize = 16;

/// Keys and values of a layer, each `[pages, PAGE, kv_heads, d]`.
pub(crate) type PagedLayer = (Tensor, Tensor);

/// The pages of all sequences, or of all images.
#[derive(Debug)]
pub(crate) struct PagePool {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: DType,
    device: Device,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tensors: Vec<PagedLayer>,
    pages: usize,
    free: BTreeSet<u32>,
}

/// A page that is in use; given back when nobody holds it.
#[derive(Debug)]
struct Page {
    id: u32,
    pool: Arc<PagePool>,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.pool.lock().free.insert(self.id);
    }
}

impl PagePool {
    pub(crate) fn new(layers: usize, kv_heads: usize, head_dim: usize, dtype: DType, device: &Device) -> Arc<Self> {
        Arc::new(Self { layers, kv_heads, head_dim, dtype, device: device.clone(), state: Mutex::default() })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a page, all layers together.
    pub(crate) fn page_bytes(&self) -> u64 {
        (2 * self.layers * PAGE * self.kv_heads * self.head_dim * self.dtype.size_in_bytes()) as u64
    }

    /// The tensors as they are now; they are others after the pool grew.
    pub(crate) fn layers(&self) -> Vec<PagedLayer> {
        self.lock().tensors.clone()
    }

    /// Takes `count` pages, those next to each other first.
    fn take(self: &Arc<Self>, count: usize) -> Result<Vec<Arc<Page>>> {
        let mut state = self.lock();
        if state.free.len() < count {
            self.grow(&mut state, count)?;
        }
        let ids: Vec<u32> = match run_of(&state.free, count) {
            Some(first) => (first..first + count as u32).collect(),
            None => state.free.iter().copied().take(count).collect(),
        };
        ids.iter().for_each(|id| {
            state.free.remove(id);
        });
        Ok(ids.into_iter().map(|id| Arc::new(Page { id, pool: Arc::clone(self) })).collect())
    }

    /// Layer by layer, so that only one is there twice at a time.
    fn grow(&self, state: &mut State, count: usize) -> Result<()> {
        // One more than is wanted: page 0.
        let missing = count - state.free.len() + usize::from(state.pages == 0);
        let pages = (state.pages + missing).max(state.pages + state.pages / SLACK).max(FIRST_PAGES);
        let shape = (pages, PAGE, self.kv_heads, self.head_dim);
        let larger = |old: Option<&Tensor>| -> Result<Tensor> {
            let new = Tensor::zeros(shape, self.dtype, &self.device)?;
            if let Some(old) = old {
                new.slice_set(old, 0, 0)?;
            }
            Ok(new)
        };
        for layer in 0..self.layers {
            let old = state.tensors.get(layer);
            let new = (larger(old.map(|(k, _)| k))?, larger(old.map(|(_, v)| v))?);
            match state.tensors.get_mut(layer) {
                Some(old) => *old = new,
                None => state.tensors.push(new),
            }
        }
        state.free.extend(state.pages.max(1) as u32..pages as u32);
        state.pages = pages;
        Ok(())
    }
}

/// The first of `count` free pages in a row.
fn run_of(free: &BTreeSet<u32>, count: usize) -> Option<u32> {
    let mut run: Option<(u32, u32)> = None;
    for &id in free {
        let (first, end) = match run {
            Some((first, end)) if end == id => (first, id + 1),
            _ => (id, id + 1),
        };
        if (end - first) as usize == count {
            return Some(first);
        }
        run = Some((first, end));
    }
    None
}

/// The pages of a sequence or an image in order.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    pool: Arc<PagePool>,
    pages: Vec<Arc<Page>>,
}

impl Pages {
    /// Room for `tokens`.
    pub(crate) fn new(pool: &Arc<PagePool>, tokens: usize) -> Result<Self> {
        Ok(Self { pool: Arc::clone(pool), pages: pool.take(tokens.div_ceil(PAGE))? })
    }

    pub(crate) fn pool(&self) -> &Arc<PagePool> {
        &self.pool
    }

    /// Tokens that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Room for `tokens`, which may be more than before.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<()> {
        let more = tokens.div_ceil(PAGE).saturating_sub(self.pages.len());
        if more > 0 {
            self.pages.extend(self.pool.take(more)?);
        }
        Ok(())
    }

    /// The first `len` tokens with room for `capacity`. Full pages are shared: nobody writes to them again.
    pub(crate) fn prefix(&self, len: usize, capacity: usize) -> Result<Self> {
        let full = len / PAGE;
        let mut pages = self.pages[..full].to_vec();
        pages.extend(self.pool.take(capacity.max(len).div_ceil(PAGE) - full)?);
        if len > full * PAGE {
            let (from, to) = (self.pages[full].id as usize, pages[full].id as usize);
            for (k, v) in self.pool.layers() {
                for tensor in [k, v] {
                    tensor.slice_set(&tensor.narrow(0, from, 1)?.copy()?, 0, to)?;
                }
            }
        }
        Ok(Self { pool: Arc::clone(&self.pool), pages })
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.pages.iter().map(|page| page.id)
    }

    /// Slots of some of the tokens.
    pub(crate) fn slots(&self, tokens: std::ops::Range<usize>) -> impl Iterator<Item = u32> {
        tokens.map(|token| self.pages[token / PAGE].id * PAGE as u32 + (token % PAGE) as u32)
    }

    /// Where the first `tokens` lie.
    pub(crate) fn places(&self, tokens: usize) -> Result<Places> {
        let used = &self.pages[..tokens.div_ceil(PAGE)];
        if used.windows(2).all(|pair| pair[1].id == pair[0].id + 1) {
            let start = used.first().map_or(0, |page| page.id as usize * PAGE);
            return Ok(Places::Range { start, tokens });
        }
        let slots: Vec<u32> = self.slots(0..tokens).collect();
        Ok(Places::Slots(Tensor::new(slots, &self.pool.device)?))
    }

    /// Writes a layer's keys and values of tokens from the first on, each `[tokens, kv_heads, d]`.
    pub(crate) fn write(&self, layer: &PagedLayer, places: &Places, k: &Tensor, v: &Tensor) -> Result<()> {
        for (to, from) in [(&layer.0, k), (&layer.1, v)] {
            let (tokens, heads, head_dim) = from.dims3()?;
            match places {
                Places::Range { start, .. } => to.flatten(0, 1)?.slice_set(from, 0, *start)?,
                Places::Slots(slots) => {
                    let index = slots.unsqueeze(1)?.broadcast_as((tokens, heads * head_dim))?.contiguous()?;
                    scatter(to, &index, from)?;
                }
            }
        }
        Ok(())
    }
}

/// Writes tokens `[tokens, kv_heads, d]` to the slots of `index`, `[tokens, kv_heads * d]`.
pub(crate) fn scatter(paged: &Tensor, index: &Tensor, tokens: &Tensor) -> Result<()> {
    let (pages, page, heads, head_dim) = paged.dims4()?;
    let flat = paged.reshape((pages * page, heads * head_dim))?;
    Ok(flat.scatter_set(index, &tokens.reshape(index.shape())?, 0)?)
}

/// Slots of one sequence or image.
#[derive(Clone, Debug)]
pub(crate) enum Places {
    /// One after the other, to be read without a copy.
    Range { start: usize, tokens: usize },
    /// `[tokens]`.
    Slots(Tensor),
}

impl Places {
    /// `[tokens, kv_heads, d]` of a tensor `[pages, PAGE, kv_heads, d]`.
    pub(crate) fn of(&self, paged: &Tensor) -> Result<Tensor> {
        let flat = paged.flatten(0, 1)?;
        match self {
            Self::Range { start, tokens } => Ok(flat.narrow(0, *start, *tokens)?),
            Self::Slots(slots) => Ok(flat.index_select(slots, 0)?),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a failed call is a failed test

    use super::*;

    fn pool() -> Arc<PagePool> {
        PagePool::new(2, 1, 4, DType::F32, &Device::Cpu)
    }

    fn filled(tokens: usize, value: f32) -> Tensor {
        (Tensor::ones((tokens, 1, 4), DType::F32, &Device::Cpu).unwrap() * f64::from(value)).unwrap()
    }

    fn first_values(pages: &Pages, tokens: usize) -> Vec<f32> {
        let places = pages.places(tokens).unwrap();
        let values = places.of(&pages.pool().layers()[1].0).unwrap();
        values.narrow(2, 0, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn write(pages: &Pages, tokens: usize, value: f32) {
        let places = pages.places(tokens).unwrap();
        for layer in pages.pool().layers() {
            pages.write(&layer, &places, &filled(tokens, value), &filled(tokens, -value)).unwrap();
        }
    }

    #[test]
    fn pages_come_back_and_page_zero_stays_zero() {
        let pool = pool();
        let first = Pages::new(&pool, 3 * PAGE).unwrap();
        write(&first, 3 * PAGE, 7.0);
        assert!(first.ids().all(|id| id != 0));
        let ids: Vec<u32> = first.ids().collect();
        drop(first);
        assert_eq!(Pages::new(&pool, 3 * PAGE).unwrap().ids().collect::<Vec<_>>(), ids);
        let zero = pool.layers()[1].0.narrow(0, 0, 1).unwrap().sqr().unwrap().sum_all().unwrap();
        assert_eq!(zero.to_scalar::<f32>().unwrap(), 0.0);
    }

    /// What is written stays through growth, and pages that don't lie together are read in order.
    #[test]
    fn growth_and_scattered_pages() {
        let pool = pool();
        let keep: Vec<Pages> = (0..20).map(|_| Pages::new(&pool, PAGE).unwrap()).collect();
        let mut scattered = Pages::new(&pool, PAGE).unwrap();
        let wall = Pages::new(&pool, PAGE).unwrap();
        scattered.reserve(2 * PAGE).unwrap();
        assert!(matches!(scattered.places(2 * PAGE).unwrap(), Places::Slots(_)));
        write(&scattered, 2 * PAGE, 3.0);
        write(&wall, PAGE, 5.0);
        let large = Pages::new(&pool, 300 * PAGE).unwrap();
        write(&large, 300 * PAGE, 9.0);
        assert_eq!(first_values(&scattered, 2 * PAGE), vec![3.0; 2 * PAGE]);
        assert_eq!(first_values(&wall, PAGE), vec![5.0; PAGE]);
        drop(keep);
    }

    /// A fork shares whole pages and has its own copy of the last one.
    #[test]
    fn forks_grow_apart() {
        let pool = pool();
        let prompt = Pages::new(&pool, 2 * PAGE).unwrap();
        write(&prompt, PAGE + 5, 1.0);
        let fork = prompt.prefix(PAGE + 5, 3 * PAGE).unwrap();
        let (own, theirs): (Vec<u32>, Vec<u32>) = (prompt.ids().collect(), fork.ids().collect());
        assert_eq!(own[0], theirs[0]);
        assert_ne!(own[1], theirs[1]);
        let index = Tensor::new(fork.slots(PAGE + 5..PAGE + 6).collect::<Vec<_>>(), &Device::Cpu).unwrap();
        let index = index.unsqueeze(1).unwrap().broadcast_as((1, 4)).unwrap().contiguous().unwrap();
        scatter(&pool.layers()[1].0, &index, &filled(1, 8.0)).unwrap();
        assert_eq!(first_values(&fork, PAGE + 6)[PAGE + 4..], [1.0, 8.0]);
        assert_eq!(first_values(&prompt, PAGE + 6)[PAGE + 4..], [1.0, 0.0]);
    }
}
