//! [`Bench`]: takes all readings.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value};
use vgen_backends::local::Work;
use vgen_core::{Backend, CancelToken, Fault, FaultClass, SamplingParams};

use super::agreement::Tokenize;
use super::clock::Clock;
use super::drive::{Asked, Reading, drive, fault};
use super::energy::Energy;
use super::load::Load;
use super::memory;
use super::reading::{self, Around};
use super::report::{Limits, Machine, Prices, Report, Run, Sweep};
use super::rows::{BenchRow, Rows};
use super::taken::Taken;

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
    /// Its place among others that differ in the batch size only.
    pub sweep: Option<Sweep>,
    /// Opens it.
    pub open: Box<dyn Fn() -> Result<Opened, Fault> + 'a>,
}

/// A backend that is ready.
pub struct Opened {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// The time that it lives in.
    pub clock: Clock,
    /// Requests in flight of [`Load::Window`].
    pub window: usize,
    /// What identifies its model beyond the name.
    pub model_identity: Value,
    /// Device and types, where known.
    pub device: Option<String>,
    /// What its device can do.
    pub limits: Option<Limits>,
    /// What its model takes.
    pub work: Option<Work>,
    /// Its model's tokenizer, where that is on this machine.
    pub tokenize: Option<Box<Tokenize>>,
    /// What to keep in mind when reading its numbers.
    pub notes: Vec<String>,
}

/// What a bench is doing.
#[derive(Clone, Debug)]
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
        /// What was measured so far, without what compares backends.
        so_far: &'a Report,
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

/// A bench that could not go on, with what it measured before.
#[derive(Debug, thiserror::Error)]
#[error("{fault}")]
pub struct BenchError {
    /// Why it could not go on.
    pub fault: Fault,
    /// What was measured before; `None` if nothing was.
    pub report: Option<Box<Report>>,
}

impl From<BenchError> for Fault {
    fn from(error: BenchError) -> Self {
        error.fault
    }
}

/// A backend while the bench goes on.
struct Bed<'t, 'a> {
    target: &'t Target<'a>,
    at: usize,
    opened: Opened,
}

/// How a bench goes on: what it hears and tells.
struct Going<'a> {
    stop: &'a CancelToken,
    progress: &'a dyn Fn(Step<'_>),
    taken: Taken,
    /// Readings so far, and all of them.
    number: u32,
    of: u32,
}

impl Bench {
    /// Takes all readings. Ends early when `stop` is cancelled: the report then says that it is not complete.
    ///
    /// # Errors
    /// `bench.*` for what can't be measured; what opening a backend says; faults that stop a run. Other faults of
    /// answers are counted. With each comes what was measured before.
    pub fn run(
        &self,
        targets: &[Target<'_>],
        stop: &CancelToken,
        progress: &dyn Fn(Step<'_>),
    ) -> Result<Report, BenchError> {
        self.check(targets).map_err(|fault| BenchError { fault, report: None })?;
        let of = u32::try_from(self.loads.len() * targets.len()).unwrap_or(u32::MAX).saturating_mul(self.repeats);
        let mut going = Going { stop, progress, taken: Taken::new(self), number: 0, of };
        match self.measure(targets, &mut going) {
            Ok(()) => {
                let why = (going.number < of).then(|| format!("interrupted after {} of {of} readings", going.number));
                Ok(going.taken.finish(self, why))
            }
            Err(fault) if going.number == 0 => Err(BenchError { fault, report: None }),
            Err(fault) => {
                let why = format!("after {} of {of} readings: {} [{}]", going.number, fault.message, fault.code);
                Err(BenchError { report: Some(Box::new(going.taken.finish(self, Some(why)))), fault })
            }
        }
    }

    fn measure(&self, targets: &[Target<'_>], going: &mut Going<'_>) -> Result<(), Fault> {
        let stop = going.stop;
        if !self.interleave {
            for (at, target) in targets.iter().enumerate().take_while(|_| !stop.is_cancelled()) {
                let bed = self.open(at, target, going)?;
                for repeat in 0..self.repeats {
                    for load in 0..self.loads.len() {
                        self.read(&bed, load, repeat, going)?;
                    }
                }
            }
            return Ok(());
        }
        let mut beds = Vec::with_capacity(targets.len());
        for (at, target) in targets.iter().enumerate().take_while(|_| !stop.is_cancelled()) {
            beds.push(self.open(at, target, going)?);
        }
        for repeat in 0..self.repeats {
            for load in 0..self.loads.len() {
                let mut turn: Vec<&Bed<'_, '_>> = beds.iter().collect();
                // A machine that gets slower shall not favour one of them.
                if repeat % 2 == 1 {
                    turn.reverse();
                }
                for bed in turn {
                    self.read(bed, load, repeat, going)?;
                }
            }
        }
        Ok(())
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
            return refuse(format!("the load {load} can't be"), "concurrency is at least 1, a rate at least 1e-6");
        }
        for (at, load) in self.loads.iter().enumerate() {
            if self.loads[..at].contains(load) {
                return refuse(format!("the load {load} is asked for twice"), "ask for more repeats instead");
            }
        }
        for (at, target) in targets.iter().enumerate() {
            if targets[..at].iter().any(|other| other.name == target.name) {
                return refuse(format!("two backends are called {:?}", target.name), "give each its own name");
            }
        }
        Ok(())
    }

    fn open<'t, 'a>(&self, at: usize, target: &'t Target<'a>, going: &mut Going<'_>) -> Result<Bed<'t, 'a>, Fault> {
        (going.progress)(Step::Opening { target: &target.name });
        let start = Instant::now();
        let mut opened = (target.open)()?;
        going.taken.opened(target, &mut opened, start.elapsed().as_secs_f64());
        let bed = Bed { target, at, opened };
        let own = self.rows.own_sampling().map(|(row, sampling)| (Some(row), sampling));
        for (row, sampling) in own.chain([(None, &self.sampling)]) {
            bed.opened.backend.check(sampling, 1).map_err(|fault| {
                let message = row.map_or(fault.message.clone(), |row| format!("row {row}: {}", fault.message));
                of_target(target, Fault { message, ..fault })
            })?;
        }
        if self.warmup_rows > 0 && !going.stop.is_cancelled() {
            (going.progress)(Step::Warming { target: &target.name });
            let rows = self.rows.draw(0);
            let rows: Vec<BenchRow> = rows.iter().cycle().take(self.warmup_rows).cloned().collect();
            let Some(reading) = self.drive(&bed, self.loads[0].steady(), &rows, 0, going.stop)? else { return Ok(bed) };
            // What fails every warm-up row is worth no reading.
            let faults = reading.observed.iter().map(|one| fault(&one.result));
            if let Some(fault) = faults.collect::<Option<Vec<_>>>().and_then(|faults| faults.first().copied().cloned())
            {
                return Err(of_target(target, Fault { class: FaultClass::Stop, ..fault }));
            }
        }
        Ok(bed)
    }

    fn drive(
        &self,
        bed: &Bed<'_, '_>,
        load: Load,
        rows: &[BenchRow],
        draw: u64,
        stop: &CancelToken,
    ) -> Result<Option<Reading>, Fault> {
        let asked = Asked { sampling: &self.sampling, seed: self.seed, draw, stop };
        let Opened { backend, clock, window, .. } = &bed.opened;
        drive(backend, clock, rows, (load, *window), &asked).map_err(|fault| of_target(bed.target, fault))
    }

    /// A reading; none if the bench was stopped.
    fn read(&self, bed: &Bed<'_, '_>, load: usize, repeat: u32, going: &mut Going<'_>) -> Result<(), Fault> {
        if going.stop.is_cancelled() {
            return Ok(());
        }
        let draw = self.draw(repeat, load);
        let rows = self.rows.draw(draw);
        let backend = &bed.opened.backend;
        let (begun, energy) = (memory::begin(), Energy::begin());
        let before = backend.statistics();
        let Some(reading) = self.drive(bed, self.loads[load], &rows, draw, going.stop)? else { return Ok(()) };
        let after = backend.statistics();
        let around = Around { spent: energy.end(), peak_host_bytes: memory::peak(begun), after, before };
        let run = reading::run(&rows, self.loads[load], &reading, &bed.target.prices, around);
        let run = Run { repeat, order: going.number, ..run };
        going.number += 1;
        let (rows_per_second, failed) = ((run.rows - run.failed) as f64 / run.seconds, run.failed);
        going.taken.answered(bed.at, draw, &rows, reading::answers(&rows, &reading));
        (going.progress)(Step::Read {
            target: &bed.target.name,
            load: self.loads[load],
            number: going.number,
            of: going.of,
            rows_per_second,
            failed,
            so_far: going.taken.add(self, bed.at, load, run),
        });
        Ok(())
    }

    /// Which rows: others for each reading, the same for all backends. 0 is for warming up.
    fn draw(&self, repeat: u32, load: usize) -> u64 {
        1 + u64::from(repeat) * self.loads.len() as u64 + load as u64
    }
}

fn of_target(target: &Target<'_>, fault: Fault) -> Fault {
    Fault { message: format!("backend {}: {}", target.name, fault.message), ..fault }
}
