//! [`Syncer`]: the thread that waits for the disk, so that rows need not.
//!
//! The order of a job is what makes a commit true: first what it speaks of reaches the disk (the output, the list of
//! failed rows), then the journal's lines with the commit at their end.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::folder::{FAILED, JOURNAL};
use super::{RecordError, files, journal};

/// The journal is written anew when it is larger than this, ...
const LARGE: u64 = 64 << 20;
/// ... and this many times larger than when it was written last.
const GROWN: u64 = 4;

/// What is to reach the disk.
pub(super) struct Job {
    /// Files of the output that were written to.
    pub(super) outputs: Vec<Arc<File>>,
    /// Lines for the list of failed rows.
    pub(super) failed: Vec<u8>,
    /// Lines for the journal.
    pub(super) lines: Vec<u8>,
}

/// Does one job at a time.
pub(super) struct Syncer {
    jobs: Option<Sender<Job>>,
    done: Receiver<Result<(), RecordError>>,
    busy: bool,
    thread: Option<JoinHandle<()>>,
}

struct Disk {
    folder: PathBuf,
    output: PathBuf,
    journal: File,
    journal_bytes: u64,
    written_anew: u64,
    failed: File,
    /// The output's name is durable.
    named: bool,
}

impl Syncer {
    /// Starts on a folder whose journal and list of failed rows are there.
    pub(super) fn start(folder: &Path, output: &Path) -> Result<Self, RecordError> {
        let mut disk = Disk::open(folder, output)?;
        let (jobs, received) = bounded::<Job>(1);
        let (tell, done) = bounded(1);
        let thread = thread::spawn(move || {
            for job in received {
                if tell.send(disk.work(&job)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { jobs: Some(jobs), done, busy: false, thread: Some(thread) })
    }

    /// Whether the last job is done; its error.
    pub(super) fn is_idle(&mut self) -> Result<bool, RecordError> {
        if self.busy
            && let Ok(result) = self.done.try_recv()
        {
            self.busy = false;
            result?;
        }
        Ok(!self.busy)
    }

    /// Waits for the last job.
    pub(super) fn wait(&mut self) -> Result<(), RecordError> {
        if std::mem::take(&mut self.busy)
            && let Ok(result) = self.done.recv()
        {
            result?;
        }
        Ok(())
    }

    /// Hands over a job, after the one before.
    pub(super) fn submit(&mut self, job: Job) -> Result<(), RecordError> {
        self.wait()?;
        if let Some(jobs) = &self.jobs {
            self.busy = jobs.send(job).is_ok();
        }
        Ok(())
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Disk {
    fn open(folder: &Path, output: &Path) -> Result<Self, RecordError> {
        let open = |name: &str| {
            let path = folder.join(name);
            let file = OpenOptions::new().append(true).create(true).open(&path);
            file.map_err(|source| RecordError::Io { path, verb: "written", source })
        };
        let journal = open(JOURNAL)?;
        let journal_bytes = journal.metadata().map_or(0, |metadata| metadata.len());
        Ok(Self {
            folder: folder.to_owned(),
            output: output.to_owned(),
            journal,
            journal_bytes,
            written_anew: journal_bytes,
            failed: open(FAILED)?,
            named: false,
        })
    }

    fn work(&mut self, job: &Job) -> Result<(), RecordError> {
        let output = self.output.clone();
        let of_output = |source| RecordError::Io { path: output.clone(), verb: "written", source };
        for file in &job.outputs {
            file.sync_data().map_err(of_output)?;
        }
        if !self.named && !job.outputs.is_empty() {
            files::sync_folder_of(&self.output).map_err(of_output)?;
            self.named = true;
        }
        let folder = self.folder.clone();
        let of = |name: &str| {
            let path = folder.join(name);
            move |source| RecordError::Io { path, verb: "written", source }
        };
        if !job.failed.is_empty() {
            let written = self.failed.write_all(&job.failed).and_then(|()| self.failed.sync_data());
            written.map_err(of(FAILED))?;
        }
        self.journal.write_all(&job.lines).and_then(|()| self.journal.sync_data()).map_err(of(JOURNAL))?;
        self.journal_bytes += job.lines.len() as u64;
        if self.journal_bytes > LARGE.max(GROWN * self.written_anew) {
            self.write_anew().map_err(of(JOURNAL))?;
        }
        Ok(())
    }

    /// Leaves out what no longer matters.
    fn write_anew(&mut self) -> io::Result<()> {
        let path = self.folder.join(JOURNAL);
        let Ok(past) = journal::read(&path)? else { return Ok(()) };
        files::replace(&path, &journal::written_anew(past))?;
        self.journal = OpenOptions::new().append(true).open(&path)?;
        self.journal_bytes = self.journal.metadata()?.len();
        self.written_anew = self.journal_bytes;
        Ok(())
    }
}
