//! What `--version` says.

/// Version, and what this build was made with.
pub(crate) const LONG: &str = concat!(env!("CARGO_PKG_VERSION"), "\nfeatures: ", "cpu", "\nbackends: local, mock");
