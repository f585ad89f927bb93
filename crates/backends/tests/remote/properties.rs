//! For any script of faults within the cap, all rows come out exactly once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use vgen_loopback::Answer;

use crate::support::{asked, echo, pair, question, run, text};

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Status(u16),
    RetryAfter,
    Reset,
    Cut,
    Garbage,
    Empty,
    ErrorObject,
    Late,
}

impl Trouble {
    fn answer(self) -> Answer {
        match self {
            Self::Status(status) => Answer::status(status).with_json(&json!({"error": "x"})),
            Self::RetryAfter => Answer::status(429).header("retry-after", "0"),
            Self::Reset => Answer::reset(),
            Self::Cut => Answer::status(200).header("content-length", "900").data("{\"choices\":").cut(),
            Self::Garbage => Answer::body("text/html", "<p>"),
            Self::Empty => Answer::json(&json!({"choices": []})),
            Self::ErrorObject => Answer::json(&json!({"error": "x", "error_type": "overloaded"})),
            Self::Late => Answer::status(200).delay(Duration::from_millis(400)),
        }
    }
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        prop::sample::select(vec![408, 429, 500, 502, 503, 504]).prop_map(Trouble::Status),
        prop::sample::select(vec![
            Trouble::RetryAfter,
            Trouble::Reset,
            Trouble::Cut,
            Trouble::Garbage,
            Trouble::Empty,
            Trouble::ErrorObject,
            Trouble::Late,
        ]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_rows_come_out_exactly_once(
        troubles in prop::collection::vec(prop::collection::vec(trouble(), 0..5), 1..24),
        in_flight in 1_usize..12,
        stream in any::<bool>(),
    ) {
        let rows = troubles.len() as u64;
        let expected: usize = troubles.iter().map(|troubles| troubles.len() + 1).sum();
        let left: HashMap<String, Vec<Trouble>> =
            troubles.into_iter().enumerate().map(|(row, troubles)| (format!("row {row}"), troubles)).collect();
        let left = Mutex::new(left);
        let (server, backend) = pair(
            move |request| {
                let next = left.lock().unwrap().get_mut(&asked(request)).and_then(Vec::pop);
                next.map_or_else(|| echo(request), Trouble::answer)
            },
            |config| {
                (config.max_in_flight, config.stream) = (in_flight, stream);
                (config.max_attempts, config.first_byte_timeout) = (5, 0.2);
            },
        );
        // `run` itself fails if a row is missing or doubled.
        let results = run(&backend, (0..rows).map(question).collect());
        for (row, result) in results.iter().enumerate() {
            prop_assert_eq!(text(result), Ok(format!("answer to row {row}")));
        }
        prop_assert_eq!(server.requests(), expected);
    }
}
