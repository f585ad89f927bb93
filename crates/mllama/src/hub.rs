//! From a model's name to its files: a folder, the hub's cache, or a download.
