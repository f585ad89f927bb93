//! Which model it is, beyond its name: the commit on the hub, and a digest of its files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use vgen_mllama::hub::{self, HubOptions};
use vgen_run::record::ModelRecord;

use crate::table::{BackendTable, Config};
use crate::{demo, hub as environment};

/// Files up to this size are digested whole; of larger ones, as many blocks of [`BLOCK`] bytes as fit in it, spread
/// evenly. A file of weights that differs in one block only may go unnoticed; another checkpoint will not.
const WHOLE: u64 = 64 << 20;
const BLOCK: u64 = 1 << 20;

/// What is known of the backend's model, which is called `name`.
pub(crate) fn model(config: &Config, name: &str) -> ModelRecord {
    let mut record = ModelRecord { name: name.to_owned(), ..ModelRecord::default() };
    let BackendTable::Local(table) = &config.backend else { return record };
    let Some(model) = &table.model else { return record };
    if model == demo::MODEL {
        let mut digest = Sha256::new();
        for (name, content) in demo::model_files() {
            digest.update(name.as_bytes());
            digest.update(content);
        }
        record.digest = Some(hexadecimal(&digest.finalize()));
        return record;
    }
    // The files are there: the backend has loaded them.
    let options = HubOptions { offline: true, ..environment::options(table.revision.clone()) };
    if let Ok(folder) = hub::resolve(model, &options, &|_| Ok(()), None) {
        record.revision = folder.revision;
        record.digest = digest(&folder.path).ok();
    }
    record
}

fn digest(folder: &Path) -> io::Result<String> {
    let mut paths: Vec<PathBuf> = Vec::new();
    if folder.is_file() {
        paths.push(folder.to_owned());
    } else {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let wanted = path.extension().is_some_and(|extension| {
                ["json", "jinja", "safetensors", "gguf", "model"].iter().any(|known| extension == *known)
            });
            if wanted && path.is_file() {
                paths.push(path);
            }
        }
    }
    paths.sort_unstable();
    let mut digest = Sha256::new();
    for path in paths {
        digest.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        let mut file = File::open(&path)?;
        let size = file.metadata()?.len();
        digest.update(size.to_le_bytes());
        let (blocks, step) =
            if size <= WHOLE { (size.div_ceil(BLOCK), BLOCK) } else { (WHOLE / BLOCK, size / (WHOLE / BLOCK)) };
        let mut buffer = Vec::new();
        for block in 0..blocks {
            file.seek(SeekFrom::Start(block * step))?;
            buffer.clear();
            file.by_ref().take(BLOCK).read_to_end(&mut buffer)?;
            digest.update(&buffer);
        }
    }
    Ok(hexadecimal(&digest.finalize()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
