//! Keys and values in pages of one tensor a layer, for the path that every device has: many sequences are read and
//! written by single operations, whatever their number and wherever their pages lie.
//!
//! A page has [`PAGE`] tokens, a slot is the place of one token. Page 0 belongs to nobody and stays zero: rows of a
//! batch that are shorter than others read it, because a masked value must still be a number (a freed page may hold
//! what a broken image left there).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::transfer::to_device;

/// Tokens of a page: what paged flash attention wants is a multiple of 32.
pub(crate) const PAGE: usize = 32;

/// Pages that a pool starts with.
const FIRST_PAGES: usize = 64;

/// Keys and values of a layer, each `[pages, PAGE, kv_heads, d]`.
pub(crate) type PagedLayer = (Tensor, Tensor);

/// What a page holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageShape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// The pages of all sequences, or of all images.
#[derive(Debug)]
pub(crate) struct PagePool {
    shape: PageShape,
    dtype: DType,
    device: Device,
    state: Mutex<State>,
    budget: Arc<Budget>,
    /// The pool with which it shares the budget.
    other: Weak<PagePool>,
}

/// Bytes that pools may take together, and that they take.
#[derive(Debug)]
struct Budget {
    most: AtomicU64,
    taken: AtomicU64,
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
    /// Two pools with one budget, which is without a limit at first.
    pub(crate) fn pair(shapes: [PageShape; 2], dtype: DType, device: &Device) -> (Arc<Self>, Arc<Self>) {
        let budget = Arc::new(Budget { most: AtomicU64::new(u64::MAX), taken: AtomicU64::new(0) });
        let pool = |shape, other: Weak<Self>| {
            let (device, budget, state) = (device.clone(), Arc::clone(&budget), Mutex::default());
            Self { shape, dtype, device, state, budget, other }
        };
        let mut second = None;
        let first = Arc::new_cyclic(|first| {
            let made = Arc::new(pool(shapes[1], first.clone()));
            let other = Arc::downgrade(&made);
            second = Some(made);
            pool(shapes[0], other)
        });
        let second = second.unwrap_or_else(|| Arc::clone(&first));
        (first, second)
    }

    /// Lets both pools together take at most so many bytes.
    pub(crate) fn limit(&self, bytes: u64) {
        self.budget.most.store(bytes, Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a page, all layers together.
    pub(crate) fn page_bytes(&self) -> u64 {
        let PageShape { layers, kv_heads, head_dim } = self.shape;
        (2 * layers * PAGE * kv_heads * head_dim * self.dtype.size_in_bytes()) as u64
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

    /// Makes room for `count` free pages: by a quarter if there is room for it, else for as many as are wanted, else for
    /// what the other pool can spare.
    fn grow(&self, state: &mut State, count: usize) -> Result<()> {
        // One more than is wanted: page 0.
        let least = state.pages + count - state.free.len() + usize::from(state.pages == 0);
        let most =
            self.budget.most.load(Ordering::Relaxed).saturating_sub(self.others_bytes(state)) / self.page_bytes();
        let usual = least.max(state.pages * 5 / 4).max(FIRST_PAGES).min(most as usize);
        if usual >= least && self.enlarge(state, usual).is_ok() {
            return Ok(());
        }
        if let Some(other) = self.other.upgrade() {
            other.shrink();
        }
        let most = self.budget.most.load(Ordering::Relaxed).saturating_sub(self.others_bytes(state));
        let wanted = least as u64 * self.page_bytes();
        if wanted > most {
            return Err(Error::Memory(format!("{wanted} bytes of pages, {most} are left for them")));
        }
        self.enlarge(state, least).map_err(|error| Error::Memory(format!("{wanted} bytes of pages: {error}")))
    }

    /// Bytes that the other pool takes.
    fn others_bytes(&self, own: &State) -> u64 {
        self.budget.taken.load(Ordering::Relaxed).saturating_sub(own.pages as u64 * self.page_bytes())
    }

    /// Gives back the memory behind the last page that is in use.
    fn shrink(&self) {
        // Another thread that holds it is growing it, and needs what it has.
        let Ok(mut state) = self.state.try_lock() else { return };
        let mut pages = state.pages;
        while pages > 1 && state.free.contains(&(pages as u32 - 1)) {
            pages -= 1;
        }
        // Page 0 goes with the last one.
        let pages = if pages <= 1 { 0 } else { pages };
        if pages < state.pages {
            drop(state.free.split_off(&(pages as u32)));
            self.count(&mut state, pages);
            // A layer that can't be copied keeps its room for the next time.
            let _ = self.resize_layers(&mut state, pages, pages);
        }
    }

    /// If it fails the pool is as large as it was: layers that have more room already keep it for the next time.
    fn enlarge(&self, state: &mut State, pages: usize) -> Result<()> {
        let used = state.pages;
        self.resize_layers(state, pages, used)?;
        state.free.extend(used.max(1) as u32..pages as u32);
        self.count(state, pages);
        Ok(())
    }

    fn count(&self, state: &mut State, pages: usize) {
        let bytes = |pages: usize| pages as u64 * self.page_bytes();
        self.budget.taken.fetch_add(bytes(pages), Ordering::Relaxed);
        self.budget.taken.fetch_sub(bytes(state.pages), Ordering::Relaxed);
        state.pages = pages;
    }

    /// Gives each layer's tensors room for `pages`, with the first `used` as they are: layer by layer, so that only one
    /// is there twice at a time.
    fn resize_layers(&self, state: &mut State, pages: usize, used: usize) -> Result<()> {
        if pages == 0 {
            state.tensors.clear();
            return Ok(());
        }
        let PageShape { layers, kv_heads, head_dim } = self.shape;
        let resized = |old: Option<&Tensor>| -> Result<Tensor> {
            let new = Tensor::zeros((pages, PAGE, kv_heads, head_dim), self.dtype, &self.device)?;
            if let Some(old) = old
                && used > 0
            {
                new.slice_set(&old.narrow(0, 0, used)?, 0, 0)?;
            }
            Ok(new)
        };
        for layer in 0..layers {
            let old = state.tensors.get(layer);
            let has = match old {
                Some((keys, _)) => keys.dim(0)?,
                None => 0,
            };
            // Room that an earlier growth left behind is as good.
            if has == pages || (used < pages && has > pages) {
                continue;
            }
            let new = (resized(old.map(|(k, _)| k))?, resized(old.map(|(_, v)| v))?);
            match state.tensors.get_mut(layer) {
                Some(old) => *old = new,
                None => state.tensors.push(new),
            }
        }
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
        Ok(Places::Slots(to_device(slots, tokens, &self.pool.device)?))
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

    fn pools() -> (Arc<PagePool>, Arc<PagePool>) {
        let shape = PageShape { layers: 2, kv_heads: 1, head_dim: 4 };
        PagePool::pair([shape; 2], DType::F32, &Device::Cpu)
    }

    fn pool() -> Arc<PagePool> {
        pools().0
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

    /// Pools never take more than they may, and what one gave back the other has.
    #[test]
    fn pools_share_a_budget() {
        let (texts, images) = pools();
        let most = 300;
        texts.limit(most * texts.page_bytes());
        let taken = || texts.budget.taken.load(Ordering::Relaxed) / texts.page_bytes();
        let kept = Pages::new(&texts, 20 * PAGE).unwrap();
        write(&kept, 20 * PAGE, 4.0);
        let many = Pages::new(&texts, 200 * PAGE).unwrap();
        assert!(taken() <= most);
        let error = Pages::new(&images, 150 * PAGE).unwrap_err();
        assert!(matches!(error, Error::Memory(_)), "{error}");
        assert!(Pages::new(&images, 50 * PAGE).is_ok());
        drop(many);
        let images = Pages::new(&images, 270 * PAGE).unwrap();
        assert!(taken() <= most, "{}", taken());
        drop(images);
        // What was there before is there still, and there is room again.
        assert_eq!(first_values(&kept, 20 * PAGE), vec![4.0; 20 * PAGE]);
        drop(Pages::new(&texts, 270 * PAGE).unwrap());
        assert!(Pages::new(&texts, 300 * PAGE).is_err());
    }

    /// Growth that failed half way leaves a layer with more room, which neither a smaller nor a larger growth minds.
    #[test]
    fn growth_that_failed_can_be_tried_again() {
        let pool = pool();
        let first = Pages::new(&pool, 10 * PAGE).unwrap();
        write(&first, 10 * PAGE, 2.0);
        {
            let mut state = pool.lock();
            let larger = || {
                let larger = Tensor::zeros((500, PAGE, 1, 4), DType::F32, &Device::Cpu).unwrap();
                larger.slice_set(&state.tensors[0].0, 0, 0).unwrap();
                larger
            };
            let layer = (larger(), larger());
            state.tensors[0] = layer;
        }
        let more = Pages::new(&pool, 100 * PAGE).unwrap();
        write(&more, 100 * PAGE, 3.0);
        let most = Pages::new(&pool, 600 * PAGE).unwrap();
        write(&most, 600 * PAGE, 5.0);
        assert_eq!(first_values(&first, 10 * PAGE), vec![2.0; 10 * PAGE]);
        assert_eq!(first_values(&more, 100 * PAGE), vec![3.0; 100 * PAGE]);
    }
}
