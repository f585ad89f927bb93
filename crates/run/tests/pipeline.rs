//! Runs with a scripted backend: order, bounds, faults, stopping.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a failed step fails the test")]

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use vgen_backends::mock::{MockBackend, MockFault, MockOptions};
use vgen_core::{
    Backend, CancelToken, Fault, FaultClass, Message, Reply, Request, Response, Role, Row, SamplingParams,
};
use vgen_dataset::{JsonlSink, JsonlSource, Origin, RowSource, Selected, Selection, SourceRow};
use vgen_run::{Observer, Pipeline, Progress, Task};
use vgen_task::{Rendered, RowContext};

/// Sends the column `q`, and writes `id` with the answer or the error's code.
struct Echo;

impl Task for Echo {
    fn render(&self, row: &Row, _: &RowContext<'_>) -> Result<Rendered, Fault> {
        let text = row.text("q").ok_or_else(|| Fault::row("row.column", "column \"q\" is missing"))?;
        Ok(Rendered { messages: vec![Message::text(Role::User, text)], raw_input: None })
    }

    fn output_rows(&self, row: &Row, _: Option<&Rendered>, result: &Result<Response, Fault>) -> Vec<Row> {
        let mut row = row.clone();
        match result {
            Ok(response) => row.set("a", &response.generations[0].as_ref().unwrap().text).unwrap(),
            Err(fault) => row.set("error", &*fault.code).unwrap(),
        }
        vec![row]
    }
}

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn rows(count: usize) -> JsonlSource {
    let text: String = (0..count).map(|id| format!("{{\"id\":{id},\"q\":\"x\"}}\n")).collect();
    JsonlSource::from_reader(io::Cursor::new(text), "rows.jsonl")
}

fn mock(options: MockOptions) -> Arc<MockBackend> {
    Arc::new(MockBackend::new(options).unwrap())
}

fn fault(row: u64, class: FaultClass) -> MockFault {
    let (code, message) = ("mock.fault".into(), "scripted".into());
    MockFault { row, sample: None, code, message, class, attempts: 1 }
}

#[test]
fn rows_come_out_in_their_order_however_they_finish() {
    let output = Memory::default();
    let backend = mock(MockOptions { delays_ms: vec![40, 0, 20, 5, 0, 0, 1], window: 8, ..MockOptions::default() });
    let sink = JsonlSink::from_writer(output.clone(), "memory");
    let summary = Pipeline::new(rows(100), Echo, backend.clone(), sink).run().unwrap();
    assert_eq!((summary.rows, summary.failed_rows, summary.output_rows), (100, 0, 100));
    let expected: Vec<_> =
        (0..100).map(|id| format!("{{\"id\":{id},\"q\":\"x\",\"a\":\"answer to row {id}\"}}")).collect();
    assert_eq!(output.lines(), expected);
    assert!((2..=8).contains(&backend.most_in_flight()), "{}", backend.most_in_flight());
}

/// Counts how many rows were handed out.
struct Counting(JsonlSource, Arc<AtomicU64>);

impl RowSource for Counting {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn folder(&self) -> Option<&std::path::Path> {
        self.0.folder()
    }

    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        self.1.fetch_add(1, Ordering::AcqRel);
        self.0.next_row()
    }
}

#[test]
fn one_slow_row_holds_back_a_bounded_number_of_others() {
    let read = Arc::new(AtomicU64::new(0));
    let stop = CancelToken::default();
    // Row 0 never comes; all others come at once.
    let mut delays_ms = vec![0; 1000];
    delays_ms[0] = 600_000;
    let backend = mock(MockOptions { delays_ms, window: 4, ..MockOptions::default() });
    let output = Memory::default();
    let sink = JsonlSink::from_writer(output.clone(), "memory");
    let pipeline = Pipeline::new(Counting(rows(1000), Arc::clone(&read)), Echo, backend, sink)
        .reorder_rows(20)
        .stop_with(stop.clone());
    let run = thread::spawn(move || pipeline.run());
    thread::sleep(Duration::from_millis(300));
    assert_eq!(read.load(Ordering::Acquire), 20);
    assert_eq!(output.lines().len(), 0);
    stop.cancel();
    let summary = run.join().unwrap().unwrap();
    // What was finished is written in order; the row that was given up is not.
    assert!(summary.interrupted);
    assert_eq!(output.lines().len(), 19);
    assert!(output.lines()[0].starts_with("{\"id\":1,"));
}

#[derive(Clone, Default)]
struct Log {
    failed: Arc<Mutex<Vec<String>>>,
    last: Arc<Mutex<Option<Progress>>>,
}

impl Observer for Log {
    fn progress(&mut self, progress: &Progress) {
        *self.last.lock().unwrap() = Some(progress.clone());
    }

    fn row_failed(&mut self, number: u64, origin: &Origin, fault: &Fault) {
        self.failed.lock().unwrap().push(format!("{number} {origin} {}", fault.code));
    }
}

#[test]
fn bad_rows_are_written_with_their_error_and_the_others_go_on() {
    let text = "{\"id\":0,\"q\":\"x\"}\n{\"id\":1}\n\n{broken\n{\"id\":3,\"q\":\"x\"}\n{\"id\":4,\"q\":\"x\"}\n";
    let backend = mock(MockOptions {
        faults: vec![fault(3, FaultClass::Retry)],
        output_tokens: Some(7),
        input_tokens: Some(5),
        ..MockOptions::default()
    });
    let (output, log) = (Memory::default(), Log::default());
    let sink = JsonlSink::from_writer(output.clone(), "memory");
    let source = JsonlSource::from_reader(io::Cursor::new(text), "rows.jsonl");
    let summary = Pipeline::new(source, Echo, backend, sink).observer(log.clone()).run().unwrap();
    assert_eq!(
        output.lines(),
        [
            "{\"id\":0,\"q\":\"x\",\"a\":\"answer to row 0\"}",
            "{\"id\":1,\"error\":\"row.column\"}",
            "{\"error\":\"row.json\"}",
            "{\"id\":3,\"q\":\"x\",\"error\":\"mock.fault\"}",
            "{\"id\":4,\"q\":\"x\",\"a\":\"answer to row 4\"}",
        ]
    );
    assert_eq!((summary.rows, summary.failed_rows), (5, 3));
    assert_eq!((summary.input_tokens, summary.output_tokens), (10, 14));
    let errors: Vec<_> = summary.errors.iter().map(|(code, count)| (code.as_str(), *count)).collect();
    assert_eq!(errors, [("mock.fault", 1), ("row.column", 1), ("row.json", 1)]);
    assert_eq!(
        *log.failed.lock().unwrap(),
        ["1 rows.jsonl line 2 row.column", "2 rows.jsonl line 4 row.json", "3 rows.jsonl line 5 mock.fault"]
    );
    assert_eq!(log.last.lock().unwrap().as_ref().unwrap().rows, 5);
}

#[test]
fn a_fault_of_the_run_ends_it_with_what_was_done_before() {
    let backend = mock(MockOptions { faults: vec![fault(5, FaultClass::Stop)], window: 1, ..MockOptions::default() });
    let output = Memory::default();
    let error =
        Pipeline::new(rows(100), Echo, backend, JsonlSink::from_writer(output.clone(), "memory")).run().unwrap_err();
    assert_eq!(error.fault.code, "mock.fault");
    assert_eq!(error.summary.rows, 5);
    assert_eq!(output.lines().len(), 5);
}

/// Loses every request.
struct Careless;

impl Backend for Careless {
    fn model_name(&self) -> &str {
        "careless"
    }

    fn check(&self, _: &SamplingParams, _: u32) -> Result<(), Fault> {
        Ok(())
    }

    fn window(&self) -> usize {
        2
    }

    fn submit(&self, _: Request, reply: Box<dyn Reply>) {
        drop(reply);
    }
}

#[test]
fn a_backend_that_drops_replies_ends_the_run_instead_of_hanging_it() {
    let sink = JsonlSink::from_writer(io::sink(), "memory");
    let error = Pipeline::new(rows(10), Echo, Arc::new(Careless), sink).run().unwrap_err();
    assert_eq!(error.fault.code, "backend.lost");
    assert_eq!(error.fault.message, "rows.jsonl line 1: the backend gave no answer");
}

#[test]
fn parameters_are_checked_before_a_row_is_read() {
    let read = Arc::new(AtomicU64::new(0));
    let backend = mock(MockOptions { refuse: vec!["top_k".into()], ..MockOptions::default() });
    let sink = JsonlSink::from_writer(io::sink(), "memory");
    let error = Pipeline::new(Counting(rows(3), Arc::clone(&read)), Echo, backend, sink)
        .sampling(SamplingParams { top_k: Some(3), ..SamplingParams::default() })
        .run()
        .unwrap_err();
    assert_eq!(error.fault.code, "sampling.unsupported");
    assert_eq!(read.load(Ordering::Acquire), 0);
}

#[test]
fn the_limit_is_exact_and_an_empty_source_is_an_error() {
    let run = |source: JsonlSource, limit| {
        let output = Memory::default();
        let sink = JsonlSink::from_writer(output.clone(), "memory");
        let selection = Selection { limit: Some(limit), ..Selection::default() };
        let source = Selected::new(source, selection, || Ok(0)).unwrap();
        let pipeline = Pipeline::new(source, Echo, mock(MockOptions::default()), sink);
        pipeline.run().map(|summary| (summary.rows, output.lines().len()))
    };
    assert_eq!(run(rows(50), 7).unwrap(), (7, 7));
    assert_eq!(run(rows(5), 7).unwrap(), (5, 5));
    assert_eq!(run(rows(0), 7).unwrap_err().fault.code, "input.empty");
}

/// Hands out its bytes, then blocks until it is dropped, as an idle terminal does.
struct Idle(io::Cursor<Vec<u8>>, mpsc::Receiver<()>);

impl Read for Idle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => {
                let _ = self.1.recv();
                Ok(0)
            }
            read => Ok(read),
        }
    }
}

#[test]
fn rows_are_written_while_the_source_waits_and_a_stop_does_not_wait_for_it() {
    let (_keep, blocked) = mpsc::channel();
    let source = JsonlSource::from_reader(Idle(io::Cursor::new(b"{\"q\":\"x\"}\n".to_vec()), blocked), "stdin");
    let stop = CancelToken::default();
    let output = Memory::default();
    let sink = JsonlSink::from_writer(output.clone(), "memory");
    let pipeline = Pipeline::new(source, Echo, mock(MockOptions::default()), sink).stop_with(stop.clone());
    let run = thread::spawn(move || pipeline.run());
    let patience = Instant::now() + Duration::from_secs(10);
    while output.lines().is_empty() && Instant::now() < patience {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(output.lines().len(), 1);
    stop.cancel();
    let summary = run.join().unwrap().unwrap();
    assert_eq!((summary.rows, summary.interrupted), (1, true));
}

/// A pipe whose reader goes away at once.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_closed_output_ends_the_run() {
    let sink = JsonlSink::from_writer(Closed, "stdout");
    let error = Pipeline::new(rows(100_000), Echo, mock(MockOptions::default()), sink).run().unwrap_err();
    assert_eq!(error.fault.code, "output.closed");
}

/// Breaks off after some rows.
struct Breaking(JsonlSource, u32);

impl RowSource for Breaking {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn folder(&self) -> Option<&std::path::Path> {
        None
    }

    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        if self.1 == 0 {
            return Err(Fault::stop("input.read", "broke off"));
        }
        self.1 -= 1;
        self.0.next_row()
    }
}

#[test]
fn what_was_read_before_an_input_broke_off_is_answered() {
    let backend = mock(MockOptions { delays_ms: vec![30], window: 2, ..MockOptions::default() });
    let output = Memory::default();
    let sink = JsonlSink::from_writer(output.clone(), "memory");
    let error = Pipeline::new(Breaking(rows(100), 9), Echo, backend, sink).run().unwrap_err();
    assert_eq!(error.fault.code, "input.read");
    assert_eq!((error.summary.rows, output.lines().len()), (9, 9));
}

struct Panicking;

impl Task for Panicking {
    fn render(&self, _: &Row, _: &RowContext<'_>) -> Result<Rendered, Fault> {
        panic!("a task that panics")
    }

    fn output_rows(&self, _: &Row, _: Option<&Rendered>, _: &Result<Response, Fault>) -> Vec<Row> {
        Vec::new()
    }
}

#[test]
fn a_task_that_panics_ends_the_run_instead_of_hanging_it() {
    let sink = JsonlSink::from_writer(io::sink(), "memory");
    let error = Pipeline::new(rows(3), Panicking, mock(MockOptions::default()), sink).run().unwrap_err();
    assert_eq!(error.fault.code, "run.reader");
}

#[test]
fn the_row_timeout_reaches_the_backend() {
    let backend = mock(MockOptions { delays_ms: vec![600_000], ..MockOptions::default() });
    let output = Memory::default();
    let sink = JsonlSink::from_writer(output.clone(), "memory");
    let summary = Pipeline::new(rows(2), Echo, backend, sink).row_timeout(Duration::from_millis(30)).run().unwrap();
    assert_eq!(summary.rows, 2);
    assert_eq!(output.lines()[1], "{\"id\":1,\"q\":\"x\",\"a\":\"\"}");
}
