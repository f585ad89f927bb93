//! The remote client.
