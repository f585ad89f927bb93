//! From `--model` to files, against a hub on loopback that speaks the real one's protocol: listing, redirects left out,
//! gates, revisions, transfers that break off.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tempfile::TempDir;
use vgen_core::{Fault, FaultClass, Secret};
use vgen_loopback::{Answer, Received, Server};
use vgen_mllama::hub::{HubError, HubEvent, HubOptions, ModelFolder, resolve};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba98";
const REPO: &str = "owner/vision";
const CONFIG: &str = r#"{"model_type":"mllama"}"#;

/// Answers in the repository's place where it says so.
type Script = Box<dyn Fn(&Received) -> Option<Answer> + Send + Sync>;

/// A repository on the hub.
#[derive(Clone)]
struct Repo {
    commit: &'static str,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Repo {
    fn sharded() -> Self {
        let index = json!({"metadata": {}, "weight_map": {
            "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
            "c": "model-00001-of-00002.safetensors"}});
        let mut files = BTreeMap::from([
            ("config.json", CONFIG.as_bytes().to_vec()),
            ("model.safetensors.index.json", index.to_string().into_bytes()),
            ("model-00001-of-00002.safetensors", vec![1; 300_000]),
            ("model-00002-of-00002.safetensors", vec![2; 200_000]),
        ]);
        for file in ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"] {
            files.insert(file, format!("{{\"{file}\":0}}").into_bytes());
        }
        // What must be left alone.
        for file in ["pytorch_model.bin", "README.md", "consolidated.pth", "original/params.json"] {
            files.insert(file, vec![9; 1000]);
        }
        Self { commit: COMMIT, files }
    }

    fn single() -> Self {
        let mut repo = Self::sharded();
        repo.files.retain(|file, _| !file.starts_with("model"));
        repo.files.insert("model.safetensors", vec![7; 100_000]);
        repo
    }

    /// Answers as the hub does.
    fn answer(&self, request: &Received) -> Answer {
        let path = request.path.split('?').next().unwrap_or_default();
        for revision in ["main", "v1", self.commit] {
            if path == format!("/api/models/{REPO}/revision/{revision}") {
                return Answer::json(&json!({"id": REPO, "sha": self.commit, "siblings": []}));
            }
        }
        if path == format!("/api/models/{REPO}/tree/{}", self.commit) {
            return Answer::json(&self.tree());
        }
        let file = path.strip_prefix(&format!("/{REPO}/resolve/{}/", self.commit));
        match file.and_then(|file| Some((file, self.files.get(file)?))) {
            Some((file, bytes)) => self.file(request, file, bytes),
            None if file.is_some() => refuse(404, "EntryNotFound", ""),
            None if path.starts_with(&format!("/api/models/{REPO}/revision/")) => {
                refuse(404, "RevisionNotFound", "Invalid rev id")
            }
            None => refuse(404, "RepoNotFound", "Repository not found"),
        }
    }

    fn tree(&self) -> serde_json::Value {
        let entries = self.files.iter().filter(|(file, _)| !file.contains('/'));
        let mut tree: Vec<_> = entries
            .map(|(file, bytes)| json!({"type": "file", "oid": etag(file, self.commit), "size": bytes.len(), "path": file}))
            .collect();
        tree.push(json!({"type": "directory", "oid": "d", "size": 0, "path": "original"}));
        tree.into()
    }

    fn file(&self, request: &Received, file: &str, bytes: &[u8]) -> Answer {
        let answer = Answer::status(200)
            .header("etag", &format!("\"{}\"", etag(file, self.commit)))
            .header("x-repo-commit", self.commit);
        if request.method == "HEAD" {
            return answer.header("content-length", &bytes.len().to_string());
        }
        answer.data(bytes.to_vec())
    }
}

fn etag(file: &str, commit: &str) -> String {
    format!("{:x}", file.bytes().chain(commit.bytes()).fold(7_u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into())))
}

fn refuse(status: u16, code: &str, message: &str) -> Answer {
    Answer::status(status)
        .header("x-error-code", code)
        .header("x-error-message", message)
        .with_json(&json!({"error": message}))
}

fn hub(repo: Repo) -> Server {
    Server::start(move |request| repo.answer(request)).unwrap()
}

fn options(server: &Server, cache: &TempDir) -> HubOptions {
    HubOptions {
        cache_dir: Some(cache.path().to_owned()),
        endpoint: Some(server.url()),
        token: Secret::new("hf_sesame"),
        ..HubOptions::default()
    }
}

fn fetch(options: &HubOptions) -> Result<ModelFolder, HubError> {
    resolve(REPO, options, &|_| Ok(()), None)
}

/// The file names in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Files asked for by GET, in order.
fn fetched(server: &Server) -> Vec<String> {
    let prefix = format!("/{REPO}/resolve/{COMMIT}/");
    let received = server.received();
    let gets = received.iter().filter(|request| request.method == "GET");
    gets.filter_map(|request| request.path.strip_prefix(&prefix).map(str::to_owned)).collect()
}

fn code(error: HubError) -> String {
    let text = format!("{error} {error:?}");
    let fault = Fault::from(error);
    assert!(!format!("{text} {fault:?}").contains("sesame"), "the token is in {text}");
    assert_eq!(fault.class, FaultClass::Stop);
    assert!(!fault.message.ends_with('.'), "{}", fault.message);
    fault.code.into_owned()
}

#[test]
fn downloads_only_what_a_run_needs_and_config_first() {
    let (server, cache) = (hub(Repo::sharded()), TempDir::new().unwrap());
    let events = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&events);
    let progress = Arc::new(move |event| record.lock().unwrap().push(event));
    let model = resolve(REPO, &options(&server, &cache), &|_| Ok(()), Some(progress)).unwrap();

    assert_eq!(model.repo.as_deref(), Some(REPO));
    assert_eq!(model.revision.as_deref(), Some(COMMIT));
    let expected = [
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    assert_eq!(fetched(&server), expected);
    let mut sorted = expected.map(str::to_owned).to_vec();
    sorted.sort();
    assert_eq!(names(&model.path), sorted);
    let weights: Vec<_> = model.weights.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert_eq!(weights, [vec![1; 300_000], vec![2; 200_000]]);
    for request in server.received() {
        assert_eq!(request.header("authorization"), Some("Bearer hf_sesame"));
    }

    let events = events.lock().unwrap();
    assert!(events.contains(&HubEvent::Plan { files: 2, bytes: 500_000 }), "{events:?}");
    let end = HubEvent::File { file: expected[6].to_owned(), bytes: 300_000, total: 300_000 };
    assert!(events.contains(&end), "{events:?}");
}

#[test]
fn a_single_weight_file_is_preferred_and_a_second_call_fetches_nothing() {
    let (server, cache) = (hub(Repo::single()), TempDir::new().unwrap());
    let first = fetch(&options(&server, &cache)).unwrap();
    let before = fetched(&server).len();
    assert_eq!(first.weights, [first.path.join("model.safetensors")]);
    assert_eq!(fetch(&options(&server, &cache)).unwrap(), first);
    assert_eq!(fetched(&server).len(), before);
}

#[test]
fn no_weight_moves_before_the_config_is_accepted() {
    let (server, cache) = (hub(Repo::sharded()), TempDir::new().unwrap());
    let refuse = |config: &str| {
        assert_eq!(config, CONFIG);
        Err(Fault::stop("model.unsupported", "not this one"))
    };
    let error = resolve(REPO, &options(&server, &cache), &refuse, None).unwrap_err();
    assert_eq!(code(error), "model.unsupported");
    assert_eq!(fetched(&server), ["config.json"]);
}

#[test]
fn without_a_token_none_is_sent() {
    let (server, cache) = (hub(Repo::single()), TempDir::new().unwrap());
    fetch(&HubOptions { token: None, ..options(&server, &cache) }).unwrap();
    for request in server.received() {
        assert_eq!(request.header("authorization"), None);
    }
}

#[test]
fn each_refusal_has_its_own_code() {
    let gated = |request: &Received| request.path.contains("/resolve/");
    let message = "Access to model owner/vision is restricted";
    let cases: [(&str, bool, Script); 9] = [
        ("hub.no_token", false, Box::new(move |r| gated(r).then(|| refuse(401, "GatedRepo", message)))),
        ("hub.licence_not_accepted", true, Box::new(move |r| gated(r).then(|| refuse(403, "GatedRepo", message)))),
        ("hub.forbidden", true, Box::new(move |r| gated(r).then(|| refuse(403, "", "enable access in the token")))),
        (
            "hub.token_rejected",
            true,
            Box::new(|_| Some(refuse(401, "", "Invalid credentials in Authorization header"))),
        ),
        ("hub.not_found", true, Box::new(|_| Some(refuse(404, "RepoNotFound", "Repository not found")))),
        ("hub.not_found", false, Box::new(|_| Some(refuse(401, "RepoNotFound", "Invalid username or password.")))),
        ("hub.not_found", false, Box::new(|_| Some(Answer::status(401)))),
        ("hub.disabled", true, Box::new(|_| Some(refuse(403, "", "Access to this resource is disabled.")))),
        ("hub.rate_limited", true, Box::new(|_| Some(Answer::status(429).header("retry-after", "7")))),
    ];
    for (expected, with_token, script) in cases {
        let repo = Repo::sharded();
        let server = Server::start(move |r| script(r).unwrap_or_else(|| repo.answer(r))).unwrap();
        let cache = TempDir::new().unwrap();
        let mut options = options(&server, &cache);
        if !with_token {
            options.token = None;
        }
        let error = fetch(&options).unwrap_err();
        let fault = Fault::from(fetch(&options).unwrap_err());
        assert_eq!(code(error), expected);
        if expected == "hub.licence_not_accepted" {
            assert!(fault.hint.unwrap().contains(&format!("{}/{REPO}", server.url())));
            assert!(fault.message.contains(message), "{}", fault.message);
        }
        assert!(!cache.path().join("models--owner--vision/refs/main").exists());
    }
}

#[test]
fn revisions() {
    let (server, cache) = (hub(Repo::sharded()), TempDir::new().unwrap());
    let at = |revision: &str| HubOptions { revision: Some(revision.to_owned()), ..options(&server, &cache) };
    assert_eq!(fetch(&at("v1")).unwrap().revision.as_deref(), Some(COMMIT));
    assert_eq!(code(fetch(&at("v2")).unwrap_err()), "hub.revision_not_found");
    assert_eq!(code(fetch(&at("../v2")).unwrap_err()), "hub.bad_revision");
    // A commit that is in the cache needs no hub.
    let before = server.requests();
    assert_eq!(fetch(&at(COMMIT)).unwrap().weights.len(), 2);
    assert_eq!(server.requests(), before);
}

#[test]
fn offline_uses_the_cache_and_nothing_else() {
    let (server, cache) = (hub(Repo::sharded()), TempDir::new().unwrap());
    let offline = HubOptions { offline: true, ..options(&server, &cache) };
    assert_eq!(code(fetch(&offline).unwrap_err()), "hub.offline");
    assert_eq!(server.requests(), 0);

    let model = fetch(&options(&server, &cache)).unwrap();
    let before = server.requests();
    assert_eq!(fetch(&offline).unwrap(), model);
    let refused = resolve(REPO, &offline, &|_| Err(Fault::stop("x.y", "no")), None);
    assert_eq!(code(refused.unwrap_err()), "x.y");
    assert_eq!(server.requests(), before);

    std::fs::remove_file(&model.weights[1]).unwrap();
    match fetch(&offline).unwrap_err() {
        HubError::Offline { file, .. } => assert_eq!(file, "model-00002-of-00002.safetensors"),
        other => panic!("{other}"),
    }
}

#[test]
fn an_unreachable_hub_is_no_obstacle_to_a_complete_copy() {
    let cache = TempDir::new().unwrap();
    let server = hub(Repo::single());
    let reachable = options(&server, &cache);
    drop(server);
    assert_eq!(code(fetch(&reachable).unwrap_err()), "hub.network");

    let server = hub(Repo::single());
    let model = fetch(&options(&server, &cache)).unwrap();
    assert_eq!(fetch(&reachable).unwrap(), model);
}

#[test]
fn an_interrupted_download_is_tried_again_and_finished_files_stay() {
    let (repo, cache) = (Repo::sharded(), TempDir::new().unwrap());
    let cuts = Arc::new(Mutex::new(0));
    let count = Arc::clone(&cuts);
    let server = Server::start(move |request| {
        let whole = repo.answer(request);
        let mut cuts = count.lock().unwrap();
        if request.method == "GET" && request.path.ends_with("model-00002-of-00002.safetensors") && *cuts < 1 {
            *cuts += 1;
            return Answer::status(200).header("content-length", "200000").data(vec![2; 70_000]).cut();
        }
        whole
    })
    .unwrap();
    let events = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&events);
    let progress = Arc::new(move |event| record.lock().unwrap().push(event));
    let model = resolve(REPO, &options(&server, &cache), &|_| Ok(()), Some(progress)).unwrap();
    assert_eq!(std::fs::read(&model.weights[1]).unwrap(), vec![2; 200_000]);
    assert!(
        events
            .lock()
            .unwrap()
            .iter()
            .any(|event| matches!(event, HubEvent::Retry { file, .. } if *file == "model-00002-of-00002.safetensors"))
    );
    let first = fetched(&server).iter().filter(|file| *file == "model-00001-of-00002.safetensors").count();
    assert_eq!(first, 1);
}

#[test]
fn a_failed_download_is_never_taken_for_the_file() {
    // The body of an error status and a body that is simply too short.
    let bodies: [fn(&Received) -> Answer; 2] = [
        |_| Answer::status(403).with_json(&json!({"error": "expired link"})),
        |_| Answer::status(200).data(vec![7; 99_999]),
    ];
    for body in bodies {
        let (repo, cache) = (Repo::single(), TempDir::new().unwrap());
        let healed = Arc::new(Mutex::new(false));
        let heal = Arc::clone(&healed);
        let server = Server::start(move |request| {
            let weight = request.method == "GET" && request.path.ends_with("/model.safetensors");
            if weight && !*heal.lock().unwrap() { body(request) } else { repo.answer(request) }
        })
        .unwrap();
        assert_eq!(code(fetch(&options(&server, &cache)).unwrap_err()), "hub.incomplete");
        *healed.lock().unwrap() = true;
        let model = fetch(&options(&server, &cache)).unwrap();
        assert_eq!(std::fs::read(&model.weights[0]).unwrap(), vec![7; 100_000]);
    }
}

#[test]
fn a_new_commit_that_is_not_complete_leaves_the_old_one_usable_offline() {
    let cache = TempDir::new().unwrap();
    let old = fetch(&options(&hub(Repo::single()), &cache)).unwrap();
    let mut newer = Repo::single();
    newer.commit = OTHER;
    newer.files.remove("model.safetensors");
    assert_eq!(code(fetch(&options(&hub(newer), &cache)).unwrap_err()), "hub.no_file");
    let server = hub(Repo::single());
    let offline = HubOptions { offline: true, ..options(&server, &cache) };
    assert_eq!(fetch(&offline).unwrap(), old);
}

#[test]
fn an_index_may_not_lead_out_of_its_folder() {
    let (mut repo, cache) = (Repo::sharded(), TempDir::new().unwrap());
    repo.files.insert("model.safetensors.index.json", br#"{"weight_map":{"a":"../../x.safetensors"}}"#.to_vec());
    assert_eq!(code(fetch(&options(&hub(repo), &cache)).unwrap_err()), "hub.bad_file");
}

#[test]
fn more_than_the_disk_holds_is_refused_before_it_is_fetched() {
    let cache = TempDir::new().unwrap();
    let repo = Repo::single();
    let server = Server::start(move |request| {
        if request.path.contains("/tree/") {
            let mut tree = repo.tree();
            for entry in tree.as_array_mut().unwrap() {
                if entry["path"] == "model.safetensors" {
                    entry["size"] = json!(u64::MAX / 2);
                }
            }
            return Answer::json(&tree);
        }
        repo.answer(request)
    })
    .unwrap();
    assert_eq!(code(fetch(&options(&server, &cache)).unwrap_err()), "hub.disk_full");
    assert!(!fetched(&server).contains(&"model.safetensors".to_owned()));
}

#[test]
fn an_existing_folder_is_used_as_it_is() {
    let folder = TempDir::new().unwrap();
    let at = |model: &str| resolve(model, &HubOptions::default(), &|_| Ok(()), None);
    let path = folder.path().to_str().unwrap();
    assert_eq!(code(at(path).unwrap_err()), "hub.no_file");
    std::fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    assert_eq!(at(path).unwrap().weights, Vec::<std::path::PathBuf>::new());
    std::fs::write(folder.path().join("model.safetensors.index.json"), r#"{"weight_map":{"a":"m.safetensors"}}"#)
        .unwrap();
    assert_eq!(code(at(path).unwrap_err()), "hub.no_file");
    std::fs::write(folder.path().join("m.safetensors"), "").unwrap();
    let model = at(path).unwrap();
    assert_eq!(
        model,
        ModelFolder {
            path: folder.path().to_owned(),
            repo: None,
            revision: None,
            weights: vec![folder.path().join("m.safetensors")],
        }
    );
    assert_eq!(
        code(resolve(path, &HubOptions::default(), &|_| Err(Fault::stop("a.b", "c")), None).unwrap_err()),
        "a.b"
    );
    assert_eq!(code(at("./nowhere").unwrap_err()), "hub.no_such_folder");
    assert_eq!(code(at("gpt2").unwrap_err()), "hub.bad_name");
}
