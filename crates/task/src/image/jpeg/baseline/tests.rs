#![allow(clippy::unwrap_used)] // a failed call is a failed test

use libjpeg_turbo_rs::{ColorSpace, Decoder, Encoder, PixelFormat, Subsampling};

use super::decode;

/// Soft shapes and grain, other ones for each seed.
fn picture(width: usize, height: usize, seed: usize) -> Vec<u8> {
    let mut state = (seed as u32).wrapping_mul(2_654_435_761) + 1;
    (0..3 * width * height)
        .map(|i| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let (x, y, channel) = (i / 3 % width, i / 3 / width, i % 3);
            let soft = 128.0 + 110.0 * ((x * (channel + 1)) as f32 / 9.0).sin() * ((y + seed) as f32 / 7.0).cos();
            (soft as i32 + (state >> 27) as i32 - 16).clamp(0, 255) as u8
        })
        .collect()
}

fn by_library(bytes: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::new(bytes).unwrap();
    decoder.set_output_format(PixelFormat::Rgb);
    let mut pixels = vec![0; decoder.output_buffer_size().unwrap()];
    decoder.decode_image_into(&mut pixels).unwrap();
    pixels
}

fn jpeg(pixels: &[u8], (width, height): (usize, usize), change: impl FnOnce(Encoder<'_>) -> Encoder<'_>) -> Vec<u8> {
    change(Encoder::new(pixels, width, height, PixelFormat::Rgb)).encode().unwrap()
}

#[test]
fn pixels_are_those_of_the_library() {
    let mut seed = 0;
    for size in [(5, 1), (6, 7), (16, 16), (17, 33), (31, 9), (48, 15), (64, 50), (131, 97)] {
        for subsampling in [Subsampling::S444, Subsampling::S422, Subsampling::S420] {
            for (quality, restart, optimize) in
                [(100, 0, false), (92, 1, true), (75, 3, false), (20, 0, true), (1, 2, true)]
            {
                seed += 1;
                let pixels = picture(size.0, size.1, seed);
                let bytes = jpeg(&pixels, size, |encoder| {
                    let encoder = encoder.quality(quality).subsampling(subsampling).optimize_huffman(optimize);
                    encoder.restart_blocks(restart)
                });
                let mut found = vec![0; pixels.len()];
                decode(&bytes, &mut found).unwrap();
                assert!(found == by_library(&bytes), "{size:?} {subsampling:?} {quality} {restart}");
            }
        }
    }
}

#[test]
fn other_kinds_are_left_to_the_library() {
    let (size, pixels) = ((40, 24), picture(40, 24, 3));
    let other: [&dyn Fn(Encoder<'_>) -> Encoder<'_>; 6] = [
        &|encoder| encoder.progressive(true),
        &|encoder| encoder.arithmetic(true),
        &|encoder| encoder.subsampling(Subsampling::S440),
        &|encoder| encoder.subsampling(Subsampling::S411),
        &|encoder| encoder.colorspace(ColorSpace::Rgb),
        &|encoder| encoder.grayscale_from_color(true),
    ];
    for (number, change) in other.iter().enumerate() {
        let bytes = jpeg(&pixels, size, change);
        assert!(decode(&bytes, &mut vec![0; pixels.len()]).is_none(), "{number}");
    }
    let narrow = jpeg(&pixels, (4, 240), |encoder| encoder.subsampling(Subsampling::S420));
    assert!(decode(&narrow, &mut vec![0; pixels.len()]).is_none());
    let usual = jpeg(&pixels, size, |encoder| encoder);
    assert!(decode(&usual, &mut vec![0; pixels.len() - 3]).is_none());
}

#[test]
fn damage_is_left_to_the_library_or_has_its_pixels() {
    let (size, pixels) = ((67, 45), picture(67, 45, 9));
    for restart in [0, 2] {
        let bytes = jpeg(&pixels, size, |encoder| encoder.subsampling(Subsampling::S420).restart_blocks(restart));
        let mut found = vec![0; pixels.len()];
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], &mut found).is_none(), "{cut}");
        }
        let mut decoded = 0;
        for at in 2..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            found.fill(0);
            if decode(&damaged, &mut found).is_some() {
                assert!(found == by_library(&damaged), "{at}");
                decoded += 1;
            }
        }
        assert!(decoded > 100, "{decoded}");
    }
}
