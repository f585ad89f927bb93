//! [`image_spans`]: which images each token of a prompt may attend to.

use std::ops::Range;

/// For each token of `ids` the images it attends to, as a range of image numbers in order of their tokens.
///
/// An image is seen from its own token up to the next image's token; the images of a run of adjacent image tokens
/// share the end of the run's last one. So text sees the latest group of adjacent images, and tokens before the first
/// image see none (an empty range). A generated token sees what the prompt's last token sees.
pub fn image_spans(ids: &[u32], image_token: u32) -> Vec<Range<usize>> {
    let mut spans = Vec::with_capacity(ids.len());
    let (mut first, mut next) = (0, 0);
    let mut after_image = false;
    for &id in ids {
        let is_image = id == image_token;
        if is_image {
            if !after_image {
                first = next;
            }
            next += 1;
        }
        after_image = is_image;
        spans.push(first..next);
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_sees_the_latest_group() {
        let spans = image_spans(&[1, 9, 9, 2, 3, 9, 4], 9);
        assert_eq!(spans, [0..0, 0..1, 0..2, 0..2, 0..2, 2..3, 2..3]);
    }

    #[test]
    fn no_image_no_span() {
        assert_eq!(image_spans(&[1, 2], 9), [0..0, 0..0]);
        assert!(image_spans(&[], 9).is_empty());
    }
}
