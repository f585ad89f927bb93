//! The output of a run: where it goes, and whether an earlier run is gone on with.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vgen_core::{Backend, Fault, ImageRef, Row};
use vgen_dataset::{
    Column, ColumnType, DatasetError, FetchImage, ImageColumn, ImageFolder, ImageStorage, InputOptions, JsonlSink,
    OutputFormat, OutputLayout, RowSink, RowSource, SidecarOptions, SidecarSink, StoredImages, check_is_no_input,
    infer, store_images,
};
use vgen_run::record::{
    Found, InputFile, InputRecord, Ledger, ModelRecord, Past, RECORD_VERSION, RecordError, RunFolder, RunRecord,
    RunState, differences, failed_rows,
};
use vgen_run::{JournalRows, KnownRows, OldRows, check_skipped};
use vgen_task::TextGenerationWithImage;
use vgen_task::image::{ImageFetcher, KeptImages};

use super::input;
use crate::messages::Messages;
use crate::table::{Config, Place, Resume};
use crate::{identity, local};

/// Rows, and bytes of them, from which the columns of an output with a schema are taken.
const LOOK_ROWS: usize = 1000;
const LOOK_BYTES: usize = 16 << 20;

/// What is to be done with an output that is a file.
pub(crate) enum Start {
    /// A new output.
    Fresh(OutputLayout),
    /// An earlier run is gone on with.
    Resume(Box<RunRecord>, Box<Past>),
    /// Failed rows are done again.
    Retry(Box<RunRecord>, Box<Past>),
    /// Everything is done.
    Done(Box<RunRecord>, Box<Past>),
}

/// An output that is a file, with its record, before the backend is there.
pub(crate) struct Prepared {
    folder: RunFolder,
    pub(crate) start: Start,
    path: PathBuf,
    image_folder: Option<PathBuf>,
}

/// An output that can be written to.
pub(crate) struct Opened {
    pub(crate) sink: Box<dyn RowSink>,
    pub(crate) ledger: Ledger,
    pub(crate) known: Box<dyn KnownRows>,
    /// The new output takes the place of the old one at the end.
    pub(crate) replaces: bool,
}

/// Where the bytes of images to embed come from.
struct ImageSource {
    folder: Option<PathBuf>,
    kept: Option<Arc<KeptImages>>,
}

/// A place for images from the network, if their bytes are wanted in the output.
pub(crate) fn kept_images(config: &Config) -> Option<Arc<KeptImages>> {
    (config.output.images == ImageStorage::Embed).then(Arc::default)
}

/// The sink, with the images of its rows stored as the configuration wants them.
fn stored(
    config: &Config,
    sink: Box<dyn RowSink>,
    folder: Option<PathBuf>,
    kept: Option<&Arc<KeptImages>>,
) -> Box<dyn RowSink> {
    if config.output.images == ImageStorage::Keep {
        return sink;
    }
    let fetch = kept.map(|kept| -> FetchImage {
        // What the backend did not fetch (a server may do that itself), or what was fetched too long ago.
        let fetcher = ImageFetcher::new(local::limits(&config.images)).keeping(Some(Arc::clone(kept)));
        let kept = Arc::clone(kept);
        Arc::new(move |url| match kept.wait(url) {
            Some(known) => known,
            None => fetcher.fetch(&ImageRef::Url(url.into())).ok(),
        })
    });
    let (column, storage) = (input::image_column(config), config.output.images);
    Box::new(StoredImages::new(sink, ImageColumn { column, storage, folder, fetch }))
}

/// A sink without a record: standard output, a pipe, a device.
pub(crate) fn stream(
    config: &Config,
    folder: Option<PathBuf>,
    kept: Option<&Arc<KeptImages>>,
) -> Result<Option<Box<dyn RowSink>>, Fault> {
    match &config.output.place {
        Place::Standard => Ok(Some(stored(config, Box::new(JsonlSink::stdout()), folder, kept))),
        Place::File(path) if is_stream(path) => {
            let layout = OutputLayout {
                format: OutputFormat::Jsonl,
                columns: Vec::new(),
                group_rows: config.output.row_group_rows,
            };
            Ok(Some(stored(config, Box::new(layout.create(path)?), folder, kept)))
        }
        Place::File(_) => Ok(None),
    }
}

/// Whether a path is a pipe or a device: nothing that could be gone on with.
pub(crate) fn is_stream(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// The fault of `--retry-failed` without a record.
pub(crate) fn no_retry() -> Fault {
    Fault::stop("usage.retry", "--retry-failed needs an output that is a file")
        .with_hint("name the output of the run with --output")
}

/// The format of an output.
pub(crate) fn format(config: &Config, path: &Path) -> OutputFormat {
    config.output.format.unwrap_or_else(|| OutputFormat::of_path(path))
}

/// Decides what to do, and brings `source` to where it goes on.
pub(crate) fn prepare(
    config: &Config,
    path: &Path,
    task: &TextGenerationWithImage,
    source: &mut Box<dyn RowSource>,
) -> Result<Prepared, Fault> {
    let inputs = input::paths(config)?;
    let format = format(config, path);
    if format != OutputFormat::Sidecar {
        check_is_no_input(path, &inputs)?;
        if path.is_dir() {
            let source = io::Error::from(io::ErrorKind::IsADirectory);
            return Err(DatasetError::OutputOpen { path: path.to_owned(), source }.into());
        }
    }
    let image_folder = source.folder().map(Path::to_owned);
    let folder = RunFolder::lock(path)?;
    let found = match folder.find() {
        // What is broken does not matter to who replaces it.
        Err(RecordError::Broken { .. } | RecordError::Version { .. }) if config.output.overwrite => Found::Nothing,
        found => found?,
    };
    let start = decide(config, path, &inputs, format, task, source, found)?;
    Ok(Prepared { folder, start, path: path.to_owned(), image_folder })
}

fn decide(
    config: &Config,
    path: &Path,
    inputs: &[PathBuf],
    format: OutputFormat,
    task: &TextGenerationWithImage,
    source: &mut Box<dyn RowSource>,
    found: Found,
) -> Result<Start, Fault> {
    let output = &config.output;
    let fresh = |source: &mut Box<dyn RowSource>| {
        if format == OutputFormat::Sidecar {
            check_sidecars(config, path, inputs)?;
        }
        Ok(Start::Fresh(layout(config, format, task, inputs, source)?))
    };
    let exists = || Err(DatasetError::OutputExists(path.to_owned()).into());
    let content = format != OutputFormat::Sidecar && path.metadata().is_ok_and(|metadata| metadata.len() > 0);
    match found {
        _ if output.overwrite => fresh(source),
        Found::Nothing if output.resume == Resume::Require || output.retry_failed => {
            Err(RecordError::Nothing(path.to_owned()).into())
        }
        Found::Nothing if content => exists(),
        Found::Nothing => fresh(source),
        Found::Run(_, past) if past.finished_rows() == 0 && !content && output.resume != Resume::Require => {
            fresh(source)
        }
        Found::Run(..) if output.resume == Resume::Never => exists(),
        Found::Run(record, past) => {
            let different = differences(&record.fingerprint, &config.recorded.fingerprint);
            if !different.is_empty() {
                return Err(RecordError::Differs { output: path.to_owned(), differences: different }.into());
            }
            if format != OutputFormat::Sidecar {
                check_output(path, &past)?;
            }
            if output.retry_failed {
                return Ok(Start::Retry(record, past));
            }
            if record.state == RunState::Complete && is_done(config, &past, source.name())? {
                return Ok(Start::Done(record, past));
            }
            let skipped = source.skip(past.mark().rows)?;
            check_skipped(source.name(), &past, skipped)?;
            Ok(Start::Resume(record, past))
        }
    }
}

/// Whether a complete run has no rows left: its input may have grown, or a limit been raised.
fn is_done(config: &Config, past: &Past, name: &str) -> Result<bool, Fault> {
    if !matches!(config.input.place, Some(Place::File(_))) {
        return Ok(false);
    }
    let Some(rows) = past.closed_rows() else { return Ok(false) };
    let mut source = input::source(config)?;
    let skipped = source.skip(past.mark().rows)?;
    check_skipped(name, past, skipped)?;
    let mut known = JournalRows::new(past.clone(), name);
    for sequence in past.mark().rows..rows {
        let Some(row) = source.next_row()? else {
            let what = format!("{rows} rows are done, but it has only {sequence}");
            return Err(RecordError::InputChanged { input: name.to_owned(), what }.into());
        };
        known.take(sequence, row.digest)?;
    }
    Ok(source.next_row()?.is_none())
}

/// Whether the output is as its run left it.
fn check_output(path: &Path, past: &Past) -> Result<(), Fault> {
    let changed =
        |what: &str| -> Fault { RecordError::OutputChanged { output: path.to_owned(), what: what.to_owned() }.into() };
    let (wanted, exact) = match past.end() {
        Some(end) => (end, true),
        None => (past.mark(), false),
    };
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && wanted.bytes == 0 => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(changed("it is gone")),
        file => file.map_err(|source| DatasetError::OutputOpen { path: path.to_owned(), source })?,
    };
    let bytes = file.metadata().map_or(0, |metadata| metadata.len());
    if bytes < wanted.bytes {
        return Err(changed(&format!("it has {bytes} bytes where {} were written", wanted.bytes)));
    }
    if exact && bytes > wanted.bytes {
        return Err(changed(&format!("it has {bytes} bytes where {} were written", wanted.bytes)));
    }
    let mut digest = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut left = wanted.bytes;
    while left > 0 {
        let part = &mut buffer[..left.min(1 << 20) as usize];
        file.read_exact(part).map_err(|source| DatasetError::OutputOpen { path: path.to_owned(), source })?;
        digest.update(part);
        left -= part.len() as u64;
    }
    if digest.finalize() != wanted.crc {
        return Err(changed("its content was changed"));
    }
    Ok(())
}

fn check_sidecars(config: &Config, path: &Path, inputs: &[PathBuf]) -> Result<(), Fault> {
    let suffix = &config.output.suffix;
    if config.input.instruction_suffix.as_ref() == Some(suffix) {
        let message = format!("answers and instructions would be the same files, *{suffix}");
        return Err(Fault::stop("config.value", message).with_hint("choose another --sidecar-suffix"));
    }
    for input in inputs {
        let options = InputOptions::default().folder;
        let Ok(folder) =
            ImageFolder::open(input, vgen_dataset::FolderOptions { globs: config.input.globs.clone(), ..options })
        else {
            let message = format!("{} is no folder of images, beside which answers could go", input.display());
            return Err(Fault::stop("config.value", message).with_hint("name a folder with --input"));
        };
        if let Some((one, two)) = folder.clash(suffix) {
            let message = format!("{} and {} would have the same text file", one.display(), two.display());
            return Err(Fault::stop("output.clash", message).with_hint("rename one of them, or write JSON lines"));
        }
        if let Some(there) = folder.existing(path, suffix).filter(|_| !config.output.overwrite) {
            return Err(DatasetError::OutputExists(there).into());
        }
    }
    Ok(())
}

/// Format and columns of a new output.
fn layout(
    config: &Config,
    format: OutputFormat,
    task: &TextGenerationWithImage,
    inputs: &[PathBuf],
    source: &mut Box<dyn RowSource>,
) -> Result<OutputLayout, Fault> {
    if format != OutputFormat::Jsonl && input::is_batch(config)? {
        return Err(Fault::stop("config.value", "the answers to a batch file are JSON lines")
            .with_hint("name an output that ends in .jsonl"));
    }
    if config.output.images == ImageStorage::Embed {
        let folders: std::collections::BTreeSet<_> = inputs.iter().map(|path| path.parent()).collect();
        if folders.len() > 1 {
            return Err(Fault::stop("config.value", "images of inputs in several folders can't be embedded")
                .with_hint("put the files in one folder, or run one at a time"));
        }
    }
    if format == OutputFormat::Sidecar && config.output.images != ImageStorage::Keep {
        return Err(Fault::stop("config.value", "text files beside images hold no images")
            .with_hint("leave out --output-images"));
    }
    let image_column = input::image_column(config);
    let mut columns = Vec::new();
    if format.has_schema() {
        columns = match source.columns() {
            Some(columns) => columns,
            None => infer(&first_rows(config, source)?),
        };
        store_images(&mut columns, &image_column, config.output.images);
        for column in written_columns(config, task) {
            match columns.iter_mut().find(|other| other.name == column.name) {
                Some(other) => *other = column,
                None => columns.push(column),
            }
        }
    }
    Ok(OutputLayout { format, columns, group_rows: config.output.row_group_rows })
}

fn written_columns(config: &Config, task: &TextGenerationWithImage) -> Vec<Column> {
    let grouped = task.group_generations();
    let either = |one, list| if grouped { list } else { one };
    let mut columns = vec![
        Column::new(task.output_name("generation"), either(ColumnType::Text, ColumnType::Texts)),
        Column::new(task.output_name("distilabel_metadata"), ColumnType::Json),
    ];
    if config.sampling.logprobs {
        columns.push(Column::new(task.extra_column("logprobs"), ColumnType::Json));
    }
    columns.extend([
        Column::new(task.output_name("model_name"), ColumnType::Text),
        Column::new(task.output_name("finish_reason"), either(ColumnType::Text, ColumnType::Texts)),
        Column::new(task.output_name("error"), either(ColumnType::Error, ColumnType::Errors)),
    ]);
    columns
}

/// The first rows of the input, which stay to be read.
fn first_rows(config: &Config, source: &mut Box<dyn RowSource>) -> Result<Vec<Row>, Fault> {
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut look = |row: &vgen_dataset::SourceRow| {
        if let Ok(row) = &row.row {
            bytes += row.size();
            rows.push(row.clone());
        }
        rows.len() < LOOK_ROWS && bytes < LOOK_BYTES
    };
    if !matches!(config.input.place, Some(Place::File(_))) {
        let inner = std::mem::replace(source, Box::new(vgen_dataset::JsonlSource::from_reader(io::empty(), "")));
        let mut ahead = vgen_dataset::Lookahead::new(inner);
        ahead.look(&mut look)?;
        *source = Box::new(ahead);
    } else {
        let mut again = input::source(config)?;
        while let Some(row) = again.next_row()? {
            if !look(&row) {
                break;
            }
        }
    }
    Ok(rows)
}

/// # Errors
/// `resume.differs`
fn check_model(record: &RunRecord, model: &ModelRecord, path: &Path) -> Result<(), RecordError> {
    if record.model == *model {
        return Ok(());
    }
    let mut lines = Vec::new();
    let told = |value: &Option<String>| value.clone().unwrap_or_else(|| "not known".to_owned());
    for (what, then, now) in [
        ("name", &Some(record.model.name.clone()), &Some(model.name.clone())),
        ("revision", &record.model.revision, &model.revision),
        ("digest", &record.model.digest, &model.digest),
    ] {
        if then != now {
            lines.push(format!("model.{what} was {}, now is {}", told(then), told(now)));
        }
    }
    Err(RecordError::Differs { output: path.to_owned(), differences: lines })
}

impl Prepared {
    /// Says that an earlier run is gone on with, if it is so.
    pub(crate) fn tell(&self, messages: &Messages) {
        if let Start::Resume(_, past) | Start::Retry(_, past) = &self.start {
            let (path, rows) = (self.path.display(), past.finished_rows());
            messages.info(format!("going on with {path}: {rows} rows are done"));
        }
    }

    /// Whether an earlier run had the model that is called so now.
    ///
    /// # Errors
    /// `resume.differs`
    pub(crate) fn check_model(&self, config: &Config, name: &str) -> Result<(), Fault> {
        match &self.start {
            Start::Fresh(_) => Ok(()),
            Start::Resume(record, _) | Start::Retry(record, _) | Start::Done(record, _) => {
                Ok(check_model(record, &identity::model(config, name), &self.path)?)
            }
        }
    }

    /// Opens the output for the backend's answers.
    ///
    /// # Errors
    /// `resume.differs` if the model is another one; `output.*`, `record.*`, `input.*`.
    pub(crate) fn open(
        self,
        config: &Config,
        task: &TextGenerationWithImage,
        backend: &dyn Backend,
        source: &mut Box<dyn RowSource>,
        kept: Option<&Arc<KeptImages>>,
    ) -> Result<Opened, Fault> {
        let Self { folder, start, path, image_folder } = self;
        let images = ImageSource { folder: image_folder, kept: kept.cloned() };
        let model = identity::model(config, backend.model_name());
        let durability = config.output.durability;
        let check_model = |record: &RunRecord| check_model(record, &model, &path);
        match start {
            Start::Fresh(layout) => {
                let record = record(config, task, &path, layout.clone(), model)?;
                let ledger = Ledger::begin(folder, record, durability)?;
                let sink = sink(config, &layout, &path, images, None)?;
                Ok(Opened { sink, ledger, known: Box::new(()), replaces: false })
            }
            Start::Resume(mut record, past) | Start::Done(mut record, past) => {
                check_model(&record)?;
                record.config = config.recorded.config.clone();
                let layout = record.layout.clone();
                let ledger = Ledger::resume(folder, *record, &past, durability)?;
                let sink = sink(config, &layout, &path, images, Some(past.mark()))?;
                let known = Box::new(JournalRows::new(*past, source.name()));
                Ok(Opened { sink, ledger, known, replaces: false })
            }
            Start::Retry(mut record, past) => {
                check_model(&record)?;
                record.config = config.recorded.config.clone();
                retry(config, folder, record, past, &path, images, source)
            }
        }
    }
}

fn retry(
    config: &Config,
    folder: RunFolder,
    mut record: Box<RunRecord>,
    past: Box<Past>,
    path: &Path,
    images: ImageSource,
    source: &mut Box<dyn RowSource>,
) -> Result<Opened, Fault> {
    let layout = record.layout.clone();
    let sidecar = layout.format == OutputFormat::Sidecar;
    if past.end().is_none() && !sidecar {
        // A killed run: what is whole of it becomes a file that can be read.
        layout.resume(path, past.mark())?.finish()?;
    }
    let failed = failed_rows(&folder.path().join("failed.jsonl"))?;
    let failed = failed.into_iter().filter(|row| row.sequence < past.mark().rows).collect();
    let mut again = Past::default();
    if let Found::Run(interrupted, its_past) = folder.find_retry()? {
        if interrupted.layout == layout {
            record.sessions = interrupted.sessions;
            again = *its_past;
        } else {
            folder.drop_retry()?;
        }
    }
    let old = match (sidecar, past.mark().rows) {
        (true, _) | (_, 0) => None,
        _ => Some(layout.read(path)?),
    };
    let usual = record.rows_per_input;
    let mark = again.mark();
    let journal = JournalRows::new(again.clone(), source.name());
    let mut known = OldRows::new(old, *past, journal, failed, config.output.only.clone(), usual);
    known.skip(mark.rows)?;
    let skipped = source.skip(mark.rows)?;
    check_skipped(source.name(), &again, skipped)?;
    let (_, new) = folder.retry()?;
    let fresh = again.finished_rows() == 0;
    let ledger = Ledger::retry(folder, *record, &again, config.output.durability)?;
    let new = if sidecar { path.to_owned() } else { new };
    let sink = sink(config, &layout, &new, images, (!fresh).then_some(mark))?;
    Ok(Opened { sink, ledger, known: Box::new(known), replaces: true })
}

fn sink(
    config: &Config,
    layout: &OutputLayout,
    path: &Path,
    images: ImageSource,
    mark: Option<vgen_dataset::Mark>,
) -> Result<Box<dyn RowSink>, Fault> {
    if layout.format == OutputFormat::Sidecar {
        let answer = config.task.output_mappings.get("generation").map_or("generation", String::as_str);
        let options = SidecarOptions {
            folder: path.to_owned(),
            suffix: config.output.suffix.clone(),
            image_column: input::image_column(config),
            answer_column: answer.to_owned(),
        };
        return Ok(Box::new(SidecarSink::new(options, mark.unwrap_or_default().rows)));
    }
    let sink: Box<dyn RowSink> = match mark {
        None => Box::new(layout.create(path)?),
        Some(mark) => Box::new(layout.resume(path, mark)?),
    };
    Ok(stored(config, sink, images.folder, images.kept.as_ref()))
}

fn record(
    config: &Config,
    task: &TextGenerationWithImage,
    path: &Path,
    layout: OutputLayout,
    model: ModelRecord,
) -> Result<RunRecord, Fault> {
    let now = vgen_run::record::now();
    let rows_per_input =
        if input::is_batch(config)? || task.group_generations() { 1 } else { u64::from(task.num_generations()) };
    let named = match config.input.place {
        Some(Place::File(_)) => config.input.paths.iter().map(|path| path.to_string_lossy().into_owned()).collect(),
        Some(Place::Standard) => vec!["-".to_owned()],
        None => Vec::new(),
    };
    Ok(RunRecord {
        version: RECORD_VERSION,
        program: format!("vgen {}", env!("CARGO_PKG_VERSION")),
        state: RunState::Running,
        fault: None,
        created: now.clone(),
        updated: now,
        output: path.to_owned(),
        layout,
        rows_per_input,
        input: InputRecord {
            named,
            files: input::paths(config)?.iter().map(|path| InputFile::of(path)).collect(),
            shard: config.input.shard.map(|shard| shard.to_string()),
        },
        model,
        seed: config.sampling.seed,
        config: config.recorded.config.clone(),
        fingerprint: config.recorded.fingerprint.clone(),
        counts: Default::default(),
        sessions: Vec::new(),
    })
}
