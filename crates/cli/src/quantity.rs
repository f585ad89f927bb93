//! Sizes and durations as people write them.

use std::time::Duration;

/// Bytes: a number, or one with a unit: `64MiB`, `1.5G`. `K`, `M`, `G`, `T` and `KiB` ... are powers of 1024, `KB` ...
/// powers of 1000.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim());
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no size; write bytes or, for example, 64MiB"))?;
    let (letter, rest) = unit.split_at(unit.chars().next().map_or(0, char::len_utf8));
    let base: f64 = match rest {
        "" | "iB" => 1024.0,
        "B" => 1000.0,
        _ => return Err(format!("{unit:?} is no unit of size; write B, KiB, MiB, GiB or TiB")),
    };
    let power = match (letter, rest) {
        ("" | "B", "") => 0,
        ("K" | "k", _) => 1,
        ("M", _) => 2,
        ("G", _) => 3,
        ("T", _) => 4,
        _ => return Err(format!("{unit:?} is no unit of size; write B, KiB, MiB, GiB or TiB")),
    };
    let bytes = number * base.powi(power);
    if bytes.is_finite() && bytes <= u64::MAX as f64 { Ok(bytes as u64) } else { Err(format!("{text:?} is too large")) }
}

/// Seconds, fractions allowed, above 0.
pub(crate) fn seconds(number: f64) -> Result<Duration, String> {
    if number > 0.0 {
        Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
    } else {
        Err(format!("expected seconds above 0, got {number}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in
            [("17", 17), ("17B", 17), ("2K", 2048), ("1.5MiB", 3 << 19), ("2 GB", 2_000_000_000), ("1T", 1 << 40)]
        {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "x", "-1", "1X", "1MiBs", "1e3", "99999999T"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
