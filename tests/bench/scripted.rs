//! Benches of scripted backends in virtual time.

use std::sync::Arc;

use serde_json::{Map, Value};
use vgen_backends::mock::{MockBackend, MockOptions, VirtualTime};
use vgen_core::{Message, Role, SamplingParams};
use vgen_run::bench::{Bench, BenchRow, Clock, Load, Machine, Opened, Prices, Report, Rows, Target};

/// A bench of rows without images.
pub(crate) fn bench(rows: u64, loads: Vec<Load>, repeats: u32) -> Bench {
    let row = |number| BenchRow { number, messages: vec![Message::text(Role::User, "what is it")] };
    Bench {
        rows: Rows::Fixed { name: "rows".into(), rows: (0..rows).map(row).collect() },
        loads,
        repeats,
        warmup_rows: 0,
        sampling: SamplingParams::default(),
        seed: 1,
        interleave: true,
        program: "test".into(),
        machine: Machine::default(),
    }
}

/// A mock in virtual time.
pub(crate) fn target(name: &str, options: MockOptions, prices: Prices) -> Target<'static> {
    Target {
        name: name.into(),
        kind: "mock".into(),
        settings: Map::new(),
        prices,
        open: Box::new(move || {
            let time = Arc::new(VirtualTime::default());
            let backend = MockBackend::in_virtual_time(options.clone(), Arc::clone(&time))?;
            Ok(Opened {
                backend: Arc::new(backend),
                clock: Clock::Virtual(time),
                model_identity: Value::Null,
                device: None,
                limits: None,
                work: None,
            })
        }),
    }
}

pub(crate) fn run(bench: &Bench, targets: &[Target<'_>]) -> Report {
    bench.run(targets, &|_| {}).unwrap()
}
