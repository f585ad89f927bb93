//! Gzip and zstd around JSON lines.
//!
//! Inputs are recognised by their first bytes, whatever their name, and may consist of several members (frames), as
//! `cat a.gz b.gz` makes them. Outputs are written member by member, each of whole lines, so that an output is
//! readable up to its last member after a crash.

use std::io::{self, BufRead, Chain, Cursor, Read, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Decoded bytes asked of a zstd frame at a time.
const ZSTD_STEP: usize = 1 << 17;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the extension, for outputs.
    pub(super) fn of_path(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Self::Gzip,
            Some("zst") => Self::Zstd,
            _ => Self::None,
        }
    }

    /// Whole lines as one member.
    pub(super) fn member(self, lines: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(lines.to_vec()),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(lines)?;
                encoder.finish()
            }
            Self::Zstd => Ok(compress_to_vec(lines, CompressionLevel::Fastest)),
        }
    }
}

/// Puts the matching decoder round a reader, by its first bytes.
pub(super) fn decoded(mut reader: Box<dyn BufRead + Send>) -> io::Result<(Compression, Box<dyn BufRead + Send>)> {
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
        Compression::Gzip => (compression, Box::new(io::BufReader::new(MultiGzDecoder::new(whole)))),
        Compression::Zstd => (compression, Box::new(io::BufReader::new(ZstdReader::new(whole)))),
    })
}

/// Decodes zstd frames one after the other.
struct ZstdReader {
    source: Chain<Cursor<Vec<u8>>, Box<dyn BufRead + Send>>,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl ZstdReader {
    fn new(source: Chain<Cursor<Vec<u8>>, Box<dyn BufRead + Send>>) -> Self {
        Self { source, decoder: FrameDecoder::new(), in_frame: false }
    }

    /// Starts the next frame; false at the end of the file.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut self.source.by_ref().take(u64::from(length)), &mut io::sink())?;
                }
                Err(error) => return Err(invalid(&error)),
            }
        }
    }
}

impl Read for ZstdReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.in_frame {
                if !self.decoder.is_finished() && self.decoder.can_collect() < buffer.len() {
                    self.decoder
                        .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBytes(ZSTD_STEP))
                        .map_err(|error| invalid(&error))?;
                }
                let count = self.decoder.read(buffer)?;
                if count > 0 || buffer.is_empty() {
                    return Ok(count);
                }
                if !self.decoder.is_finished() {
                    continue;
                }
                self.in_frame = false;
            }
            if !self.next_frame()? {
                return Ok(0);
            }
            self.in_frame = true;
        }
    }
}

fn invalid(error: &FrameDecoderError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("broken zstd data: {error}"))
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
