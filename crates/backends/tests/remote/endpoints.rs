//! Endpoints by name: each state, the deadline, and never another model instead.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vgen_backends::remote::{RemoteBackend, RemoteConfig, RemoteEvent, RemoteHooks, RemoteSecrets};
use vgen_core::{Backend, Fault, SamplingParams, Secret};
use vgen_loopback::{Answer, Server};

use crate::support::{config, echo, one, text};

/// The endpoints service, the hub and the endpoint itself on one server. The endpoint goes through `states`, one a
/// look, and stays in the last; with a resume it goes on to `resumed`.
fn service(states: &'static [&'static str], resumed: &'static [&'static str]) -> (Server, RemoteConfig) {
    let left: Mutex<Vec<&str>> = Mutex::new(states.to_vec());
    let address: Arc<Mutex<String>> = Arc::default();
    let own = Arc::clone(&address);
    let server = Server::start(move |request| {
        let mut left = left.lock().unwrap();
        let look = |state: &str| {
            let url = format!("{}/dedicated", own.lock().unwrap());
            let mut status = json!({"state": state, "message": "so it says"});
            if state == "running" || state == "updating" {
                status["url"] = Value::from(url);
            }
            Answer::json(&json!({"name": "ep", "status": status,
                "model": {"repository": "owner/vision", "image": {"tgi": {"url": "x"}}}}))
        };
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/hub/api/whoami-v2") => Answer::json(&json!({"type": "user", "name": "alice"})),
            ("GET", "/ie/v2/endpoint/acme/ep" | "/ie/v2/endpoint/alice/ep") => {
                let state = if left.len() > 1 { left.remove(0) } else { left[0] };
                look(state)
            }
            ("POST", "/ie/v2/endpoint/acme/ep/resume") => {
                *left = resumed.to_vec();
                look("initializing")
            }
            ("POST", "/dedicated/v1/chat/completions") => echo(request),
            _ => Answer::status(404).with_json(&json!({"error": "no such thing"})),
        }
    })
    .unwrap();
    *address.lock().unwrap() = server.url();
    let config = RemoteConfig {
        base_url: None,
        endpoint_name: Some("ep".to_owned()),
        endpoint_namespace: Some("acme".to_owned()),
        endpoints_url: format!("{}/ie", server.url()),
        hub_url: format!("{}/hub", server.url()),
        endpoint_poll: 0.02,
        endpoint_timeout: 1.0,
        ..config("http://unused")
    };
    (server, config)
}

fn connect(config: RemoteConfig) -> Result<RemoteBackend, Fault> {
    RemoteBackend::connect(config, RemoteSecrets { api_key: Secret::new("hf_sesame") }, RemoteHooks::default())
}

fn calls(server: &Server) -> Vec<String> {
    server.received().iter().map(|request| format!("{} {}", request.method, request.path)).collect()
}

#[test]
fn a_running_endpoint_is_asked_by_its_models_name() {
    let (server, config) = service(&["running"], &[]);
    let backend = connect(config).unwrap();
    assert_eq!(backend.model_name(), "owner/vision");
    assert_eq!(text(&one(&backend)), Ok("answer to row 0".to_owned()));
    let expected = ["GET /ie/v2/endpoint/acme/ep", "POST /dedicated/v1/chat/completions"];
    assert_eq!(calls(&server), expected);
    assert_eq!(server.received()[1].json()["model"], "owner/vision");
    for request in server.received() {
        assert_eq!(request.header("authorization"), Some("Bearer hf_sesame"));
    }
    // It says that it runs TGI, so TGI's constraints can be sent.
    let constraint = Some(vgen_core::Constraint::Regex("a".to_owned()));
    assert_eq!(backend.check(&SamplingParams { constraint, ..SamplingParams::default() }, 1), Ok(()));
}

#[test]
fn without_a_namespace_it_is_the_keys_own() {
    let (server, mut config) = service(&["running"], &[]);
    config.endpoint_namespace = None;
    config.model_display_name = Some("shown".to_owned());
    let backend = connect(config).unwrap();
    assert_eq!(backend.model_name(), "shown");
    assert_eq!(calls(&server), ["GET /hub/api/whoami-v2", "GET /ie/v2/endpoint/alice/ep"]);
}

#[test]
fn a_sleeping_endpoint_is_woken_once_and_waited_for() {
    for asleep in [&["paused"], &["scaledToZero"]] {
        let (server, config) = service(asleep, &["scaledToZero", "pending", "initializing", "initializing", "running"]);
        let events = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&events);
        let hooks = RemoteHooks {
            progress: Some(Arc::new(move |event| record.lock().unwrap().push(event))),
            ..RemoteHooks::default()
        };
        let backend = RemoteBackend::connect(config, RemoteSecrets::default(), hooks).unwrap();
        assert!(text(&one(&backend)).is_ok());
        let resumes = calls(&server).iter().filter(|call| call.ends_with("/resume")).count();
        assert_eq!(resumes, 1);
        let states: Vec<_> = events
            .lock()
            .unwrap()
            .iter()
            .map(|event| match event {
                RemoteEvent::Endpoint { name, state, .. } => {
                    assert_eq!(name, "acme/ep");
                    state.clone()
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(states, [asleep[0], "scaledToZero", "pending", "initializing", "initializing"]);
    }
}

#[test]
fn a_sleeping_endpoint_may_be_left_asleep() {
    let (server, mut config) = service(&["paused"], &[]);
    config.resume_endpoint = false;
    assert_eq!(connect(config).unwrap_err().code, "remote.endpoint_paused");
    assert_eq!(server.requests(), 1);
}

#[test]
fn states_on_the_way_are_waited_for() {
    let (_server, config) = service(&["pending", "initializing", "updating", "running"], &[]);
    assert!(text(&one(&connect(config).unwrap())).is_ok());
}

#[test]
fn a_failed_endpoint_is_an_error_and_nobody_else_is_asked() {
    for (states, code) in [
        (&["failed"][..], "remote.endpoint_failed"),
        (&["updateFailed"], "remote.endpoint_failed"),
        (&["initializing", "failed"], "remote.endpoint_failed"),
        (&["on fire"], "remote.endpoint_state"),
    ] {
        let (server, config) = service(states, &[]);
        let fault = connect(config).unwrap_err();
        assert_eq!(fault.code, code);
        assert!(fault.message.contains("acme/ep") && fault.hint.is_some(), "{}", fault.message);
        assert!(calls(&server).iter().all(|call| call == "GET /ie/v2/endpoint/acme/ep"), "{:?}", calls(&server));
    }
}

#[test]
fn waiting_has_an_end() {
    let (_server, mut config) = service(&["initializing"], &[]);
    config.endpoint_timeout = 0.2;
    let start = Instant::now();
    let fault = connect(config).unwrap_err();
    assert_eq!(fault.code, "remote.endpoint_timeout");
    assert!(fault.message.contains("initializing"), "{}", fault.message);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn an_unknown_endpoint_and_a_bad_key_are_told_apart() {
    let (_server, mut config) = service(&["running"], &[]);
    config.endpoint_name = Some("other".to_owned());
    assert_eq!(connect(config).unwrap_err().code, "remote.endpoint_not_found");
    let server = Server::start(|_| Answer::status(401)).unwrap();
    let config = RemoteConfig {
        endpoint_name: Some("ep".to_owned()),
        endpoint_namespace: Some("acme".to_owned()),
        endpoints_url: server.url(),
        ..RemoteConfig::default()
    };
    assert_eq!(connect(config).unwrap_err().code, "remote.unauthorized");
}

#[test]
fn a_busy_service_is_asked_again() {
    let (server, config) = service(&["running"], &[]);
    let (inner, mut outer_config) = (server.url(), config.clone());
    let count = std::sync::atomic::AtomicUsize::new(0);
    let busy = Server::start(move |_| match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 | 1 => Answer::status(503),
        _ => Answer::json(&json!({"status": {"state": "running", "url": format!("{inner}/dedicated")}})),
    })
    .unwrap();
    outer_config.endpoints_url = busy.url();
    let backend = connect(outer_config).unwrap();
    assert_eq!((backend.model_name(), busy.requests()), ("ep", 3));
}
