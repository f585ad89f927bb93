//! [`Sidecars`]: a folder of answers beside images, as rows like those of any other output.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::json;
use vgen_core::{Fault, Row};
use vgen_dataset::{FolderOptions, ImageFolder, RowSource, SidecarOptions, SourceRow};

/// The images that have an answer or an error.
pub(super) struct Sidecars {
    images: ImageFolder,
    options: SidecarOptions,
    error_column: String,
    /// Codes of errors by number of the image.
    failed: HashMap<u64, Vec<String>>,
}

impl Sidecars {
    pub(super) fn open(
        folder: &Path,
        images: FolderOptions,
        options: SidecarOptions,
        error_column: String,
        failed: HashMap<u64, Vec<String>>,
    ) -> Result<Self, Fault> {
        Ok(Self { images: ImageFolder::open(folder, images)?, options, error_column, failed })
    }

    fn answered(&self, row: &mut Row, number: u64) -> bool {
        let image = row.text(&self.options.image_column).map(|image| image.into_owned()).unwrap_or_default();
        let answer = fs::read_to_string(self.options.file_of(Path::new(&image)));
        if let Some(codes) = self.failed.get(&number) {
            let code = codes.first().map_or("unknown", String::as_str);
            let error =
                json!({"code": code, "message": "", "hint": "answers beside images have no column for messages"});
            // Plain data always serialises.
            let _ = row.set(self.error_column.as_str(), &error);
        }
        match answer {
            Ok(answer) => {
                let _ = row.set(self.options.answer_column.as_str(), answer.trim_end_matches('\n'));
                true
            }
            Err(_) => self.failed.contains_key(&number),
        }
    }
}

impl RowSource for Sidecars {
    fn name(&self) -> &str {
        self.images.name()
    }

    fn folder(&self) -> Option<&Path> {
        self.images.folder()
    }

    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        while let Some(mut row) = self.images.next_row()? {
            let number = row.number;
            let shown = match &mut row.row {
                Ok(values) => self.answered(values, number),
                Err(_) => true,
            };
            if shown {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }
}
