//! What happens to data on its way: bits that flip, parts that are lost, doubled or put elsewhere, numbers that are absurd.

use fastrand::Rng;

/// Values at the edges of what fields of binary formats hold.
const EDGES: [u64; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// What a number or a string of a text may become.
const WORDS: [&str; 18] = [
    "-1",
    "0",
    "1e400",
    "-1e-400",
    "18446744073709551616",
    "0.1",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\"\u{0}\"",
    "NaN",
    "\"\\ud800\"",
    "{{",
    "{% for",
    "\u{feff}",
    "\n",
];

/// Breaks some bytes of `bytes`, in one to six ways; `other` is where foreign parts come from.
pub(crate) fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..rng.usize(1..=6) {
        let at = rng.usize(0..=bytes.len());
        let len = rng.usize(0..=bytes.len() - at).min(1 << rng.usize(0..12));
        match rng.u8(0..10) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(0..8),
            2 if at < bytes.len() => bytes[at] = rng.u8(..),
            3 => {
                let edge = EDGES[rng.usize(0..EDGES.len())];
                let size = [1, 2, 4, 8][rng.usize(0..4)];
                let field =
                    if rng.bool() { edge.to_le_bytes() } else { edge.rotate_left(64 - 8 * size as u32).to_be_bytes() };
                bytes.iter_mut().skip(at).zip(&field[..size]).for_each(|(byte, field)| *byte = *field);
            }
            4 => drop(bytes.drain(at..at + len)),
            5 => {
                let part = bytes[at..at + len].to_vec();
                let to = rng.usize(0..=bytes.len());
                drop(bytes.splice(to..to, part));
            }
            6 => bytes.truncate(at),
            7 if !other.is_empty() => {
                let from = rng.usize(0..other.len());
                let part = &other[from..other.len().min(from + len + 1)];
                drop(bytes.splice(at..at + len, part.iter().copied()));
            }
            _ => replace_word(rng, bytes, at),
        }
    }
}

/// Puts another value where the next number or string of a text stands.
fn replace_word(rng: &mut Rng, bytes: &mut Vec<u8>, from: usize) {
    let word = WORDS[rng.usize(0..WORDS.len())];
    let Some(start) = bytes[from..].iter().position(|byte| byte.is_ascii_digit() || *byte == b'"').map(|i| from + i)
    else {
        return;
    };
    let ends: fn(&u8) -> bool = if bytes[start] == b'"' { |byte| *byte == b'"' } else { |byte| !byte.is_ascii_digit() };
    let len = bytes[start + 1..].iter().position(ends).unwrap_or(0);
    let end = start + 1 + len + usize::from(bytes[start] == b'"');
    drop(bytes.splice(start..end.min(bytes.len()), word.bytes()));
}
