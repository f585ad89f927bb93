//! The written-down formulas, on a script whose every moment is known.

use serde_json::Value;
use vgen_backends::mock::{Distribution, MockFault, MockOptions, MockService};
use vgen_core::FaultClass;
use vgen_run::bench::{Load, Prices, Rows, Verdict, compare, csv, html, markdown, schema};

use crate::scripted::{bench, run, target};

/// Four words over two seconds, two at a time.
fn script() -> MockOptions {
    let service = MockService { distribution: Distribution::Fixed, mean_ms: 2000.0, servers: 2, seed: 0 };
    MockOptions { answer: "a b c d".into(), service: Some(service), input_tokens: Some(10), ..MockOptions::default() }
}

fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found} instead of {expected}");
}

#[test]
fn times_and_tokens() {
    let report = run(&bench(8, vec![Load::Closed { concurrency: 4 }], 2), &[target("a", script(), Prices::default())]);
    let reading = &report.cells[0].runs[1];
    // Two servers, 2 seconds each: 8 rows take 8 seconds; all but the first two wait for 2 seconds.
    near(reading.seconds, 8.0);
    near(report.cells[0].summary["rows_per_second"].median, 1.0);
    near(report.cells[0].summary["text_out_per_second"].median, 4.0);
    near(report.cells[0].summary["text_in_per_second"].median, 10.0);
    near(reading.queue.unwrap().max, 2.0);
    near(reading.queue.unwrap().mean, 1.5);
    // The first word comes after half a second of service, the others every half second.
    near(reading.ttft.unwrap().p50, 2.5);
    near(reading.e2e.unwrap().p50, 4.0);
    near(reading.tpot.unwrap().max, 0.5);
    near(reading.itl.unwrap().p50, 0.5);
    assert_eq!(reading.itl.unwrap().count, 8 * 3);
    near(reading.mean_in_flight, (2.0 * 2.0 + 6.0 * 4.0) / 8.0);
}

#[test]
fn failures_are_counted_by_code_and_cost_is_by_price() {
    let fault = MockFault {
        row: 3,
        sample: None,
        code: "x.y".into(),
        message: "m".into(),
        class: FaultClass::Row,
        attempts: 1,
    };
    let options = MockOptions { faults: vec![fault], ..script() };
    let prices = Prices { per_million_output_tokens: Some(1e6), ..Prices::default() };
    let report = run(&bench(8, vec![Load::Window], 1), &[target("a", options, prices)]);
    let reading = &report.cells[0].runs[0];
    assert_eq!((reading.failed, reading.errors["x.y"]), (1, 1));
    assert_eq!(reading.e2e.unwrap().count, 7);
    near(reading.cost.unwrap(), 28.0);
    near(report.cells[0].summary["cost_per_1000_rows"].median, 4000.0);
    assert!(markdown(&report).contains("| x.y | 1 |"));
}

#[test]
fn backends_are_compared_on_their_answers() {
    let other = MockOptions { answer: "A b x d.".into(), ..script() };
    let targets = [
        target("a", script(), Prices::default()),
        target("b", script(), Prices::default()),
        target("c", other, Prices::default()),
    ];
    let report = run(&bench(5, vec![Load::Closed { concurrency: 2 }], 4), &targets);
    let [same, differs] = &report.agreement[..] else { panic!("two pairs") };
    assert_eq!((same.compared, same.exact), (20, 20));
    assert_eq!((differs.compared, differs.exact, differs.normalised), (20, 0, 0));
    assert_eq!(differs.first_difference, Some(0.0));
    assert_eq!(differs.differing[0].target, "A b x d.");
    // Turns: a b c, c b a, ...
    let orders = |at: usize| report.cells[at].runs.iter().map(|run| run.order).collect::<Vec<_>>();
    assert_eq!((orders(0), orders(2)), (vec![0, 5, 6, 11], vec![2, 3, 8, 9]));
}

#[test]
fn comparison_tells_noise_from_difference() {
    let of = |mean_ms| {
        let service = MockService { distribution: Distribution::Exponential, mean_ms, servers: 1, seed: 3 };
        let options = MockOptions { service: Some(service), ..MockOptions::default() };
        let mut bench = bench(40, vec![Load::Closed { concurrency: 1 }], 5);
        let Rows::Fixed { rows, .. } = &mut bench.rows else { panic!("they are") };
        rows.iter_mut().for_each(|row| row.number += mean_ms as u64);
        run(&bench, &[target("a", options, Prices::default())])
    };
    let speed = |a: f64, b: f64| {
        let compared = compare(&of(a), &of(b));
        compared.metrics.into_iter().find(|one| one.metric == "rows_per_second").unwrap()
    };
    assert_eq!(speed(1000.0, 1000.0).ratio.verdict, Verdict::WithinNoise);
    let slower = speed(1000.0, 3000.0);
    assert_eq!((slower.ratio.verdict, slower.words()), (Verdict::Smaller, "worse"));
}

#[test]
fn the_json_has_the_schema_and_the_rest_derives_from_it() {
    let targets = [target("a & <b>", script(), Prices::default()), target("c", script(), Prices::default())];
    let loads = vec![Load::Closed { concurrency: 1 }, Load::Closed { concurrency: 2 }, Load::Open { rate: 1.0 }];
    let report = run(&bench(6, loads, 2), &targets);
    let json = serde_json::to_value(&report).unwrap();
    let schema = schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator.iter_errors(&json).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
    // A schema that takes everything would be none.
    let mut broken = json.clone();
    broken["cells"][0]["runs"][0]["seconds"] = Value::from("soon");
    assert!(!validator.is_valid(&broken));

    let again: vgen_run::bench::Report = serde_json::from_value(json).unwrap();
    assert_eq!(markdown(&again), markdown(&report));
    assert_eq!(csv(&report).lines().count(), 1 + 2 * 3 * 2);
    let page = html(&report);
    assert!(page.contains("a &amp; &lt;b&gt;") && !page.contains("a & <b>"));
    assert!(page.matches("<svg").count() >= 3, "plots");
    for outside in ["<script", "href=\"http", "src=\"", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn the_schema_in_the_documents_is_the_programs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/bench.schema.json");
    let written: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(written, schema(), "run: vgen bench --schema > docs/bench.schema.json");
}
