//! What a step of the text layers needs to find its way: built once, used by every layer.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use crate::attention::{Path, SeenImages, causal};
use crate::error::{Error, Result};
use crate::kv::{CrossKv, SelfKv};
use crate::lookup::{Lookup, PageTables};
use crate::operations::Operations;
use crate::pages::{PAGE, PagedLayer, Places, scatter};

/// The tokens of a step with what fills them up to a number of rows that doesn't depend on them.
#[derive(Debug)]
pub(crate) struct Filled {
    /// Tokens.
    pub(crate) tokens: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// `[rows - tokens, width]`, zeros.
    filler: Option<Tensor>,
}

impl Filled {
    /// For so many tokens, whose attention is `width` wide.
    pub(crate) fn new(path: Path, tokens: usize, width: usize, dtype: DType, device: &Device) -> Result<Self> {
        let rows = path.filled(tokens);
        let filler = if rows > tokens { Some(Tensor::zeros((rows - tokens, width), dtype, device)?) } else { None };
        Ok(Self { tokens, rows, filler })
    }

    /// The tokens' part of `[rows, ...]`.
    pub(crate) fn tokens_of(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.narrow(0, 0, self.tokens)?)
    }

    /// What attention gave for the tokens, `[tokens, ...]`, as `[rows, width]`.
    fn fill(&self, attended: &Tensor) -> Result<Tensor> {
        let attended = attended.flatten_from(1)?;
        match &self.filler {
            Some(filler) => Ok(Tensor::cat(&[&attended, filler], 0)?),
            None => Ok(attended),
        }
    }
}

/// Some of the flat tokens of a step.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) count: usize,
    /// `None` if they are all, and what fills them up.
    index: Option<RowIndex>,
}

#[derive(Debug)]
struct RowIndex {
    select: Tensor,
    /// Over all rows with the replaced ones after them.
    replace: Tensor,
}

impl Rows {
    /// The given ascending tokens.
    pub(crate) fn new(rows: &[u32], filled: &Filled, device: &Device) -> Result<Self> {
        if rows.len() == filled.tokens {
            return Ok(Self { count: filled.rows, index: None });
        }
        let mut replace: Vec<u32> = (0..filled.rows as u32).collect();
        for (i, &row) in rows.iter().enumerate() {
            replace[row as usize] = (filled.rows + i) as u32;
        }
        let index = RowIndex { select: Tensor::new(rows, device)?, replace: Tensor::new(replace, device)? };
        Ok(Self { count: rows.len(), index: Some(index) })
    }

    /// These rows of `x`; all of them come without a copy.
    pub(crate) fn of(&self, x: &Tensor) -> Result<Tensor> {
        match &self.index {
            Some(index) => Ok(x.index_select(&index.select, 0)?),
            None => Ok(x.clone()),
        }
    }

    /// `x` with these rows replaced.
    pub(crate) fn replaced(&self, x: &Tensor, by: &Tensor) -> Result<Tensor> {
        match &self.index {
            Some(index) => Ok(Tensor::cat(&[x, by], 0)?.index_select(&index.replace, 0)?),
            None => Ok(by.clone()),
        }
    }
}

/// Queries of which some have one row each and are looked up together, the others are consecutive.
#[derive(Debug)]
struct Order {
    /// Rows of single queries; `None` if they are the first ones.
    singles: Option<Tensor>,
    /// Puts the results, singles first, in the order of the queries; `None` if they are.
    back: Option<Tensor>,
}

impl Order {
    fn new(singles: &[u32], others: &[Range<usize>], device: &Device) -> Result<Self> {
        let first = singles.iter().enumerate().all(|(at, &row)| at == row as usize);
        if first {
            return Ok(Self { singles: None, back: None });
        }
        let rows: Vec<usize> =
            singles.iter().map(|&row| row as usize).chain(others.iter().cloned().flatten()).collect();
        let mut back = vec![0u32; rows.len()];
        rows.iter().enumerate().for_each(|(at, &row)| back[row] = at as u32);
        Ok(Self { singles: Some(Tensor::new(singles, device)?), back: Some(Tensor::new(back, device)?) })
    }

    fn singles(&self, q: &Tensor, count: usize) -> Result<Tensor> {
        match &self.singles {
            Some(rows) => Ok(q.index_select(rows, 0)?),
            None => Ok(q.narrow(0, 0, count)?),
        }
    }

    fn joined(&self, mut parts: Vec<Tensor>) -> Result<Tensor> {
        let joined = if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 0)? };
        match &self.back {
            Some(back) => Ok(joined.index_select(back, 0)?),
            None => Ok(joined),
        }
    }
}

/// What the portable path knows of the device.
#[derive(Clone, Copy)]
pub(crate) struct Paging<'a> {
    pub(crate) operations: &'static dyn Operations,
    pub(crate) fixed_shapes: bool,
    pub(crate) dtype: DType,
    pub(crate) kv_dtype: DType,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) device: &'a Device,
}

impl Paging<'_> {
    fn reads_pages(&self) -> bool {
        self.operations.reads_pages(self.dtype, self.kv_dtype)
    }
}

/// Where self-attention writes and reads the keys and values of a step.
#[derive(Debug)]
pub(crate) struct PagedTexts {
    operations: &'static dyn Operations,
    layers: Vec<PagedLayer>,
    /// `[tokens, kv_heads * d]`: the slot of each token.
    write: Tensor,
    read: Read,
}

#[derive(Debug)]
enum Read {
    /// By one kernel.
    Kernel(PageTables),
    /// Sequences with one new token together, the others one by one.
    Parts { singles: Option<Lookup>, others: Vec<Other>, order: Order },
}

/// A sequence with several new tokens.
#[derive(Debug)]
struct Other {
    tokens: Range<usize>,
    places: Places,
    masks: OnceCell<Vec<Tensor>>,
}

impl PagedTexts {
    /// For sequences with so many new tokens.
    pub(crate) fn new(sequences: &[(&SelfKv, usize)], paging: Paging) -> Result<Self> {
        let device = paging.device;
        let mut slots = Vec::new();
        let (mut singles, mut single_rows, mut others, mut tables) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut layers = Vec::new();
        for (kv, tokens) in sequences {
            let pages = kv.pages().ok_or_else(|| Error::Sequence("keys and values aren't in pages".into()))?;
            if layers.is_empty() {
                layers = pages.pool().layers();
            }
            let (start, keys) = (slots.len(), kv.len() + tokens);
            slots.extend(pages.slots(kv.len()..keys));
            if paging.reads_pages() {
                tables.push((*tokens, keys, pages.ids().take(keys.div_ceil(PAGE)).collect()));
            } else if *tokens == 1 {
                singles.push(pages.slots(0..keys).collect::<Vec<_>>());
                single_rows.push(start as u32);
            } else {
                let places = pages.places(keys)?;
                others.push(Other { tokens: start..start + tokens, places, masks: OnceCell::new() });
            }
        }
        let tokens = slots.len();
        let width = paging.kv_heads * paging.head_dim;
        let write = Tensor::from_vec(slots, (tokens, 1), device)?.broadcast_as((tokens, width))?.contiguous()?;
        let read = if paging.reads_pages() {
            Read::Kernel(PageTables::new(&tables, device)?)
        } else {
            let ranges: Vec<_> = others.iter().map(|other| other.tokens.clone()).collect();
            let order = Order::new(&single_rows, &ranges, device)?;
            let singles = match singles.is_empty() {
                true => None,
                false => Some(Lookup::new(&singles, paging.kv_heads, paging.fixed_shapes, device)?),
            };
            Read::Parts { singles, others, order }
        };
        Ok(Self { operations: paging.operations, layers, write, read })
    }

    /// Writes the new tokens' keys and values and attends to all: `[rows, heads * d]`.
    pub(crate) fn attend(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, filled: &Filled) -> Result<Tensor> {
        let (q, k, v) = (filled.tokens_of(q)?, filled.tokens_of(k)?, filled.tokens_of(v)?);
        filled.fill(&self.attend_tokens(layer, &q, &k, &v)?)
    }

    fn attend_tokens(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (keys, values) = &self.layers[layer];
        scatter(keys, &self.write, k)?;
        scatter(values, &self.write, v)?;
        let (singles, others, order) = match &self.read {
            Read::Kernel(tables) => return self.operations.paged(q, keys, values, tables, true),
            Read::Parts { singles, others, order } => (singles, others, order),
        };
        let mut parts = Vec::with_capacity(1 + others.len());
        if let Some(singles) = singles {
            parts.push(singles.attend(self.operations, &order.singles(q, singles.rows())?, keys, values)?);
        }
        for other in others {
            let q = q.narrow(0, other.tokens.start, other.tokens.len())?;
            let (k, v) = (other.places.of(keys)?.to_dtype(q.dtype())?, other.places.of(values)?.to_dtype(q.dtype())?);
            parts.push(causal(self.operations, &q, &k, &v, &other.masks)?);
        }
        order.joined(parts)
    }
}

/// Consecutive tokens of a sequence that see the same images.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) tokens: Range<usize>,
    pub(crate) images: &'a [Arc<CrossKv>],
    /// Sees nothing, and attends to everything instead (transformers).
    pub(crate) unseeing: bool,
}

impl Run<'_> {
    /// What is added to the scores of a run that attends to everything.
    fn key_bias(&self, device: &Device) -> Result<Option<Tensor>> {
        if !self.unseeing {
            return Ok(None);
        }
        let biases = self
            .images
            .iter()
            .map(|image| match &image.key_bias {
                Some(bias) => Ok(bias.clone()),
                None => Tensor::zeros(image.live_tokens, DType::F32, device),
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Some(Tensor::cat(&biases, 0)?))
    }
}

/// What cross-attention layers need to know of a step: who attends to which images.
#[derive(Debug)]
pub(crate) struct CrossStep<'a> {
    runs: Vec<(Run<'a>, Option<Tensor>)>,
    /// Tokens that attend to images.
    pub(crate) attending: Rows,
    /// Those of them that see them.
    pub(crate) seeing: Rows,
    paged: Option<PagedImages>,
}

#[derive(Debug)]
struct PagedImages {
    operations: &'static dyn Operations,
    layers: Vec<PagedLayer>,
    read: ImageRead,
}

#[derive(Debug)]
enum ImageRead {
    Kernel(PageTables),
    /// Runs of one token together; the others, by their number and rows, one by one.
    Parts {
        singles: Option<Arc<Lookup>>,
        others: Vec<(usize, Range<usize>)>,
        order: Order,
    },
}

/// The latest lookup of images: it is the same as long as no row joins or leaves.
#[derive(Debug, Default)]
pub(crate) struct LatestLookup(Mutex<Option<Known>>);

#[derive(Debug)]
struct Known {
    slots: Vec<Vec<u32>>,
    lookup: Arc<Lookup>,
}

impl LatestLookup {
    fn get(&self, slots: Vec<Vec<u32>>, paging: Paging) -> Result<Arc<Lookup>> {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = latest.as_ref()
            && known.slots == slots
        {
            return Ok(Arc::clone(&known.lookup));
        }
        let lookup = Arc::new(Lookup::new(&slots, paging.kv_heads, paging.fixed_shapes, paging.device)?);
        *latest = Some(Known { slots, lookup: Arc::clone(&lookup) });
        Ok(lookup)
    }
}

impl<'a> CrossStep<'a> {
    /// For the runs of a step.
    pub(crate) fn new(
        runs: Vec<Run<'a>>,
        filled: &Filled,
        paging: Option<(Paging, &LatestLookup)>,
        device: &Device,
    ) -> Result<Self> {
        let rows = |runs: &mut dyn Iterator<Item = &Run>| -> Vec<u32> {
            runs.flat_map(|run| run.tokens.clone()).map(|token| token as u32).collect()
        };
        let attending = Rows::new(&rows(&mut runs.iter()), filled, device)?;
        let seeing = Rows::new(&rows(&mut runs.iter().filter(|run| !run.unseeing)), filled, device)?;
        let paged = match paging {
            Some((paging, latest)) if !runs.is_empty() => Some(PagedImages::new(&runs, paging, latest)?),
            _ => None,
        };
        let runs = runs
            .into_iter()
            .map(|run| {
                let bias = run.key_bias(device)?;
                Ok((run, bias))
            })
            .collect::<Result<_>>()?;
        Ok(Self { runs, attending, seeing, paged })
    }

    /// Whether no token attends to an image.
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Attention of the attending tokens' queries in a layer: `[rows, heads * d]`.
    pub(crate) fn attend(&self, layer: usize, q: &Tensor, filled: &Filled) -> Result<Tensor> {
        match self.attending.index {
            Some(_) => Ok(self.attend_tokens(layer, q)?.flatten_from(1)?),
            None => filled.fill(&self.attend_tokens(layer, &filled.tokens_of(q)?)?),
        }
    }

    fn attend_tokens(&self, layer: usize, q: &Tensor) -> Result<Tensor> {
        let Some(paged) = &self.paged else {
            let seen = self.runs.iter().map(|run| seen(run, layer)).collect::<Result<Vec<_>>>()?;
            return crate::attention::cross_by_kernels(q, &seen);
        };
        let (singles, others, order) = match &paged.read {
            ImageRead::Kernel(tables) => {
                let (keys, values) = &paged.layers[layer];
                return paged.operations.paged(q, keys, values, tables, false);
            }
            ImageRead::Parts { singles, others, order } => (singles, others, order),
        };
        let mut parts = Vec::with_capacity(1 + others.len());
        if let Some(singles) = singles {
            let (keys, values) = &paged.layers[layer];
            parts.push(singles.attend(paged.operations, &order.singles(q, singles.rows())?, keys, values)?);
        }
        for (run, rows) in others {
            let q = q.narrow(0, rows.start, rows.len())?;
            parts.push(seen(&self.runs[*run], layer)?.attend(paged.operations, &q)?);
        }
        order.joined(parts)
    }
}

/// What a run's tokens see in a layer.
fn seen((run, key_bias): &(Run, Option<Tensor>), layer: usize) -> Result<SeenImages> {
    let images = run.images.iter().map(|image| image.layer(layer, run.unseeing)).collect::<Result<_>>()?;
    Ok(SeenImages { queries: run.tokens.len(), images, key_bias: key_bias.clone() })
}

impl PagedImages {
    fn new(runs: &[Run], paging: Paging, latest: &LatestLookup) -> Result<Self> {
        let pages = |image: &CrossKv| {
            let pages = image.pages().cloned();
            pages.ok_or_else(|| Error::Image("keys and values of an image aren't in pages".into()))
        };
        let layers = match runs.iter().find_map(|run| run.images.first()) {
            Some(image) => pages(image)?.pool().layers(),
            None => Vec::new(),
        };
        // A page that an image doesn't fill can't be in the middle of what a kernel reads.
        let kernel = paging.reads_pages() && runs.iter().all(|run| run.images.len() == 1 && !run.unseeing);
        let (mut singles, mut single_rows, mut others, mut tables) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for (number, run) in runs.iter().enumerate() {
            let queries = run.tokens.len();
            if kernel {
                let image = &run.images[0];
                let ids = pages(image)?.ids().take(image.live_tokens.div_ceil(PAGE)).collect();
                tables.push((queries, image.live_tokens, ids));
            } else if queries == 1 && !run.unseeing {
                let mut slots = Vec::new();
                for image in run.images {
                    slots.extend(pages(image)?.slots(0..image.live_tokens));
                }
                singles.push(slots);
                single_rows.push(start as u32);
            } else {
                others.push((number, start..start + queries));
            }
            start += queries;
        }
        let read = if kernel {
            ImageRead::Kernel(PageTables::new(&tables, paging.device)?)
        } else {
            let ranges: Vec<_> = others.iter().map(|(_, rows)| rows.clone()).collect();
            let order = Order::new(&single_rows, &ranges, paging.device)?;
            let singles = if singles.is_empty() { None } else { Some(latest.get(singles, paging)?) };
            ImageRead::Parts { singles, others, order }
        };
        Ok(Self { operations: paging.operations, layers, read })
    }
}
