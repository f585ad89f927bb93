//! Which rows join, and their images on the way to the first step.
//!
//! A row that joins has its memory reserved first. Then its images are encoded, a few at a time between two steps, so
//! that answers in the making go on meanwhile and a row that is given up is noticed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vgen_core::{Fault, PixelTiles};
use vgen_mllama::CrossKv;

use super::super::plan::IMAGES_TOGETHER;
use super::super::prepared::PreparedImage;
use super::super::row::{ActiveRow, Job, Reserved};
use super::super::stats::add;
use super::{Engine, FIRST_ROOM, guarded, most_tokens};

/// Answers in the making wait no longer for images than this, and the images that are encoded together.
const STALL: Duration = Duration::from_millis(250);

/// A row that may join once its images are encoded.
pub(super) struct Joining {
    pub(super) job: Job,
    pub(super) reserved: Reserved,
    /// In order; `None` is yet to be encoded.
    images: Vec<Option<Arc<CrossKv>>>,
    /// Seconds that it waited for images.
    encode: f64,
}

impl Joining {
    fn is_ready(&self) -> bool {
        self.images.iter().all(Option::is_some)
    }

    /// Images that are yet to be encoded.
    fn missing(&self) -> impl Iterator<Item = &Arc<PreparedImage>> {
        let missing = self.job.images.iter().zip(&self.images).filter(|(_, kv)| kv.is_none());
        missing.filter_map(|(image, _)| image.prepared.as_ref())
    }

    /// Fills an image in wherever it is missing, and says in how many places.
    fn fill(&mut self, digest: &[u8; 32], kv: &Arc<CrossKv>) -> u64 {
        let mut filled = 0;
        for (image, place) in self.job.images.iter_mut().zip(&mut self.images) {
            if place.is_none() && image.digest == *digest {
                *place = Some(Arc::clone(kv));
                image.prepared = None;
                filled += 1;
            }
        }
        filled
    }
}

/// What all rows that were let in have reserved.
#[derive(Default)]
struct InUse {
    width: usize,
    bytes: u64,
    images: HashSet<[u8; 32]>,
}

impl Engine {
    /// Reserves memory for waiting rows while there is some.
    pub(super) fn admit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let mut used = self.in_use();
        while let Some(at) = self.next_to_join() {
            let Some(next) = self.waiting.get(at) else { break };
            let reserved = self.reservation(next);
            let images = self.new_image_bytes(next, &used.images);
            let bytes = reserved.text_bytes + images;
            let fits = self.plan.for_rows().is_none_or(|budget| used.bytes + bytes <= budget);
            if used.width > 0 && (used.width + reserved.width > self.batch_size || !fits) {
                break;
            }
            let Some(job) = self.waiting.remove(at) else { break };
            if !fits {
                let message = format!("row {} needs {bytes} bytes, more than the memory plan leaves for rows", job.row);
                job.reply
                    .done(Err(Fault::row("row.memory", message)
                        .with_hint("allow more memory, fewer new tokens or fewer images")));
                continue;
            }
            if at > 0
                && let Some(oldest) = self.waiting.front_mut()
            {
                oldest.overtaken += 1;
            }
            used.width += reserved.width;
            used.bytes += bytes;
            used.images.extend(job.images.iter().map(|image| image.digest));
            self.reserve(job, reserved);
        }
    }

    fn reserve(&mut self, mut job: Job, reserved: Reserved) {
        let mut images = Vec::with_capacity(job.images.len());
        for image in &mut job.images {
            let known = self.cache.get(&image.digest);
            if known.is_some() {
                image.prepared = None;
                add(&self.stats.images_reused, 1);
            }
            images.push(known);
        }
        self.joining.push(Joining { job, reserved, images, encode: 0.0 });
    }

    fn in_use(&self) -> InUse {
        let mut used = InUse::default();
        let active = self.active.iter().map(|row| (&row.job, row.reserved, row.width()));
        let joining = self.joining.iter().map(|row| (&row.job, row.reserved, row.reserved.width));
        for (job, reserved, width) in active.chain(joining) {
            used.width += width;
            used.bytes += reserved.text_bytes + self.new_image_bytes(job, &used.images);
            used.images.extend(job.images.iter().map(|image| image.digest));
        }
        used
    }

    #[cfg(test)]
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.in_use().bytes
    }

    /// Bytes of the row's images that aren't among those in use.
    fn new_image_bytes(&self, job: &Job, used: &HashSet<[u8; 32]>) -> u64 {
        let mut new = HashSet::new();
        let images = job.images.iter().filter(|image| !used.contains(&image.digest) && new.insert(image.digest));
        images.map(|image| self.plan.image(image.tiles)).sum()
    }

    /// What the row's answers take: as many at a time as the batch and the plan have room for, the others in turn.
    pub(super) fn reservation(&self, job: &Job) -> Reserved {
        let tokens = most_tokens(job, self.model.config().text.max_position_embeddings) as u64;
        let tiles = job.images.iter().map(|image| self.plan.kept_tiles(image.tiles)).sum();
        let answers = u64::from(job.num_generations);
        let width = self.plan.answers_at_a_time(tokens, tiles, answers, self.batch_size as u64);
        Reserved { width: width as usize, text_bytes: self.plan.answers(tokens, answers, width) }
    }

    /// The oldest row, unless one whose images are all known already can join before it. The oldest is overtaken by a
    /// batch of such rows at most.
    pub(super) fn next_to_join(&self) -> Option<usize> {
        let oldest = self.waiting.front()?;
        if oldest.overtaken >= self.batch_size {
            return Some(0);
        }
        let known =
            |job: &Job| !job.images.is_empty() && job.images.iter().all(|image| self.cache.contains(&image.digest));
        Some(self.waiting.iter().position(known).unwrap_or(0))
    }

    /// Encodes images of the rows that join, and lets those in whose images are known. While answers are in the making
    /// only for so long, but some images each time.
    pub(super) fn join(&mut self) {
        let bounded = !self.active.is_empty();
        let start = Instant::now();
        loop {
            self.activate_ready();
            if self.joining.is_empty() || (bounded && start.elapsed() >= STALL) {
                break;
            }
            self.encode_some();
            self.drop_given_up();
        }
    }

    fn activate_ready(&mut self) {
        for row in self.joining.extract_if(.., |row| row.is_ready()).collect::<Vec<_>>() {
            let Joining { job, reserved, images, encode } = row;
            match self.activate(job, reserved, images.into_iter().flatten().collect(), encode) {
                Ok(row) => self.active.push(row),
                Err(failed) => {
                    let (job, fault) = *failed;
                    job.reply.done(Err(fault));
                }
            }
        }
        self.cache.trim();
    }

    /// Encodes the next images together; one that fails fails alone, with the rows that have it.
    fn encode_some(&mut self) {
        let start = Instant::now();
        let most = if self.fixed_shapes { 1 } else { IMAGES_TOGETHER };
        let mut together: Vec<Arc<PreparedImage>> = Vec::with_capacity(most);
        for image in self.joining.iter().flat_map(Joining::missing) {
            if together.len() < most && together.iter().all(|other| other.tiles().digest != image.tiles().digest) {
                together.push(Arc::clone(image));
            }
        }
        let tiles: Vec<_> = together.iter().map(|image| image.tiles()).collect();
        let model = &self.model;
        let encoded: Vec<Result<CrossKv, Fault>> = match guarded(|| model.encode(&tiles)) {
            Ok(encoded) => encoded.into_iter().map(Ok).collect(),
            Err(fault) if tiles.len() == 1 => vec![Err(fault)],
            Err(_) => tiles
                .iter()
                .map(|image| {
                    let lost = || Fault::row("engine.lost", "the image was lost");
                    guarded(|| model.encode(&[image])).and_then(|mut kv| kv.pop().ok_or_else(lost))
                })
                .collect(),
        };
        // A GPU is still at it. What fails there fails the step that reads it.
        let _ = guarded(|| model.synchronize());
        let spent = start.elapsed();
        for row in self.joining.iter_mut().filter(|row| !row.is_ready()) {
            row.encode += spent.as_secs_f64();
        }
        let mut failed: HashMap<[u8; 32], Fault> = HashMap::new();
        for (image, encoded) in tiles.into_iter().zip(encoded) {
            match encoded {
                Ok(kv) => {
                    add(&self.stats.images_encoded, 1);
                    add(&self.stats.tiles_encoded, image.tiles() as u64);
                    let computed = self.computed_tiles(image);
                    add(&self.stats.tiles_computed, computed);
                    add(&self.stats.tile_pairs_computed, computed * computed);
                    add(&self.stats.cross_kv_bytes, kv.bytes());
                    let kv = self.cache.insert(image.digest, kv);
                    let places: u64 = self.joining.iter_mut().map(|row| row.fill(&image.digest, &kv)).sum();
                    add(&self.stats.images_reused, places.saturating_sub(1));
                }
                Err(fault) => {
                    failed.insert(image.digest, fault);
                }
            }
        }
        let fault_of = |job: &Job| job.images.iter().find_map(|image| failed.get(&image.digest)).cloned();
        for row in self.joining.extract_if(.., |row| fault_of(&row.job).is_some()) {
            if let Some(fault) = fault_of(&row.job) {
                row.job.reply.done(Err(fault));
            }
        }
        add(&self.stats.encode, spent.as_nanos() as u64);
    }

    /// Tiles of an image that are computed: its own, and one that stands for all empty ones.
    fn computed_tiles(&self, image: &PixelTiles) -> u64 {
        let most = self.model.config().vision.as_ref().map_or(0, |vision| vision.max_num_tiles);
        (image.tiles() + 1).min(most) as u64
    }

    fn activate(
        &mut self,
        job: Job,
        reserved: Reserved,
        images: Vec<Arc<CrossKv>>,
        encode: f64,
    ) -> Result<ActiveRow, Box<(Job, Fault)>> {
        let most = most_tokens(&job, self.model.config().text.max_position_embeddings);
        let capacity = (job.prompt.ids.len() + FIRST_ROOM).min(most);
        let shared = self.shared_prefix(&job);
        let kv = match (&self.prefix, shared) {
            (Some((_, prefix)), 1..) => prefix.prefix(shared, capacity),
            _ => self.model.self_kv(capacity),
        };
        add(&self.stats.shared_prompt_tokens, shared as u64);
        match kv {
            Ok(kv) => Ok(ActiveRow::new(job, images, kv, encode, reserved)),
            Err(error) => Err(Box::new((job, error.into()))),
        }
    }
}
