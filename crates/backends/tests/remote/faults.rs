//! Every way in which a server can fail, alone and for all rows: what the row says, how often it was tried, and that
//! its neighbours go on.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use vgen_core::FaultClass;
use vgen_loopback::{Answer, Received, Server};

use crate::support::{asked, chat, config, connect, echo, fault, one, pair, question, run, text};

/// What may go wrong once or for ever, and the code it has in the end.
fn passing() -> Vec<(&'static str, &'static str, Answer)> {
    let cut = Answer::status(200).header("content-length", "500").data("{\"choices\": [{\"mess").cut();
    let chunked_cut = Answer::status(200).data("{\"choices\"").data(": [").cut();
    let status = |status| Answer::status(status).with_json(&json!({"error": {"message": "said so"}}));
    vec![
        ("429", "remote.rate_limited", status(429)),
        ("408", "remote.timeout", status(408)),
        ("500", "remote.server_error", status(500)),
        ("502 page", "remote.server_error", Answer::status(502).data("<html>said so</html>")),
        ("503", "remote.overloaded", status(503)),
        ("504", "remote.timeout", status(504)),
        ("cut body", "remote.broken", cut),
        ("cut chunks", "remote.broken", chunked_cut),
        ("reset", "remote.broken", Answer::reset()),
        ("invalid json", "remote.bad_answer", Answer::body("application/json", "{\"choices\": [")),
        ("html", "remote.bad_answer", Answer::body("text/html", "<html>hello</html>")),
        ("empty body", "remote.bad_answer", Answer::status(200)),
        ("no choices", "remote.no_choices", Answer::json(&json!({"choices": []}))),
        ("error object", "remote.server_error", Answer::json(&json!({"error": "said so"}))),
        ("slow first byte", "remote.timeout", Answer::json(&chat("late")).delay(Duration::from_secs(2))),
        ("stalled body", "remote.timeout", Answer::status(200).data("{").pause(Duration::from_secs(2)).data("}")),
        ("bad gzip", "remote.broken", Answer::body("application/json", "no gzip").header("content-encoding", "gzip")),
    ]
}

/// Row 2 of five fails; the others are answered at once.
fn only_row_2(answer: Answer, times: usize) -> impl Fn(&Received) -> Answer + Send + Sync {
    let failed = AtomicUsize::new(0);
    move |request| {
        if asked(request) == "row 2" && failed.fetch_add(1, Ordering::SeqCst) < times {
            answer.clone()
        } else {
            echo(request)
        }
    }
}

#[test]
fn a_passing_fault_costs_an_attempt_and_nothing_else() {
    for (name, _, answer) in passing() {
        let (server, backend) = pair(only_row_2(answer, 2), |config| {
            (config.first_byte_timeout, config.idle_timeout) = (0.3, 0.3);
        });
        let results = run(&backend, (0..5).map(question).collect());
        for (row, result) in results.iter().enumerate() {
            assert_eq!(text(result), Ok(format!("answer to row {row}")), "{name}");
        }
        assert_eq!((server.requests(), backend.stats().retries), (7, 2), "{name}");
    }
}

#[test]
fn after_the_last_attempt_the_row_says_why_and_the_others_go_on() {
    for (name, code, answer) in passing() {
        let (server, backend) = pair(only_row_2(answer, usize::MAX), |config| {
            (config.first_byte_timeout, config.idle_timeout, config.max_attempts) = (0.2, 0.2, 3);
        });
        let results = run(&backend, (0..5).map(question).collect());
        for row in [0, 1, 3, 4] {
            assert_eq!(text(&results[row]), Ok(format!("answer to row {row}")), "{name}");
        }
        let fault = fault(&results[2]);
        assert_eq!((fault.code.as_ref(), fault.attempts, fault.class), (code, 3, FaultClass::Row), "{name}");
        if name.starts_with(['4', '5']) || name == "error object" {
            assert!(fault.message.contains("said so"), "{name}: {}", fault.message);
        }
        assert_eq!(server.requests(), 7, "{name}");
    }
}

#[test]
fn what_will_not_pass_is_not_tried_again() {
    for (status, code) in
        [(400, "remote.refused"), (413, "remote.too_large"), (422, "remote.refused"), (501, "remote.server_error")]
    {
        let answer = Answer::status(status).with_json(&json!({"detail": "no good"}));
        let (server, backend) = pair(only_row_2(answer, usize::MAX), |_| {});
        let results = run(&backend, (0..5).map(question).collect());
        let fault = fault(&results[2]);
        assert_eq!((fault.code.as_ref(), fault.attempts, fault.class), (code, 1, FaultClass::Row));
        assert!(fault.message.contains("no good") && fault.message.contains(&status.to_string()), "{}", fault.message);
        assert_eq!((server.requests(), results.iter().filter(|result| result.is_ok()).count()), (5, 5));
    }
}

#[test]
fn what_concerns_every_row_stops_the_run() {
    for (status, code) in [
        (401, "remote.unauthorized"),
        (402, "remote.payment_required"),
        (403, "remote.forbidden"),
        (404, "remote.not_found"),
    ] {
        let quoted = json!({"error": {"message": "key hf_sesame is not good"}});
        let (server, backend) = pair(move |_| Answer::status(status).with_json(&quoted), |_| {});
        let result = one(&backend);
        let stop = result.clone().unwrap_err();
        assert_eq!((stop.code.as_ref(), stop.class, server.requests()), (code, FaultClass::Stop, 1));
        assert!(stop.hint.is_some());
        assert!(fault(&result).message.contains("<secret>"), "{}", stop.message);
    }
    // Where others were answered, a 403 is about the row: a filter, say.
    let (_server, backend) = pair(only_row_2(Answer::status(403), 1), |_| {});
    assert!(one(&backend).is_ok());
    let result = run(&backend, vec![question(2)]).remove(0);
    assert_eq!(fault(&result).class, FaultClass::Row);
}

#[test]
fn retry_after_is_waited_for_in_seconds_and_as_a_date() {
    // A date has whole seconds: up to one of the three is lost.
    for (dated, at_least) in [(false, 1.0), (true, 2.0)] {
        let date = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3));
        let value = if dated { date() } else { "1".to_owned() };
        let (server, backend) = pair(only_row_2(Answer::status(429).header("retry-after", &value), 1), |_| {});
        let start = Instant::now();
        assert_eq!(text(&run(&backend, vec![question(2)])[0]), Ok("answer to row 2".to_owned()));
        let took = start.elapsed().as_secs_f64();
        assert!((at_least - 0.1..5.0).contains(&took), "{value}: {took}");
        assert_eq!(server.requests(), 2);
    }
}

#[test]
fn a_retry_after_beyond_the_rows_time_ends_the_row_at_once() {
    let answer = Answer::status(429).header("retry-after", "3600").with_json(&json!({"error": "tomorrow"}));
    let (server, backend) = pair(only_row_2(answer, usize::MAX), |config| config.max_elapsed = 5.0);
    let start = Instant::now();
    let results = run(&backend, (0..5).map(question).collect());
    assert_eq!(fault(&results[2]).code, "remote.rate_limited");
    assert_eq!(results.iter().filter(|result| text(result).is_ok()).count(), 4);
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!(server.requests(), 5);
}

#[test]
fn a_row_has_only_so_much_time() {
    let (_server, backend) = pair(
        |_| Answer::status(500),
        |config| {
            (config.max_attempts, config.max_elapsed) = (u32::MAX, 0.5);
        },
    );
    let start = Instant::now();
    let fault = fault(&one(&backend));
    assert!(fault.attempts > 3, "{}", fault.attempts);
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_storm_of_503_is_survived_by_every_row() {
    let count = AtomicUsize::new(0);
    // Four of five requests fail at first, later fewer.
    let (server, backend) = pair(
        move |request| match count.fetch_add(1, Ordering::SeqCst) {
            n if n < 200 && n % 5 != 0 => Answer::status(503).header("retry-after", "0"),
            _ => echo(request),
        },
        |config| (config.max_attempts, config.max_in_flight) = (60, 16),
    );
    let results = run(&backend, (0..100).map(question).collect());
    for (row, result) in results.iter().enumerate() {
        assert_eq!(text(result), Ok(format!("answer to row {row}")));
    }
    assert_eq!(server.requests() as u64, 100 + backend.stats().overloads);
    assert_eq!(backend.stats().overloads, 160);
}

#[test]
fn nobody_listens() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut config = config(&format!("http://127.0.0.1:{port}"));
    config.max_attempts = 3;
    let backend = connect(config);
    let results = run(&backend, (0..3).map(question).collect());
    for result in &results {
        let fault = fault(result);
        assert_eq!((fault.code.as_ref(), fault.attempts, fault.class), ("remote.connect", 3, FaultClass::Row));
    }
}

#[test]
fn a_server_without_tls_is_not_trusted() {
    let server = Server::start(echo).unwrap();
    let backend = connect(config(&format!("https://127.0.0.1:{}", server.port())));
    let fault = fault(&one(&backend));
    assert_eq!((fault.code.as_ref(), fault.attempts, fault.class), ("remote.tls", 1, FaultClass::Stop), "{fault}");
    assert_eq!(server.requests(), 0);
}

#[test]
fn redirects_keep_the_question_and_never_leave_the_host() {
    for status in [307, 308] {
        let (server, backend) = pair(
            move |request| match request.path.as_str() {
                "/moved" => echo(request),
                _ => Answer::status(status).header("location", "/moved"),
            },
            |_| {},
        );
        assert_eq!(text(&one(&backend)), Ok("answer to row 0".to_owned()));
        let second = &server.received()[1];
        assert_eq!((second.method.as_str(), second.header("authorization")), ("POST", Some("Bearer hf_sesame")));
    }
    // 301 to 303 turn a POST into a GET; another host is not the one that was trusted.
    let elsewhere = Server::start(echo).unwrap();
    for (status, location) in [(301, "/moved".to_owned()), (302, "/moved".to_owned()), (307, elsewhere.url())] {
        let target = location.clone();
        let (server, backend) = pair(move |_| Answer::status(status).header("location", &target), |_| {});
        let fault = fault(&one(&backend));
        assert_eq!(fault.code, "remote.redirect");
        assert!(fault.message.contains(&location), "{}", fault.message);
        assert_eq!((server.requests(), elsewhere.requests()), (1, 0));
    }
    let (_server, backend) = pair(|_| Answer::status(307).header("location", "/again"), |_| {});
    assert_eq!(fault(&one(&backend)).code, "remote.redirect");
}

#[test]
fn a_huge_body_is_not_read_to_its_end() {
    let huge = || (0..64).fold(Answer::status(200), |answer, _| answer.data(vec![b' '; 1 << 20]));
    let (server, backend) = pair(move |_| huge(), |config| config.max_response_bytes = 1 << 20);
    let fault = fault(&one(&backend));
    assert_eq!((fault.code.as_ref(), fault.attempts, server.requests()), ("remote.answer_too_large", 1, 1));
    // Nor does a small one that unpacks to a huge one.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![b' '; 32 << 20]).unwrap();
    let packed = encoder.finish().unwrap();
    let bomb = Answer::body("application/json", packed).header("content-encoding", "gzip");
    let (_server, backend) = pair(move |_| bomb.clone(), |config| config.max_response_bytes = 1 << 20);
    assert_eq!(self::fault(&one(&backend)).code, "remote.answer_too_large");
}

#[test]
fn gzip_is_unpacked() {
    let (server, backend) = pair(
        |request| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(chat(&asked(request)).to_string().as_bytes()).unwrap();
            Answer::body("application/json", encoder.finish().unwrap()).header("content-encoding", "gzip")
        },
        |_| {},
    );
    assert_eq!(text(&one(&backend)), Ok("row 0".to_owned()));
    assert_eq!(server.received()[0].header("accept-encoding"), Some("gzip"));
}

#[test]
fn the_whole_attempt_has_a_limit_even_if_bytes_trickle() {
    let trickle = (0..100).fold(Answer::status(200), |answer, _| answer.data(" ").pause(Duration::from_millis(50)));
    let (_server, backend) = pair(
        move |_| trickle.clone(),
        |config| {
            (config.total_timeout, config.max_attempts) = (0.4, 2);
        },
    );
    let start = Instant::now();
    let fault = fault(&one(&backend));
    assert_eq!((fault.code.as_ref(), fault.attempts), ("remote.timeout", 2));
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_dropped_backend_answers_what_is_unfinished() {
    let (server, backend) = pair(|_| Answer::json(&chat("late")).delay(Duration::from_secs(20)), |_| {});
    let (send, receive) = std::sync::mpsc::channel();
    for row in 0..10 {
        let send = send.clone();
        vgen_core::Backend::submit(&backend, question(row), Box::new(move |result| send.send(result).unwrap()));
    }
    while server.requests() < 10 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop((backend, send));
    let results: Vec<_> = receive.iter().collect();
    assert_eq!(results.len(), 10);
    assert!(results.iter().all(|result| result.as_ref().unwrap_err().code == "remote.stopped"));
}
