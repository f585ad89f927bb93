//! Downloads a repository's files into the hub's cache, `config.json` first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use hf_hub::progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler};
use hf_hub::repository::{RepoTreeEntry, RepoTypeModel};
use hf_hub::{HFClient, HFRepositorySync};
use vgen_core::Fault;

use super::error::Asked;
use super::files::{self, CONFIG, INDEX, SINGLE, SMALL};
use super::name::{self, RepoName};
use super::{HubError, HubEvent, HubOptions, HubProgress, ModelFolder, cache, env};

/// Pauses before another go at a file whose transfer broke off. hf-hub itself retries only until the answer begins.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest silence within a transfer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Stands for "no token" where hf-hub would otherwise look into the environment by itself: a text that can't be a
/// header's value is left out of the request.
const NO_TOKEN: &str = "\n";

/// The files at a repository's top level and their sizes in bytes.
type Listing = BTreeMap<String, u64>;

pub(super) struct Fetch {
    repo: RepoName,
    revision: String,
    endpoint: String,
    with_token: bool,
    cache: PathBuf,
    /// `None` offline.
    hub: Option<HFRepositorySync<RepoTypeModel>>,
    progress: Option<HubProgress>,
}

impl Fetch {
    pub(super) fn new(
        repo: RepoName,
        revision: &str,
        options: &HubOptions,
        progress: Option<HubProgress>,
    ) -> Result<Self, HubError> {
        let mut fetch = Self {
            endpoint: options.endpoint.as_deref().unwrap_or(env::DEFAULT_ENDPOINT).trim_end_matches('/').to_owned(),
            revision: revision.to_owned(),
            with_token: options.token.is_some(),
            cache: options.cache_dir.clone().unwrap_or_else(hf_hub::resolve_cache_dir),
            hub: None,
            progress,
            repo,
        };
        if !options.offline {
            let agent = concat!("vgen/", env!("CARGO_PKG_VERSION"));
            let transport = reqwest::Client::builder()
                .user_agent(agent)
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                .build();
            let client = transport.map_err(Into::into).and_then(|transport| {
                HFClient::builder()
                    .client(transport)
                    .user_agent(agent)
                    .endpoint(&fetch.endpoint)
                    .token(options.token.as_ref().map_or(NO_TOKEN, |token| token.expose()))
                    .cache_dir(&fetch.cache)
                    .build_sync()
            });
            let client = client.map_err(|error| fetch.asked().explain(error, "setting up the connection"))?;
            fetch.hub = Some(client.model(&fetch.repo.owner, &fetch.repo.name));
        }
        Ok(fetch)
    }

    fn asked(&self) -> Asked<'_> {
        Asked {
            repo: &self.repo,
            revision: &self.revision,
            endpoint: &self.endpoint,
            with_token: self.with_token,
            cache: &self.cache,
        }
    }

    pub(super) fn run(&self, accept: &dyn Fn(&str) -> Result<(), Fault>) -> Result<ModelFolder, HubError> {
        let asked = self.asked();
        let Some(hub) = &self.hub else { return cache::lookup(&asked, accept) };
        // A commit never changes: a complete copy needs no question.
        if name::is_commit(&self.revision) {
            match cache::lookup(&asked, accept) {
                Err(HubError::Offline { .. }) => {}
                decided => return decided,
            }
        }
        match self.listing(hub) {
            Ok((commit, listing)) => self.download(hub, &commit, &listing, accept),
            Err(error) if error.is_unreachable() => match cache::lookup(&asked, accept) {
                Err(HubError::Offline { .. }) => Err(error),
                decided => decided,
            },
            Err(error) => Err(error),
        }
    }

    /// The commit that the revision stands for, and the files at its top level.
    fn listing(&self, hub: &HFRepositorySync<RepoTypeModel>) -> Result<(String, Listing), HubError> {
        let asked = self.asked();
        let explain = |error| asked.explain(error, "asking for the list of files");
        let info = hub.info().revision(self.revision.as_str()).send().map_err(explain)?;
        let commit = info.sha.filter(|sha| name::is_commit(sha)).ok_or_else(|| HubError::Network {
            repo: self.repo.to_string(),
            what: "asking for the list of files".to_owned(),
            reason: "the hub named no commit".to_owned(),
        })?;
        // Not recursive: folders hold other forms of the same weights.
        let tree = hub.list_tree().revision(commit.as_str()).send().map_err(explain)?;
        let listing = tree
            .into_iter()
            .filter_map(|entry| match entry {
                RepoTreeEntry::File { path, size, .. } => Some((path, size)),
                RepoTreeEntry::Directory { .. } => None,
            })
            .collect();
        Ok((commit, listing))
    }

    fn download(
        &self,
        hub: &HFRepositorySync<RepoTypeModel>,
        commit: &str,
        listing: &Listing,
        accept: &dyn Fn(&str) -> Result<(), Fault>,
    ) -> Result<ModelFolder, HubError> {
        let get = |file: &str| match listing.get(file) {
            Some(size) => self.file(hub, commit, file, *size),
            None => Err(HubError::NoFile { model: self.repo.to_string(), file: file.to_owned() }),
        };
        let config = get(CONFIG)?;
        accept(&files::read(&config)?)?;
        for file in SMALL {
            if listing.contains_key(file) {
                get(file)?;
            }
        }
        let shards = if listing.contains_key(SINGLE) {
            [SINGLE.to_owned()].into()
        } else if listing.contains_key(INDEX) {
            files::shards(&get(INDEX)?)?
        } else {
            return Err(HubError::NoFile { model: self.repo.to_string(), file: format!("{SINGLE} or {INDEX}") });
        };
        let folder = cache::repo_folder(&self.cache, &self.repo);
        self.plan(&folder, commit, &shards, listing)?;
        let weights = shards.iter().map(|shard| get(shard)).collect::<Result<Vec<_>, _>>()?;
        if !name::is_commit(&self.revision) {
            // Only now, so that an older complete copy stays usable until this one is complete.
            cache::write_ref(&folder, &self.revision, commit).map_err(|source| self.asked().io(source))?;
        }
        let path = folder.join("snapshots").join(commit);
        Ok(ModelFolder { path, repo: Some(self.repo.to_string()), revision: Some(commit.to_owned()), weights })
    }

    /// Announces what has to come of the weights, and refuses if there is no room for it.
    fn plan<'a>(
        &self,
        folder: &Path,
        commit: &str,
        shards: impl IntoIterator<Item = &'a String>,
        listing: &Listing,
    ) -> Result<(), HubError> {
        let (mut files, mut needed) = (0, 0_u64);
        // The listing doesn't say under which name the cache has a content, so an equal size counts as the same.
        let blobs = cache::blob_sizes(folder);
        for shard in shards {
            let Some(size) = listing.get(shard) else {
                return Err(HubError::NoFile { model: self.repo.to_string(), file: shard.clone() });
            };
            if !folder.join("snapshots").join(commit).join(shard).is_file() && !blobs.contains(size) {
                files += 1;
                needed = needed.saturating_add(*size);
            }
        }
        if files == 0 {
            return Ok(());
        }
        match cache::free_bytes(&self.cache) {
            Some(free) if free < needed => {
                return Err(HubError::DiskFull { dir: self.cache.clone(), needed, available: Some(free) });
            }
            _ => {}
        }
        self.emit(HubEvent::Plan { files, bytes: needed });
        Ok(())
    }

    /// One file, in the cache with the size that the repository lists.
    fn file(
        &self,
        hub: &HFRepositorySync<RepoTypeModel>,
        commit: &str,
        file: &str,
        size: u64,
    ) -> Result<PathBuf, HubError> {
        let mut pauses = PAUSES.iter();
        loop {
            let error = match self.attempt(hub, commit, file, size) {
                Ok(path) => return Ok(path),
                Err(error) => error,
            };
            let passing = error.is_unreachable() || matches!(error, HubError::Incomplete { .. });
            let Some(pause) = pauses.next().filter(|_| passing) else { return Err(error) };
            self.emit(HubEvent::Retry { file: file.to_owned(), reason: error.to_string() });
            thread::sleep(*pause);
        }
    }

    fn attempt(
        &self,
        hub: &HFRepositorySync<RepoTypeModel>,
        commit: &str,
        file: &str,
        size: u64,
    ) -> Result<PathBuf, HubError> {
        let watch = self.progress.clone().map(|progress| Watch::start(file, size, progress));
        let path = hub.download_file().filename(file).revision(commit).maybe_progress(watch).send();
        let path = path.map_err(|error| self.asked().explain(error, &format!("downloading {file}")))?;
        let io = |source| HubError::Io { path: path.clone(), source };
        let got = path.metadata().map_err(io)?.len();
        if got == size {
            return Ok(path);
        }
        cache::discard(&path).map_err(io)?;
        Err(HubError::Incomplete { repo: self.repo.to_string(), file: file.to_owned(), got, expected: size })
    }

    fn emit(&self, event: HubEvent) {
        if let Some(progress) = &self.progress {
            progress(event);
        }
    }
}

/// Turns hf-hub's events about one file into ours.
struct Watch {
    file: String,
    size: u64,
    last: Mutex<Option<u64>>,
    progress: HubProgress,
}

impl Watch {
    fn start(file: &str, size: u64, progress: HubProgress) -> Progress {
        Progress::from(Arc::new(Self { file: file.to_owned(), size, last: Mutex::new(None), progress }))
    }

    fn at(&self, bytes: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != Some(bytes) {
            *last = Some(bytes);
            (self.progress)(HubEvent::File { file: self.file.clone(), bytes, total: self.size });
        }
    }
}

impl ProgressHandler for Watch {
    fn on_progress(&self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                for file in files {
                    self.at(file.bytes_completed);
                }
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress { bytes_completed, .. }) => {
                self.at(*bytes_completed);
            }
            _ => {}
        }
    }
}
