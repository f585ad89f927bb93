//! Which canvas of tiles an image gets, and how large it is on it.
//!
//! All in `f64` with the divisions in the reference's order: `f32` gives another size for one image in 3000.

/// An image's place on a canvas of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Tiles from top to bottom.
    pub tiles_high: usize,
    /// Tiles from left to right.
    pub tiles_wide: usize,
    /// One more than the index of (tiles_high, tiles_wide) in the aspect ratios.
    pub aspect_ratio_id: usize,
    /// Height of the resized image in pixels, from the top of the canvas.
    pub height: usize,
    /// Width of the resized image in pixels, from the left of the canvas.
    pub width: usize,
}

/// Fits an image of `height` x `width` pixels (neither 0) on the best canvas among `aspect_ratios`, each
/// (tiles high, tiles wide) with tiles of `tile_size` pixels; `None` if there is no aspect ratio.
///
/// The best canvas is the one that needs the least upscaling, or if all shrink the image, the one that shrinks it
/// least; among equals the one of smallest area, then the first.
pub fn fit_to_canvas(
    height: usize,
    width: usize,
    tile_size: usize,
    aspect_ratios: &[(usize, usize)],
) -> Option<Geometry> {
    let (h, w) = (height as f64, width as f64);
    let scales: Vec<f64> = aspect_ratios
        .iter()
        .map(|&(high, wide)| ((high * tile_size) as f64 / h).min((wide * tile_size) as f64 / w))
        .collect();
    let smallest_up = scales.iter().copied().filter(|&scale| scale >= 1.0).reduce(f64::min);
    let scale = match smallest_up {
        Some(scale) => scale,
        None => scales.iter().copied().reduce(f64::max)?,
    };
    let (index, &(tiles_high, tiles_wide)) = aspect_ratios
        .iter()
        .enumerate()
        .filter(|&(index, _)| scales[index] == scale)
        .min_by_key(|(_, (high, wide))| high * wide)?;

    // An image smaller than a tile grows until a side fills the tile; from there to the canvas it keeps its size.
    let target_height = height.clamp(tile_size, tiles_high * tile_size);
    let target_width = width.clamp(tile_size, tiles_wide * tile_size);
    let (scale_h, scale_w) = (target_height as f64 / h, target_width as f64 / w);
    let (height, width) = if scale_w < scale_h {
        (side(h * scale_w, target_height), target_width)
    } else {
        (target_height, side(w * scale_h, target_width))
    };
    Some(Geometry { tiles_high, tiles_wide, aspect_ratio_id: index + 1, height, width })
}

/// `exact` rounded down, at least 1, at most `most`.
fn side(exact: f64, most: usize) -> usize {
    (exact.floor() as usize).max(1).min(most)
}

#[cfg(test)]
mod tests {
    // Fixtures and inputs of the tests are their own.
    #![allow(clippy::unwrap_used)]

    use super::*;

    const RATIOS: [(usize, usize); 8] = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)];

    #[test]
    fn every_size_fits() {
        for tile in [56, 560] {
            for height in (1..=3000).step_by(7).chain([1, 2, 3, 55, 56, 57, 559, 560, 561, 2240, 2241]) {
                for width in (1..=3000).step_by(11).chain([1, 2, 3, 55, 56, 57, 559, 560, 561, 2240, 2241]) {
                    let fit = fit_to_canvas(height, width, tile, &RATIOS).unwrap();
                    assert!(fit.tiles_high * fit.tiles_wide <= 4, "{height}x{width}: {fit:?}");
                    assert_eq!(RATIOS[fit.aspect_ratio_id - 1], (fit.tiles_high, fit.tiles_wide));
                    assert!((1..=fit.tiles_high * tile).contains(&fit.height), "{height}x{width}: {fit:?}");
                    assert!((1..=fit.tiles_wide * tile).contains(&fit.width), "{height}x{width}: {fit:?}");
                }
            }
        }
    }

    #[test]
    fn no_ratio_no_canvas() {
        assert_eq!(fit_to_canvas(10, 10, 56, &[]), None);
    }
}
