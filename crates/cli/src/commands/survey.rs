//! A pass over rows without asking about them: what they have, by their text and the headers of their images.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;
use std::sync::PoisonError;

use serde::Serialize;
use vgen_backends::local::{Frontend, Inspected};
use vgen_core::{Fault, ImageRef, Message, Row, SamplingParams};
use vgen_dataset::{Origin, RowSource};
use vgen_run::Task;
use vgen_task::image::{ImageFetcher, ImageLimits, image_size};
use vgen_task::{Rendered, RowContext};

/// What a chat template adds to a prompt, about.
const TEMPLATE_TOKENS: u64 = 30;
/// Bytes of a token of text, about.
const TOKEN_BYTES: u64 = 4;
/// Rows whose images are fetched together, and threads that do it.
const FETCHED_ROWS: usize = 64;
const FETCHERS: usize = 16;

/// What rows have.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Rows {
    pub(crate) rows: u64,
    /// Rows that can't be asked about, or have an image whose header can't be read.
    pub(crate) faulty_rows: u64,
    /// How many for each error code.
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) images: u64,
    /// By path, URL or bytes: each is encoded once if images are kept.
    pub(crate) different_images: u64,
    /// Images in the network, unless they are fetched; they are taken as the largest.
    pub(crate) unseen_images: u64,
    pub(crate) tiles: u64,
    pub(crate) different_tiles: u64,
    /// Keys and values of all different images.
    pub(crate) cross_kv_bytes: u64,
    pub(crate) most_tiles: u64,
    /// By the tokenizer if it is there; else a quarter of the bytes, and something for the template.
    pub(crate) prompt_tokens_about: u64,
    pub(crate) longest_prompt_about: u64,
    /// The share of the input that these rows are, where that is known.
    #[serde(skip)]
    pub(crate) share: Option<f64>,
}

impl Rows {
    /// The images in a line.
    pub(crate) fn images_in_words(&self) -> String {
        let unseen = match self.unseen_images {
            0 => String::new(),
            n => format!(", {n} in the network not looked at"),
        };
        format!("{}, {} different{unseen}", self.images, self.different_images)
    }

    /// The tokens of the prompts in a line.
    pub(crate) fn tokens_in_words(&self) -> String {
        format!("about {}, longest about {}", self.prompt_tokens_about, self.longest_prompt_about)
    }
}

/// A row as it was seen: where it stands, its values unless they can't be read, its prompt or what is wrong with it.
pub(crate) type Watch<'a> = dyn FnMut(&Origin, Option<&Row>, Result<&Rendered, &Fault>) + 'a;

/// How rows are looked at.
pub(crate) struct Survey<'a> {
    pub(crate) task: &'a dyn Task,
    /// `None` for a model of which nothing is known.
    pub(crate) model: Option<&'a Inspected>,
    /// The model's tokenizer.
    pub(crate) frontend: Option<&'a Frontend>,
    pub(crate) limits: ImageLimits,
    /// Gets images in the network, too.
    pub(crate) fetcher: Option<ImageFetcher>,
    pub(crate) sampling: &'a SamplingParams,
    pub(crate) most_rows: Option<u64>,
}

/// An image's tiles, or `None` for one that was not looked at; or why it can't be used.
type Seen = Result<Option<u64>, Fault>;

struct Asked {
    origin: Origin,
    values: Option<Row>,
    rendered: Result<Rendered, Fault>,
}

impl Survey<'_> {
    /// Looks at the rows.
    ///
    /// # Errors
    /// `input.*`
    pub(crate) fn of(&self, source: &mut dyn RowSource, watch: &mut Watch<'_>) -> Result<Rows, Fault> {
        let mut rows = Rows::default();
        let mut seen = HashMap::new();
        // Rows are held together only for their images to be fetched together.
        let together = if self.fetcher.is_some() { FETCHED_ROWS } else { 1 };
        let mut asked = Vec::new();
        loop {
            let more = self.most_rows.is_none_or(|most| rows.rows < most);
            let row = if more { source.next_row()? } else { None };
            let ended = row.is_none();
            if let Some(row) = row {
                rows.rows += 1;
                rows.share = row.share;
                let context = RowContext { base_dir: source.folder(), ..RowContext::new(row.number) };
                let (values, rendered) = match row.row {
                    Err(fault) => (None, Err(fault)),
                    Ok(values) => {
                        let rendered = self.ask(&values, &context);
                        (Some(values), rendered)
                    }
                };
                asked.push(Asked { origin: row.origin, values, rendered });
            } else if more {
                rows.share = Some(1.0);
            }
            if asked.len() >= together || ended {
                self.fetch(&asked, &mut seen);
                for one in asked.drain(..) {
                    self.count(&mut rows, one, &mut seen, watch);
                }
            }
            if ended {
                break;
            }
        }
        rows.different_images = seen.values().filter(|seen| seen.is_ok()).count() as u64;
        let most = self.model.map_or(0, |model| model.plan.max_tiles);
        rows.different_tiles =
            seen.values().filter_map(|seen| seen.as_ref().ok()).map(|tiles| tiles.unwrap_or(most)).sum();
        rows.cross_kv_bytes = rows.different_tiles * self.model.map_or(0, |model| model.plan.cross_kv_per_tile);
        Ok(rows)
    }

    /// The prompt of a row, and whether its own parameters can be honoured.
    fn ask(&self, values: &Row, context: &RowContext<'_>) -> Result<Rendered, Fault> {
        let rendered = self.task.render(values, context)?;
        if let (Some((own, _)), Some(frontend)) = (self.task.own_sampling(values, self.sampling)?, self.frontend) {
            frontend.check(&own)?;
        }
        Ok(rendered)
    }

    fn count(&self, rows: &mut Rows, one: Asked, seen: &mut HashMap<u64, Seen>, watch: &mut Watch<'_>) {
        let Asked { origin, values, rendered } = one;
        let counted = rendered.and_then(|rendered| {
            let tokens = self.tokens(&rendered.messages)?;
            let mut tiles = 0;
            for image in rendered.messages.iter().flat_map(Message::images) {
                tiles += self.image(rows, image, seen)?;
            }
            rows.tiles += tiles;
            rows.most_tiles = rows.most_tiles.max(tiles);
            rows.prompt_tokens_about += tokens;
            rows.longest_prompt_about = rows.longest_prompt_about.max(tokens);
            Ok(rendered)
        });
        if let Err(fault) = &counted {
            rows.faulty_rows += 1;
            *rows.errors.entry(fault.code.to_string()).or_default() += 1;
        }
        watch(&origin, values.as_ref(), counted.as_ref());
    }

    fn tokens(&self, messages: &[Message]) -> Result<u64, Fault> {
        if let Some(frontend) = self.frontend {
            return frontend.prompt_tokens(messages);
        }
        let text: usize = messages.iter().map(|message| message.plain_text().len()).sum();
        Ok(text as u64 / TOKEN_BYTES + TEMPLATE_TOKENS)
    }

    fn image(&self, rows: &mut Rows, image: &ImageRef, seen: &mut HashMap<u64, Seen>) -> Result<u64, Fault> {
        if self.model.is_some_and(|model| model.processor.is_none()) {
            return Err(Fault::row("prompt.text_only", "the row has an image, but the model reads text only")
                .with_hint("take rows without images, or a model that reads them"));
        }
        rows.images += 1;
        match seen.entry(key(image)).or_insert_with(|| self.look(image)).clone()? {
            Some(tiles) => Ok(tiles),
            None => {
                rows.unseen_images += 1;
                Ok(self.model.map_or(0, |model| model.plan.max_tiles))
            }
        }
    }

    fn look(&self, image: &ImageRef) -> Seen {
        let Some((width, height)) = image_size(image, &self.limits)? else { return Ok(None) };
        let tiles = self.model.map_or(0, |model| {
            let fit = model.processor.as_ref().and_then(|processor| processor.fit(height as usize, width as usize));
            fit.map_or(model.plan.max_tiles, |fit| (fit.tiles_high * fit.tiles_wide) as u64)
        });
        Ok(Some(tiles))
    }

    /// Gets the images in the network that were not seen yet.
    fn fetch(&self, asked: &[Asked], seen: &mut HashMap<u64, Seen>) {
        let Some(fetcher) = &self.fetcher else { return };
        let images = asked.iter().filter_map(|one| one.rendered.as_ref().ok());
        let images = images.flat_map(|rendered| rendered.messages.iter().flat_map(Message::images));
        let mut wanted = HashSet::new();
        let urls = images.filter(|image| matches!(image, ImageRef::Url(url) if !url.starts_with("data:")));
        let urls: Vec<_> = urls.filter(|image| !seen.contains_key(&key(image)) && wanted.insert(key(image))).collect();
        if urls.is_empty() {
            return;
        }
        let queue = Mutex::new(urls.into_iter());
        let found = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..FETCHERS {
                scope.spawn(|| {
                    loop {
                        let Some(image) = queue.lock().unwrap_or_else(PoisonError::into_inner).next() else { break };
                        let name = match image {
                            ImageRef::Url(url) => Some(url.clone()),
                            _ => None,
                        };
                        let fetched = fetcher.fetch(image).map_err(Fault::from);
                        let size = fetched.and_then(|bytes| self.look(&ImageRef::Bytes { bytes, name }));
                        found.lock().unwrap_or_else(PoisonError::into_inner).push((key(image), size));
                    }
                });
            }
        });
        seen.extend(found.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The hash and not the image: images in memory would all stay there.
fn key(image: &ImageRef) -> u64 {
    let mut hash = DefaultHasher::new();
    image.hash(&mut hash);
    hash.finish()
}
