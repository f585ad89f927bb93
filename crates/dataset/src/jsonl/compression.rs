//! Gzip and zstd around JSON lines.
//!
//! Inputs are recognised by their first bytes, whatever their name, and may consist of several members (frames), as
//! `cat a.gz b.gz` makes them. Outputs are written member by member, each of whole rows, so that an output is
//! readable up to its last member after a crash.

use std::io::{self, BufRead, Cursor, Read, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// A good ratio at a speed that no backend notices.
const ZSTD_LEVEL: i32 = 3;
/// Windows of `zstd --long` are read, too.
const ZSTD_WINDOW_LOG: u32 = 31;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the extension, for outputs.
    pub(crate) fn of_path(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Self::Gzip,
            Some("zst") => Self::Zstd,
            _ => Self::None,
        }
    }

    /// Whole rows as one member.
    pub(crate) fn member(self, lines: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(lines.to_vec()),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(lines)?;
                encoder.finish()
            }
            Self::Zstd => zstd::bulk::compress(lines, ZSTD_LEVEL),
        }
    }
}

/// Puts the matching decoder round a reader, by its first bytes.
pub(crate) fn decoded(mut reader: Box<dyn BufRead + Send>) -> io::Result<(Compression, Box<dyn BufRead + Send>)> {
    // A pipe may hand out its first bytes one by one.
    let mut first = Vec::with_capacity(ZSTD_MAGIC.len());
    reader.by_ref().take(ZSTD_MAGIC.len() as u64).read_to_end(&mut first)?;
    let compression = if first == ZSTD_MAGIC {
        Compression::Zstd
    } else if first.starts_with(&GZIP_MAGIC) {
        Compression::Gzip
    } else {
        Compression::None
    };
    let whole = Cursor::new(first).chain(reader);
    Ok(match compression {
        Compression::None => (compression, Box::new(whole)),
        Compression::Gzip => (compression, buffered(MultiGzDecoder::new(whole))),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            (compression, buffered(decoder))
        }
    })
}

fn buffered(reader: impl Read + Send + 'static) -> Box<dyn BufRead + Send> {
    Box::new(io::BufReader::with_capacity(1 << 17, reader))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    fn text(seed: usize) -> Vec<u8> {
        (0..20_000).flat_map(|i| format!("{{\"id\":{i},\"x\":{}}}\n", (i * 7919 + seed) % 1013).into_bytes()).collect()
    }

    #[test]
    fn members_come_back_in_order() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let (a, b) = (text(1), text(2));
            let mut file = compression.member(&a).unwrap();
            file.extend(compression.member(&b).unwrap());
            let (found, mut reader) = decoded(Box::new(io::BufReader::new(Cursor::new(file)))).unwrap();
            assert_eq!(found, compression);
            let mut back = Vec::new();
            reader.read_to_end(&mut back).unwrap();
            assert!(back == [a, b].concat(), "{compression:?}");
        }
    }

    #[test]
    fn cut_files_are_errors() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let mut file = compression.member(&text(3)).unwrap();
            file.truncate(file.len() / 2);
            let (_, mut reader) = decoded(Box::new(io::BufReader::new(Cursor::new(file)))).unwrap();
            assert!(reader.read_to_end(&mut Vec::new()).is_err(), "{compression:?}");
        }
    }
}
