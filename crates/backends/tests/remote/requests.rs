//! What requests are made of: generations, images, further fields, names, keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use vgen_backends::remote::{Dialect, RemoteBackend, RemoteHooks, RemoteSecrets};
use vgen_core::{Backend, Content, Fault, ImageRef, Message, Part, Request, Role, SamplingParams};
use vgen_loopback::{Answer, Server};

use crate::support::{chat, config, connect, echo, fault, one, pair, question, run, text};

/// A white pixel.
const PNG: &[u8] = &[
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0, 144, 119, 83,
    222, 0, 0, 0, 12, 73, 68, 65, 84, 120, 156, 99, 248, 255, 255, 63, 0, 5, 254, 2, 254, 13, 239, 70, 184, 0, 0, 0, 0,
    73, 69, 78, 68, 174, 66, 96, 130,
];

fn with_image(image: ImageRef) -> Request {
    let content = Content::Parts(vec![Part::Text("q".to_owned()), Part::Image(image)]);
    Request::new(0, vec![Message { role: Role::User, content }], SamplingParams::default())
}

#[test]
fn generations_are_requests_with_seeds_of_their_own() {
    let (server, backend) = pair(|request| Answer::json(&chat(&request.json()["seed"].to_string())), |_| {});
    let mut request = question(0);
    (request.num_generations, request.sampling.seed) = (4, Some(u64::MAX));
    let response = run(&backend, vec![request]).remove(0).unwrap();
    let texts: Vec<_> = response.generations.iter().map(|it| it.as_ref().unwrap().text.clone().unwrap()).collect();
    assert_eq!(texts, [u64::MAX.to_string(), "0".to_owned(), "1".to_owned(), "2".to_owned()]);
    assert!(server.received().iter().all(|request| request.json().get("n").is_none()));
}

#[test]
fn one_failed_generation_leaves_the_others() {
    let (_server, backend) =
        pair(|request| if request.json()["seed"] == 6 { Answer::status(400) } else { echo(request) }, |_| {});
    let mut request = question(0);
    (request.num_generations, request.sampling.seed) = (3, Some(5));
    let response = run(&backend, vec![request]).remove(0).unwrap();
    let ok: Vec<_> = response.generations.iter().map(Result::is_ok).collect();
    assert_eq!(ok, [true, false, true]);
}

#[test]
fn native_generations_are_one_request() {
    let choice =
        |index: u32, text: &str| json!({"index": index, "message": {"content": text}, "finish_reason": "stop"});
    let body = json!({"choices": [choice(2, "c"), choice(0, "a")],
                      "usage": {"prompt_tokens": 1, "completion_tokens": 30}});
    let (server, backend) = pair(move |_| Answer::json(&body), |config| config.native_n = true);
    let mut request = question(0);
    request.num_generations = 3;
    let response = run(&backend, vec![request]).remove(0).unwrap();
    let texts: Vec<_> = response.generations.iter().map(|it| it.as_ref().ok().and_then(|it| it.text.clone())).collect();
    assert_eq!(texts, [Some("a".to_owned()), None, Some("c".to_owned())]);
    // 30 tokens of three generations are no count of one.
    assert_eq!(response.generations[0].as_ref().unwrap().usage, None);
    assert_eq!((server.requests(), &server.received()[0].json()["n"]), (1, &json!(3)));
}

#[test]
fn an_image_is_fetched_and_encoded_once_however_many_generations() {
    let server = Server::start(echo).unwrap();
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fetched);
    let fetch = move |image: &ImageRef| {
        assert_eq!(*image, ImageRef::Url("https://example.com/x.png".into()));
        count.fetch_add(1, Ordering::SeqCst);
        Ok(PNG.into())
    };
    let hooks = RemoteHooks { fetch: Some(Arc::new(fetch)), ..RemoteHooks::default() };
    let mut config = config(&server.url());
    config.inline_images = true;
    let backend = RemoteBackend::connect(config, RemoteSecrets::default(), hooks).unwrap();
    let mut request = with_image(ImageRef::Url("https://example.com/x.png".into()));
    request.num_generations = 5;
    assert!(run(&backend, vec![request])[0].is_ok());
    assert_eq!((fetched.load(Ordering::SeqCst), server.requests()), (1, 5));
    for request in server.received() {
        let body = request.json();
        let url = body["messages"][0]["content"][1]["image_url"]["url"].as_str().unwrap().to_owned();
        assert!(url.starts_with("data:image/png;base64,iVBORw0KGgo"), "{url}");
    }
}

#[test]
fn inlining_needs_somebody_who_fetches() {
    let mut config = config("http://127.0.0.1:9");
    config.inline_images = true;
    let error = RemoteBackend::connect(config, RemoteSecrets::default(), RemoteHooks::default()).unwrap_err();
    assert_eq!(error.code, "remote.config");
}

#[test]
fn a_bad_image_costs_its_row_alone_and_no_request() {
    let (server, backend) = pair(echo, |_| {});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.png");
    std::fs::write(&path, PNG).unwrap();
    let results = run(
        &backend,
        vec![
            with_image(ImageRef::Path(path)),
            with_image(ImageRef::Path(folder.path().join("missing.png"))),
            with_image(ImageRef::Bytes { bytes: b"GARBAGE".as_slice().into(), name: None }),
            with_image(ImageRef::Url("data:image/png;base64".into())),
        ],
    );
    assert!(text(&results[0]).is_ok());
    let codes: Vec<_> = results[1..].iter().map(|result| fault(result).code.into_owned()).collect();
    assert_eq!(codes, ["remote.image_read", "remote.image_type", "remote.image_data_url"]);
    assert!(fault(&results[1]).message.contains("missing.png"));
    assert_eq!(server.requests(), 1);
}

#[test]
fn the_models_real_name_and_further_fields_are_sent() {
    let (server, backend) = pair(echo, |config| {
        config.model_id = Some("owner/vision".to_owned());
        config.extra_body.insert("top_k".to_owned(), json!(7));
        config.headers.insert("X-HF-Bill-To".to_owned(), "acme".to_owned());
    });
    assert_eq!(backend.model_name(), "owner/vision");
    assert!(one(&backend).is_ok());
    let request = &server.received()[0];
    assert_eq!((request.json()["model"].as_str(), request.json()["top_k"].as_u64()), (Some("owner/vision"), Some(7)));
    assert_eq!(request.header("x-hf-bill-to"), Some("acme"));
}

#[test]
fn a_further_field_may_not_replace_a_parameter() {
    let (_server, backend) = pair(echo, |config| {
        config.dialect = Some(Dialect::Vllm);
        config.extra_body.insert("top_k".to_owned(), json!(7));
    });
    assert_eq!(backend.check(&SamplingParams::default(), 1), Ok(()));
    let sampling = SamplingParams { top_k: Some(3), ..SamplingParams::default() };
    assert_eq!(backend.check(&sampling, 1).unwrap_err().code, "remote.config");
    let sampling = SamplingParams { temperature: Some(f64::NAN), ..SamplingParams::default() };
    assert_eq!(backend.check(&sampling, 1).unwrap_err().code, "remote.config");
}

#[test]
fn no_key_no_header() {
    let server = Server::start(echo).unwrap();
    let backend =
        RemoteBackend::connect(config(&server.url()), RemoteSecrets::default(), RemoteHooks::default()).unwrap();
    assert!(one(&backend).is_ok());
    assert_eq!(server.received()[0].header("authorization"), None);
}

#[test]
fn reasoning_is_kept_when_asked_for() {
    let body = json!({"choices": [{"message": {"content": "a", "reasoning_content": "because"}}]});
    for (keep, expected) in [(true, Some("because")), (false, None)] {
        let answer = body.clone();
        let (_server, backend) = pair(move |_| Answer::json(&answer), |config| config.keep_reasoning = keep);
        let response = one(&backend).unwrap();
        assert_eq!(response.generations[0].as_ref().unwrap().reasoning.as_deref(), expected);
    }
}

#[test]
fn a_backend_that_is_shown_shows_no_key() {
    let backend = connect(config("http://127.0.0.1:9"));
    assert!(
        !format!("{backend:?} {:?}", RemoteSecrets { api_key: vgen_core::Secret::new("sesame") }).contains("sesame")
    );
    let fault: Fault = fault(&one(&backend));
    assert!(!serde_json::to_string(&fault).unwrap().contains("sesame"));
}
