//! [`Workload`]: rows drawn by a seed, so that a bench needs no data set.

use std::str::FromStr;
use std::sync::Arc;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use vgen_core::{Content, ImageRef, Message, Part, Role};

use super::random::Random;
use super::rows::BenchRow;

/// How well the JPEGs are kept, of 100: that of most photographs.
const QUALITY: u8 = 85;

/// Prompts that share an image in [`Workload::OneImage`].
const PROMPTS_PER_IMAGE: usize = 16;

const QUESTIONS: [&str; 8] = [
    "What is in this picture?",
    "Describe the image in detail.",
    "Which colours stand out, and where are they?",
    "How many separate areas can you count?",
    "Write a caption for this image.",
    "What is in the upper left corner?",
    "Which objects touch each other?",
    "What would be a good title for this picture?",
];

const TEXT_QUESTIONS: [&str; 4] = [
    "Explain how a sundial tells the time.",
    "Write a short story about a lighthouse keeper.",
    "What are the main causes of tides?",
    "List five uses of a wooden spoon.",
];

/// A kind of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// A square image of 560 pixels a row: one tile.
    OneTile,
    /// A square image of 1120 pixels a row: four tiles.
    FourTiles,
    /// Strips four times as wide as high, or as high as wide.
    Strips,
    /// Images of many shapes and sizes.
    MixedRatios,
    /// Sixteen questions about one image, then about the next.
    OneImage,
    /// Every other row without an image.
    Mixed,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::OneTile, Self::FourTiles, Self::Strips, Self::MixedRatios, Self::OneImage, Self::Mixed];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneTile => "one-tile",
            Self::FourTiles => "four-tiles",
            Self::Strips => "strips",
            Self::MixedRatios => "mixed-ratios",
            Self::OneImage => "one-image",
            Self::Mixed => "mixed",
        }
    }

    /// The rows of a draw. The same numbers give the same rows, to the byte.
    pub fn rows(self, count: usize, seed: u64, draw: u64) -> Vec<BenchRow> {
        let mut random = Random::new(b"workload", seed, draw);
        let mut image = None;
        (0..count)
            .map(|at| {
                let kept = if self == Self::OneImage && at % PROMPTS_PER_IMAGE != 0 { image.take() } else { None };
                image = match self {
                    Self::Mixed if at % 2 == 1 => None,
                    _ => kept.or_else(|| self.picture(&mut random)),
                };
                let questions: &[&str] = if image.is_some() { &QUESTIONS } else { &TEXT_QUESTIONS };
                let question = questions[random.below(questions.len())];
                // The number keeps texts apart, so that no cache of prompts knows them.
                let text = format!("{question} (Note {}.)", random.below(1_000_000));
                let parts = image.clone().map(Part::Image).into_iter().chain([Part::Text(text)]).collect();
                let number = draw.wrapping_mul(count as u64).wrapping_add(at as u64);
                BenchRow::new(number, vec![Message { role: Role::User, content: Content::Parts(parts) }])
            })
            .collect()
    }

    fn picture(self, random: &mut Random) -> Option<ImageRef> {
        let (width, height) = match self {
            Self::OneTile | Self::OneImage | Self::Mixed => (560, 560),
            Self::FourTiles => (1120, 1120),
            Self::Strips if random.below(2) == 0 => (2240, 560),
            Self::Strips => (560, 2240),
            Self::MixedRatios => {
                const SIZES: [(u32, u32); 8] = [
                    (640, 480),
                    (480, 640),
                    (1920, 1080),
                    (1024, 1024),
                    (300, 200),
                    (800, 2000),
                    (2400, 600),
                    (336, 336),
                ];
                SIZES[random.below(SIZES.len())]
            }
        };
        let bytes = picture(width, height, random)?;
        Some(ImageRef::Bytes { bytes, name: Some(Arc::from(format!("{width}x{height}.jpg"))) })
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|workload| workload.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!("there is no workload {text:?}: {} are", names.join(", "))
        })
    }
}

/// A JPEG of soft colours, rectangles with edges, and grain: something for a decoder to do.
fn picture(width: u32, height: u32, random: &mut Random) -> Option<Arc<[u8]>> {
    let (width, height) = (width as usize, height as usize);
    let (from, to) = ([0; 3].map(|_| random.byte()), [0; 3].map(|_| random.byte()));
    let mut pixels = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        for x in 0..width {
            let share = (x * height + y * width) / 2;
            for channel in 0..3 {
                let (a, b) = (usize::from(from[channel]), usize::from(to[channel]));
                pixels.push(((a * (width * height - share) + b * share) / (width * height)) as u8);
            }
        }
    }
    for _ in 0..12 {
        let colour = [0; 3].map(|_| random.byte());
        let (left, top) = (random.below(width), random.below(height));
        let (right, bottom) = (left + random.below(width - left), top + random.below(height - top));
        for y in top..bottom {
            for pixel in pixels[3 * (y * width + left)..3 * (y * width + right)].chunks_exact_mut(3) {
                pixel.copy_from_slice(&colour);
            }
        }
    }
    for (at, value) in pixels.iter_mut().enumerate().step_by(2) {
        // A cheap grain of a few levels, the same on every machine.
        let grain = (at.wrapping_mul(2_654_435_761) >> 13) as u8 % 8;
        *value = value.saturating_add(grain);
    }
    let mut file = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut file, QUALITY);
    // Encoding into memory what has the right size can't fail.
    encoder.write_image(&pixels, width as u32, height as u32, ExtendedColorType::Rgb8).ok()?;
    Some(Arc::from(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(rows: &[BenchRow]) -> Vec<String> {
        rows.iter().flat_map(|row| &row.messages).map(Message::plain_text).collect()
    }

    fn images(rows: &[BenchRow]) -> Vec<Option<ImageRef>> {
        rows.iter().map(|row| row.messages.iter().flat_map(|message| message.images()).next().cloned()).collect()
    }

    #[test]
    fn seed_and_draw_decide() {
        let draw = |seed, draw| Workload::MixedRatios.rows(3, seed, draw);
        assert_eq!((texts(&draw(1, 2)), images(&draw(1, 2))), (texts(&draw(1, 2)), images(&draw(1, 2))));
        assert_ne!(texts(&draw(1, 2)), texts(&draw(2, 2)));
        assert_ne!(images(&draw(1, 2)), images(&draw(1, 3)));
    }

    #[test]
    fn each_is_what_it_says() {
        let mixed = images(&Workload::Mixed.rows(4, 0, 0));
        assert_eq!(mixed.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true, false]);
        let rows = Workload::OneImage.rows(17, 0, 0);
        let shared = images(&rows);
        assert!(shared[..16].iter().all(|image| image == &shared[0]));
        assert_ne!(shared[16], shared[0]);
        let mut asked = texts(&rows);
        asked.dedup();
        assert_eq!(asked.len(), 17);
        for workload in Workload::ALL {
            assert_eq!(workload.name().parse(), Ok(workload));
        }
    }
}
