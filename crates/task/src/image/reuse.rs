//! Memory of pixels that goes from one image to the next: touching 36 MB for the first time takes a fifth of the time of
//! decoding 12 megapixels.

use std::cell::RefCell;

/// The most bytes that a thread keeps.
const KEPT: usize = 64 << 20;
/// The most pieces that it keeps: an image has decoded pixels, those of one pass of resizing, and resized ones.
const PIECES: usize = 3;

thread_local! {
    static PIXELS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// `len` bytes of unspecified content.
pub(super) fn take(len: usize) -> Vec<u8> {
    let mut pixels = PIXELS.with_borrow_mut(|kept| {
        // The smallest that is large enough, else the largest.
        let best = kept.iter().enumerate().min_by_key(|(_, pixels)| match pixels.capacity() {
            room if room >= len => (false, room),
            room => (true, usize::MAX - room),
        });
        best.map(|(index, _)| index).map(|index| kept.swap_remove(index)).unwrap_or_default()
    });
    pixels.resize(len, 0);
    pixels
}

/// Keeps what came from [`take`] for the next image of this thread.
pub(super) fn give_back(pixels: Vec<u8>) {
    PIXELS.with_borrow_mut(|kept| {
        let bytes = kept.iter().map(Vec::capacity).sum::<usize>() + pixels.capacity();
        if kept.len() < PIECES && bytes <= KEPT {
            kept.push(pixels);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_to_what_fits_and_has_a_limit() {
        let kept = || PIXELS.with_borrow(Vec::len);
        let [small, large] = [10, 1000].map(take);
        let places = [small.as_ptr(), large.as_ptr()];
        give_back(small);
        give_back(large);
        let [large, small] = [900, 10].map(take);
        assert_eq!([small.as_ptr(), large.as_ptr()], places);
        assert_eq!((small.len(), large.len()), (10, 900));
        give_back(Vec::with_capacity(KEPT + 1));
        assert_eq!(kept(), 0);
        (0..9).for_each(|_| give_back(vec![0; 10]));
        assert_eq!(kept(), PIECES);
    }
}
