//! JSON lines in and out: odd files, compression, what a crash or a refusal leaves behind.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a failed step fails the test")]

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use vgen_core::{Fault, FaultClass, Row};
use vgen_dataset::{
    FileSink, JsonlOptions, JsonlSink, JsonlSource, OutputFormat, OutputLayout, RowSink, RowSource, SourceRow,
    check_is_no_input,
};

fn all(source: &mut JsonlSource) -> Vec<SourceRow> {
    std::iter::from_fn(|| source.next_row().unwrap()).collect()
}

fn read(bytes: &'static [u8]) -> Vec<SourceRow> {
    all(&mut JsonlSource::from_reader(bytes, "rows.jsonl"))
}

fn open(path: &Path) -> Result<JsonlSource, Fault> {
    JsonlSource::open(path, JsonlOptions::default())
}

fn create(path: &Path) -> Result<FileSink, Fault> {
    let format = OutputFormat::of_path(path);
    OutputLayout { format, columns: Vec::new(), group_rows: 1 }.create(path)
}

fn code<T>(result: Result<T, Fault>) -> String {
    result.err().expect("a fault").code.into_owned()
}

fn row(json: &str) -> Row {
    Row::from_json(json).unwrap()
}

#[test]
fn byte_order_mark_crlf_and_blank_lines_are_taken_as_they_are_meant() {
    let rows = read(b"\xef\xbb\xbf{\"a\":1}\r\n\r\n  \t\n{\"a\":2}\n\n{\"a\":3}");
    let seen: Vec<_> =
        rows.iter().map(|row| (row.number, row.origin.line.unwrap(), row.row.as_ref().unwrap().to_json())).collect();
    assert_eq!(
        seen,
        [(0, 1, r#"{"a":1}"#.to_owned()), (1, 4, r#"{"a":2}"#.to_owned()), (2, 6, r#"{"a":3}"#.to_owned())]
    );
}

#[test]
fn a_broken_line_costs_one_row_and_names_file_and_line() {
    let rows = read(b"{\"a\":1}\n{\"a\":2}\n{\"a\" 3}\n{\"a\":4}\n{\"a\":5}\n");
    let good: Vec<bool> = rows.iter().map(|row| row.row.is_ok()).collect();
    assert_eq!(good, [true, true, false, true, true]);
    let fault = rows[2].row.as_ref().unwrap_err();
    assert_eq!((&*fault.code, fault.class), ("row.json", FaultClass::Row));
    assert_eq!(fault.message, "rows.jsonl line 3: not a JSON object: expected `:` at column 6");
}

#[test]
fn lines_that_are_json_but_no_object_are_row_faults() {
    for line in [&b"{}\n17\n"[..], b"{}\n[1]\n", b"{}\nnull\n", b"{}\n\"x\"\n", b"{}\n{\"a\":1} {\"b\":2}\n"] {
        let rows = read(line);
        assert_eq!(rows[1].row.as_ref().unwrap_err().code, "row.json", "{line:?}");
    }
}

#[test]
fn not_a_number_gets_a_hint_only_where_it_is_one() {
    for (line, hinted) in
        [(&b"{\"a\": NaN}\n"[..], true), (b"{\"a\": -Infinity}\n", true), (b"{\"a\": \"NaN \\\" NaN\" 1}\n", false)]
    {
        let rows = read(line);
        let fault = rows[0].row.as_ref().unwrap_err();
        assert_eq!(fault.code, "row.json");
        assert_eq!(fault.hint.is_some(), hinted, "{line:?}");
    }
}

#[test]
fn invalid_utf8_costs_one_row() {
    let rows = read(b"{\"a\":1}\n{\"a\":\"\xe9t\xe9\"}\n{\"a\":3}\n");
    let fault = rows[1].row.as_ref().unwrap_err();
    assert_eq!(fault.code, "row.utf8");
    assert_eq!(fault.message, "rows.jsonl line 2: byte 7 of the line is not UTF-8");
    assert!(rows[2].row.is_ok());
}

#[test]
fn a_line_above_the_limit_costs_one_row_and_is_not_held() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("rows.jsonl");
    let long = "x".repeat(100_000);
    let fits = format!("{{\"a\":\"{}\"}}", "y".repeat(100 - 8));
    fs::write(&path, format!("{{\"a\":\"{long}\"}}\n{fits}\r\n{fits} \n{{\"a\":\"{long}\"}}")).unwrap();
    let mut source = JsonlSource::open(&path, JsonlOptions { max_line_bytes: 100 }).unwrap();
    let rows = all(&mut source);
    let codes: Vec<_> = rows.iter().map(|row| row.row.as_ref().err().map(|fault| fault.code.clone())).collect();
    let too_long = Some("row.too_long".into());
    assert_eq!(codes, [too_long.clone(), None, too_long.clone(), too_long]);
    assert_eq!(rows.last().unwrap().share, Some(1.0));
}

#[test]
fn files_that_are_no_json_lines_are_refused_at_once() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("empty"), "").unwrap();
    fs::write(path("blank"), "\n \r\n\n").unwrap();
    fs::write(path("array"), "[\n{\"a\":1},\n{\"a\":2}\n]\n").unwrap();
    fs::write(path("array-in-a-line"), "[{\"a\":1},{\"a\":2}]\n").unwrap();
    fs::write(path("utf16"), b"\xff\xfe{\0}\0").unwrap();
    assert_eq!(code(open(&path("missing"))), "input.missing");
    assert_eq!(code(open(folder.path())), "input.folder");
    assert_eq!(code(open(&path("empty"))), "input.empty");
    assert_eq!(code(open(&path("blank"))), "input.empty");
    assert_eq!(code(open(&path("array"))), "input.format");
    assert_eq!(code(open(&path("array-in-a-line"))), "input.format");
    assert_eq!(code(open(&path("utf16"))), "input.format");
}

#[test]
fn the_share_grows_to_one_and_the_folder_is_the_files() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("rows.jsonl");
    fs::write(&path, "{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n{\"a\":4}\n").unwrap();
    let mut source = open(&path).unwrap();
    assert_eq!(source.folder(), Some(folder.path()));
    let shares: Vec<_> = all(&mut source).iter().map(|row| row.share.unwrap()).collect();
    assert_eq!(shares, [0.25, 0.5, 0.75, 1.0]);
}

#[test]
fn compressed_outputs_are_read_back_and_hold_whole_members_before_the_end() {
    let folder = TempDir::new().unwrap();
    for name in ["rows.jsonl.gz", "rows.jsonl.zst"] {
        let path = folder.path().join(name);
        let mut sink = create(&path).unwrap();
        let padding = "p".repeat(300);
        for number in 0..5_000 {
            sink.write(number, &[row(&format!("{{\"id\":{number},\"p\":\"{padding}\"}}"))]).unwrap();
            sink.flush().unwrap();
        }
        // As after a crash: the members so far, without the last rows.
        let so_far = all(&mut open(&path).unwrap());
        assert!((1_000..5_000).contains(&so_far.len()), "{}", so_far.len());
        assert!(so_far.iter().all(|row| row.row.is_ok()));
        sink.finish().unwrap();
        let rows = all(&mut open(&path).unwrap());
        assert_eq!(rows.len(), 5_000);
        assert_eq!(rows[4_999].row.as_ref().unwrap().get("id").unwrap().get(), "4999");
        assert!(fs::metadata(&path).unwrap().len() < 300_000);
    }
}

#[test]
fn broken_compressed_data_is_an_input_fault() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("rows.jsonl.gz");
    fs::write(&path, b"\x1f\x8b\x08\x00nothing of the kind").unwrap();
    assert_eq!(code(open(&path)), "input.read");
}

#[test]
fn an_output_with_content_is_refused_and_kept_until_the_first_row() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.jsonl");
    fs::write(&path, "{\"old\":1}\n").unwrap();
    drop(create(&path).unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"old\":1}\n");
    let mut sink = create(&path).unwrap();
    sink.write(0, &[row("{}")]).unwrap();
    sink.flush().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n");
}

#[test]
fn an_output_that_never_got_a_row_is_not_left_behind_but_an_empty_run_is() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("out.jsonl");
    drop(create(&path).unwrap());
    assert!(!path.exists());
    create(&path).unwrap().finish().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
}

#[cfg(unix)]
#[test]
fn the_input_is_never_the_output_under_any_name() {
    let folder = TempDir::new().unwrap();
    let input = folder.path().join("rows.jsonl");
    fs::write(&input, "{}\n").unwrap();
    let soft = folder.path().join("soft.jsonl");
    std::os::unix::fs::symlink(&input, &soft).unwrap();
    let hard = folder.path().join("hard.jsonl");
    fs::hard_link(&input, &hard).unwrap();
    for output in [&input, &soft, &hard, &folder.path().join(".").join("rows.jsonl")] {
        assert_eq!(code(check_is_no_input(output, std::slice::from_ref(&input))), "output.is_input");
    }
    assert_eq!(fs::read_to_string(&input).unwrap(), "{}\n");
}

#[test]
fn an_output_in_no_folder_says_how_to_make_it() {
    let folder = TempDir::new().unwrap();
    let fault = create(&folder.path().join("no").join("out.jsonl")).err().unwrap();
    assert_eq!(fault.code, "output.open");
    assert!(fault.hint.unwrap().starts_with("create the folder first: mkdir -p "));
}

/// A pipe whose reader goes away after some writes.
#[derive(Clone, Default)]
struct Pipe {
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut seen = self.seen.lock().unwrap();
        if seen.len() == 2 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        seen.push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn batches_reach_a_pipe_as_whole_lines_and_a_closed_one_is_told_apart() {
    let pipe = Pipe::default();
    let mut sink = JsonlSink::from_writer(pipe.clone(), "stdout");
    sink.write(0, &[row("{\"a\":1}"), row("{\"a\":2}")]).unwrap();
    assert!(pipe.seen.lock().unwrap().is_empty());
    sink.flush().unwrap();
    sink.write(1, &[row("{\"a\":3}")]).unwrap();
    sink.flush().unwrap();
    assert_eq!(*pipe.seen.lock().unwrap(), [b"{\"a\":1}\n{\"a\":2}\n".to_vec(), b"{\"a\":3}\n".to_vec()]);
    sink.write(2, &[row("{}")]).unwrap();
    assert_eq!(code(sink.flush()), "output.closed");
}
