//! The file: a page whose script unpacks what is in it.
//!
//! Data stands in `<script type="text/plain">` elements, which browsers never run: JSON compressed with gzip, as base64,
//! so that no text of a row can be taken for markup; and for every 64 images a list of base64 lines. The page's policy
//! (`Content-Security-Policy`) names the one script and the one style sheet by their digests and allows nothing to be
//! loaded but images that are in the page.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use sha2::{Digest, Sha256};
use vgen_core::Fault;
use vgen_dataset::{DatasetError, check_is_no_input};

use super::{Contents, Line, Pairing, ReportOptions, RunFacts, Slot};
use crate::record::now;

const STYLE: &str = include_str!("page/report.css");
/// In this order: later ones use earlier ones.
const SCRIPTS: [&str; 6] = [
    include_str!("page/data.js"),
    include_str!("page/charts.js"),
    include_str!("page/overview.js"),
    include_str!("page/list.js"),
    include_str!("page/detail.js"),
    include_str!("page/main.js"),
];
const BODY: &str = include_str!("page/report.html");
/// How every report begins.
const MARK: &str = "<!doctype html><!-- vgen report -->";
/// Lines whose details, and images, are unpacked together.
const CHUNK: usize = 64;
/// The version of the data.
const VERSION: u32 = 1;

/// Everything but details and images.
#[derive(Serialize)]
struct Index<'a> {
    version: u32,
    title: &'a str,
    program: &'a str,
    made: String,
    chunk: usize,
    runs: &'a [RunFacts],
    pairing: Option<&'a Pairing>,
    lines: &'a [Line],
    slots: &'a [Slot],
}

/// Refuses a place that holds something else than a report.
pub(super) fn check_place(options: &ReportOptions) -> Result<(), Fault> {
    check_is_no_input(&options.file, &options.outputs)?;
    let mut begin = Vec::new();
    match fs::File::open(&options.file).and_then(|file| file.take(MARK.len() as u64).read_to_end(&mut begin)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) if begin.is_empty() || begin == MARK.as_bytes() || options.overwrite => Ok(()),
        Err(source) => Err(DatasetError::OutputOpen { path: options.file.clone(), source }.into()),
        Ok(_) => Err(DatasetError::OutputExists(options.file.clone()).into()),
    }
}

/// Writes the file, whole or not at all; its length.
pub(super) fn write(contents: &Contents, path: &Path) -> Result<u64, Fault> {
    let opened = |source| DatasetError::OutputOpen { path: path.to_owned(), source };
    let failed = |source| DatasetError::OutputWrite { name: path.to_string_lossy().into_owned(), source };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".report").tempfile_in(folder).map_err(opened)?;
    let mut out = io::BufWriter::new(file);
    write_page(contents, &mut out).map_err(failed)?;
    let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
    let bytes = file.as_file().metadata().map_err(failed)?.len();
    permit_as_usual(file.as_file(), path);
    file.persist(path).map_err(|error| opened(error.error))?;
    Ok(bytes)
}

/// A temporary file is for its owner alone; a report is an ordinary file.
#[cfg(unix)]
fn permit_as_usual(file: &fs::File, path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let old = fs::metadata(path).map(|metadata| metadata.permissions());
    let _ = file.set_permissions(old.unwrap_or_else(|_| fs::Permissions::from_mode(0o644)));
}

#[cfg(not(unix))]
fn permit_as_usual(_file: &fs::File, _path: &Path) {}

fn write_page(contents: &Contents, out: &mut impl Write) -> io::Result<()> {
    let script = format!("(() => {{\n\"use strict\";\n{}\n}})();\n", SCRIPTS.join("\n"));
    let digest = |text: &str| STANDARD.encode(Sha256::digest(text.as_bytes()));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; \
         img-src data:; base-uri 'none'; form-action 'none'",
        digest(&script),
        digest(STYLE)
    );
    writeln!(
        out,
        "{MARK}\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>{} · vgen report</title>\n<style>{STYLE}</style>\n</head>",
        escaped(&contents.title)
    )?;
    out.write_all(BODY.as_bytes())?;
    let index = Index {
        version: VERSION,
        title: &contents.title,
        program: &contents.program,
        made: now(),
        chunk: CHUNK,
        runs: &contents.runs,
        pairing: contents.pairing.as_ref(),
        lines: &contents.lines,
        slots: &contents.slots,
    };
    element(out, "index", &packed(&index)?)?;
    for (at, details) in contents.details.chunks(CHUNK).enumerate() {
        element(out, &format!("details-{at}"), &packed(&details)?)?;
    }
    for (at, slots) in contents.slots.chunks(CHUNK).enumerate() {
        let lines: Vec<String> = slots.iter().map(|slot| STANDARD.encode(&slot.jpeg)).collect();
        element(out, &format!("images-{at}"), &lines.join("\n"))?;
    }
    write!(out, "<script>{script}</script>\n</body>\n</html>\n")?;
    out.flush()
}

fn element(out: &mut impl Write, id: &str, content: &str) -> io::Result<()> {
    writeln!(out, "<script type=\"text/plain\" id=\"{id}\">{content}</script>")
}

fn packed<T: Serialize + ?Sized>(value: &T) -> io::Result<String> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    serde_json::to_writer(&mut encoder, value)?;
    Ok(STANDARD.encode(encoder.finish()?))
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
