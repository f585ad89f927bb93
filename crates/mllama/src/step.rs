//! What a step of the text layers needs to find its way: built once, used by every layer.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use crate::attention::{Path, SeenImages, causal};
use crate::error::{Error, Result};
use crate::key_bias::KeyBias;
use crate::kv::{CrossKv, CrossPlaces, SelfKv};
use crate::lookup::{KeyHeads, Lookup, PageTables};
use crate::operations::Operations;
use crate::pages::{PAGE, PagedLayer, Places, scatter};
use crate::transfer::to_device;

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
        let index = RowIndex {
            select: to_device(rows.to_vec(), rows.len(), device)?,
            replace: to_device(replace, filled.rows, device)?,
        };
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

/// Queries of which some are selected to be answered together, the others are consecutive.
#[derive(Debug)]
struct Order {
    selected: Vec<Selected>,
    /// Puts the results, selections first, in the order of the queries; `None` if they are.
    back: Option<Tensor>,
}

#[derive(Debug)]
enum Selected {
    /// One after the other.
    Range(Range<usize>),
    /// `[rows]`.
    Rows(Tensor),
}

impl Order {
    /// The selections one after the other, empty ones included, then the others.
    fn new(selections: &[&[u32]], others: &[Range<usize>], device: &Device) -> Result<Self> {
        let mut order: Vec<u32> = selections.concat();
        let all_selected = order.len();
        order.extend(others.iter().cloned().flatten().map(|row| row as u32));
        let in_order = order[..all_selected].iter().enumerate().all(|(at, &row)| at == row as usize);
        let mut selected = Vec::with_capacity(selections.len());
        for rows in selections {
            let start = rows.first().map_or(0, |&row| row as usize);
            selected.push(match rows.windows(2).all(|pair| pair[1] == pair[0] + 1) {
                true => Selected::Range(start..start + rows.len()),
                false => Selected::Rows(to_device(rows.to_vec(), rows.len(), device)?),
            });
        }
        let back = if in_order {
            None
        } else {
            let mut back = vec![0u32; order.len()];
            order.iter().enumerate().for_each(|(at, &row)| back[row as usize] = at as u32);
            Some(to_device(back, order.len(), device)?)
        };
        Ok(Self { selected, back })
    }

    /// The queries of a selection.
    fn of(&self, selection: usize, q: &Tensor) -> Result<Tensor> {
        match &self.selected[selection] {
            Selected::Range(rows) => Ok(q.narrow(0, rows.start, rows.len())?),
            Selected::Rows(rows) => Ok(q.index_select(rows, 0)?),
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
    pub(crate) heads: &'a KeyHeads,
    /// Values of a token's keys.
    pub(crate) width: usize,
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
        let write = to_device(slots, (tokens, 1), device)?.broadcast_as((tokens, paging.width))?.contiguous()?;
        let read = if paging.reads_pages() {
            Read::Kernel(PageTables::new(&tables, device)?)
        } else {
            let ranges: Vec<_> = others.iter().map(|other| other.tokens.clone()).collect();
            let order = Order::new(&[&single_rows], &ranges, device)?;
            let singles = match singles.is_empty() {
                true => None,
                false => Some(Lookup::new(&singles, paging.heads, paging.fixed_shapes, device)?),
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
            parts.push(singles.attend(self.operations, &order.of(0, q)?, keys, values)?);
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
    fn key_bias(&self, device: &Device) -> Result<Option<KeyBias>> {
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
        Ok(Some(KeyBias::new(Tensor::cat(&biases, 0)?)))
    }
}

/// What cross-attention layers need to know of a step: who attends to which images.
#[derive(Debug)]
pub(crate) struct CrossStep<'a> {
    /// All of them, or those that the pages are not read for together.
    alone: Vec<AloneRun<'a>>,
    /// Tokens that attend to images.
    pub(crate) attending: Rows,
    /// Those of them that see them.
    pub(crate) seeing: Rows,
    paged: Option<PagedImages>,
    is_empty: bool,
}

/// A run that attends by itself.
#[derive(Debug)]
struct AloneRun<'a> {
    run: Run<'a>,
    /// Its rows among those that attend.
    rows: Range<usize>,
    key_bias: Option<KeyBias>,
    places: Vec<CrossPlaces>,
}

/// How runs that needn't attend by themselves read their images: which way depends on the run alone, so that a row's
/// numbers don't depend on what other rows look at.
#[derive(Debug)]
struct PagedImages {
    operations: &'static dyn Operations,
    layers: Vec<PagedLayer>,
    /// Runs of one image, by one kernel.
    kernel: Option<PageTables>,
    /// Other runs of one token.
    singles: Option<Arc<Lookup>>,
    order: Order,
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
        let lookup = Arc::new(Lookup::new(&slots, paging.heads, paging.fixed_shapes, paging.device)?);
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
        let is_empty = runs.is_empty();
        let mut start = 0;
        let placed = runs.into_iter().map(|run| {
            let rows = start..start + run.tokens.len();
            start = rows.end;
            (run, rows)
        });
        let (paged, alone) = match paging {
            Some((paging, latest)) if !is_empty => {
                let (paged, alone) = PagedImages::new(placed, paging, latest)?;
                (Some(paged), alone)
            }
            _ => (None, placed.collect()),
        };
        let alone = alone
            .into_iter()
            .map(|(run, rows)| {
                let key_bias = run.key_bias(device)?;
                let places = run.images.iter().map(|image| image.places(run.unseeing)).collect::<Result<_>>()?;
                Ok(AloneRun { run, rows, key_bias, places })
            })
            .collect::<Result<_>>()?;
        Ok(Self { alone, attending, seeing, paged, is_empty })
    }

    /// Whether no token attends to an image.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_empty
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
            let seen = self.alone.iter().map(|run| run.seen(layer)).collect::<Result<Vec<_>>>()?;
            return crate::attention::cross_by_kernels(q, &seen);
        };
        let mut parts = Vec::with_capacity(2 + self.alone.len());
        if let Some((keys, values)) = paged.layers.get(layer) {
            if let Some(tables) = &paged.kernel {
                parts.push(paged.operations.paged(&paged.order.of(0, q)?, keys, values, tables, false)?);
            }
            if let Some(singles) = &paged.singles {
                parts.push(singles.attend(paged.operations, &paged.order.of(1, q)?, keys, values)?);
            }
        }
        for alone in &self.alone {
            let q = q.narrow(0, alone.rows.start, alone.rows.len())?;
            parts.push(alone.seen(layer)?.attend(paged.operations, &q)?);
        }
        paged.order.joined(parts)
    }
}

impl AloneRun<'_> {
    /// What the tokens see in a layer.
    fn seen(&self, layer: usize) -> Result<SeenImages<'_>> {
        let placed = self.run.images.iter().zip(&self.places);
        let images = placed.map(|(image, places)| image.layer(layer, places)).collect::<Result<_>>()?;
        Ok(SeenImages { queries: self.rows.len(), images, key_bias: self.key_bias.as_ref() })
    }
}

/// A run and its rows among those that attend.
type PlacedRun<'a> = (Run<'a>, Range<usize>);

impl PagedImages {
    /// How the runs read pages, and those that attend by themselves.
    fn new<'a>(
        runs: impl Iterator<Item = PlacedRun<'a>>,
        paging: Paging,
        latest: &LatestLookup,
    ) -> Result<(Self, Vec<PlacedRun<'a>>)> {
        let pages = |image: &CrossKv| {
            let pages = image.pages().cloned();
            pages.ok_or_else(|| Error::Image("keys and values of an image aren't in pages".into()))
        };
        let mut layers = Vec::new();
        let (mut tables, mut kernel_rows) = (Vec::new(), Vec::new());
        let (mut singles, mut single_rows, mut alone) = (Vec::new(), Vec::new(), Vec::new());
        for (run, rows) in runs {
            if let (true, Some(image)) = (layers.is_empty(), run.images.first()) {
                layers = pages(image)?.pool().layers();
            }
            let of_run = rows.clone().map(|row| row as u32);
            match run.images {
                // A page that an image doesn't fill can't be in the middle of what a kernel reads.
                [image] if paging.reads_pages() && !run.unseeing => {
                    let ids = pages(image)?.ids().take(image.live_tokens.div_ceil(PAGE)).collect();
                    tables.push((rows.len(), image.live_tokens, ids));
                    kernel_rows.extend(of_run);
                }
                images if rows.len() == 1 && !run.unseeing => {
                    let mut slots = Vec::new();
                    for image in images {
                        slots.extend(pages(image)?.slots(0..image.live_tokens));
                    }
                    singles.push(slots);
                    single_rows.extend(of_run);
                }
                _ => alone.push((run, rows)),
            }
        }
        let kernel = if tables.is_empty() { None } else { Some(PageTables::new(&tables, paging.device)?) };
        let singles = if singles.is_empty() { None } else { Some(latest.get(singles, paging)?) };
        let ranges: Vec<_> = alone.iter().map(|(_, rows)| rows.clone()).collect();
        let order = Order::new(&[&kernel_rows, &single_rows], &ranges, paging.device)?;
        Ok((Self { operations: paging.operations, layers, kernel, singles, order }, alone))
    }
}
