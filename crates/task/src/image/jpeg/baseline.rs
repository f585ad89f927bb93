//! The common kind of JPEG file: one scan of 8-bit luma and colour differences, Huffman-coded, colour at full or half
//! resolution.
//!
//! The pixels are those of [`libjpeg_turbo_rs`], by its own transforms. Faster are the way through the codes, where
//! most of the time goes, and that no planes are held: rows of blocks become pixels while they are in the cache. What
//! is of another kind or damaged is left to that decoder.

use std::sync::Arc;

use libjpeg_turbo_rs::ComponentInfo;
use libjpeg_turbo_rs::common::huffman_table::HuffmanTable;
use libjpeg_turbo_rs::decode::marker::{JpegMetadata, MarkerReader};
use libjpeg_turbo_rs::simd::{self, SimdRoutines};
use vgen_kernels::resample::double;

use super::huffman::{Bits, Codes, Segments};

/// Samples of a block in each direction.
const BLOCK: usize = 8;

/// Lines that a band keeps of the one before: colour is interpolated from a line above to a line below.
const KEPT: usize = 2;

/// Writes the RGB pixels of `bytes` to `pixels`, three bytes each; `None` if that's for the other decoder.
pub(super) fn decode(bytes: &[u8], pixels: &mut [u8]) -> Option<()> {
    let metadata = MarkerReader::new(bytes).read_markers().ok()?;
    let mut picture = Picture::new(&metadata)?;
    if pixels.len() != 3 * picture.width * picture.height {
        return None;
    }
    let segments = Segments::new(bytes.get(metadata.entropy_data_offset..)?)?;
    picture.decode(&segments, usize::from(metadata.restart_interval), pixels)
}

struct Picture {
    width: usize,
    height: usize,
    /// Luma, then the colour differences.
    components: [Component; 3],
    routines: SimdRoutines,
}

/// What is known of a component, and the samples of a band: [`KEPT`] lines of the band before, then a row of units.
struct Component {
    /// Blocks of a unit across and down, which is how much finer the component is sampled than colour.
    across: usize,
    down: usize,
    factors: [u16; 64],
    dc: Arc<HuffmanTable>,
    ac: Codes,
    stride: usize,
    samples: Vec<u8>,
}

impl Picture {
    fn new(metadata: &JpegMetadata) -> Option<Self> {
        let (frame, [scan]) = (&metadata.frame, metadata.scans.as_slice()) else { return None };
        let [luma, colours @ ..] = frame.components.as_slice() else { return None };
        let sampling = |info: &ComponentInfo| (info.horizontal_sampling.into(), info.vertical_sampling.into());
        let (across, down): (usize, usize) = sampling(luma);
        let is_rgb = !metadata.saw_jfif_marker_at_first_sos
            && match metadata.adobe_transform_at_first_sos {
                Some(transform) => transform == 0,
                None => frame.components.iter().map(|info| info.id).eq(*b"RGB"),
            };
        let is_baseline =
            frame.precision == 8 && !frame.is_progressive && !frame.is_lossless && !metadata.is_arithmetic;
        let header = &scan.header;
        let is_whole = (header.spec_start, header.spec_end, header.succ_high, header.succ_low) == (0, 63, 0, 0);
        let is_sampled_as_usual = colours.len() == 2
            && colours.iter().all(|info| sampling(info) == (1, 1))
            && [(1, 1), (2, 1), (2, 2)].contains(&(across, down));
        let (width, height) = (usize::from(frame.width), usize::from(frame.height));
        // Colour of two samples is not interpolated.
        let is_wide = width.div_ceil(across) > 2;
        if !(is_baseline && is_whole && is_sampled_as_usual && is_wide) || is_rgb || height == 0 {
            return None;
        }
        let units = width.div_ceil(BLOCK * across);
        let component = |number: usize| {
            let (info, selector) = (&frame.components[number], header.components.get(number)?);
            let (across, down) = sampling(info);
            let codes = |tables: &[Option<Arc<HuffmanTable>>], index: u8| tables.get(usize::from(index))?.clone();
            let stride = units * BLOCK * across;
            (selector.component_id == info.id).then_some(Component {
                across,
                down,
                factors: metadata.quant_tables.get(usize::from(info.quant_table_index))?.as_ref()?.values,
                dc: codes(&scan.dc_huffman_tables, selector.dc_table_index)?,
                ac: Codes::new(codes(&scan.ac_huffman_tables, selector.ac_table_index)?),
                stride,
                samples: vec![0; stride * (KEPT + BLOCK * down)],
            })
        };
        let components = [component(0)?, component(1)?, component(2)?];
        Some(Self { width, height, components, routines: simd::detect() })
    }

    /// `interval` is the number of units between restart markers, 0 for none.
    fn decode(&mut self, segments: &Segments, interval: usize, pixels: &mut [u8]) -> Option<()> {
        let (across, down) = (self.components[0].across, self.components[0].down);
        let (units, bands) = (self.width.div_ceil(BLOCK * across), self.height.div_ceil(BLOCK * down));
        let mut segments = segments.iter();
        let mut bits = segments.next()?;
        let (mut levels, mut until_restart) = ([0; 3], interval);
        let mut colours = [1, 2].map(|number| vec![0; across * self.components[number].stride]);
        for band in 0..bands {
            for unit in 0..units {
                if interval > 0 && until_restart == 0 {
                    if !bits.is_at_end() {
                        return None;
                    }
                    bits = segments.next()?;
                    (levels, until_restart) = ([0; 3], interval);
                }
                until_restart = until_restart.saturating_sub(1);
                for (component, level) in self.components.iter_mut().zip(&mut levels) {
                    component.decode(&mut bits, level, unit, &self.routines)?;
                }
            }
            self.convert(band, band + 1 == bands, &mut colours, pixels);
            for Component { samples, stride, .. } in &mut self.components {
                let kept = samples.len() - KEPT * *stride;
                samples.copy_within(kept.., 0);
            }
        }
        (bits.is_at_end() && segments.next().is_none()).then_some(())
    }

    /// Lines of a band to pixels. Where colour is interpolated from line to line, these are the lines from the last one
    /// of the band before to the last but one of this.
    fn convert(&self, band: usize, is_last: bool, colours: &mut [Vec<u8>; 2], pixels: &mut [u8]) {
        let Self { width, height, components: [luma, colour @ ..], routines } = self;
        let down = luma.down;
        let (lines, width_of_colour) = (height.div_ceil(down), width.div_ceil(luma.across));
        let (start, end) = (band * BLOCK, lines.min((band + 1) * BLOCK));
        let behind = usize::from(down == 2);
        let (from, to) = (start.saturating_sub(behind), if is_last { end } else { end - behind });
        for line in from..to {
            for row in 0..down {
                let line_of_luma = down * line + row;
                let Some(out) = pixels.chunks_exact_mut(3 * width).nth(line_of_luma) else { break };
                let neighbour = if row == 0 { line.saturating_sub(1) } else { (line + 1).min(lines - 1) };
                let near_and_far = colour.each_ref().map(|component| {
                    [line, neighbour].map(|line| &component.line(KEPT + line - start)[..width_of_colour])
                });
                let [cb, cr] = if luma.across == 1 {
                    near_and_far.map(|[near, _]| near)
                } else {
                    for (to, [near, far]) in colours.iter_mut().zip(near_and_far) {
                        match down {
                            1 => routines.fancy_upsample_h2v1(near, width_of_colour, to),
                            _ => double(near, far, to),
                        }
                    }
                    colours.each_ref().map(Vec::as_slice)
                };
                routines.ycbcr_to_rgb_row(luma.line(KEPT + line_of_luma - down * start), cb, cr, out, *width);
            }
        }
    }
}

impl Component {
    fn line(&self, line: usize) -> &[u8] {
        &self.samples[line * self.stride..][..self.stride]
    }

    /// Decodes the blocks of a unit.
    fn decode(&mut self, bits: &mut Bits<'_>, level: &mut i16, unit: usize, routines: &SimdRoutines) -> Option<()> {
        for (down, across) in (0..self.down).flat_map(|down| (0..self.across).map(move |across| (down, across))) {
            let mut coefficients = [0; BLOCK * BLOCK];
            *level = level.wrapping_add(bits.difference(&self.dc)?);
            coefficients[0] = *level;
            self.ac.coefficients(bits, &mut coefficients)?;
            let mut samples = [0; BLOCK * BLOCK];
            (routines.idct_islow)(&coefficients, &self.factors, &mut samples);
            let first = (KEPT + BLOCK * down) * self.stride + (unit * self.across + across) * BLOCK;
            for (line, samples) in self.samples[first..].chunks_mut(self.stride).zip(samples.as_chunks::<BLOCK>().0) {
                line[..BLOCK].copy_from_slice(samples);
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
