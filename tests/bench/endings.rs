//! Benches that end early, and backends that do what they should not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vgen_backends::mock::{Distribution, MockFault, MockOptions, MockService};
use vgen_core::{Backend, CancelToken, Fault, FaultClass, Reply, Request, Response, SamplingParams};
use vgen_run::bench::{Clock, Load, Prices, Step};

use crate::scripted::{bench, opened, run, target, target_of};

/// Does with a request what it is told.
struct Scripted<F>(F);

impl<F: Fn(Request, Box<dyn Reply>) + Send + Sync> Backend for Scripted<F> {
    fn model_name(&self) -> &str {
        "scripted"
    }

    fn check(&self, _sampling: &SamplingParams, _num_generations: u32) -> Result<(), Fault> {
        Ok(())
    }

    fn window(&self) -> usize {
        4
    }

    fn submit(&self, request: Request, reply: Box<dyn Reply>) {
        (self.0)(request, reply);
    }
}

fn answer() -> Result<Response, Fault> {
    Ok(Response { model_name: "scripted".into(), generations: vec![Ok(Default::default())] })
}

fn one_at_a_time() -> Vec<Load> {
    vec![Load::Closed { concurrency: 1 }]
}

#[test]
fn a_request_that_is_dropped_ends_the_bench_with_what_was_measured() {
    let asked = AtomicUsize::new(0);
    let backend: Arc<dyn Backend> = Arc::new(Scripted(move |_: Request, reply: Box<dyn Reply>| {
        if asked.fetch_add(1, Ordering::Relaxed) < 7 {
            reply.done(answer());
        }
    }));
    let target = target_of("forgetful", move || Ok(opened(Arc::clone(&backend), Clock::real())));
    let ended = bench(5, one_at_a_time(), 2).run(&[target], &CancelToken::default(), &|_| {}).unwrap_err();
    assert_eq!(ended.fault.code, "bench.lost");
    assert_eq!(ended.fault.message, "backend forgetful: the backend left requests without an answer");
    let report = ended.report.unwrap();
    assert_eq!(report.cells[0].runs.len(), 1);
    assert!(report.unfinished.unwrap().starts_with("after 1 of 2 readings: backend forgetful"));
}

/// A key that is refused or a cap that is reached is refused for every row.
#[test]
fn faults_that_stop_a_run_stop_a_bench() {
    for class in [FaultClass::Stop, FaultClass::Drain] {
        let fault = MockFault {
            row: 6,
            sample: None,
            code: "remote.spend_cap".into(),
            message: "enough".into(),
            class,
            attempts: 1,
        };
        let options = MockOptions { faults: vec![fault], ..MockOptions::default() };
        let targets = [target("a", options, Prices::default())];
        let mut bench = bench(5, one_at_a_time(), 1);
        let run = |bench: &vgen_run::bench::Bench| bench.run(&targets, &CancelToken::default(), &|_| {});
        assert!(run(&bench).is_ok());
        let vgen_run::bench::Rows::Fixed { rows, .. } = &mut bench.rows else { panic!("they are") };
        rows[4].number = 6;
        let ended = run(&bench).unwrap_err();
        assert_eq!((&*ended.fault.code, ended.report.is_none()), ("remote.spend_cap", true));
    }
}

#[test]
fn a_bench_that_is_stopped_gives_what_it_has() {
    let stop = CancelToken::default();
    let given_up = Arc::new(Mutex::new(Vec::new()));
    let backend: Arc<dyn Backend> = {
        let (given_up, stop) = (Arc::clone(&given_up), stop.clone());
        Arc::new(Scripted(move |request: Request, reply: Box<dyn Reply>| {
            if request.row < 3 {
                return reply.done(answer());
            }
            let given_up = Arc::clone(&given_up);
            stop.cancel();
            thread::spawn(move || {
                while !request.cancel.is_cancelled() {
                    thread::sleep(Duration::from_millis(1));
                }
                given_up.lock().unwrap().push(request.row);
                drop(reply);
            });
        }))
    };
    let target = target_of("slow", move || Ok(opened(Arc::clone(&backend), Clock::real())));
    let mut bench = bench(3, one_at_a_time(), 1);
    bench.loads.push(Load::Closed { concurrency: 2 });
    bench.rows = vgen_run::bench::Rows::Drawn { workload: vgen_run::bench::Workload::OneTile, count: 1, seed: 0 };
    // Rows 1, 2, 3, 4 are those of the four readings; the third never ends by itself.
    bench.repeats = 2;
    let report = bench.run(&[target], &stop, &|step| {
        if let Step::Read { number: 2, so_far, .. } = step {
            assert_eq!(so_far.cells.len(), 2);
            assert!(so_far.unfinished.is_some());
        }
    });
    let report = report.unwrap();
    assert_eq!(report.unfinished.as_deref(), Some("interrupted after 2 of 4 readings"));
    assert_eq!(report.cells.iter().map(|cell| cell.runs.len()).sum::<usize>(), 2);
    // What was in flight is given up.
    for _ in 0..200 {
        if *given_up.lock().unwrap() == [3] {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{given_up:?}");
}

/// Requests of an open loop that this program sends late have waited all the same.
#[test]
fn times_count_from_when_a_request_is_due() {
    const BLOCKED: f64 = 0.03;
    let backend: Arc<dyn Backend> = Arc::new(Scripted(|_: Request, reply: Box<dyn Reply>| {
        thread::sleep(Duration::from_secs_f64(BLOCKED));
        reply.done(answer());
    }));
    let target = target_of("blocking", move || Ok(opened(Arc::clone(&backend), Clock::real())));
    let report = run(&bench(8, vec![Load::Open { rate: 1e5 }], 1), &[target]);
    let reading = &report.cells[0].runs[0];
    let last = &reading.requests[7];
    assert!(last.due < 0.01 && last.sent >= 7.0 * BLOCKED, "{last:?}");
    assert!(reading.late.unwrap().max >= 6.5 * BLOCKED, "{:?}", reading.late);
    assert!(reading.e2e.unwrap().max >= 7.5 * BLOCKED, "{:?}", reading.e2e);
    assert!(report.cells[0].summary["late_max"].median > 0.0);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let service = MockService { distribution: Distribution::Fixed, mean_ms: 1.0, servers: 1, seed: 0 };
    let options = MockOptions { service: Some(service), ..MockOptions::default() };
    for (loads, message) in [
        (vec![Load::Open { rate: 1e-19 }], "can't be"),
        (vec![Load::Open { rate: f64::MIN_POSITIVE }], "can't be"),
        (vec![Load::Window, Load::Window], "asked for twice"),
    ] {
        let targets = [target("a", options.clone(), Prices::default())];
        let ended = bench(2, loads, 1).run(&targets, &CancelToken::default(), &|_| {}).unwrap_err();
        assert!(ended.fault.code == "config.bench" && ended.fault.message.contains(message), "{}", ended.fault);
    }
}
