//! vgen
fn main() {}
