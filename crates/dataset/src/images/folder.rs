//! [`ImageFolder`]: a row for each image of a folder, in order of path.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crc32fast::Hasher;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use vgen_core::{Fault, Row};
use walkdir::WalkDir;

use crate::{DatasetError, Origin, RowSource, Skipped, SourceRow};

const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "jfif"];

/// Which images of a folder, and what to ask about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FolderOptions {
    /// Paths within the folder must match one of these; none: every image file.
    pub globs: Vec<String>,
    /// Asked about every image.
    pub instruction: Option<String>,
    /// The file beside an image that says what to ask: the image's name with this instead of its extension, say
    /// `.prompt.txt`. Where there is none, `instruction` holds.
    pub instruction_suffix: Option<String>,
    /// The column of the path.
    pub image_column: String,
    /// The column of what to ask.
    pub instruction_column: String,
}

/// An image file as it was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    /// Within the folder.
    path: PathBuf,
    size: u64,
    /// Nanoseconds since 1970. An edit that keeps the size changes it, and so does copying the folder without its times
    /// (`cp -a` and `rsync -a` keep them): reading all images instead would take as long as much of the run.
    modified: u128,
}

/// The images of a folder and the folders in it, each a row with its path and what to ask.
pub struct ImageFolder {
    folder: PathBuf,
    name: Arc<str>,
    options: FolderOptions,
    /// In order of path.
    images: Vec<Found>,
    at: usize,
    digest: Hasher,
}

impl ImageFolder {
    /// Looks through the folder. Hidden files and folders are left out, links are followed.
    ///
    /// # Errors
    /// `input.missing`, `input.open`, `input.glob`, `input.empty`.
    pub fn open(folder: &Path, options: FolderOptions) -> Result<Self, Fault> {
        if !folder.is_dir() {
            return Err(DatasetError::InputMissing(folder.to_owned()).into());
        }
        let globs = globs(&options.globs)?;
        let mut images = Vec::new();
        let hidden = |entry: &walkdir::DirEntry| {
            entry.depth() > 0 && entry.file_name().to_str().is_some_and(|name| name.starts_with('.'))
        };
        for entry in WalkDir::new(folder).follow_links(true).into_iter().filter_entry(|entry| !hidden(entry)) {
            let entry = entry.map_err(|error| DatasetError::InputOpen {
                path: error.path().unwrap_or(folder).to_owned(),
                source: error.into_io_error().unwrap_or_else(|| std::io::Error::other("links lead in a circle")),
            })?;
            let Ok(path) = entry.path().strip_prefix(folder) else { continue };
            let wanted = match &globs {
                Some(globs) => globs.is_match(path),
                None => is_image(path),
            };
            if entry.file_type().is_file() && wanted {
                let metadata = entry.metadata().ok();
                let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
                let modified = modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
                images.push(Found {
                    path: path.to_owned(),
                    size: metadata.map_or(0, |metadata| metadata.len()),
                    modified: modified.map_or(0, |time| time.as_nanos()),
                });
            }
        }
        images.sort_unstable();
        let name = folder.to_string_lossy();
        if images.is_empty() {
            return Err(DatasetError::InputEmpty(name.into_owned()).into());
        }
        Ok(Self { folder: folder.to_owned(), name: name.into(), options, images, at: 0, digest: Hasher::new() })
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Two images whose answers would go to the same file of the given suffix, if there are such.
    pub fn clash(&self, suffix: &str) -> Option<(&Path, &Path)> {
        let mut seen: HashMap<PathBuf, &Path> = HashMap::new();
        self.images.iter().find_map(|Found { path, .. }| {
            seen.insert(super::sidecar::beside(path, suffix), path).map(|other| (other, path.as_path()))
        })
    }

    /// The first file of the given suffix that is there already, in `folder`.
    pub fn existing(&self, folder: &Path, suffix: &str) -> Option<PathBuf> {
        self.images
            .iter()
            .map(|Found { path, .. }| folder.join(super::sidecar::beside(path, suffix)))
            .find(|path| path.exists())
    }

    fn instruction(&self, image: &Path) -> Result<Option<String>, Fault> {
        if let Some(suffix) = &self.options.instruction_suffix {
            let path = self.folder.join(super::sidecar::beside(image, suffix));
            match std::fs::read_to_string(&path) {
                Ok(text) => return Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.options.instruction.is_some() => {}
                Err(error) => {
                    let what = format!("{}: {} can't be read: {error}", image.display(), path.display());
                    return Err(Fault::row("row.sidecar", what)
                        .with_hint("write what to ask to that file, or give one instruction for all images"));
                }
            }
        }
        Ok(self.options.instruction.clone())
    }

    fn row(&self, image: &Path) -> Result<Row, Fault> {
        let mut row = Row::new();
        let path = image.to_str().ok_or_else(|| {
            Fault::row("row.path", format!("{}: the path is not UTF-8", image.display())).with_hint("rename the file")
        })?;
        let instruction = self.instruction(image)?;
        // Texts always serialise.
        let _ = row.set(self.options.image_column.as_str(), path);
        if let Some(instruction) = instruction {
            let _ = row.set(self.options.instruction_column.as_str(), &instruction);
        }
        Ok(row)
    }

    fn digest_row(&mut self, at: usize) {
        let Found { path, size, modified } = &self.images[at];
        self.digest.update(path.as_os_str().as_encoded_bytes());
        self.digest.update(&size.to_le_bytes());
        self.digest.update(&modified.to_le_bytes());
    }
}

fn globs(patterns: &[String]) -> Result<Option<GlobSet>, DatasetError> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = GlobBuilder::new(pattern).literal_separator(true).build();
        set.add(
            glob.map_err(|error| DatasetError::InputGlob { pattern: pattern.clone(), what: error.kind().to_string() })?,
        );
    }
    set.build()
        .map(Some)
        .map_err(|error| DatasetError::InputGlob { pattern: patterns.join(", "), what: error.kind().to_string() })
}

fn is_image(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

impl RowSource for ImageFolder {
    fn name(&self) -> &str {
        &self.name
    }

    fn folder(&self) -> Option<&Path> {
        Some(&self.folder)
    }

    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        let Some(Found { path: image, .. }) = self.images.get(self.at) else { return Ok(None) };
        let row = self.row(image);
        let origin = Origin { name: self.folder.join(image).to_string_lossy().into(), line: None };
        let number = self.at as u64;
        self.digest_row(self.at);
        if let Ok(row) = &row {
            // What to ask is part of the input.
            self.digest.update(row.get(&self.options.instruction_column).map_or("", |value| value.get()).as_bytes());
        }
        self.at += 1;
        let share = Some(self.at as f64 / self.images.len() as f64);
        Ok(Some(SourceRow { number, origin, row, share, digest: self.digest.clone().finalize() }))
    }

    fn skip(&mut self, rows: u64) -> Result<Skipped, Fault> {
        // Reading what is asked is cheap beside asking it.
        let mut skipped = Skipped::default();
        while skipped.rows < rows {
            let Some(row) = self.next_row()? else { break };
            skipped = Skipped { rows: skipped.rows + 1, digest: row.digest };
        }
        Ok(skipped)
    }
}
