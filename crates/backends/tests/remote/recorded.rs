//! Exchanges recorded from distilabel 1.5.3 with its InferenceEndpointsLLM (`tests/fixtures/wire.jsonl`): the same rows
//! give the same requests and answers, but for what is done better on purpose.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value, json};
use vgen_backends::remote::{Dialect, RemoteConfig};
use vgen_core::{
    Backend, Constraint, Content, Fault, ImageRef, Message, Part, Request, Response, Role, SamplingParams,
};
use vgen_loopback::{Answer, Received, Server};

use crate::support::{config, connect, run};

fn records() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wire.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn record(id: &str) -> Value {
    records().into_iter().find(|record| record["wire_id"] == id).unwrap()
}

/// Plays recorded answers back, each to the first request with its messages; the last one for good.
struct Playback {
    exchanges: Mutex<Vec<(Value, Value, bool)>>,
}

impl Playback {
    fn new(record: &Value) -> Self {
        let exchange =
            |exchange: &Value| (exchange["request"]["json"]["messages"].clone(), exchange["response"].clone(), false);
        Self { exchanges: Mutex::new(record["exchanges"].as_array().unwrap().iter().map(exchange).collect()) }
    }

    fn answer(&self, request: &Received) -> Answer {
        let messages = with_recorded_types(request.json()["messages"].clone());
        let mut exchanges = self.exchanges.lock().unwrap();
        let same = |(recorded, ..): &&mut (Value, Value, bool)| *recorded == messages;
        let fresh = exchanges.iter_mut().filter(same).find(|(.., used)| !used);
        let response = match fresh {
            Some((_, response, used)) => {
                *used = true;
                response.clone()
            }
            None => exchanges.iter_mut().rfind(same).map(|(_, response, _)| response.clone()).unwrap_or_default(),
        };
        if response["drop"] == true {
            return Answer::reset();
        }
        let status = u16::try_from(response["status"].as_u64().expect("a request nobody recorded")).unwrap();
        match response.get("json") {
            Some(body) => Answer::status(status).with_json(body),
            None => {
                let text = response["text"].as_str().or_else(|| response["body"].as_str()).unwrap_or("<html>");
                Answer::status(status).header("content-type", "text/html").data(text.to_owned())
            }
        }
    }
}

/// distilabel calls every image a JPEG.
fn with_recorded_types(messages: Value) -> Value {
    serde_json::from_str(&messages.to_string().replace("data:image/png;", "data:image/jpeg;")).unwrap()
}

fn message(wire: &Value) -> Message {
    let role: Role = serde_json::from_value(wire["role"].clone()).unwrap();
    let content = match &wire["content"] {
        Value::String(text) => Content::Text(text.clone()),
        parts => Content::Parts(
            parts
                .as_array()
                .unwrap()
                .iter()
                .map(|part| match part["text"].as_str() {
                    Some(text) => Part::Text(text.to_owned()),
                    None => Part::Image(ImageRef::Url(part["image_url"]["url"].as_str().unwrap().into())),
                })
                .collect(),
        ),
    };
    Message { role, content }
}

fn number(value: &Value) -> f64 {
    value.as_f64().or_else(|| value.as_str()?.parse().ok()).unwrap()
}

/// distilabel's arguments as ours; what has another place goes into the config.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small counts")]
fn sampling(record: &Value, config: &mut RemoteConfig) -> SamplingParams {
    let mut sampling = SamplingParams::default();
    for (name, value) in record["generation_kwargs"].as_object().unwrap() {
        match name.as_str() {
            "max_new_tokens" => sampling.max_new_tokens = Some(number(value) as u32),
            "temperature" => sampling.temperature = Some(number(value)),
            "top_p" => sampling.top_p = Some(number(value)),
            "top_k" => sampling.top_k = Some(number(value) as u32),
            "typical_p" => sampling.typical_p = Some(number(value)),
            "repetition_penalty" => sampling.repetition_penalty = Some(number(value)),
            "frequency_penalty" => sampling.frequency_penalty = Some(number(value)),
            "presence_penalty" => sampling.presence_penalty = Some(number(value)),
            "seed" => sampling.seed = value.as_u64(),
            "logprobs" => sampling.logprobs = value.as_bool().unwrap(),
            "top_logprobs" => sampling.top_logprobs = number(value) as u32,
            "stop_sequences" => {
                sampling.stop = serde_json::from_value(value.clone()).unwrap_or_else(|_| vec![value.to_string()]);
            }
            "tools" => config.tools = value.as_array().unwrap().clone(),
            "tool_choice" => config.tool_choice = Some(value.clone()),
            "tool_prompt" => {
                config.tool_prompt = value.as_str().map(str::to_owned);
                config.dialect = Some(Dialect::Tgi);
            }
            // A list of biases means nothing without token ids; the others are of the other protocol.
            "logit_bias" | "do_sample" | "watermark" | "return_full_text" | "top_n_tokens" => {}
            other => panic!("argument {other}"),
        }
    }
    let structured = &record["llm_params"]["structured_output"];
    if !structured.is_null() {
        config.dialect = Some(Dialect::Tgi);
        sampling.constraint = Some(match structured["format"].as_str().unwrap() {
            "json" => Constraint::JsonSchema(structured["schema"].clone()),
            _ => Constraint::Regex(structured["schema"].as_str().unwrap().to_owned()),
        });
    }
    sampling
}

/// A recorded body without what is done better: the model's real name, no random seed, nothing that nobody set.
fn expected_body(record: &Value, body: &Value) -> Map<String, Value> {
    let mut body = body.as_object().unwrap().clone();
    let given = &record["generation_kwargs"];
    body.remove("model");
    for (field, argument) in [("max_tokens", "max_new_tokens"), ("temperature", "temperature")] {
        if given.get(argument).is_none() {
            body.remove(field);
        }
    }
    if body.get("seed").is_some_and(Value::is_string) {
        body.remove("seed");
    }
    if body.get("logprobs") == Some(&json!(false)) {
        body.remove("logprobs");
    }
    if body.get("stop") == Some(&json!([])) {
        body.remove("stop");
    }
    body.remove("logit_bias");
    body
}

struct Replay {
    server: Server,
    results: Vec<Result<Response, Fault>>,
    model_name: String,
}

/// Asks the rows of a record; `n` answers each.
fn replay(record: &Value, attempts: u32, n: u32) -> Replay {
    let playback = Playback::new(record);
    let server = Server::start(move |request| playback.answer(request)).unwrap();
    let base = record["llm_params"]["base_url"].as_str().unwrap().replace("127.0.0.1:PORT", &server.url()[7..]);
    let mut config = config(&base);
    config.max_attempts = attempts;
    config.model_display_name = record["llm_params"]["model_display_name"].as_str().map(str::to_owned);
    let sampling = sampling(record, &mut config);
    let backend = connect(config);
    assert_eq!(backend.check(&sampling, n), Ok(()), "{}", record["wire_id"]);

    // One question for each group of n requests with the same messages, in the order recorded.
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut questions = Vec::new();
    for exchange in record["exchanges"].as_array().unwrap() {
        let messages = &exchange["request"]["json"]["messages"];
        let times = seen.entry(messages.to_string()).or_default();
        if times.is_multiple_of(n) && (attempts == 1 || *times == 0) {
            let messages = messages.as_array().unwrap().iter().map(message).collect();
            let mut request = Request::new(questions.len() as u64, messages, sampling.clone());
            request.num_generations = n;
            questions.push(request);
        }
        *times += 1;
    }
    let results = run(&backend, questions);
    Replay { server, results, model_name: backend.model_name().to_owned() }
}

/// The generations of all rows in order.
fn texts(results: &[Result<Response, Fault>]) -> Vec<Option<String>> {
    let generations =
        results.iter().flat_map(|result| &result.as_ref().expect("a row that stopped the run").generations);
    generations.map(|generation| generation.as_ref().ok().and_then(|generation| generation.text.clone())).collect()
}

/// Everything that distilabel did right on the chat protocol, request by request and row by row.
#[test]
fn what_was_right_is_the_same() {
    let mut replayed = 0;
    for record in records() {
        let id = record["wire_id"].as_str().unwrap();
        let exchanges = record["exchanges"].as_array().map(Vec::as_slice).unwrap_or_default();
        let family = ["chat-", "resp-", "batch-"].iter().any(|prefix| id.starts_with(prefix));
        // Its image was not recorded; its count is no count; its address is improved on below.
        let elsewhere = ["chat-pil", "chat-max-zero", "chat-url-7"].contains(&id);
        // What stops a run instead of filling it with nulls is below.
        let stops = ["resp-401", "resp-404"].contains(&id);
        if !family || elsewhere || stops || exchanges.is_empty() || record["quirk"].is_string() {
            continue;
        }
        let n = u32::try_from(record["task_params"]["num_generations"].as_u64().unwrap_or(1)).unwrap();
        let replay = replay(&record, 1, n);

        let received = replay.server.received();
        assert_eq!(received.len(), exchanges.len(), "{id}");
        let mut bodies: Vec<_> = received.iter().map(|request| request.json().as_object().unwrap().clone()).collect();
        for (request, exchange) in received.iter().zip(exchanges) {
            assert_eq!(request.method, "POST");
            assert_eq!(request.path, exchange["request"]["path"], "{id}");
            assert_eq!(request.header("authorization"), Some("Bearer hf_sesame"));
            assert_eq!(request.header("content-type"), Some("application/json"));
        }
        for exchange in exchanges {
            let expected = expected_body(&record, &exchange["request"]["json"]);
            let found = bodies.iter().position(|body| {
                let mut body = body.clone();
                body.remove("model");
                body == expected
            });
            let found = found.unwrap_or_else(|| panic!("{id}: {expected:?} is not in {bodies:?}"));
            bodies.swap_remove(found);
        }

        let rows = record["result"]["rows"].as_array().unwrap_or_else(|| panic!("{id} has no rows"));
        let generations = rows.iter().flat_map(|row| match &row["generation"] {
            Value::Array(group) if record["task_params"]["group_generations"] == true => group.clone(),
            one => vec![one.clone()],
        });
        let mut recorded: Vec<_> = generations.map(|text| text.as_str().map(str::to_owned)).collect();
        let mut ours = texts(&replay.results);
        if n > 1 {
            // Which of a row's requests arrives first is chance, here and there.
            recorded.sort();
            ours.sort();
        }
        assert_eq!(ours, recorded, "{id}");
        let name = rows[0]["model_name"].as_str().unwrap();
        assert_eq!(replay.model_name, name.replace("127.0.0.1:PORT", &replay.server.url()[7..]), "{id}");
        replayed += 1;
    }
    assert!(replayed >= 20, "only {replayed} records were replayed");
}

#[test]
fn a_query_stays_a_query() {
    let replay = replay(&record("chat-url-7"), 1, 1);
    assert_eq!(replay.server.received()[0].path, "/v1/chat/completions?x=1");
}

#[test]
fn images_go_under_their_true_type() {
    let replay = replay(&record("chat-base64"), 1, 1);
    let body = replay.server.received()[0].json();
    let url = body["messages"][0]["content"][1]["image_url"]["url"].as_str().unwrap();
    assert!(url.starts_with("data:image/png;base64,iVBOR"), "{url}");
}

#[test]
fn seeds_count_up_and_zero_is_one() {
    let replay = |id, n| {
        let replay = replay(&record(id), 1, n);
        let mut seeds: Vec<_> = replay.server.received().iter().map(|it| it.json()["seed"].as_u64()).collect();
        seeds.sort();
        seeds
    };
    assert_eq!(replay("chat-seed-n3", 3), [Some(42), Some(43), Some(44)]);
    assert_eq!(replay("chat-seed-zero", 1), [Some(0)]);
}

#[test]
fn five_stop_texts_are_five() {
    let replay = replay(&record("chat-stop5"), 1, 1);
    assert_eq!(replay.server.received()[0].json()["stop"], json!(["a", "b", "c", "d", "e"]));
}

#[test]
fn parameters_of_the_other_protocol_are_refused_before_anything_is_sent() {
    let record = record("chat-textgen-params");
    let server = Server::start(|_| Answer::status(500)).unwrap();
    let mut config = config(&server.url());
    let sampling = sampling(&record, &mut config);
    let fault = connect(config).check(&sampling, 1).unwrap_err();
    assert_eq!(fault.code, "remote.unsupported_parameter");
    for name in ["top_k", "repetition_penalty", "typical_p"] {
        assert!(fault.message.contains(name), "{}", fault.message);
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn structure_goes_with_the_image() {
    for (id, kind) in [("chat-structured-json", "json"), ("chat-structured-regex", "regex")] {
        let replay = replay(&record(id), 1, 1);
        let body = replay.server.received()[0].json();
        assert_eq!(body["response_format"]["type"], kind);
        assert_eq!(body["messages"][0]["content"][1]["type"], "image_url");
    }
}

#[test]
fn tool_calls_are_kept() {
    let replay = replay(&record("chat-tools"), 1, 1);
    let generation = replay.results[0].as_ref().unwrap().generations[0].as_ref().unwrap();
    assert_eq!(generation.text, None);
    assert_eq!(generation.tool_calls.as_ref().unwrap()[0]["function"]["arguments"], json!({"n": 3}));
}

/// Answers that were paid for and thrown away: a missing count, odd content, a lost neighbour.
#[test]
fn what_was_lost_is_kept() {
    let texts_of = |id: &str, n| texts(&replay(&record(id), 1, n).results);
    for id in ["resp-no-usage", "resp-usage-absent", "resp-length"] {
        assert!(texts_of(id, 1)[0].is_some(), "{id}");
    }
    assert_eq!(texts_of("resp-content-parts", 1), [Some("hi".to_owned())]);
    let no_usage = texts_of("batch-no-usage-one", 1);
    assert!(no_usage.len() == 3 && no_usage.iter().all(Option::is_some), "{no_usage:?}");
    for id in ["batch-logprobs-second-500", "batch-logprobs-first-500", "batch-one-500"] {
        let texts = texts_of(id, 1);
        assert_eq!(texts.iter().filter(|text| text.is_some()).count(), 2, "{id}");
    }
    let pair = texts_of("batch-n2-first-500", 2);
    assert_eq!((pair.len(), pair.iter().flatten().count()), (2, 1), "{pair:?}");
}

#[test]
fn counts_stay_with_their_generation() {
    let replay = replay(&record("batch-n2-first-500"), 1, 2);
    let generations = &replay.results[0].as_ref().unwrap().generations;
    let failed = generations.iter().filter(|generation| generation.is_err()).count();
    assert_eq!(failed, 1);
    let answered = generations.iter().find_map(|generation| generation.as_ref().ok()).unwrap();
    assert!(answered.usage.is_some());
}

#[test]
fn log_probabilities_keep_the_sampled_tokens_own() {
    let replay = replay(&record("resp-logprobs-no-top"), 1, 1);
    let generation = replay.results[0].as_ref().unwrap().generations[0].as_ref().unwrap().clone();
    let logprobs = generation.logprobs.unwrap();
    assert!(!logprobs.is_empty() && logprobs.iter().all(|token| token.logprob < 0.0 && token.top_logprobs.is_empty()));
}

#[test]
fn failures_say_what_the_server_said() {
    for (id, code) in [
        ("resp-400", "remote.refused"),
        ("resp-413", "remote.too_large"),
        ("resp-422", "remote.refused"),
        ("resp-429", "remote.rate_limited"),
        ("resp-500", "remote.server_error"),
        ("resp-502", "remote.server_error"),
        ("resp-504", "remote.timeout"),
        ("resp-not-json", "remote.bad_answer"),
        ("resp-error-200", "remote.overloaded"),
        ("resp-no-choices", "remote.no_choices"),
    ] {
        let record = record(id);
        let replay = replay(&record, 1, 1);
        let fault = replay.results[0].as_ref().unwrap().generations[0].as_ref().unwrap_err();
        assert_eq!(fault.code, code, "{id}");
        let body = &record["exchanges"][0]["response"]["json"];
        let said = body["error"].as_str().or_else(|| body["error"]["message"].as_str());
        if let Some(said) = said.filter(|_| id != "resp-no-choices") {
            assert!(fault.message.contains(said), "{id}: {}", fault.message);
        }
    }
    for (id, code) in [("resp-401", "remote.unauthorized"), ("resp-404", "remote.not_found")] {
        let fault = replay(&record(id), 3, 1).results[0].as_ref().unwrap_err().clone();
        assert_eq!((fault.code.as_ref(), fault.attempts), (code, 1));
    }
}

#[test]
fn what_passes_is_tried_again() {
    let replay = replay(&record("resp-503-twice"), 5, 1);
    assert_eq!(texts(&replay.results), [Some("woke up".to_owned())]);
    assert_eq!(replay.server.requests(), 3);
    let dropped = self::replay(&record("resp-drop"), 3, 1);
    let fault = dropped.results[0].as_ref().unwrap().generations[0].as_ref().unwrap_err().clone();
    assert_eq!((fault.code.as_ref(), fault.attempts), ("remote.broken", 3));
}

/// The prompts are recorded as rendered; what the parameters become is ours.
#[test]
fn the_text_generation_protocol() {
    use vgen_backends::remote::{Protocol, RemoteBackend, RemoteHooks, RemoteSecrets};
    for id in ["tg-list", "tg-all-params", "tg-top-tokens"] {
        let record = record(id);
        let exchange = record["exchanges"][0].clone();
        let (body, answer) = (exchange["request"]["json"].clone(), exchange["response"]["json"].clone());
        let server = Server::start(move |_| Answer::json(&answer)).unwrap();
        let mut config = config(&server.url());
        config.protocol = Protocol::TextGeneration;
        let mut sampling = sampling(&record, &mut config);
        (sampling.presence_penalty, sampling.echo) = (None, id == "tg-all-params");
        if let Some(top) = record["generation_kwargs"]["top_n_tokens"].as_u64() {
            (sampling.logprobs, sampling.top_logprobs) = (true, u32::try_from(top).unwrap());
        }
        let prompt = body["inputs"].as_str().unwrap().to_owned();
        let hooks = RemoteHooks { render: Some(Arc::new(move |_| Ok(prompt.clone()))), ..RemoteHooks::default() };
        let backend = RemoteBackend::connect(config, RemoteSecrets::default(), hooks).unwrap();
        assert_eq!(backend.check(&sampling, 1), Ok(()));
        let messages = vec![Message::text(Role::System, "s"), Message::text(Role::User, "q")];
        let results = run(&backend, vec![Request::new(0, messages, sampling)]);
        assert_eq!(texts(&results), [Some("A boardwalk.".to_owned())], "{id}");

        let request = &server.received()[0];
        assert_eq!((request.path.as_str(), request.header("authorization")), ("/", None));
        let sent = request.json();
        assert_eq!(sent["inputs"], body["inputs"]);
        let mut expected = body["parameters"].as_object().unwrap().clone();
        expected.remove("watermark");
        for (field, default) in [("return_full_text", json!(false)), ("stop", json!([])), ("temperature", json!(1.0))] {
            if expected.get(field) == Some(&default) {
                expected.remove(field);
            }
        }
        if record["generation_kwargs"].get("max_new_tokens").is_none() {
            expected.remove("max_new_tokens");
        }
        if expected.get("seed").is_some_and(Value::is_string) {
            expected.remove("seed");
        }
        assert_eq!(sent["parameters"], Value::Object(expected), "{id}");
    }
}
