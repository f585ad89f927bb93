//! [`Taken`]: the report while readings are taken, and its end.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::agreement::{Agreement, Answer, Tokenize};
use super::metrics::{self, KNOWN};
use super::report::{Cell, FORM, Report, RowSet, Run, TargetReport};
use super::rows::{BenchRow, Rows, digest};
use super::runner::{Bench, Opened, Target};
use super::saturation;
use super::statistics::Spread;

/// Answers by draw, in the order of the rows.
type Answers = BTreeMap<u64, Vec<Option<Answer>>>;

/// What was measured so far.
pub(super) struct Taken {
    report: Report,
    /// Of each backend.
    answers: Vec<Answers>,
    tokenize: Option<Box<Tokenize>>,
    notes: Vec<String>,
    hash: Sha256,
    /// The last draw in the hash: they come in order.
    hashed: u64,
    images: Vec<f64>,
}

impl Taken {
    pub(super) fn new(bench: &Bench) -> Self {
        let left_out = match &bench.rows {
            Rows::Fixed { left_out, .. } => left_out.clone(),
            Rows::Drawn { .. } => BTreeMap::new(),
        };
        let report = Report {
            form: FORM.to_owned(),
            created: chrono::Local::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, false),
            unfinished: Some("the bench still goes on, or was ended by force".to_owned()),
            program: bench.program.clone(),
            machine: bench.machine.clone(),
            rows: RowSet {
                name: bench.rows.name().to_owned(),
                rows: bench.rows.len(),
                images: 0,
                drawn: matches!(bench.rows, Rows::Drawn { .. }),
                digest: String::new(),
                left_out,
            },
            sampling: serde_json::to_value(&bench.sampling).unwrap_or_default(),
            seed: bench.seed,
            repeats: bench.repeats,
            warmup_rows: bench.warmup_rows,
            interleaved: bench.interleave,
            metrics: metrics::described(),
            targets: Vec::new(),
            cells: Vec::new(),
            saturation: Vec::new(),
            agreement: Vec::new(),
            notes: Vec::new(),
        };
        let (hash, hashed) = (Sha256::new(), 0);
        Self { report, answers: Vec::new(), tokenize: None, notes: Vec::new(), hash, hashed, images: Vec::new() }
    }

    /// The next backend is ready.
    pub(super) fn opened(&mut self, target: &Target<'_>, opened: &mut Opened, load_seconds: f64) {
        self.report.targets.push(TargetReport {
            name: target.name.clone(),
            kind: target.kind.clone(),
            model: opened.backend.model_name().to_owned(),
            model_identity: opened.model_identity.clone(),
            settings: target.settings.clone(),
            device: opened.device.clone(),
            load_seconds,
            prices: target.prices,
            limits: opened.limits.clone(),
            work: opened.work,
            sweep: target.sweep.clone(),
        });
        self.answers.push(Answers::new());
        // The first one is that of the backend which the others are compared with, if that is local.
        self.tokenize = self.tokenize.take().or_else(|| opened.tokenize.take());
        self.notes.extend(opened.notes.iter().map(|note| format!("{}: {note}", target.name)));
    }

    /// A backend has answered the rows of a draw.
    pub(super) fn answered(&mut self, at: usize, draw: u64, rows: &[BenchRow], answers: Vec<Option<Answer>>) {
        self.answers[at].insert(draw, answers);
        if draw <= self.hashed {
            return;
        }
        let first = self.hashed == 0;
        self.hashed = draw;
        if first || self.report.rows.drawn {
            digest(rows, &mut self.hash);
            self.images.push(rows.iter().map(BenchRow::images).sum::<u64>() as f64);
            let hash = self.hash.clone().finalize();
            self.report.rows.digest = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            self.report.rows.images = Spread::of(&self.images).map_or(0, |spread| spread.median as u64);
        }
    }

    /// A reading, and the report with it.
    pub(super) fn add(&mut self, bench: &Bench, at: usize, load: usize, run: Run) -> &Report {
        let report = &mut self.report;
        let target = report.targets[at].name.clone();
        let place = |cell: &Cell| {
            let target = report.targets.iter().position(|target| target.name == cell.target);
            (target, bench.loads.iter().position(|load| *load == cell.load))
        };
        // Backend by backend, each with its loads in order.
        let (Ok(at) | Err(at)) = report.cells.binary_search_by_key(&(Some(at), Some(load)), place);
        let load = bench.loads[load];
        if report.cells.get(at).is_none_or(|cell| (&cell.target, cell.load) != (&target, load)) {
            let cell = Cell { target: target.clone(), load, runs: Vec::new(), summary: BTreeMap::new() };
            report.cells.insert(at, cell);
        }
        report.cells[at].runs.push(run);
        let cell = &report.cells[at];
        let summary = |known: &metrics::Known| {
            Spread::of(&report.readings(cell, known)).map(|spread| (known.name.to_owned(), spread))
        };
        let summary = KNOWN.iter().filter_map(summary).collect();
        report.cells[at].summary = summary;
        report.saturation = report.targets.iter().map(|target| saturation::of(&target.name, &report.cells)).collect();
        report
    }

    /// The report, with why readings are missing if some are.
    pub(super) fn finish(mut self, bench: &Bench, unfinished: Option<String>) -> Report {
        self.report.unfinished = unfinished;
        let tokenize = self.tokenize.as_deref();
        for (at, other) in self.report.targets.iter().enumerate().skip(1) {
            let base = &self.report.targets[0].name;
            let pairs = pairs(&self.answers[0], &self.answers[at]);
            self.report.agreement.push(Agreement::of(base, &other.name, &pairs, tokenize));
        }
        self.report.notes = notes(bench, &self.report);
        self.report.notes.append(&mut self.notes);
        self.report
    }
}

/// The answers of two backends to the same rows, where both have one.
fn pairs(base: &Answers, other: &Answers) -> Vec<(Answer, Answer)> {
    let of_draw = |(draw, base): (&u64, &Vec<Option<Answer>>)| -> Vec<(Answer, Answer)> {
        let other = other.get(draw).map(Vec::as_slice).unwrap_or_default();
        base.iter().zip(other).filter_map(|(a, b)| Some((a.clone()?, b.clone()?))).collect()
    };
    base.iter().flat_map(of_draw).collect()
}

fn notes(bench: &Bench, report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    if bench.warmup_rows > 0 {
        notes.push(format!("{} rows of warm-up for each backend are in no number", bench.warmup_rows));
    } else {
        notes.push("there was no warm-up: first readings may be slower".to_owned());
    }
    if !report.rows.left_out.is_empty() {
        let codes: Vec<String> =
            report.rows.left_out.iter().map(|(code, rows)| format!("{rows} with {code}")).collect();
        notes.push(format!("rows of the file that could not be asked about were left out: {}", codes.join(", ")));
    }
    if !report.rows.drawn && report.rows.images > 0 {
        let keeps =
            |target: &TargetReport| target.kind == "local" && target.settings.get("image_cache") != Some(&0.into());
        if report.targets.iter().any(keeps) {
            notes.push(
                "rows were the same in each reading, and local backends keep images: image_cache = 0 has them encoded \
                 anew"
                    .to_owned(),
            );
        }
        if report.targets.iter().any(|target| target.kind == "inference-endpoints") {
            notes.push("rows were the same in each reading: caches of servers may know them".to_owned());
        }
    }
    if report.targets.len() > 1 && bench.interleave {
        notes.push("all backends were open at a time: peak memory of this process is that of all of them".to_owned());
    }
    if bench.repeats < 4 && report.targets.len() > 1 {
        notes.push("with fewer than 4 repeats no difference can be told from noise".to_owned());
    }
    if !bench.sampling.ignore_eos {
        notes.push("answers end where the model ends them, so their lengths may differ".to_owned());
    }
    let by_token = |target: &TargetReport| {
        target.prices.per_million_input_tokens.is_some() || target.prices.per_million_output_tokens.is_some()
    };
    for target in report.targets.iter().filter(|target| by_token(target)) {
        let runs = report.cells.iter().filter(|cell| cell.target == target.name).flat_map(|cell| &cell.runs);
        let uncounted: u64 = runs.map(|run| run.uncounted).sum();
        if uncounted > 0 {
            notes.push(format!(
                "{}: the server did not count the tokens of {uncounted} answers, so their cost is not known",
                target.name
            ));
        }
    }
    notes
}
