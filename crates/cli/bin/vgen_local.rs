//! vgen_local
fn main() {}
