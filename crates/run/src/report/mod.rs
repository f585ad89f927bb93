//! The report: a finished, running or broken-off output as one HTML file to look at, or two of them side by side.
//!
//! The file needs nothing besides itself and a browser: no network, no other file. Rows, thumbnails and the run record
//! are in it as compressed data, which the page unpacks as far as it shows it. Everything that comes from outside meets
//! the page as data and never as markup; the page's own policy lets no other script run and nothing be loaded.
//!
//! | module | does |
//! |---|---|
//! | `output` | opens an output of any format with its run record |
//! | `row` | reads what the report shows from an output row |
//! | `pair` | finds which rows of two runs belong together, and which rows are shown |
//! | `pictures` | makes the thumbnails |
//! | `page` | writes the file |

mod output;
mod page;
mod pair;
mod pictures;
mod row;
mod sidecar;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use vgen_core::Fault;

use self::output::Output;
use self::pair::Choice;
use self::pictures::{Pictures, Slot};
use self::row::Shown;

/// Rows that are read, and images that are made small, at a time.
const TOGETHER: usize = 128;

/// What to report on, and how.
#[derive(Clone, Debug)]
pub struct ReportOptions {
    /// The output, or two of them to compare.
    pub outputs: Vec<PathBuf>,
    /// The file to write.
    pub file: PathBuf,
    /// Replace a file that is there and is no report.
    pub overwrite: bool,
    /// Rows to show at most.
    pub most_rows: usize,
    /// Longest side of the images in the report; by the number of rows unless given, and none if 0.
    pub image_size: Option<u32>,
    /// The column of images; what the run record says unless given.
    pub image_column: Option<String>,
    /// The column by which rows of two runs belong together.
    pub key: Option<String>,
    /// Fetch images behind URLs from the network.
    pub fetch_images: bool,
    /// The program, for the page.
    pub program: String,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// Rows of all outputs.
    pub rows: u64,
    /// Rows, or pairs of rows, in the report.
    pub shown: usize,
    /// Images that could not be shown.
    pub images_missing: usize,
    /// Length of the file.
    pub bytes: u64,
    /// What is odd about the outputs.
    pub warnings: Vec<String>,
}

/// What the page says about a run.
#[derive(Serialize)]
struct RunFacts {
    name: String,
    path: String,
    rows: usize,

    record: Option<Value>,
    warnings: Vec<String>,
}

/// How the rows of two runs were put together.
#[derive(Serialize)]
struct Pairing {
    by: String,
    paired: usize,
    only: [usize; 2],
}

/// A line of the list: a row, or a row of each of two runs.
#[derive(Serialize)]
struct Line {
    sides: Vec<Option<row::Side>>,
    prompt: String,
    images: Vec<usize>,
    /// How alike the answers of two runs are, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    alike: Option<f64>,
}

/// What a line shows when it is opened.
#[derive(Serialize)]
struct Detail {
    messages: Vec<Value>,
    columns: Vec<(String, Value)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_fault: Option<String>,
    sides: Vec<Option<row::SideDetail>>,
}

/// Everything in the report.
struct Contents {
    title: String,
    program: String,
    runs: Vec<RunFacts>,
    pairing: Option<Pairing>,
    lines: Vec<Line>,
    details: Vec<Detail>,
    slots: Vec<Slot>,
}

/// Writes the report.
///
/// # Errors
/// `input.*` for outputs that can't be read, `record.*` for their records, `output.*` for the report.
pub fn report(options: &ReportOptions) -> Result<Reported, Fault> {
    page::check_place(options)?;
    let mut outputs = Vec::with_capacity(options.outputs.len());
    for path in &options.outputs {
        outputs.push(Output::find(path, options.image_column.as_deref())?);
    }
    let choice = pair::choose(&mut outputs, options.key.as_deref(), options.most_rows)?;
    let edge = options.image_size.unwrap_or_else(|| pictures::edge_for(choice.lines.len()));
    let mut pictures = Pictures::new(edge, options.fetch_images);
    let (lines, details) = read_lines(&mut outputs, &choice, &mut pictures)?;
    let rows = outputs.iter().map(|output| output.rows).sum::<usize>();
    let warnings: Vec<String> = outputs.iter().flat_map(|output| output.warnings.iter().cloned()).collect();
    let images_missing = pictures.missing();
    let contents = Contents {
        title: outputs.iter().map(|output| output.name.clone()).collect::<Vec<_>>().join(" and "),
        program: options.program.clone(),
        runs: outputs.into_iter().map(facts).collect(),
        pairing: choice.pairing,
        lines,
        details,
        slots: pictures.into_slots(),
    };
    let bytes = page::write(&contents, &options.file)?;
    Ok(Reported { rows: rows as u64, shown: contents.lines.len(), images_missing, bytes, warnings })
}

fn facts(output: Output) -> RunFacts {
    RunFacts {
        name: output.name,
        path: output.path.to_string_lossy().into_owned(),
        rows: output.rows,
        record: output.record.as_ref().and_then(|record| serde_json::to_value(record).ok()),
        warnings: output.warnings,
    }
}

/// Reads each output once more and keeps what is shown of the chosen rows.
fn read_lines(
    outputs: &mut [Output],
    choice: &Choice,
    pictures: &mut Pictures,
) -> Result<(Vec<Line>, Vec<Detail>), Fault> {
    let two = outputs.len() > 1;
    let mut lines: Vec<Line> = choice
        .lines
        .iter()
        .map(|_| Line { sides: Vec::new(), prompt: String::new(), images: Vec::new(), alike: None })
        .collect();
    let mut details: Vec<Detail> = choice
        .lines
        .iter()
        .map(|_| Detail { messages: Vec::new(), columns: Vec::new(), image_fault: None, sides: Vec::new() })
        .collect();
    for (side, output) in outputs.iter_mut().enumerate() {
        let places = choice.places(side);
        lines.iter_mut().for_each(|line| line.sides.push(None));
        details.iter_mut().for_each(|detail| detail.sides.push(None));
        let mut rows = output.shown_rows()?;
        let mut waiting: Vec<(usize, Shown)> = Vec::new();
        let mut at = 0;
        loop {
            let wanted = places.get(&at).copied();
            let Some(shown) = rows.next(wanted.is_some())? else { break };
            at += 1;
            if let (Some(line), Some(shown)) = (wanted, shown) {
                waiting.push((line, shown));
            }
            if waiting.len() >= TOGETHER {
                place(&mut waiting, side, &mut lines, &mut details, pictures);
            }
        }
        place(&mut waiting, side, &mut lines, &mut details, pictures);
    }
    if two {
        lines.iter_mut().for_each(|line| line.alike = pair::alike(&line.sides));
    }
    Ok((lines, details))
}

fn place(
    waiting: &mut Vec<(usize, Shown)>,
    side: usize,
    lines: &mut [Line],
    details: &mut [Detail],
    pictures: &mut Pictures,
) {
    // The second run of a pair shows the same images.
    let images: Vec<&[vgen_core::ImageRef]> = waiting
        .iter()
        .map(|(line, shown)| if lines[*line].images.is_empty() { shown.images.as_slice() } else { &[] })
        .collect();
    let slots = pictures.add(&images);
    for ((line, shown), slots) in waiting.drain(..).zip(slots) {
        let (entry, detail) = (&mut lines[line], &mut details[line]);
        if !slots.is_empty() {
            entry.images = slots;
        }
        if entry.prompt.is_empty() {
            entry.prompt = shown.prompt;
        }
        if detail.messages.is_empty() {
            detail.messages = shown.messages;
        }
        if detail.columns.is_empty() {
            detail.columns = shown.columns;
        }
        detail.image_fault = detail.image_fault.take().or(shown.image_fault);
        entry.sides[side] = Some(shown.side);
        detail.sides[side] = Some(shown.detail);
    }
}

/// The file of a report unless one is named.
pub fn default_file(outputs: &[PathBuf]) -> PathBuf {
    let named = |path: &Path, more: &str| {
        let mut name = path.components().collect::<PathBuf>().into_os_string();
        name.push(more);
        PathBuf::from(name)
    };
    match outputs {
        [one, two, ..] => {
            let other = two.file_name().unwrap_or_default().to_string_lossy();
            named(one, &format!("-and-{other}.html"))
        }
        [one] => named(one, ".html"),
        [] => PathBuf::from("report.html"),
    }
}
