//! Every error code of the source is in the table of `docs/errors.md`, and none there is without a source.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The first words of codes.
const FAMILIES: [&str; 31] = [
    "backend",
    "batch",
    "bench",
    "config",
    "constraint",
    "demo",
    "device",
    "engine",
    "hub",
    "image",
    "input",
    "kernel",
    "lint",
    "merge",
    "mock",
    "model",
    "output",
    "plan",
    "processor",
    "prompt",
    "record",
    "remote",
    "resume",
    "row",
    "run",
    "sample",
    "sampling",
    "serve",
    "task",
    "template",
    "tokenizer",
];
/// Names of files and tables that look like codes.
const NO_CODES: [&str; 11] = [
    "config.json",
    "run.json",
    "run.toml",
    "tokenizer.json",
    "model.safetensors",
    "plan.seen",
    "output.weight",
    "task.template",
    "input.shard",
    "input.sample",
    "task.image_position",
];

/// Put together from pieces in the source.
const COMPOSED: [&str; 3] = ["remote.image_data_url", "remote.image_read", "remote.image_type"];

fn codes_in(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            codes_in(&path, found);
            continue;
        }
        // Keys of the configuration, dotted like codes; and tests with codes of their own.
        let name = path.to_string_lossy().into_owned();
        let skipped = ["recorded.rs", "tests.rs", "keys.rs"].iter().any(|end| name.ends_with(end))
            || name.contains("tests/")
            || !name.ends_with(".rs");
        if skipped {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for literal in text.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| line.split('"'))
        {
            let Some((family, rest)) = literal.split_once('.') else { continue };
            let plain = |text: &str| {
                !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            };
            if (FAMILIES.contains(&family) || family == "usage") && plain(rest) && !NO_CODES.contains(&literal) {
                found.insert(literal.to_owned());
            }
        }
    }
}

#[test]
fn the_table_has_every_code_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut used: BTreeSet<String> = COMPOSED.map(str::to_owned).into();
    for entry in fs::read_dir(root.join("crates")).unwrap() {
        codes_in(&entry.unwrap().path().join("src"), &mut used);
    }
    let table = fs::read_to_string(root.join("docs/errors.md")).unwrap();
    let listed: BTreeSet<String> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(code, _)| code.to_owned()))
        .collect();
    let missing: Vec<_> = used.difference(&listed).collect();
    assert!(missing.is_empty(), "not in docs/errors.md: {missing:?}");
    let unused: Vec<_> = listed.difference(&used).collect();
    assert!(unused.is_empty(), "in docs/errors.md, but nowhere in the source: {unused:?}");
}
