//! [`Bench`]: takes all readings and makes the report of them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use vgen_backends::local::Work;
use vgen_core::{Backend, Fault, SamplingParams};

use super::agreement::{Agreement, Answer};
use super::clock::Clock;
use super::drive::{Asked, drive};
use super::energy::Energy;
use super::load::Load;
use super::metrics::{self, KNOWN};
use super::reading::{self, Around};
use super::report::{Cell, FORM, Limits, Machine, Prices, Report, RowSet, Run, TargetReport};
use super::rows::{BenchRow, Rows, digest};
use super::statistics::Spread;
use super::{memory, saturation};

/// A backend to measure, not yet opened.
pub struct Target<'a> {
    /// What it is called in the report; each has another name.
    pub name: String,
    /// Its kind, for the report.
    pub kind: String,
    /// Its settings that differ from the default, for the report.
    pub settings: Map<String, Value>,
    /// What its answers cost.
    pub prices: Prices,
    /// Opens it.
    pub open: Box<dyn Fn() -> Result<Opened, Fault> + 'a>,
}

/// A backend that is ready.
pub struct Opened {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// The time that it lives in.
    pub clock: Clock,
    /// What identifies its model beyond the name.
    pub model_identity: Value,
    /// Device and types, where known.
    pub device: Option<String>,
    /// What its device can do.
    pub limits: Option<Limits>,
    /// What its model takes.
    pub work: Option<Work>,
}

/// What a bench is doing.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Step<'a> {
    /// It opens a backend.
    Opening {
        /// Its name.
        target: &'a str,
    },
    /// It warms a backend up.
    Warming {
        /// Its name.
        target: &'a str,
    },
    /// A reading is taken.
    Read {
        /// The backend's name.
        target: &'a str,
        /// The load.
        load: Load,
        /// Readings so far, this one included.
        number: u32,
        /// Of so many.
        of: u32,
        /// Answered rows a second.
        rows_per_second: f64,
        /// Rows without an answer.
        failed: u64,
    },
}

/// What is measured, and how.
#[derive(Clone, Debug)]
pub struct Bench {
    /// What is asked.
    pub rows: Rows,
    /// When requests are sent, one load after the other.
    pub loads: Vec<Load>,
    /// How often each reading is taken.
    pub repeats: u32,
    /// Rows that each backend answers first, outside of all numbers.
    pub warmup_rows: usize,
    /// How answers are made.
    pub sampling: SamplingParams,
    /// Of arrivals.
    pub seed: u64,
    /// Backends take turns within each repeat, all of them open at a time; else one after the other.
    pub interleave: bool,
    /// The program's version, for the report.
    pub program: String,
    /// The machine, for the report.
    pub machine: Machine,
}

/// Everything about one backend while the bench goes on.
struct Bed<'t, 'a> {
    target: &'t Target<'a>,
    opened: Opened,
    load_seconds: f64,
}

/// Answers by draw, in the order of the rows.
type Answers = BTreeMap<u64, Vec<Option<Answer>>>;

#[derive(Default)]
struct Taken {
    runs: BTreeMap<(usize, usize), Vec<Run>>,
    answers: Vec<Answers>,
    reports: Vec<TargetReport>,
    order: u32,
}

impl Bench {
    /// Takes all readings.
    ///
    /// # Errors
    /// `bench.*` for what can't be measured; what opening a backend says; faults that stop a run. Other faults of
    /// answers are counted.
    pub fn run(&self, targets: &[Target<'_>], progress: &dyn Fn(Step<'_>)) -> Result<Report, Fault> {
        self.check(targets)?;
        let created = chrono::Local::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, false);
        let mut taken = Taken { answers: targets.iter().map(|_| Answers::new()).collect(), ..Taken::default() };
        if self.interleave {
            let mut beds = Vec::with_capacity(targets.len());
            for target in targets {
                beds.push(self.open(target, progress)?);
            }
            for repeat in 0..self.repeats {
                for load in 0..self.loads.len() {
                    let mut turn: Vec<usize> = (0..beds.len()).collect();
                    // A machine that gets slower shall not favour one of them.
                    if repeat % 2 == 1 {
                        turn.reverse();
                    }
                    for at in turn {
                        self.read(&beds[at], (at, beds.len()), load, repeat, &mut taken, progress)?;
                    }
                }
            }
            taken.reports = beds.iter().map(Bed::report).collect();
        } else {
            for (at, target) in targets.iter().enumerate() {
                let bed = self.open(target, progress)?;
                for repeat in 0..self.repeats {
                    for load in 0..self.loads.len() {
                        self.read(&bed, (at, targets.len()), load, repeat, &mut taken, progress)?;
                    }
                }
                taken.reports.push(bed.report());
            }
        }
        Ok(self.report(created, taken))
    }

    fn check(&self, targets: &[Target<'_>]) -> Result<(), Fault> {
        let refuse = |message: String, hint: &str| Err(Fault::stop("config.bench", message).with_hint(hint));
        if targets.is_empty() {
            return refuse("no backend is named".into(), "name some with --local, --remote, --mock or [[backend]]");
        }
        if self.rows.is_empty() {
            return Err(Fault::stop("input.empty", format!("{} has no rows", self.rows.name())));
        }
        if self.loads.is_empty() || self.repeats == 0 {
            return refuse("there is nothing to measure".into(), "ask for one load and one repeat at least");
        }
        if let Some(load) = self.loads.iter().find(|load| !load.is_possible()) {
            return refuse(format!("the load {load} can't be"), "concurrency and rate are above 0");
        }
        for (at, target) in targets.iter().enumerate() {
            if targets[..at].iter().any(|other| other.name == target.name) {
                return refuse(format!("two backends are called {:?}", target.name), "give each its own name");
            }
        }
        Ok(())
    }

    fn open<'t, 'a>(&self, target: &'t Target<'a>, progress: &dyn Fn(Step<'_>)) -> Result<Bed<'t, 'a>, Fault> {
        progress(Step::Opening { target: &target.name });
        let start = Instant::now();
        let opened = (target.open)()?;
        let load_seconds = start.elapsed().as_secs_f64();
        opened.backend.check(&self.sampling, 1).map_err(|fault| of_target(target, fault))?;
        let bed = Bed { target, opened, load_seconds };
        if self.warmup_rows > 0 {
            progress(Step::Warming { target: &target.name });
            let rows = self.rows.draw(0);
            let rows: Vec<BenchRow> = rows.iter().cycle().take(self.warmup_rows).cloned().collect();
            let asked = Asked { sampling: &self.sampling, seed: self.seed, draw: 0 };
            let reading = drive(&bed.opened.backend, &bed.opened.clock, &rows, self.loads[0].steady(), &asked)?;
            // What fails every warm-up row is worth no reading.
            let faults = reading.observed.iter().map(|one| one.result.as_ref().err());
            if let Some(fault) = faults.collect::<Option<Vec<_>>>().and_then(|faults| faults.first().copied().cloned())
            {
                return Err(of_target(target, Fault { class: vgen_core::FaultClass::Stop, ..fault }));
            }
        }
        Ok(bed)
    }

    fn read(
        &self,
        bed: &Bed<'_, '_>,
        (at, targets): (usize, usize),
        load: usize,
        repeat: u32,
        taken: &mut Taken,
        progress: &dyn Fn(Step<'_>),
    ) -> Result<(), Fault> {
        let draw = self.draw(repeat, load);
        let rows = self.rows.draw(draw);
        let asked = Asked { sampling: &self.sampling, seed: self.seed, draw };
        let backend = &bed.opened.backend;
        let before = backend.statistics();
        let (begun, energy) = (memory::begin(), Energy::begin());
        let reading = drive(backend, &bed.opened.clock, &rows, self.loads[load], &asked)?;
        let around =
            Around { spent: energy.end(), peak_host_bytes: memory::peak(begun), after: backend.statistics(), before };
        taken.answers[at].insert(draw, reading::answers(&rows, &reading));
        let run = reading::run(&rows, &reading, &bed.target.prices, around);
        let run = Run { repeat, order: taken.order, ..run };
        taken.order += 1;
        progress(Step::Read {
            target: &bed.target.name,
            load: self.loads[load],
            number: taken.order,
            of: self.repeats * (self.loads.len() * targets) as u32,
            rows_per_second: (run.rows - run.failed) as f64 / run.seconds,
            failed: run.failed,
        });
        taken.runs.entry((at, load)).or_default().push(run);
        Ok(())
    }

    /// Which rows: others for each reading, the same for all backends. 0 is for warming up.
    fn draw(&self, repeat: u32, load: usize) -> u64 {
        1 + u64::from(repeat) * self.loads.len() as u64 + load as u64
    }

    fn report(&self, created: String, taken: Taken) -> Report {
        let Taken { runs, answers, reports, .. } = taken;
        let mut report = Report {
            form: FORM.to_owned(),
            created,
            program: self.program.clone(),
            machine: self.machine.clone(),
            rows: self.row_set(),
            sampling: serde_json::to_value(&self.sampling).unwrap_or_default(),
            seed: self.seed,
            repeats: self.repeats,
            warmup_rows: self.warmup_rows,
            interleaved: self.interleave,
            metrics: metrics::described(),
            targets: reports,
            cells: Vec::new(),
            saturation: Vec::new(),
            agreement: Vec::new(),
            notes: Vec::new(),
        };
        for ((at, load), runs) in runs {
            let target = report.targets[at].name.clone();
            let mut cell = Cell { target, load: self.loads[load], runs, summary: BTreeMap::new() };
            for known in KNOWN {
                if let Some(spread) = Spread::of(&report.readings(&cell, known)) {
                    cell.summary.insert(known.name.to_owned(), spread);
                }
            }
            report.cells.push(cell);
        }
        report.saturation = report.targets.iter().map(|target| saturation::of(&target.name, &report.cells)).collect();
        let (first, others) = report.targets.split_at(1);
        for (at, other) in others.iter().enumerate() {
            let of_draw = |(draw, base): (&u64, &'_ Vec<Option<Answer>>)| -> Vec<(Answer, Answer)> {
                let other = answers[at + 1].get(draw).map(Vec::as_slice).unwrap_or_default();
                base.iter().zip(other).filter_map(|(a, b)| Some((a.clone()?, b.clone()?))).collect()
            };
            let pairs: Vec<(Answer, Answer)> = answers[0].iter().flat_map(of_draw).collect();
            let agreement = Agreement::of(&first[0].name, &other.name, pairs.iter().map(|(a, b)| (a, b)));
            report.agreement.push(agreement);
        }
        report.notes = self.notes(&report);
        report
    }

    fn row_set(&self) -> RowSet {
        let mut hash = Sha256::new();
        let mut images = Vec::new();
        for draw in (0..self.repeats).flat_map(|repeat| (0..self.loads.len()).map(move |load| (repeat, load))) {
            let rows: Cow<'_, [BenchRow]> = self.rows.draw(self.draw(draw.0, draw.1));
            images.push(rows.iter().map(BenchRow::images).sum::<u64>() as f64);
            digest(&rows, &mut hash);
            if matches!(self.rows, Rows::Fixed { .. }) {
                break;
            }
        }
        RowSet {
            name: self.rows.name().to_owned(),
            rows: self.rows.len(),
            images: Spread::of(&images).map_or(0, |spread| spread.median as u64),
            drawn: matches!(self.rows, Rows::Drawn { .. }),
            digest: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    fn notes(&self, report: &Report) -> Vec<String> {
        let mut notes = Vec::new();
        if self.warmup_rows > 0 {
            notes.push(format!("{} rows of warm-up for each backend are in no number", self.warmup_rows));
        } else {
            notes.push("there was no warm-up: first readings may be slower".to_owned());
        }
        let keeps =
            |target: &TargetReport| target.kind == "local" && target.settings.get("image_cache") != Some(&0.into());
        if !report.rows.drawn && report.rows.images > 0 && report.targets.iter().any(keeps) {
            notes.push(
                "rows were the same in each reading, and local backends keep images: image_cache = 0 has them encoded \
                        anew"
                    .to_owned(),
            );
        }
        if report.targets.len() > 1 && self.interleave {
            notes.push(
                "all backends were open at a time: peak memory of this process is that of all of them".to_owned(),
            );
        }
        if self.repeats < 4 && report.targets.len() > 1 {
            notes.push("with fewer than 4 repeats no difference can be told from noise".to_owned());
        }
        if !self.sampling.ignore_eos {
            notes.push("answers end where the model ends them, so their lengths may differ".to_owned());
        }
        notes
    }
}

fn of_target(target: &Target<'_>, fault: Fault) -> Fault {
    Fault { message: format!("backend {}: {}", target.name, fault.message), ..fault }
}

impl Bed<'_, '_> {
    fn report(&self) -> TargetReport {
        TargetReport {
            name: self.target.name.clone(),
            kind: self.target.kind.clone(),
            model: self.opened.backend.model_name().to_owned(),
            model_identity: self.opened.model_identity.clone(),
            settings: self.target.settings.clone(),
            device: self.opened.device.clone(),
            load_seconds: self.load_seconds,
            prices: self.target.prices,
            limits: self.opened.limits.clone(),
            work: self.opened.work,
        }
    }
}
