//! [`ImageLimits`]: how much of memory, network and time one image may cost.

use std::time::Duration;

/// Bounds on one image. An image beyond any of them is refused with the bound in the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageLimits {
    /// Largest encoded size in bytes, of a file, a download or a decoded data URL.
    pub max_bytes: usize,
    /// Largest width times height, read from the header before anything is decoded.
    pub max_pixels: u64,
    /// How many redirects a URL may take.
    pub max_redirects: usize,
    /// How often a download is tried again after a connection error, a 429 or a 5xx answer.
    pub retries: u32,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest time for one image from the network, retries included.
    pub timeout: Duration,
    /// Whether URLs may lead to loopback, private and other addresses that aren't public.
    pub allow_private_addresses: bool,
}

impl Default for ImageLimits {
    /// 64 MiB, Pillow's 89 478 485 pixels, 5 redirects, 2 retries, 10 s to connect, 60 s in all, public addresses.
    fn default() -> Self {
        Self {
            max_bytes: 64 << 20,
            max_pixels: 89_478_485,
            max_redirects: 5,
            retries: 2,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(60),
            allow_private_addresses: false,
        }
    }
}
