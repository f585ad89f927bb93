//! [`RunFolder`]: the folder of a run record, and the lock on it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use vgen_core::Fault;
use vgen_dataset::DatasetError;

use super::journal::{self, Past};
use super::manifest::{RECORD_VERSION, RunRecord};
use super::{RecordError, files};

/// How often to try again when the lock's file is taken away under the lock.
const LOCK_TRIES: usize = 20;
pub(super) const JOURNAL: &str = "journal.jsonl";
pub(super) const FAILED: &str = "failed.jsonl";
pub(super) const RECORD: &str = "run.json";
pub(super) const TIMINGS: &str = "timings.jsonl";
const LOCK: &str = "lock";
const RETRY: &str = "retry";
/// Says that what is in `retry/` is whole and takes the place of what is outside.
const READY: &str = "ready";

/// The run record of an output, locked against other processes as long as this lives.
#[derive(Debug)]
pub struct RunFolder {
    output: PathBuf,
    path: PathBuf,
    _lock: File,
    /// Whether there is anything in it worth keeping.
    begun: bool,
}

/// What a record says about an earlier run.
#[derive(Debug)]
pub enum Found {
    /// There was none.
    Nothing,
    /// There was one.
    Run(Box<RunRecord>, Box<Past>),
}

impl RunFolder {
    /// The folder's path: the output's with `.run` behind it.
    pub fn path_of(output: &Path) -> PathBuf {
        let mut path = output.as_os_str().to_owned();
        path.push(".run");
        path.into()
    }

    /// Locks the record of an output; makes its folder if there is none, and takes that away again if no run begins.
    /// If an earlier process was killed while it put the rows of `--retry-failed` in place, that is finished first.
    ///
    /// # Errors
    /// `output.open`, `output.locked`, `record.io`
    pub fn lock(output: &Path) -> Result<Self, Fault> {
        let path = Self::path_of(output);
        let opened = |source| DatasetError::OutputOpen { path: output.to_owned(), source };
        if let Err(error) = fs::create_dir(&path)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(opened(error).into());
        }
        let lock = Self::take_lock(output, &path)?;
        let begun = path.join(RECORD).exists() || path.join(JOURNAL).exists();
        let folder = Self { output: output.to_owned(), path, _lock: lock, begun };
        folder.install()?;
        Ok(folder)
    }

    fn take_lock(output: &Path, folder: &Path) -> Result<File, RecordError> {
        let path = folder.join(LOCK);
        let failed = |source| RecordError::Io { path: path.clone(), verb: "locked", source };
        for _ in 0..LOCK_TRIES {
            let _ = fs::create_dir(folder);
            let mut file = match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(failed)?,
            };
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    let mut who = String::new();
                    // What the lock's holder wrote about itself is a courtesy.
                    let _ = file.read_to_string(&mut who);
                    let who = if who.trim().is_empty() { String::new() } else { format!(" ({})", who.trim()) };
                    return Err(RecordError::Locked { output: output.to_owned(), who });
                }
                // A file system without locks is no reason to refuse.
                Ok(()) | Err(TryLockError::Error(_)) => {}
            }
            // The process before may have taken the file away between opening and locking it.
            let current = same_file::Handle::from_file(file.try_clone().map_err(failed)?).map_err(failed)?;
            if same_file::Handle::from_path(&path).is_ok_and(|there| there == current) {
                let about = format!("process {}, since {}\n", std::process::id(), super::manifest::now());
                let _ = file.set_len(0).and_then(|()| file.write_all(about.as_bytes()));
                return Ok(file);
            }
        }
        Err(RecordError::Locked { output: output.to_owned(), who: String::new() })
    }

    /// The output's path.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier run left here.
    ///
    /// # Errors
    /// `record.io`, `record.broken`, `record.version`
    pub fn find(&self) -> Result<Found, RecordError> {
        find(&self.path)
    }

    /// What an earlier `--retry-failed` left here, if it was interrupted.
    ///
    /// # Errors
    /// As [`RunFolder::find`].
    pub fn find_retry(&self) -> Result<Found, RecordError> {
        find(&self.path.join(RETRY))
    }

    /// Where `--retry-failed` writes: a folder for its record, and the output in it.
    ///
    /// # Errors
    /// `record.io`
    pub fn retry(&self) -> Result<(PathBuf, PathBuf), RecordError> {
        let folder = self.path.join(RETRY);
        fs::create_dir_all(&folder).map_err(|source| RecordError::Io {
            path: folder.clone(),
            verb: "written",
            source,
        })?;
        let output = folder.join(self.output.file_name().unwrap_or_default());
        Ok((folder, output))
    }

    /// Throws away what `--retry-failed` left.
    ///
    /// # Errors
    /// `record.io`
    pub fn drop_retry(&self) -> Result<(), RecordError> {
        let path = self.path.join(RETRY);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::Io { path, verb: "written", source: error })
            }
            _ => Ok(()),
        }
    }

    /// Puts the output of `--retry-failed`, which is whole and closed, in the place of the old one.
    ///
    /// # Errors
    /// `record.io`
    pub fn install_retry(&self) -> Result<(), RecordError> {
        let ready = self.path.join(RETRY).join(READY);
        files::replace(&ready, b"").map_err(|source| RecordError::Io {
            path: ready.clone(),
            verb: "written",
            source,
        })?;
        self.install()
    }

    /// Each step can be done again: a crash in between is mended by the next process.
    fn install(&self) -> Result<(), RecordError> {
        let retry = self.path.join(RETRY);
        if !retry.join(READY).exists() {
            return Ok(());
        }
        let failed = |source| RecordError::Io { path: retry.clone(), verb: "put in place", source };
        let name = self.output.file_name().unwrap_or_default();
        for (from, to) in [
            (retry.join(name), self.output.clone()),
            (retry.join(FAILED), self.path.join(FAILED)),
            (retry.join(TIMINGS), self.path.join(TIMINGS)),
            (retry.join(RECORD), self.path.join(RECORD)),
            (retry.join(JOURNAL), self.path.join(JOURNAL)),
        ] {
            if from.exists() {
                fs::rename(&from, &to).map_err(failed)?;
            }
        }
        files::sync_folder_of(&self.output).map_err(failed)?;
        files::sync_folder_of(&self.path.join(JOURNAL)).map_err(failed)?;
        self.drop_retry()
    }

    /// From now on the folder stays.
    pub(super) fn begin(&mut self) {
        self.begun = true;
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if !self.begun {
            let _ = fs::remove_file(self.path.join(LOCK));
            // Only if it is empty.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

fn find(folder: &Path) -> Result<Found, RecordError> {
    let path = folder.join(JOURNAL);
    let past = match journal::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => return Err(RecordError::Io { path, verb: "read", source }),
        Ok(Err(found)) => return Err(RecordError::Version { path, found, known: RECORD_VERSION }),
        Ok(Ok(past)) => past,
    };
    let path = folder.join(RECORD);
    let text = match fs::read_to_string(&path) {
        // The record is written before the journal: without it there is no run.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => return Err(RecordError::Io { path, verb: "read", source }),
        Ok(text) => text,
    };
    let broken = |error: serde_json::Error| RecordError::Broken { path: path.clone(), what: error.to_string() };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(broken)?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(found) if found > RECORD_VERSION => Err(RecordError::Version { path, found, known: RECORD_VERSION }),
        _ => Ok(Found::Run(Box::new(serde_json::from_value(value).map_err(broken)?), Box::new(past))),
    }
}
