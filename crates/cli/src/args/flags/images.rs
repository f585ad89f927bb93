//! What images may be, and where they may come from.

use clap::Args;

use super::given;
use crate::quantity;
use crate::settings::Settings;

#[derive(Debug, Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct ImageFlags {
    /// Largest image file or download [default: 64MiB].
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    max_image_bytes: Option<u64>,
    /// Largest width times height in pixels [default: 89478485].
    #[arg(long, value_name = "PIXELS")]
    max_image_pixels: Option<u64>,
    /// Longest time for one image from the network, in seconds [default: 60].
    #[arg(long, value_name = "SECONDS")]
    image_timeout: Option<f64>,
    /// Redirects that an image's URL may take [default: 5].
    #[arg(long, value_name = "N")]
    max_redirects: Option<u32>,
    /// Let images' URLs lead to loopback, private and other addresses that are not public.
    #[arg(long)]
    allow_private_addresses: bool,
}

impl ImageFlags {
    pub(super) fn add_to(self, settings: &mut Settings) {
        settings.flag(("images", "max_bytes"), "--max-image-bytes", self.max_image_bytes);
        settings.flag(("images", "max_pixels"), "--max-image-pixels", self.max_image_pixels);
        settings.flag(("images", "timeout"), "--image-timeout", self.image_timeout);
        settings.flag(("images", "max_redirects"), "--max-redirects", self.max_redirects);
        let private = given(self.allow_private_addresses);
        settings.flag(("images", "allow_private_addresses"), "--allow-private-addresses", private);
    }
}
