//! Bodies of requests: JSON text in pieces, with images in between that become base64 only while they are sent.
//!
//! An image is the bulk of a body. It is never copied, escaped or held as text as a whole: at most two chunks of its
//! text exist for each request, and their buffers are used again as soon as the connection has taken them. Memory in
//! use is then set by the requests in flight and not by the size of the images.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use base64::Engine;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};

use super::limit::lock;

/// Bytes of an image that become one chunk: a multiple of 3, so that no padding falls between chunks, and small enough
/// to stay in the processor's cache until the connection takes the text.
const RAW_CHUNK: usize = 48 << 10;

/// Chunks of one request that may exist at a time: one on its way, one being made.
const CHUNKS: usize = 2;

/// A body that is not larger is made in one piece.
const SMALL: usize = 64 << 10;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
static BASE64: std::sync::LazyLock<base64::engine::Simd> =
    std::sync::LazyLock::new(|| base64::engine::Simd::standard(base64::engine::general_purpose::PAD));
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
use base64::engine::general_purpose::STANDARD as BASE64;

/// A part of a body.
#[derive(Clone, Debug)]
enum Piece {
    Text(Bytes),
    /// To be sent as base64.
    Image(Arc<[u8]>),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Image(bytes) => bytes.len().div_ceil(3) * 4,
        }
    }
}

/// A body, or a part of one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    pieces: Vec<Piece>,
    /// Text after the last piece.
    text: String,
}

impl Pieces {
    pub(super) fn push_str(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// A text that is shared, not copied.
    pub(super) fn push_shared(&mut self, text: Bytes) {
        self.end_text();
        self.pieces.push(Piece::Text(text));
    }

    /// The base64 of these bytes.
    pub(super) fn push_base64(&mut self, bytes: Arc<[u8]>) {
        self.end_text();
        self.pieces.push(Piece::Image(bytes));
    }

    pub(super) fn push_pieces(&mut self, more: &Self) {
        self.end_text();
        self.pieces.extend(more.pieces.iter().cloned());
        self.text.push_str(&more.text);
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            self.pieces.push(Piece::Text(std::mem::take(&mut self.text).into()));
        }
    }

    /// With every image turned into text: for bodies that are sent several times.
    pub(super) fn encoded(mut self) -> Self {
        for piece in &mut self.pieces {
            if let Piece::Image(bytes) = piece {
                *piece = Piece::Text(BASE64.encode(bytes).into());
            }
        }
        self
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.iter().map(Piece::len).sum::<usize>() + self.text.len()
    }

    /// As one text.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::with_capacity(self.len());
        for piece in &self.pieces {
            match piece {
                // Pieces are made of whole strings.
                Piece::Text(bytes) => text.push_str(&String::from_utf8_lossy(bytes)),
                Piece::Image(bytes) => BASE64.encode_string(bytes, &mut text),
            }
        }
        text.push_str(&self.text);
        text
    }

    /// As a request's body.
    pub(super) fn to_body(&self) -> reqwest::Body {
        if self.len() <= SMALL {
            return self.to_text().into();
        }
        let mut pieces = self.clone();
        pieces.end_text();
        let left = pieces.len();
        reqwest::Body::wrap(Sending { pieces: pieces.pieces, at: 0, offset: 0, left, home: Arc::default() })
    }
}

/// Where the buffers of chunks come back to.
#[derive(Debug, Default)]
struct Home {
    buffers: Mutex<Buffers>,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Buffers {
    spare: Vec<Vec<u8>>,
    made: usize,
}

impl Home {
    fn take(&self) -> Option<Vec<u8>> {
        let mut buffers = lock(&self.buffers);
        match buffers.spare.pop() {
            None if buffers.made < CHUNKS => {
                buffers.made += 1;
                Some(vec![0; RAW_CHUNK / 3 * 4])
            }
            spare => spare,
        }
    }
}

/// A chunk of an image's text. Gives its buffer back when the connection has taken it.
struct Chunk {
    buffer: Vec<u8>,
    len: usize,
    home: Arc<Home>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        lock(&self.home.buffers).spare.push(std::mem::take(&mut self.buffer));
        self.home.waker.wake();
    }
}

/// A body on its way.
struct Sending {
    pieces: Vec<Piece>,
    /// The piece that is next, and how much of it is sent.
    at: usize,
    offset: usize,
    /// Bytes not handed out yet.
    left: usize,
    home: Arc<Home>,
}

impl Sending {
    fn buffer(&self, context: &Context<'_>) -> Poll<Vec<u8>> {
        if let Some(buffer) = self.home.take() {
            return Poll::Ready(buffer);
        }
        self.home.waker.register(context.waker());
        // One may have come back in between.
        self.home.take().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Body for Sending {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.pieces.get(self.at).cloned() {
            None => return Poll::Ready(None),
            Some(Piece::Text(text)) => {
                self.at += 1;
                text
            }
            Some(Piece::Image(image)) => {
                let mut buffer = std::task::ready!(self.buffer(context));
                let raw = &image[self.offset..image.len().min(self.offset + RAW_CHUNK)];
                // The buffer is made for a chunk of this size.
                let len = BASE64.encode_slice(raw, &mut buffer).unwrap_or_default();
                self.offset += raw.len();
                if self.offset == image.len() {
                    (self.at, self.offset) = (self.at + 1, 0);
                }
                Bytes::from_owner(Chunk { buffer, len, home: Arc::clone(&self.home) })
            }
        };
        self.left -= bytes.len();
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.pieces.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use std::future::poll_fn;

    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn sending(pieces: &Pieces) -> Sending {
        let mut pieces = pieces.clone();
        pieces.end_text();
        let left = pieces.len();
        Sending { pieces: pieces.pieces, at: 0, offset: 0, left, home: Arc::default() }
    }

    async fn next(body: &mut Sending) -> Option<Bytes> {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        frame.map(|frame| frame.unwrap().into_data().unwrap())
    }

    proptest! {
        #[test]
        fn what_is_sent_is_the_text(sizes in prop::collection::vec(0_usize..200_000, 1..4), several in any::<bool>()) {
            let (mut pieces, mut text) = (Pieces::default(), String::new());
            for size in sizes {
                let image: Arc<[u8]> = (0..size).map(|place| (place * 7 % 251) as u8).collect();
                pieces.push_str("{\"a\":\"");
                pieces.push_base64(Arc::clone(&image));
                pieces.push_shared(Bytes::from_static(b"\"}"));
                text = format!("{text}{{\"a\":\"{}\"}}", STANDARD.encode(&image));
            }
            if several {
                pieces = pieces.encoded();
            }
            prop_assert_eq!(pieces.len(), text.len());
            prop_assert_eq!(pieces.to_text(), text.clone());
            let mut body = sending(&pieces);
            let mut sent = Vec::new();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                while let Some(bytes) = next(&mut body).await {
                    sent.extend_from_slice(&bytes);
                    assert_eq!(body.size_hint().exact().unwrap() as usize, text.len() - sent.len());
                }
            });
            prop_assert!(body.is_end_stream() && sent == text.as_bytes());
        }
    }

    /// A connection that takes nothing holds two chunks, whatever the size of the image.
    #[tokio::test]
    async fn chunks_wait_for_the_connection() {
        let mut pieces = Pieces::default();
        pieces.push_base64(vec![7; 10 * RAW_CHUNK].into());
        let mut body = sending(&pieces);
        let (first, _second) = (next(&mut body).await, next(&mut body).await);
        let wait = tokio::time::timeout(std::time::Duration::from_millis(50), next(&mut body)).await;
        assert!(wait.is_err(), "a third chunk");
        drop(first);
        assert!(next(&mut body).await.is_some());
    }
}
