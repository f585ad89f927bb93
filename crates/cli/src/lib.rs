//! vgen-cli
