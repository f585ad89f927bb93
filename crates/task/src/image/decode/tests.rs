// Fixtures and inputs of the tests are their own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::*;
use crate::image::{Filter, resize};

/// JPEGs with inks or fine colour, whose decoder differs by a few levels in the inverse transform and in upsampling.
const RARE: [&str; 4] = ["cmyk.jpg", "ycck.jpg", "cmyk420.jpg", "fine_colour.jpg"];
const RARE_LEVELS: u8 = 3;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images")
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn decode_file(name: &str) -> Result<RgbImage, ImageError> {
    decode(&file(name), name, &ImageLimits::default())
}

#[derive(Deserialize)]
struct Expected {
    size: (u32, u32),
    rgb: String,
}

fn expected() -> BTreeMap<String, Expected> {
    serde_json::from_slice(&file("expected.json")).unwrap()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let (digits, _) = hex.as_bytes().as_chunks::<2>();
    digits.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn every_format_as_pillow() {
    let expected = expected();
    assert!(expected.len() > 30);
    let mut wrong = Vec::new();
    for (name, Expected { size, rgb }) in expected {
        let tolerance = if RARE.contains(&name.as_str()) { RARE_LEVELS } else { 0 };
        match decode_file(&name) {
            Ok(pixels) if pixels.dimensions() == size => {
                let worst = pixels.iter().zip(bytes_of(&rgb)).map(|(ours, theirs)| ours.abs_diff(theirs)).max();
                if worst > Some(tolerance) {
                    wrong.push(format!("{name}: {worst:?} levels off"));
                }
            }
            Ok(pixels) => wrong.push(format!("{name}: {:?}, not {size:?}", pixels.dimensions())),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[derive(Deserialize)]
struct Resized {
    resample: u64,
    width: usize,
    height: usize,
    sha256: String,
}

#[test]
fn every_filter_as_pillow() {
    let image = decode_file("noise.png").unwrap();
    let resized: Vec<Resized> = serde_json::from_slice(&file("resized.json")).unwrap();
    assert!(resized.len() > 30);
    let mut wrong = Vec::new();
    for Resized { resample, width, height, sha256 } in resized {
        let filter = Filter::from_pillow(resample).unwrap();
        let ours = Sha256::digest(resize(&image, width, height, filter).as_raw());
        if ours[..] != bytes_of(&sha256)[..] {
            wrong.push(format!("{filter:?} {width}x{height}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn code(result: Result<RgbImage, ImageError>) -> &'static str {
    result.unwrap_err().code()
}

#[test]
fn what_is_no_image() {
    let limits = ImageLimits::default();
    assert_eq!(code(decode(b"", "empty.png", &limits)), "image.empty");
    for text in [&b"just a text"[..], b"<!DOCTYPE html><html>", b"<svg xmlns='x'/>", b"{\"error\": 1}", &[0, 1, 2, 3]] {
        assert_eq!(code(decode(text, "text.jpg", &limits)), "image.unsupported_format");
    }
    let page = decode(b"\n<html>", "page.jpg", &limits).unwrap_err();
    assert_eq!(page.to_string(), "image page.jpg is an HTML page, not an image");
    let icon = [0, 0, 1, 0, 1, 0, 16, 16, 0, 0, 1, 0, 32, 0, 104, 4, 0, 0, 22, 0, 0, 0];
    assert_eq!(code(decode(&icon, "icon.png", &limits)), "image.unsupported_format");
}

#[test]
fn what_is_cut_off() {
    for name in ["rgb.png", "rgb.jpg", "progressive.jpg", "rgb.webp", "rgb.bmp", "rgb.tiff"] {
        let bytes = file(name);
        for keep in [20, bytes.len() / 2, bytes.len() * 9 / 10] {
            let cut = decode(&bytes[..keep], name, &ImageLimits::default());
            assert_eq!(code(cut), "image.decode", "{name} at {keep}");
        }
    }
}

#[test]
fn what_is_too_large() {
    assert_eq!(
        decode_file("bomb.png"),
        Err(ImageError::TooManyPixels { name: "bomb.png".into(), width: 10_000, height: 10_000, limit: 89_478_485 })
    );
    let limits = ImageLimits { max_pixels: 19 * 13, ..ImageLimits::default() };
    assert!(decode(&file("rgb.png"), "x", &limits).is_ok());
    let limits = ImageLimits { max_pixels: 19 * 13 - 1, ..ImageLimits::default() };
    for name in ["rgb.png", "rgb.jpg", "rgb.webp", "plain.gif", "rgb.bmp", "rgb.tiff"] {
        assert_eq!(code(decode(&file(name), name, &limits)), "image.too_many_pixels", "{name}");
    }
    let limits = ImageLimits { max_bytes: 100, ..ImageLimits::default() };
    assert_eq!(code(decode(&file("rgb.png"), "x", &limits)), "image.too_large");
}

/// Damaged files of every format: any answer but a panic, and no panic caught on the way.
#[test]
fn damaged_files_never_panic() {
    let limits = ImageLimits { max_pixels: 1 << 16, ..ImageLimits::default() };
    // A small generator of its own keeps the damage the same in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for name in expected().keys() {
        let whole = file(name);
        for _ in 0..100 {
            let mut damaged = whole.clone();
            for _ in 0..1 + random(4) {
                let place = random(damaged.len());
                match random(4) {
                    0 => damaged[place] = random(256) as u8,
                    1 => damaged[place] ^= 1 << random(8),
                    2 => damaged[place] = [0, 0xff, 0x7f, 0x80][random(4)],
                    _ => damaged.truncate(place.max(1)),
                }
            }
            if let Err(ImageError::Decode { reason, .. }) = decode(&damaged, name, &limits) {
                // Third-party decoders may still panic: then it must have become an error, as it has here.
                assert!(!reason.is_empty(), "{name}");
            }
        }
    }
}
