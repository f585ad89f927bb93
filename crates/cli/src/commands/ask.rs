//! One question: `--prompt`, with or without images. The answer is streamed to standard output.

use std::io::{self, Write};
use std::sync::mpsc;
use std::time::Instant;

use serde_json::json;
use vgen_core::{Fault, FinishReason, Generation, Reply, Request, Response, Row};
use vgen_task::{RowContext, TextGenerationWithImage};

use crate::interrupt::Interrupt;
use crate::messages::Messages;
use crate::table::Config;
use crate::{backend, exit};

/// Asks and prints.
pub(crate) fn ask(config: &Config, prompt: &str, images: &[String], messages: &Messages) -> Result<u8, Fault> {
    let task = TextGenerationWithImage::from_config(config.task.clone())?;
    for warning in task.warnings() {
        messages.warning(warning);
    }
    let rendered = task.render(&row(&task, prompt, images)?, &RowContext::new(0))?;
    let interrupt = Interrupt::install(messages)?;
    let backend = backend::open(config, None, messages)?;
    backend.check(&config.sampling, task.num_generations())?;

    let mut request: Request = task.request_for(&rendered, 0, config.sampling.clone());
    request.cancel = interrupt.run();
    request.deadline = config.run.row_timeout.map(|timeout| Instant::now() + timeout);
    // Several answers at once would run into each other; they are printed whole.
    let streamed = request.num_generations == 1;
    let cancel = request.cancel.clone();
    let (events, received) = mpsc::channel();
    let started = Instant::now();
    backend.submit(request, Box::new(Stream { events, streamed }));

    let mut output = io::stdout().lock();
    let mut told = String::new();
    for event in received {
        let response = match event {
            Event::Text(text) => {
                told.push_str(&text);
                if let Err(fault) = show(&mut output, &text) {
                    cancel.cancel();
                    return Err(fault);
                }
                continue;
            }
            Event::Done(result) => result?,
        };
        let mut first_fault = None;
        let (mut tokens, mut cancelled) = (0, false);
        for generation in &response.generations {
            match generation {
                Ok(generation) => {
                    tokens += generation.usage.map_or(0, |usage| usage.output_tokens);
                    cancelled |= generation.finish_reason == Some(FinishReason::Cancelled);
                    // What was not told piece by piece yet: all of it if the backend does not stream.
                    let text = generation.text.as_deref().unwrap_or_default();
                    match text.strip_prefix(told.as_str()) {
                        Some(rest) => show(&mut output, &format!("{rest}\n"))?,
                        // A broken answer was begun again and came out differently.
                        None => show(&mut output, &format!("\n{text}\n"))?,
                    }
                    note(messages, generation);
                }
                Err(fault) => {
                    first_fault.get_or_insert(fault.clone());
                }
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        messages.info(format!("{tokens} tokens in {seconds:.1} s, {:.1} tokens/s", tokens as f64 / seconds.max(1e-9)));
        return match (first_fault, cancelled) {
            (_, true) => Ok(exit::INTERRUPTED),
            (None, _) => Ok(exit::DONE),
            (Some(fault), _) => {
                messages.error(&fault);
                Ok(exit::SOME_ROWS_FAILED)
            }
        };
    }
    Err(Fault::stop("backend.lost", "the backend went away without an answer"))
}

/// The row that asks the question: the prompt in the task's one column, the images in its image column.
fn row(task: &TextGenerationWithImage, prompt: &str, images: &[String]) -> Result<Row, Fault> {
    let config = task.config();
    let columns = config.columns.clone().unwrap_or_else(|| vec!["instruction".to_owned()]);
    let [column] = columns.as_slice() else {
        let message = format!("--prompt fills one column, but the template uses {}", columns.len());
        return Err(Fault::stop("usage.prompt", message).with_hint("give --columns one name, or use --input"));
    };
    let dataset_name = |column: &str| config.input_mappings.get(column).cloned().unwrap_or_else(|| column.to_owned());
    let image_column = dataset_name(config.image_column.as_deref().unwrap_or("image"));
    let mut row = Row::new();
    let set = |result: Result<(), vgen_core::RowError>| {
        result.map_err(|error| Fault::stop("usage.prompt", error.to_string()))
    };
    set(row.set(dataset_name(column), prompt))?;
    match images {
        [] => {}
        [image] => set(row.set(image_column, image))?,
        images => set(row.set(image_column, &json!(images)))?,
    }
    Ok(row)
}

/// Says why an answer ended, where the reader would not guess it.
fn note(messages: &Messages, generation: &Generation) {
    match generation.finish_reason {
        Some(FinishReason::Length) => messages.warning("the answer was cut at the limit of tokens (--max-new-tokens)"),
        Some(FinishReason::Deadline) => messages.warning("the answer was cut at the limit of time (--row-timeout)"),
        Some(FinishReason::ContentFilter) => messages.warning("the answer was withheld"),
        _ => {}
    }
}

fn show(output: &mut impl Write, text: &str) -> Result<(), Fault> {
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Fault::stop("output.closed", "the reader of stdout went away"),
        _ => Fault::stop("output.write", format!("writing to stdout failed: {error}")),
    })
}

enum Event {
    Text(String),
    Done(Result<Response, Fault>),
}

struct Stream {
    events: mpsc::Sender<Event>,
    streamed: bool,
}

impl Reply for Stream {
    fn delta(&mut self, _sample: u32, text: &str) {
        if self.streamed {
            // The listener only goes away with the program.
            let _ = self.events.send(Event::Text(text.to_owned()));
        }
    }

    fn done(self: Box<Self>, result: Result<Response, Fault>) {
        let _ = self.events.send(Event::Done(result));
    }
}
