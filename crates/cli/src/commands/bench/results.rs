//! [`Results`]: the files of a bench. That they can be written is known before anything is measured, and what was measured
//! is in them while the bench goes on.

use std::fs;
use std::path::{Path, PathBuf};

use vgen_core::Fault;
use vgen_run::bench::{Report, csv, html, markdown};

const JSON: &str = ".json";
const ENDINGS: [&str; 4] = [JSON, ".md", ".csv", ".html"];
/// Of a file that is not yet whole.
const PART: &str = ".part";

/// The files `NAME.json`, `NAME.md`, `NAME.csv` and `NAME.html`.
pub(super) struct Results {
    name: PathBuf,
}

impl Results {
    /// Makes the folder, and makes sure that files can be written in it.
    ///
    /// # Errors
    /// `output.exists` if results are there that shall not be replaced; `output.open`.
    pub(super) fn new(name: &Path, overwrite: bool) -> Result<Self, Fault> {
        let results = Self { name: name.to_owned() };
        let cannot = |path: &Path, reason: &dyn std::fmt::Display| {
            Fault::stop("output.open", format!("{} can't be written: {reason}", path.display()))
                .with_hint("choose another --out")
        };
        if name.file_name().is_none() || name.as_os_str().to_string_lossy().ends_with(std::path::is_separator) {
            return Err(cannot(name, &"it is no name of a file"));
        }
        let paths = ENDINGS.map(|ending| results.path(ending));
        if let Some(path) = paths.iter().find(|path| path.is_dir()) {
            return Err(cannot(path, &"it is a folder"));
        }
        if let Some(path) = paths.iter().find(|path| !overwrite && path.exists()) {
            return Err(Fault::stop("output.exists", format!("{} is there already", path.display()))
                .with_hint("choose another --out, or replace it with --overwrite"));
        }
        if let Some(folder) = name.parent().filter(|folder| *folder != Path::new("")) {
            fs::create_dir_all(folder).map_err(|error| cannot(folder, &error))?;
        }
        let part = results.path(&format!("{JSON}{PART}"));
        let tried = fs::write(&part, "").and_then(|()| fs::remove_file(&part));
        tried.map_err(|error| cannot(&part, &error))?;
        Ok(results)
    }

    /// Writes the JSON.
    ///
    /// # Errors
    /// `bench.report`, `output.write`
    pub(super) fn keep(&self, report: &Report) -> Result<(), Fault> {
        let json = serde_json::to_string_pretty(report)
            .map_err(|error| Fault::stop("bench.report", format!("the report is no JSON: {error}")))?;
        self.write(JSON, &json)
    }

    /// Writes all of them; the Markdown is also what comes back.
    ///
    /// # Errors
    /// As [`Results::keep`].
    pub(super) fn finish(&self, report: &Report) -> Result<String, Fault> {
        self.keep(report)?;
        let text = markdown(report);
        for (ending, content) in [(".md", &text), (".csv", &csv(report)), (".html", &html(report))] {
            self.write(ending, content)?;
        }
        Ok(text)
    }

    /// A file is the old one or the new one, and never a part of it.
    fn write(&self, ending: &str, content: &str) -> Result<(), Fault> {
        let (path, part) = (self.path(ending), self.path(&format!("{ending}{PART}")));
        fs::write(&part, content)
            .and_then(|()| fs::rename(&part, &path))
            .map_err(|error| Fault::stop("output.write", format!("{} can't be written: {error}", path.display())))
    }

    /// The name with an ending put behind it, whatever dots it has.
    fn path(&self, ending: &str) -> PathBuf {
        let mut path = self.name.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    }
}
