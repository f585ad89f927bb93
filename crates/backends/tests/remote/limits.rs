//! How much is in flight, how fast, on how many connections, and when it is enough.

use std::time::{Duration, Instant};

use serde_json::json;
use vgen_core::{Backend, FaultClass};
use vgen_loopback::Answer;

use crate::support::{chat, echo, fault, pair, question, run, text};

#[test]
fn a_fixed_number_of_requests_is_in_flight_on_connections_that_stay() {
    let (server, backend) =
        pair(|request| echo(request).delay(Duration::from_millis(5)), |config| config.max_in_flight = 8);
    assert_eq!(backend.window(), 8);
    let results = run(&backend, (0..200).map(question).collect());
    assert!(results.iter().all(|result| text(result).is_ok()));
    assert_eq!(server.peak_in_flight(), 8);
    assert!(server.connections() <= 10, "{} connections", server.connections());
}

/// The slowest request holds back nobody but itself.
#[test]
fn there_is_no_barrier() {
    let (_server, backend) = pair(
        |request| {
            let slow = crate::support::asked(request) == "row 0";
            echo(request).delay(Duration::from_millis(if slow { 1500 } else { 5 }))
        },
        |config| config.max_in_flight = 4,
    );
    let start = Instant::now();
    let rest = std::thread::scope(|scope| {
        let slow = scope.spawn(|| run(&backend, vec![question(0)]));
        std::thread::sleep(Duration::from_millis(100));
        run(&backend, (1..100).map(question).collect());
        let rest = start.elapsed();
        assert!(text(&slow.join().unwrap()[0]).is_ok());
        rest
    });
    assert!(rest < Duration::from_millis(1400), "{rest:?}");
}

#[test]
fn overload_narrows_the_window() {
    // The server can do four at a time and says so.
    let busy = std::sync::atomic::AtomicUsize::new(0);
    let (server, backend) = pair(
        move |request| {
            if request.number < 64 && busy.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 2 == 1 {
                return Answer::status(429);
            }
            echo(request).delay(Duration::from_millis(20))
        },
        |config| (config.max_in_flight, config.max_attempts) = (32, 50),
    );
    let results = run(&backend, (0..64).map(question).collect());
    assert!(results.iter().all(|result| text(result).is_ok()));
    let limit = backend.stats().in_flight_limit;
    assert!(limit < 32, "the window is still {limit} after {} overloads", backend.stats().overloads);
    assert!(server.requests() > 64);
}

#[test]
fn requests_per_minute() {
    let (server, backend) = pair(echo, |config| config.requests_per_minute = Some(600.0));
    let start = Instant::now();
    run(&backend, (0..6).map(question).collect());
    let took = start.elapsed().as_secs_f64();
    assert!((0.5..2.0).contains(&took), "{took}");
    let times: Vec<_> = server.received().iter().map(|request| request.at).collect();
    for pair in times.windows(2) {
        assert!(pair[1] - pair[0] > Duration::from_millis(60), "{:?}", pair[1] - pair[0]);
    }
}

#[test]
fn the_spend_cap_stops_the_run_and_keeps_what_is_paid() {
    let (server, backend) = pair(echo, |config| config.spend_requests = Some(10));
    let results = run(&backend, (0..25).map(question).collect());
    let (paid, stopped): (Vec<_>, Vec<_>) = results.iter().partition(|result| text(result).is_ok());
    assert_eq!((paid.len(), stopped.len(), server.requests()), (10, 15, 10));
    for result in stopped {
        let fault = fault(result);
        assert_eq!((fault.code.as_ref(), fault.class), ("remote.spend_cap", FaultClass::Drain));
    }

    let (server, backend) = pair(echo, |config| (config.spend_tokens, config.max_in_flight) = (Some(100), 1));
    let mut answered = 0;
    for row in 0..10 {
        answered += u32::from(text(&run(&backend, vec![question(row)])[0]).is_ok());
    }
    // 26 tokens each: the fourth passes 100.
    assert_eq!((answered, server.requests()), (4, 4));
}

#[test]
fn a_row_whose_generations_the_cap_does_not_allow_is_not_begun() {
    let (server, backend) = pair(echo, |config| config.spend_requests = Some(5));
    let mut request = question(0);
    request.num_generations = 3;
    let mut second = question(1);
    second.num_generations = 3;
    let results = run(&backend, vec![request, second]);
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    assert_eq!(server.requests(), 3);
}

#[test]
fn counts_are_summed() {
    let (_server, backend) = pair(|_| Answer::json(&chat("x")), |_| {});
    run(&backend, (0..3).map(question).collect());
    let stats = backend.stats();
    assert_eq!((stats.requests, stats.answered, stats.input_tokens, stats.output_tokens), (3, 3, 63, 15));
    let (_server, backend) = pair(
        |_| Answer::json(&json!({"choices": [{"message": {"content": "no count"}}]})),
        |config| config.spend_tokens = Some(2),
    );
    assert!(text(&run(&backend, vec![question(0)])[0]).is_ok());
    assert_eq!(backend.stats().output_tokens, 0);
    // Uncounted, its length counts.
    assert_eq!(fault(&run(&backend, vec![question(1)])[0]).code, "remote.spend_cap");
}
