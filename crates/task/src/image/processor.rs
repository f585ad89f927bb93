//! [`MllamaImageProcessor`]: RGB pixels to normalised tiles.

use image::{DynamicImage, RgbImage};
use serde::Deserialize;
use thiserror::Error;
use vgen_core::{Fault, PixelTiles};

use super::canvas::{Geometry, fit_to_canvas};
use super::convert::to_rgb;
use super::decode::decode;
use super::error::ImageError;
use super::limits::ImageLimits;
use super::resize::{Filter, resize};
use super::reuse;

/// Why a checkpoint's image processor can't be set up. Each ends the run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// A file isn't the JSON it should be.
    #[error("{file} can't be read: {source}")]
    Json {
        /// The file.
        file: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A setting that no mllama checkpoint has and that isn't implemented.
    #[error("preprocessor_config.json sets {key} to {value}, which is not supported")]
    Unsupported {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// The image processor and the model don't belong together.
    #[error("preprocessor_config.json and config.json disagree: {what}")]
    Mismatch {
        /// On what, with both values.
        what: String,
    },
}

impl From<ProcessorError> for Fault {
    fn from(error: ProcessorError) -> Self {
        let (code, hint) = match error {
            ProcessorError::Json { .. } => ("processor.config", "download the checkpoint's files again"),
            ProcessorError::Unsupported { .. } => {
                ("processor.unsupported", "use the preprocessor_config.json that the model was published with")
            }
            ProcessorError::Mismatch { .. } => ("processor.mismatch", "take both files from the same checkpoint"),
        };
        Fault::stop(code, error.to_string()).with_hint(hint)
    }
}

/// What a JPEG begins with.
const JPEG: [u8; 2] = [0xff, 0xd8];

/// `preprocessor_config.json`; what is missing has the defaults of transformers.
#[derive(Deserialize)]
#[serde(default)]
struct PreprocessorConfig {
    do_convert_rgb: bool,
    do_resize: bool,
    do_rescale: bool,
    do_normalize: bool,
    do_pad: bool,
    size: Option<Size>,
    max_image_tiles: Option<usize>,
    resample: u64,
    rescale_factor: f64,
    image_mean: [f64; 3],
    image_std: [f64; 3],
}

impl Default for PreprocessorConfig {
    fn default() -> Self {
        Self {
            do_convert_rgb: true,
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
            do_pad: true,
            size: None,
            max_image_tiles: None,
            resample: 2,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
        }
    }
}

#[derive(Deserialize)]
struct Size {
    height: usize,
    width: usize,
}

#[derive(Deserialize)]
struct ModelConfig {
    vision_config: VisionConfig,
}

#[derive(Deserialize)]
struct VisionConfig {
    #[serde(default = "default_image_size")]
    image_size: usize,
    #[serde(default = "default_max_num_tiles")]
    max_num_tiles: usize,
    #[serde(default)]
    supported_aspect_ratios: Vec<(usize, usize)>,
}

fn default_image_size() -> usize {
    448
}

fn default_max_num_tiles() -> usize {
    4
}

/// Turns images into the tiles that one checkpoint's vision tower takes.
#[derive(Clone, Debug)]
pub struct MllamaImageProcessor {
    tile_size: usize,
    aspect_ratios: Vec<(usize, usize)>,
    filter: Filter,
    /// The normalised value of each 8-bit value, per channel.
    values: [[f32; 256]; 3],
}

impl MllamaImageProcessor {
    /// Sets the processor up from the contents of `preprocessor_config.json` and the model's `config.json`.
    ///
    /// # Errors
    /// [`ProcessorError`]: unreadable JSON, a setting that isn't supported, files of two different models.
    pub fn from_json(preprocessor_config: &str, config: &str) -> Result<Self, ProcessorError> {
        let processor: PreprocessorConfig = serde_json::from_str(preprocessor_config)
            .map_err(|source| ProcessorError::Json { file: "preprocessor_config.json", source })?;
        let ModelConfig { vision_config: vision } =
            serde_json::from_str(config).map_err(|source| ProcessorError::Json { file: "config.json", source })?;
        let required = [
            ("do_convert_rgb", processor.do_convert_rgb),
            ("do_resize", processor.do_resize),
            ("do_pad", processor.do_pad),
        ];
        if let Some((key, _)) = required.into_iter().find(|(_, on)| !on) {
            return Err(ProcessorError::Unsupported { key, value: "false".to_owned() });
        }
        let filter = Filter::from_pillow(processor.resample)
            .ok_or(ProcessorError::Unsupported { key: "resample", value: processor.resample.to_string() })?;
        if let Some(Size { height, width }) = processor.size
            && (height, width) != (vision.image_size, vision.image_size)
        {
            let what = format!("tiles of {height}x{width} pixels, image_size {}", vision.image_size);
            return Err(ProcessorError::Mismatch { what });
        }
        let max_tiles = processor.max_image_tiles.unwrap_or(vision.max_num_tiles);
        if max_tiles != vision.max_num_tiles {
            let what = format!("max_image_tiles {max_tiles}, max_num_tiles {}", vision.max_num_tiles);
            return Err(ProcessorError::Mismatch { what });
        }
        if vision.image_size == 0 || max_tiles == 0 {
            return Err(ProcessorError::Mismatch { what: "tiles without pixels or no tiles at all".to_owned() });
        }
        let aspect_ratios = if vision.supported_aspect_ratios.is_empty() {
            all_aspect_ratios(max_tiles)
        } else {
            vision.supported_aspect_ratios
        };
        if let Some((high, wide)) = aspect_ratios.iter().find(|(high, wide)| !(1..=max_tiles).contains(&(high * wide)))
        {
            let what = format!("aspect ratio {high}x{wide}, at most {max_tiles} tiles");
            return Err(ProcessorError::Mismatch { what });
        }
        let values = std::array::from_fn(|channel| {
            std::array::from_fn(|byte| {
                // In the reference's types: rescaled in f64, rounded to f32, normalised in f32.
                let scale = if processor.do_rescale { processor.rescale_factor } else { 1.0 };
                let value = (byte as f64 * scale) as f32;
                if processor.do_normalize {
                    (value - processor.image_mean[channel] as f32) / processor.image_std[channel] as f32
                } else {
                    value
                }
            })
        });
        Ok(Self { tile_size: vision.image_size, aspect_ratios, filter, values })
    }

    /// Side of a tile in pixels.
    pub fn tile_size(&self) -> usize {
        self.tile_size
    }

    /// The canvas of an image of `height` x `width` pixels and its size on it; `None` if a side is 0.
    pub fn fit(&self, height: usize, width: usize) -> Option<Geometry> {
        if height == 0 || width == 0 {
            return None;
        }
        fit_to_canvas(height, width, self.tile_size, &self.aspect_ratios)
    }

    /// `image` in the size that `geometry` gives it.
    pub fn resize(&self, image: &RgbImage, geometry: Geometry) -> RgbImage {
        resize(image, geometry.width, geometry.height, self.filter)
    }

    /// The tiles of an image file; see [`decode`].
    ///
    /// # Errors
    /// Those of [`decode`].
    pub fn process_file(&self, bytes: &[u8], name: &str, limits: &ImageLimits) -> Result<PixelTiles, ImageError> {
        let image = decode(bytes, name, limits)?;
        let tiles = self.process(&image, name);
        // Other decoders make their own.
        if bytes.starts_with(&JPEG) {
            reuse::give_back(image.into_raw());
        }
        tiles
    }

    /// The tiles of upright RGB pixels.
    ///
    /// # Errors
    /// [`ImageError::Empty`] without pixels; `name` is for the message.
    pub fn process(&self, image: &RgbImage, name: &str) -> Result<PixelTiles, ImageError> {
        let geometry = self
            .fit(image.height() as usize, image.width() as usize)
            .ok_or_else(|| ImageError::Empty { name: name.to_owned() })?;
        let resized = self.resize(image, geometry);
        let tiles = self.tile(&resized, geometry);
        reuse::give_back(resized.into_raw());
        Ok(tiles)
    }

    /// The tiles of an image in memory, which is taken as upright.
    ///
    /// # Errors
    /// As [`process`](Self::process), and [`ImageError::UnsupportedFormat`] for floating-point pixels.
    pub fn process_dynamic(&self, image: DynamicImage, name: &str) -> Result<PixelTiles, ImageError> {
        self.process(&to_rgb(image, name)?, name)
    }

    /// Pads the resized pixels with 0 at the bottom and the right, normalises and cuts tiles.
    fn tile(&self, resized: &RgbImage, geometry: Geometry) -> PixelTiles {
        let Geometry { tiles_high, tiles_wide, aspect_ratio_id, height, width } = geometry;
        let side = self.tile_size;
        let mut values = PixelTiles::room(tiles_high * tiles_wide * 3 * side * side);
        for (row, column) in (0..tiles_high).flat_map(|row| (0..tiles_wide).map(move |column| (row, column))) {
            let left = (column * side).min(width);
            let right = (left + side).min(width);
            for (channel, normalised) in self.values.iter().enumerate() {
                for y in row * side..(row + 1) * side {
                    let end_of_line = values.len() + side;
                    if y < height {
                        let line = &resized.as_raw()[3 * (y * width + left)..3 * (y * width + right)];
                        let (pixels, _) = line.as_chunks::<3>();
                        values.extend(pixels.iter().map(|pixel| normalised[usize::from(pixel[channel])]));
                    }
                    values.resize(end_of_line, normalised[0]);
                }
            }
        }
        let digest = self.digest(resized, geometry);
        PixelTiles { tile_size: side, tiles_high, tiles_wide, aspect_ratio_id, values, digest }
    }

    fn digest(&self, resized: &RgbImage, geometry: Geometry) -> [u8; 32] {
        let Geometry { tiles_high, tiles_wide, aspect_ratio_id, height, width } = geometry;
        let mut hash = blake3::Hasher::new();
        for number in [self.tile_size, tiles_high, tiles_wide, aspect_ratio_id, height, width] {
            hash.update(&(number as u64).to_le_bytes());
        }
        for value in self.values.iter().flatten() {
            hash.update(&value.to_le_bytes());
        }
        hash.update(resized.as_raw());
        *hash.finalize().as_bytes()
    }
}

/// Every (tiles high, tiles wide) of at most `max_tiles` tiles, in the reference's order.
fn all_aspect_ratios(max_tiles: usize) -> Vec<(usize, usize)> {
    (1..=max_tiles).flat_map(|high| (1..=max_tiles / high).map(move |wide| (high, wide))).collect()
}

#[cfg(test)]
mod tests {
    // Fixtures and inputs of the tests are their own.
    #![allow(clippy::unwrap_used)]

    use image::Rgb;

    use super::*;

    const CONFIG: &str = r#"{"vision_config": {"image_size": 8, "max_num_tiles": 4}}"#;

    fn processor(settings: &str) -> Result<MllamaImageProcessor, ProcessorError> {
        MllamaImageProcessor::from_json(settings, CONFIG)
    }

    #[test]
    fn tiles_go_row_by_row_and_padding_is_black() {
        let processor = processor(r#"{"do_normalize": false, "do_rescale": false, "max_image_tiles": 4}"#).unwrap();
        // On a canvas of 2x2 tiles with four columns and two rows left over.
        let image = RgbImage::from_fn(12, 14, |x, y| Rgb([x as u8, y as u8, 99]));
        let tiles = processor.process(&image, "x").unwrap();
        assert_eq!((tiles.tiles_high, tiles.tiles_wide, tiles.aspect_ratio_id), (2, 2, 6));
        assert_eq!(tiles.values.len(), 4 * 3 * 64);
        let at = |tile: usize, channel: usize, y: usize, x: usize| tiles.values[((tile * 3 + channel) * 8 + y) * 8 + x];
        for (y, x) in (0..16).flat_map(|y| (0..16).map(move |x| (y, x))) {
            let inside = y < 14 && x < 12;
            for (channel, value) in [x as f32, y as f32, 99.0].into_iter().enumerate() {
                let expected = if inside { value } else { 0.0 };
                assert_eq!(at(y / 8 * 2 + x / 8, channel, y % 8, x % 8), expected, "{y} {x}");
            }
        }
    }

    #[test]
    fn digest_tells_images_and_parameters_apart() {
        let image = RgbImage::from_pixel(8, 8, Rgb([1, 2, 3]));
        let mut other = image.clone();
        other.put_pixel(7, 7, Rgb([1, 2, 4]));
        let plain = processor("{}").unwrap();
        let digest = |processor: &MllamaImageProcessor, image| processor.process(image, "x").unwrap().digest;
        assert_eq!(digest(&plain, &image), digest(&plain, &image));
        assert_ne!(digest(&plain, &image), digest(&plain, &other));
        let shifted = processor(r#"{"image_mean": [0.5, 0.5, 0.6]}"#).unwrap();
        assert_ne!(digest(&plain, &image), digest(&shifted, &image));
    }

    #[test]
    fn refuses_what_it_does_not_do() {
        for (settings, code) in [
            ("[", "processor.config"),
            (r#"{"do_resize": false}"#, "processor.unsupported"),
            (r#"{"do_pad": false}"#, "processor.unsupported"),
            (r#"{"resample": 0}"#, "processor.unsupported"),
            (r#"{"size": {"height": 8, "width": 9}}"#, "processor.mismatch"),
            (r#"{"max_image_tiles": 5}"#, "processor.mismatch"),
        ] {
            let fault = Fault::from(processor(settings).unwrap_err());
            assert_eq!(fault.code, code, "{settings}");
            assert_eq!(fault.class, vgen_core::FaultClass::Stop);
        }
        let no_pixels = processor("{}").unwrap().process(&RgbImage::new(0, 5), "x");
        assert!(matches!(no_pixels, Err(ImageError::Empty { .. })));
    }

    #[test]
    fn aspect_ratios_of_four_tiles() {
        let published = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)];
        assert_eq!(all_aspect_ratios(4), published);
    }
}
