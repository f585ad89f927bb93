//! vgen-run
