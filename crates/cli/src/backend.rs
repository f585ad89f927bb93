//! Opens the backend that the configuration names.

use std::sync::Arc;

use vgen_backends::mock::MockBackend;
use vgen_core::{Backend, Fault};
use vgen_task::image::KeptImages;

use crate::local;
use crate::messages::Messages;
use crate::remote;
use crate::table::{BackendTable, Config};

/// Opens the backend, which keeps images from the network in `kept`; the local one loads its model here, the remote one waits for its endpoint.
///
/// # Errors
/// `config.backend` if none was named; what the backend says.
pub(crate) fn open(
    config: &Config,
    kept: Option<&Arc<KeptImages>>,
    messages: &Messages,
) -> Result<Arc<dyn Backend>, Fault> {
    match &config.backend {
        BackendTable::None => Err(Fault::stop("config.backend", "no backend is named")
            .with_hint("add a table [backend] with a kind to the config file")),
        BackendTable::Mock(options) => Ok(Arc::new(MockBackend::new(options.clone())?)),
        BackendTable::Local(table) => local::open(table, &config.images, &config.sampling, kept, messages),
        BackendTable::Remote(table) => {
            remote::open(table, &config.images, kept, config.run.progress_interval, messages)
        }
    }
}

/// Whether the backend fetches the images in the network itself, and not a server that gets their URLs.
pub(crate) fn fetches(config: &Config) -> bool {
    match &config.backend {
        BackendTable::Local(_) => true,
        BackendTable::Remote(table) => table.config.inline_images,
        BackendTable::Mock(_) | BackendTable::None => false,
    }
}
