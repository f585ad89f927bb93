//! Rows run again: nothing that an earlier pass left is there for a later one.
#![allow(clippy::unwrap_used, missing_docs, reason = "a failed step fails the test")]

use std::sync::Mutex;

use vgen_backends::mock::{MockBackend, MockOptions};
use vgen_core::{Backend, Fault, Message, Reply, Request, Response, Role, Row, SamplingParams};
use vgen_run::{Sampled, Task, verify};
use vgen_task::{Rendered, RowContext};

struct Answers;

impl Task for Answers {
    fn render(&self, _: &Row, _: &RowContext<'_>) -> Result<Rendered, Fault> {
        Ok(Rendered { messages: vec![Message::text(Role::User, "what?")], raw_input: None })
    }

    fn output_rows(&self, _: &Row, _: Option<&Rendered>, result: &Result<Response, Fault>) -> Vec<Row> {
        let mut row = Row::default();
        row.set("a", &result.as_ref().unwrap().generations[0].as_ref().unwrap().text).unwrap();
        vec![row]
    }
}

/// What was asked of a backend, in order.
struct Watched(MockBackend, Mutex<String>);

impl Backend for Watched {
    fn model_name(&self) -> &str {
        self.0.model_name()
    }

    fn check(&self, sampling: &SamplingParams, num_generations: u32) -> Result<(), Fault> {
        self.0.check(sampling, num_generations)
    }

    fn window(&self) -> usize {
        self.0.window()
    }

    fn forget(&self) {
        self.1.lock().unwrap().push('|');
    }

    fn submit(&self, request: Request, reply: Box<dyn Reply>) {
        self.1.lock().unwrap().push_str(&request.row.to_string());
        self.0.submit(request, reply);
    }
}

#[test]
fn every_pass_begins_from_nothing() {
    let options = MockOptions { answer: "answer {row}".into(), ..MockOptions::default() };
    let backend = Watched(MockBackend::new(options).unwrap(), Mutex::default());
    let sample: Vec<Sampled> = (0..3)
        .map(|number| {
            let mut written = Row::default();
            written.set("a", &format!("answer {}", number.min(1))).unwrap();
            let rendered = Answers.render(&written, &RowContext::new(number)).unwrap();
            Sampled { number, row: Row::default(), rendered, written: vec![written] }
        })
        .collect();
    let verified = verify(&sample, &Answers, &backend, &SamplingParams::default(), &[1, 3]).unwrap();
    assert_eq!(*backend.1.lock().unwrap(), "|012|210");
    let found: Vec<_> = verified.differences.iter().map(|found| (found.row, found.together)).collect();
    assert_eq!(found, [(2, 1), (2, 3)]);
}
