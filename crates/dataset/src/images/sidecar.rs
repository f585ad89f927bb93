//! [`SidecarSink`]: each answer in a text file beside its image.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vgen_core::{Fault, Row};

use crate::{DatasetError, Mark, RowSink};

/// Files that may wait to be synced.
const MOST_UNSYNCED: usize = 256;

/// Where sidecars go and what they hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarOptions {
    /// The folder: the images' own, or another one, in which the names of sub-folders and files are kept.
    pub folder: PathBuf,
    /// Instead of the image's extension.
    pub suffix: String,
    /// The column of the image's path.
    pub image_column: String,
    /// The column of the answer.
    pub answer_column: String,
}

impl SidecarOptions {
    /// The file of an image's answer, of its path within the folder of images.
    pub fn file_of(&self, image: &Path) -> PathBuf {
        self.folder.join(beside(image, &self.suffix))
    }
}

/// Answers as text files. A row that failed has none; the run record lists it.
pub struct SidecarSink {
    options: SidecarOptions,
    rows: u64,
    unsynced: Vec<Arc<File>>,
}

impl SidecarSink {
    /// A sink whose first `rows` rows are done.
    pub fn new(options: SidecarOptions, rows: u64) -> Self {
        Self { options, rows, unsynced: Vec::new() }
    }

    fn write_file(&mut self, image: &str, text: &str) -> Result<(), Fault> {
        let path = self.options.file_of(Path::new(image));
        let failed = |source| DatasetError::OutputWrite { name: path.to_string_lossy().into_owned(), source };
        if Path::new(image).is_absolute() || image.split(['/', '\\']).any(|part| part == "..") {
            return Err(
                failed(io::Error::new(io::ErrorKind::InvalidInput, "the image is outside of the folder")).into()
            );
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        // Never a half file under the final name.
        let mut partial = path.clone().into_os_string();
        partial.push(".part");
        let written = File::create(&partial).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.write_all(b"\n")?;
            std::fs::rename(&partial, &path)?;
            Ok(file)
        });
        match written {
            Ok(file) => self.unsynced.push(Arc::new(file)),
            Err(error) => {
                let _ = std::fs::remove_file(&partial);
                return Err(failed(error).into());
            }
        }
        if self.unsynced.len() >= MOST_UNSYNCED {
            for file in self.unsynced.drain(..) {
                file.sync_data().map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// An image's path with a suffix instead of its extension.
pub(super) fn beside(image: &Path, suffix: &str) -> PathBuf {
    let mut name = image.file_stem().unwrap_or_default().to_os_string();
    name.push(suffix);
    image.with_file_name(name)
}

impl RowSink for SidecarSink {
    fn write(&mut self, _number: u64, rows: &[Row]) -> Result<(), Fault> {
        let answers: Vec<_> = rows.iter().filter_map(|row| row.text(&self.options.answer_column)).collect();
        let image = rows.first().and_then(|row| row.text(&self.options.image_column)).map(|image| image.into_owned());
        if let Some(image) = image
            && !answers.is_empty()
        {
            let text = answers.join("\n");
            self.write_file(&image, &text)?;
        }
        self.rows += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn mark(&self) -> Option<Mark> {
        Some(Mark { rows: self.rows, bytes: 0, crc: 0 })
    }

    fn unsynced(&mut self) -> Vec<Arc<File>> {
        std::mem::take(&mut self.unsynced)
    }
}
