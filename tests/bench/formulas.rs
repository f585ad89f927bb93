//! The written-down formulas, on a script whose every moment is known.

use serde_json::Value;
use vgen_backends::mock::{Distribution, MockFault, MockOptions, MockService};
use vgen_core::FaultClass;
use vgen_run::bench::{
    Load, Prices, Report, Rows, Sweep, Target, Verdict, Workload, compare, csv, html, markdown, schema,
};

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
    assert!(html(&report).contains("<td>x.y</td><td>1</td>"));
    assert!(csv(&report).contains(",8,1,x.y=1,"), "{}", csv(&report));
    assert!(report.notes.iter().any(|note| note.ends_with("left out: 2 with x.left")), "{:?}", report.notes);
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
    // Each row once, whatever number of readings it is in.
    assert_eq!(
        differs.differing.iter().map(|row| (row.row, row.pairs)).collect::<Vec<_>>(),
        [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    );
    assert!(html(&report).contains("5 rows differ, from word 0 on (median)"));
    // Turns: a b c, c b a, ...
    let orders = |at: usize| report.cells[at].runs.iter().map(|run| run.order).collect::<Vec<_>>();
    assert_eq!((orders(0), orders(2)), (vec![0, 5, 6, 11], vec![2, 3, 8, 9]));
}

#[test]
fn comparison_tells_noise_from_difference() {
    let of = |mean_ms, seed| {
        let service = MockService { distribution: Distribution::Exponential, mean_ms, servers: 1, seed };
        let options = MockOptions { service: Some(service), ..MockOptions::default() };
        let mut bench = bench(40, vec![Load::Closed { concurrency: 1 }], 6);
        // Other rows in each reading, so that there is a spread.
        bench.rows = Rows::Drawn { workload: Workload::OneImage, count: 40, seed: 0 };
        run(&bench, &[target("a", options, Prices::default())])
    };
    let speed = |a: &Report, b: &Report| {
        let compared = compare(a, b);
        compared.metrics.into_iter().find(|one| one.metric == "rows_per_second").unwrap()
    };
    let first = of(1000.0, 3);
    // Other draws of the same: they differ, but not by more than draws do.
    let same = speed(&first, &of(1000.0, 4));
    assert!(same.base != same.other && same.base.q1 < same.base.q3, "{same:?}");
    assert_eq!((same.ratio.verdict, same.words()), (Verdict::WithinNoise, "within noise"));
    let slower = speed(&first, &of(3000.0, 4));
    assert_eq!((slower.ratio.verdict, slower.words()), (Verdict::Smaller, "worse"));
}

#[test]
fn new_failures_are_seen() {
    let of = |row: Option<u64>, repeats| {
        let fault = |row| MockFault {
            row,
            sample: None,
            code: "x.y".into(),
            message: "m".into(),
            class: FaultClass::Row,
            attempts: 1,
        };
        let options = MockOptions { faults: row.map(fault).into_iter().collect(), ..script() };
        run(&bench(8, vec![Load::Window], repeats), &[target("a", options, Prices::default())])
    };
    let compared = compare(&of(None, 5), &of(Some(3), 5));
    let failed = compared.metrics.iter().find(|one| one.metric == "failed_share").unwrap();
    assert_eq!((failed.ratio.ratio, failed.words()), (None, "worse"));
    let text = compared.markdown();
    assert!(text.contains("| a | as a run | failed_share | 0 | 0.125 | – | – |"), "{text}");
    // Also where too few repeats could tell anything else.
    let text = compare(&of(None, 1), &of(Some(3), 1)).markdown();
    assert!(text.contains("more rows fail in the second: 1 of 8 instead of 0 of 8"), "{text}");
    assert!(!compare(&of(Some(3), 1), &of(None, 1)).markdown().contains("more rows fail"));
}

/// A batch size is a place on an axis, and a bar in a name is no end of a cell.
#[test]
fn batch_sizes_have_a_plot() {
    let series = [1, 4].map(|batch_size| Target {
        sweep: Some(Sweep { of: "a|b".into(), batch_size }),
        ..target(&format!("a|b, batch {batch_size}"), script(), Prices::default())
    });
    let report = run(&bench(4, vec![Load::Closed { concurrency: 2 }], 1), &series);
    assert!(html(&report).contains("<figcaption>Rows a second by batch size</figcaption>"));
    let text = markdown(&report);
    assert!(text.contains("| a\\|b, batch 4 | 2 in flight |"), "{text}");
    assert!(text.lines().filter(|line| line.starts_with("| a")).all(|line| !line.contains("a|b")), "{text}");
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
