//! [`Pictures`]: the images of the rows, small, each once.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use image::codecs::jpeg::JpegEncoder;
use image::{RgbImage, imageops};
use rayon::prelude::*;
use serde::Serialize;
use url::Url;
use vgen_core::ImageRef;
use vgen_task::image::{ImageFetcher, ImageLimits, decode};

/// Images of a row that are shown, at most.
const MOST_OF_A_ROW: usize = 8;
/// All small images together have at most so many bytes.
const MOST_BYTES: usize = 56 << 20;
const QUALITY: u8 = 74;
/// Longer names and addresses are cut.
const LONGEST_NAME: usize = 300;

/// Longest side of the images of a report with so many rows: large where there are few.
pub(super) fn edge_for(rows: usize) -> u32 {
    match rows {
        0..=400 => 768,
        401..=1500 => 448,
        1501..=4000 => 288,
        _ => 176,
    }
}

/// An image of the report.
#[derive(Debug, Default, Serialize)]
pub(super) struct Slot {
    /// Of the image itself.
    #[serde(rename = "w", skip_serializing_if = "Option::is_none")]
    width: Option<u32>,
    #[serde(rename = "h", skip_serializing_if = "Option::is_none")]
    height: Option<u32>,
    /// Path or address.
    #[serde(rename = "n", skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Where it can be opened.
    #[serde(rename = "u", skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// Why it is not shown.
    #[serde(rename = "y", skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip)]
    pub(super) jpeg: Vec<u8>,
}

/// Makes images small.
pub(super) struct Pictures {
    edge: u32,
    fetch: bool,
    fetcher: ImageFetcher,
    slots: Vec<Slot>,
    known: HashMap<[u64; 2], usize>,
    bytes: usize,
}

impl Pictures {
    pub(super) fn new(edge: u32, fetch: bool) -> Self {
        Self {
            edge,
            fetch,
            fetcher: ImageFetcher::new(ImageLimits::default()),
            slots: Vec::new(),
            known: HashMap::new(),
            bytes: 0,
        }
    }

    /// Images that are not shown.
    pub(super) fn missing(&self) -> usize {
        self.slots.iter().filter(|slot| slot.jpeg.is_empty()).count()
    }

    pub(super) fn into_slots(self) -> Vec<Slot> {
        self.slots
    }

    /// The slots of the images of some rows; new ones are made in parallel.
    pub(super) fn add(&mut self, rows: &[&[ImageRef]]) -> Vec<Vec<usize>> {
        let mut new: Vec<&ImageRef> = Vec::new();
        let first = self.slots.len();
        let mut places = Vec::with_capacity(rows.len());
        for images in rows {
            let mut own = Vec::new();
            for image in images.iter().take(MOST_OF_A_ROW) {
                let next = first + new.len();
                let slot = *self.known.entry(digest(image)).or_insert(next);
                if slot == next {
                    new.push(image);
                }
                own.push(slot);
            }
            places.push(own);
        }
        let room = self.bytes < MOST_BYTES;
        let made: Vec<Slot> = new.par_iter().map(|image| self.slot(image, room)).collect();
        self.bytes += made.iter().map(|slot| slot.jpeg.len()).sum::<usize>();
        self.slots.extend(made);
        places
    }

    fn slot(&self, image: &ImageRef, room: bool) -> Slot {
        let (name, address) = match image {
            ImageRef::Url(url) if is_data(url) => (None, None),
            ImageRef::Url(url) => (Some(url.to_string()), address_of(url)),
            ImageRef::Path(path) => {
                let absolute = std::path::absolute(path).ok();
                let address = absolute.and_then(|path| Url::from_file_path(path).ok()).map(String::from);
                (Some(path.to_string_lossy().into_owned()), address)
            }
            ImageRef::Bytes { name, .. } => (name.as_deref().map(str::to_owned), None),
            _ => (None, None),
        };
        let name = name.map(|name| name.chars().take(LONGEST_NAME).collect::<String>());
        let mut slot = Slot { name, address, ..Slot::default() };
        let on_network = matches!(image, ImageRef::Url(url) if !is_data(url));
        let made = match () {
            () if self.edge == 0 => Err("the report was made without images".to_owned()),
            () if !room => Err("left out: the report has as many images as it can hold".to_owned()),
            () if on_network && !self.fetch => Err("not fetched: vgen report --fetch-images shows it".to_owned()),
            () => self.small(image),
        };
        match made {
            Ok((width, height, jpeg)) => {
                (slot.width, slot.height, slot.jpeg) = (Some(width), Some(height), jpeg);
            }
            Err(why) => slot.why = Some(why),
        }
        slot
    }

    /// Width and height of the image, and a small one.
    fn small(&self, image: &ImageRef) -> Result<(u32, u32, Vec<u8>), String> {
        let bytes = self.fetcher.fetch(image).map_err(|error| error.to_string())?;
        let pixels = decode(&bytes, "", self.fetcher.limits()).map_err(|error| error.to_string())?;
        let (width, height) = pixels.dimensions();
        let pixels = fitted(pixels, self.edge);
        let mut jpeg = Vec::new();
        let encoder = JpegEncoder::new_with_quality(&mut jpeg, QUALITY);
        pixels.write_with_encoder(encoder).map_err(|error| error.to_string())?;
        Ok((width, height, jpeg))
    }
}

fn fitted(pixels: RgbImage, edge: u32) -> RgbImage {
    let (width, height) = pixels.dimensions();
    let longest = width.max(height);
    if longest <= edge {
        return pixels;
    }
    let side = |length: u32| ((u64::from(length) * u64::from(edge) / u64::from(longest)) as u32).max(1);
    imageops::thumbnail(&pixels, side(width), side(height))
}

fn is_data(url: &str) -> bool {
    url.trim_start().get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

/// The address, if it is one that a page may lead to.
fn address_of(url: &str) -> Option<String> {
    let url = Url::parse(url.trim()).ok()?;
    matches!(url.scheme(), "http" | "https").then(|| url.into())
}

/// Two 64-bit hashes with different beginnings: equal for equal images only, as far as anybody will see.
fn digest(image: &ImageRef) -> [u64; 2] {
    [0u64, 1].map(|seed| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        image.hash(&mut hasher);
        hasher.finish()
    })
}
