//! vgen-dataset
