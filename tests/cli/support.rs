//! A scratch folder and the programs in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A folder of its own, with a config file for the mock backend.
pub(crate) struct Scratch {
    folder: TempDir,
}

/// How a program ended.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    /// With the rows as `rows.jsonl`, `out.jsonl` as output, and `more` at the end of `run.toml`.
    pub(crate) fn with(rows: impl AsRef<[u8]>, more: &str) -> Self {
        let scratch = Self::new();
        scratch.file("rows.jsonl", rows);
        scratch.config(more);
        scratch
    }

    /// Writes `run.toml`; `more` begins within `[backend]`.
    pub(crate) fn config(&self, more: &str) {
        let base = "[input]\npath = \"rows.jsonl\"\n[output]\npath = \"out.jsonl\"\n\
            [task]\nimage_required = false\nadd_raw_input = false\nadd_raw_output = false\n\
            [backend]\nkind = \"mock\"\n";
        self.file("run.toml", format!("{base}{more}"));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The rows of a file.
    pub(crate) fn rows(&self, name: &str) -> Vec<Value> {
        parse(&self.read(name))
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(match program {
            "vgen" => env!("CARGO_BIN_EXE_vgen"),
            "vgen-remote" => env!("CARGO_BIN_EXE_vgen-remote"),
            _ => env!("CARGO_BIN_EXE_vgen-local"),
        });
        command.current_dir(self.folder()).env_remove("NO_COLOR").stdin(Stdio::null());
        for variable in ["HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT"] {
            command.env_remove(variable);
        }
        command.env("HF_HUB_OFFLINE", "1");
        command
    }

    pub(crate) fn vgen(&self, args: &[&str]) -> Ended {
        ended(self.command("vgen").args(args).output().unwrap())
    }

    pub(crate) fn vgen_local(&self, args: &[&str]) -> Ended {
        ended(self.command("vgen-local").args(args).output().unwrap())
    }

    /// `vgen run run.toml` and more.
    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        self.vgen(&[&["run", "run.toml"], args].concat())
    }

    /// As [`Scratch::run`], with pipes on all sides.
    pub(crate) fn start(&self, args: &[&str]) -> Child {
        let mut command = self.command("vgen");
        command.args(["run", "run.toml"]).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }
}

pub(crate) fn ended(output: std::process::Output) -> Ended {
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) fn parse(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Rows with an `id` and an `instruction`.
pub(crate) fn rows(count: usize) -> String {
    (0..count).map(|id| format!("{{\"id\": {id}, \"instruction\": \"question {id}\"}}\n")).collect()
}

impl Ended {
    /// Asserts the exit code; shows everything otherwise.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that standard error has this in it.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "expected {text:?} in:\n{}", self.stderr);
        self
    }

    /// Asserts that standard output is this.
    #[track_caller]
    pub(crate) fn prints(self, text: &str) -> Self {
        assert_eq!(self.stdout, text, "stderr:\n{}", self.stderr);
        self
    }
}
