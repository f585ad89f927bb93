//! Benches of scripted backends in virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};
use vgen_backends::mock::{MockBackend, MockOptions, VirtualTime};
use vgen_core::{Backend, CancelToken, Fault, Message, Role, SamplingParams};
use vgen_run::bench::{Bench, BenchRow, Clock, Load, Machine, Opened, Prices, Report, Rows, Target};

/// A bench of rows without images.
pub(crate) fn bench(rows: u64, loads: Vec<Load>, repeats: u32) -> Bench {
    let row = |number| BenchRow::new(number, vec![Message::text(Role::User, "what is it")]);
    Bench {
        rows: Rows::Fixed {
            name: "rows".into(),
            rows: (0..rows).map(row).collect(),
            left_out: BTreeMap::from([("x.left".into(), 2)]),
        },
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
    let open = move || {
        let time = Arc::new(VirtualTime::default());
        let backend = MockBackend::in_virtual_time(options.clone(), Arc::clone(&time))?;
        Ok(opened(Arc::new(backend), Clock::Virtual(time)))
    };
    Target { prices, ..target_of(name, open) }
}

/// A backend of any kind.
pub(crate) fn target_of(name: &str, open: impl Fn() -> Result<Opened, Fault> + 'static) -> Target<'static> {
    Target {
        name: name.into(),
        kind: "mock".into(),
        settings: Map::new(),
        prices: Prices::default(),
        sweep: None,
        open: Box::new(open),
    }
}

pub(crate) fn opened(backend: Arc<dyn Backend>, clock: Clock) -> Opened {
    Opened {
        window: backend.window(),
        backend,
        clock,
        model_identity: Value::Null,
        device: None,
        limits: None,
        work: None,
        tokenize: None,
        notes: Vec::new(),
    }
}

pub(crate) fn run(bench: &Bench, targets: &[Target<'_>]) -> Report {
    bench.run(targets, &CancelToken::default(), &|_| {}).unwrap()
}
