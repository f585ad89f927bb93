//! The harness against theory: a queue with Poisson arrivals, exponential service times and c servers, in virtual time.

use std::sync::Arc;

use vgen_backends::mock::{Distribution, MockBackend, MockOptions, MockService};
use vgen_run::bench::{Clock, Load, Prices};

use crate::scripted::{bench, opened, run, target, target_of};

/// Requests of a reading: enough that chance alone stays far within 3 %.
const REQUESTS: u64 = 200_000;

/// Mean wait of M/M/c by Erlang's formula, for a mean service time of 1.
fn erlang_wait(servers: u32, rate: f64) -> f64 {
    let mut term = 1.0;
    let mut sum = 0.0;
    for k in 0..servers {
        sum += term;
        term *= rate / f64::from(k + 1);
    }
    let free = f64::from(servers) - rate;
    let all_busy = term * f64::from(servers) / free;
    let probability = all_busy / (sum + all_busy);
    probability / free
}

fn near(what: &str, found: f64, expected: f64) {
    let off = (found / expected - 1.0).abs();
    assert!(off < 0.03, "{what}: {found} instead of {expected}, {:.1} % off", off * 100.0);
}

fn check(servers: usize, rate: f64) {
    let service = MockService { distribution: Distribution::Exponential, mean_ms: 1000.0, servers, seed: 5 };
    let options = MockOptions { answer: "yes".into(), service: Some(service), ..MockOptions::default() };
    let report = run(&bench(REQUESTS, vec![Load::Open { rate }], 1), &[target("queue", options, Prices::default())]);
    let reading = &report.cells[0].runs[0];
    let wait = erlang_wait(servers as u32, rate);
    near("wait", reading.queue.unwrap().mean, wait);
    near("e2e", reading.e2e.unwrap().mean, wait + 1.0);
    near("in flight", reading.mean_in_flight, rate * (wait + 1.0));
    near("throughput", REQUESTS as f64 / reading.seconds, rate);
    if servers == 1 {
        // Times in the system are exponential then.
        near("median", reading.e2e.unwrap().p50, 2f64.ln() / (1.0 - rate));
        near("90th percentile", reading.e2e.unwrap().p90, 10f64.ln() / (1.0 - rate));
    }
    assert_eq!(report.saturation[0].rate, Some(rate), "the queue keeps up");
}

#[test]
fn one_server() {
    check(1, 0.6);
}

#[test]
fn three_servers() {
    check(3, 2.25);
}

#[test]
fn ten_servers() {
    check(10, 8.0);
}

#[test]
fn what_theory_says() {
    // M/M/1: rho / (1 - rho); M/M/2 at rho = 1/2: 1/3.
    assert!((erlang_wait(1, 0.6) - 1.5).abs() < 1e-12);
    assert!((erlang_wait(2, 1.0) - 1.0 / 3.0).abs() < 1e-12);
}

#[test]
fn saturation_is_found() {
    let service = MockService { distribution: Distribution::Fixed, mean_ms: 1000.0, servers: 4, seed: 0 };
    let options = MockOptions { answer: "yes".into(), service: Some(service), ..MockOptions::default() };
    let mut loads: Vec<Load> = [1, 2, 4, 8].map(|concurrency| Load::Closed { concurrency }).to_vec();
    loads.extend([2.0, 6.0].map(|rate| Load::Open { rate }));
    let report = run(&bench(400, loads, 1), &[target("four servers", options, Prices::default())]);
    let speeds: Vec<f64> = report.cells.iter().map(|cell| cell.summary["rows_per_second"].median).collect();
    assert_eq!(&speeds[..4], [1.0, 2.0, 4.0, 4.0]);
    let point = &report.saturation[0];
    assert_eq!((point.concurrency, point.at_the_edge, point.rate), (Some(4), false, Some(2.0)));
    assert_eq!(point.rows_per_second, 4.0);
}

#[test]
fn the_most_that_was_tried_may_not_be_enough() {
    let service = MockService { distribution: Distribution::Fixed, mean_ms: 1000.0, servers: 4, seed: 0 };
    let options = MockOptions { answer: "yes".into(), service: Some(service), ..MockOptions::default() };
    for tried in [&[2][..], &[1, 2], &[1, 4]] {
        let loads = tried.iter().map(|&concurrency| Load::Closed { concurrency }).collect();
        let report = run(&bench(40, loads, 1), &[target("four servers", options.clone(), Prices::default())]);
        let point = &report.saturation[0];
        assert_eq!((point.concurrency, point.at_the_edge), (tried.last().copied(), true), "{tried:?}");
    }
}

/// Few rows: what can be told is, in both directions, and what can't is not.
#[test]
fn short_readings_are_judged_fairly() {
    let point = |distribution, servers, mean_ms, rate| {
        let service = MockService { distribution, mean_ms, servers, seed: 2 };
        let options = MockOptions { answer: "yes".into(), service: Some(service), ..MockOptions::default() };
        let bench = bench(32, vec![Load::Open { rate }], 3);
        run(&bench, &[target("queue", options, Prices::default())]).saturation.remove(0)
    };
    // Most rows are still in work when the last one comes, but none ever waits.
    let point_of = |found: vgen_run::bench::Saturation| (found.rate, found.too_short);
    assert_eq!(point_of(point(Distribution::Fixed, 64, 20_000.0, 1.0)), (Some(1.0), vec![]));
    // A fifth more than is served.
    assert_eq!(point_of(point(Distribution::Fixed, 4, 1000.0, 4.8)), (None, vec![]));
    // Times that differ more than a queue could grow.
    assert_eq!(point_of(point(Distribution::Exponential, 64, 20_000.0, 1.0)), (None, vec![1.0]));
}

/// The same queue in real time: what differs from virtual time is the machine's. Rows and arrivals are the same.
#[test]
fn real_time_is_like_virtual_time() {
    let service = MockService { distribution: Distribution::Exponential, mean_ms: 20.0, servers: 2, seed: 5 };
    let options = MockOptions { answer: "yes".into(), service: Some(service), ..MockOptions::default() };
    let real = {
        let options = options.clone();
        move || Ok(opened(Arc::new(MockBackend::new(options.clone())?), Clock::real()))
    };
    let targets = [target("virtual", options, Prices::default()), target_of("real", real)];
    let report = run(&bench(150, vec![Load::Open { rate: 75.0 }], 1), &targets);
    let [expected, found] = [0, 1].map(|at| report.cells[at].runs[0].clone());
    let mean = |run: &vgen_run::bench::Run| (run.queue.unwrap().mean, run.e2e.unwrap().mean, run.mean_in_flight);
    let ((queue, e2e, in_flight), (its_queue, its_e2e, its_in_flight)) = (mean(&expected), mean(&found));
    assert!(queue > 0.005, "there is a queue: {queue}");
    for (what, expected, found, slack) in [
        ("queue", queue, its_queue, 0.03),
        ("e2e", e2e, its_e2e, 0.03),
        ("in flight", in_flight, its_in_flight, 1.5),
        ("seconds", expected.seconds, found.seconds, 0.2),
    ] {
        assert!(found > 0.9 * expected && found < 1.3 * expected + slack, "{what}: {found} instead of {expected}");
    }
}
