//! `--demo`: the small model and the sample images that are part of the program, and the table of their answers.

use std::io::{self, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use include_dir::{Dir, include_dir};
use vgen_core::{Fault, Row};
use vgen_dataset::{Origin, RowSink, RowSource, SourceRow};

/// The name of the demo model in the configuration.
pub(crate) const MODEL: &str = "vgen/shapes";

static SAMPLES: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/../../models/shapes/samples");
const ROWS: &str = "rows.jsonl";
/// The sample's file name, in place of the image that a data URL hides.
const FILE_COLUMN: &str = "file";

macro_rules! model_files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../../models/shapes/", $name)) as &[u8])),*]
    };
}

/// The files of the demo model, by name.
pub(crate) fn model_files() -> Vec<(&'static str, &'static [u8])> {
    static FILES: [(&str, &[u8]); 7] = model_files![
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.json",
        "model.safetensors",
    ];
    FILES.to_vec()
}

/// The rows of the samples, their images as data URLs.
///
/// # Errors
/// `demo.samples` if the samples in this program are broken.
pub(crate) fn samples() -> Result<Samples, Fault> {
    let rows = SAMPLES.get_file(ROWS).and_then(|file| file.contents_utf8()).ok_or_else(|| broken(ROWS))?;
    let rows = rows.lines().filter(|line| !line.trim().is_empty()).map(sample).collect::<Result<Vec<_>, _>>()?;
    Ok(Samples { count: rows.len(), rows: rows.into_iter().enumerate() })
}

fn broken(what: &str) -> Fault {
    Fault::stop("demo.samples", format!("the sample {what} of this program is broken"))
}

fn sample(line: &str) -> Result<Row, Fault> {
    let mut row = Row::from_json(line).map_err(|_| broken(ROWS))?;
    let name = row.text("image").ok_or_else(|| broken(ROWS))?.into_owned();
    // Paths in the file are relative to its folder, as in any input.
    let image = SAMPLES.get_file(&name).ok_or_else(|| broken(&name))?;
    let url = format!("data:image/png;base64,{}", STANDARD.encode(image.contents()));
    row.set("image", &url).and_then(|()| row.set(FILE_COLUMN, &name)).map_err(|_| broken(&name))?;
    Ok(row)
}

/// The samples as a source of rows.
pub(crate) struct Samples {
    count: usize,
    rows: std::iter::Enumerate<std::vec::IntoIter<Row>>,
}

impl RowSource for Samples {
    fn name(&self) -> &str {
        "samples"
    }

    fn folder(&self) -> Option<&Path> {
        None
    }

    fn next_row(&mut self) -> Result<Option<SourceRow>, Fault> {
        Ok(self.rows.next().map(|(number, row)| SourceRow {
            number: number as u64,
            origin: Origin { name: self.name().into(), line: Some(number as u64 + 1) },
            row: Ok(row),
            digest: number as u32,
            share: Some((number + 1) as f64 / self.count as f64),
        }))
    }
}

/// Prints image, question and answer of each row as a line.
pub(crate) struct AnswerTable {
    generation: String,
    begun: bool,
}

impl AnswerTable {
    /// A table of the given output column.
    pub(crate) fn new(generation: &str) -> Self {
        Self { generation: generation.to_owned(), begun: false }
    }

    fn line(&self, image: &str, question: &str, answer: &str) -> Result<(), Fault> {
        let answer = answer.replace('\n', "\n    ");
        writeln!(io::stdout(), "{image:<20} {question:<48} {answer}").map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Fault::stop("output.closed", "the reader of stdout went away"),
            _ => Fault::stop("output.write", format!("writing to stdout failed: {error}")),
        })
    }
}

impl RowSink for AnswerTable {
    fn write(&mut self, _number: u64, rows: &[Row]) -> Result<(), Fault> {
        if !std::mem::replace(&mut self.begun, true) {
            self.line("image", "question", "answer")?;
        }
        for row in rows {
            let text = |name: &str| row.text(name).map(std::borrow::Cow::into_owned);
            let answer = text(&self.generation).unwrap_or_else(|| match row.get("error") {
                Some(error) if error.get() != "null" => format!("error: {}", error.get()),
                _ => row.get(&self.generation).map_or("", |value| value.get()).to_owned(),
            });
            let question = text("instruction").unwrap_or_default();
            self.line(&text(FILE_COLUMN).unwrap_or_default(), &question, &answer)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Fault> {
        Ok(())
    }
}
