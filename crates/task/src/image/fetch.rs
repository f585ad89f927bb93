//! [`ImageFetcher`]: the bytes behind an [`ImageRef`].

use std::error::Error as StdError;
use std::fs::File;
use std::future::Future;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::redirect;
use reqwest::{Client, StatusCode};
use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use url::Url;
use vgen_core::ImageRef;

use super::address::{FilteringResolver, PrivateAddress, Refused, check_literal, is_private_address};
use super::data_url::decode_data_url;
use super::error::{ImageError, short_name};
use super::kept::KeptImages;
use super::limits::ImageLimits;

/// First pause before another try; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// How often a download looks whether its row was given up.
const TICK: Duration = Duration::from_millis(50);

/// Gets the bytes of images. Blocks its caller; many threads may share one, and its connections.
pub struct ImageFetcher {
    limits: ImageLimits,
    refused: Refused,
    /// Made when the first URL comes: most runs read files only.
    network: OnceLock<Result<Network, String>>,
    /// What comes from the network is kept there, and taken from there.
    kept: Option<Arc<KeptImages>>,
}

impl std::fmt::Debug for ImageFetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageFetcher").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl ImageFetcher {
    /// A fetcher with the given limits.
    pub fn new(limits: ImageLimits) -> Self {
        let refused: Refused = if limits.allow_private_addresses { |_| false } else { is_private_address };
        Self { limits, refused, network: OnceLock::new(), kept: None }
    }

    /// Keeps what comes from the network for all who share `kept`, so that nobody fetches it again.
    #[must_use]
    pub fn keeping(mut self, kept: Option<Arc<KeptImages>>) -> Self {
        self.kept = kept;
        self
    }

    /// The limits.
    pub fn limits(&self) -> &ImageLimits {
        &self.limits
    }

    /// The encoded bytes of `image`, at most [`ImageLimits::max_bytes`] of them.
    ///
    /// # Errors
    /// Every [`ImageError`] but those of decoding.
    pub fn fetch(&self, image: &ImageRef) -> Result<Arc<[u8]>, ImageError> {
        self.fetch_unless(image, &|| false)
    }

    /// As [`ImageFetcher::fetch`], until `given_up` says that nobody waits for the image any more: a download is broken
    /// off soon after that.
    ///
    /// # Errors
    /// Also [`ImageError::GivenUp`].
    pub fn fetch_unless(&self, image: &ImageRef, given_up: &dyn Fn() -> bool) -> Result<Arc<[u8]>, ImageError> {
        let limit = self.limits.max_bytes;
        match image {
            ImageRef::Bytes { bytes, .. } => match bytes.len() {
                0 => Err(ImageError::Empty { name: image_name(image) }),
                len if len > limit => Err(ImageError::TooLarge { name: image_name(image), limit }),
                _ => Ok(Arc::clone(bytes)),
            },
            ImageRef::Path(path) => read_file(path, limit).map(Arc::from),
            ImageRef::Url(url) if is_data_url(url) => decode_data_url(url, limit).map(Arc::from),
            ImageRef::Url(url) => self.kept_or_download(url, given_up),
            _ => Err(ImageError::UnsupportedFormat {
                name: image_name(image),
                what: "referred to in a way that is not known".to_owned(),
            }),
        }
    }

    fn kept_or_download(&self, url: &Arc<str>, given_up: &dyn Fn() -> bool) -> Result<Arc<[u8]>, ImageError> {
        let Some(kept) = &self.kept else { return self.download(url, given_up).map(Arc::from) };
        if let Some(Some(bytes)) = kept.get(url) {
            return Ok(bytes);
        }
        let fetched: Result<Arc<[u8]>, _> = self.download(url, given_up).map(Arc::from);
        // Another row may still get it.
        if !matches!(fetched, Err(ImageError::GivenUp { .. })) {
            kept.put(url, fetched.as_ref().ok().map(Arc::clone));
        }
        fetched
    }

    fn download(&self, url: &str, given_up: &dyn Fn() -> bool) -> Result<Vec<u8>, ImageError> {
        let name = short_name(url);
        let unusable = |reason: &str| ImageError::Url { name: name.clone(), reason: reason.to_owned() };
        let url = Url::parse(url).map_err(|error| unusable(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(unusable(&format!("scheme {} is not http, https or data", url.scheme())));
        }
        check_literal(&url, self.refused).map_err(|error| private_address(name.clone(), &error))?;
        let failed = |reason: &str| ImageError::Fetch { name: name.clone(), reason: reason.to_owned(), attempts: 0 };
        let network = self
            .network
            .get_or_init(|| Network::new(&self.limits, self.refused))
            .as_ref()
            .map_err(|why| failed(why))?;
        let download =
            Download { client: network.client.clone(), limits: self.limits.clone(), url, name: name.clone() };
        match network.wait_for(download.run(), given_up) {
            Some(fetched) => fetched,
            None if given_up() => Err(ImageError::GivenUp { name }),
            None => Err(failed("the download was cancelled")),
        }
    }
}

/// The name of `image` in messages: its URL or path, shortened.
pub(crate) fn image_name(image: &ImageRef) -> String {
    match image {
        ImageRef::Url(url) => short_name(url),
        ImageRef::Path(path) => short_name(&path.to_string_lossy()),
        ImageRef::Bytes { name: Some(name), .. } => short_name(name),
        ImageRef::Bytes { bytes, .. } => format!("of {} bytes", bytes.len()),
        _ => "of unknown origin".to_owned(),
    }
}

pub(crate) fn is_data_url(url: &str) -> bool {
    url.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"))
}

fn read_file(path: &Path, limit: usize) -> Result<Vec<u8>, ImageError> {
    let name = short_name(&path.to_string_lossy());
    let read_error = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => ImageError::NotFound { name: name.clone() },
        _ => ImageError::Read { name: name.clone(), reason: error.to_string() },
    };
    // Asked before opening: opening a pipe would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(read_error)?;
    if !metadata.is_file() {
        return Err(ImageError::Read { name, reason: "it is not a file".to_owned() });
    }
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    if metadata.len() < most {
        let file = File::open(path).map_err(read_error)?;
        file.take(most).read_to_end(&mut bytes).map_err(read_error)?;
    }
    if metadata.len() >= most || bytes.len() > limit {
        return Err(ImageError::TooLarge { name, limit });
    }
    if bytes.is_empty() {
        return Err(ImageError::Empty { name });
    }
    Ok(bytes)
}

/// A client and the threads it runs on.
struct Network {
    client: Client,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Network {
    fn new(limits: &ImageLimits, refused: Refused) -> Result<Self, String> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("image-fetch")
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let max_redirects = limits.max_redirects;
        let redirects = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > max_redirects {
                return attempt.error(TooManyRedirects);
            }
            match check_literal(attempt.url(), refused) {
                Err(private) => attempt.error(private),
                Ok(()) => attempt.follow(),
            }
        });
        let client = Client::builder()
            .user_agent(concat!("vgen/", env!("CARGO_PKG_VERSION")))
            // A proxy would make the connection itself, out of reach of the check of addresses.
            .no_proxy()
            .redirect(redirects)
            .dns_resolver(FilteringResolver { refused })
            .connect_timeout(limits.connect_timeout)
            .build()
            .map_err(|error| describe(&error))?;
        Ok(Self { client, runtime: Some(runtime) })
    }

    /// Runs `task` on the network's threads and blocks until it is done, also where the caller's thread belongs to
    /// another runtime. `None` if the task was cancelled, as it is once `given_up` says so.
    fn wait_for<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
        given_up: &dyn Fn() -> bool,
    ) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let running = self.runtime.as_ref()?.spawn(async move {
            // The receiver waits below, or wants it no more.
            let _ = sender.send(task.await);
        });
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(done) => return Some(done),
                Err(RecvTimeoutError::Timeout) if given_up() => {
                    running.abort();
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A plain drop blocks, which the threads of another runtime must not.
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug, Error)]
#[error("too many redirects")]
struct TooManyRedirects;

/// One image's download, with its retries.
struct Download {
    client: Client,
    limits: ImageLimits,
    url: Url,
    name: String,
}

/// What came of one try.
enum Attempt {
    Done(Result<Vec<u8>, ImageError>),
    Again(ImageError, Option<Duration>),
}

impl Download {
    async fn run(self) -> Result<Vec<u8>, ImageError> {
        let limit = self.limits.timeout;
        match tokio::time::timeout(limit, self.tries()).await {
            Ok(result) => result,
            Err(_) => Err(ImageError::Timeout { name: self.name, limit }),
        }
    }

    async fn tries(&self) -> Result<Vec<u8>, ImageError> {
        let mut pause = FIRST_PAUSE;
        let mut attempts = 1;
        loop {
            match self.try_once(attempts).await {
                Attempt::Done(result) => return result,
                Attempt::Again(error, _) if attempts > self.limits.retries => return Err(error),
                // A server that asks for more time than there is: its answer says more than a timeout.
                Attempt::Again(error, Some(asked)) if asked >= self.limits.timeout => return Err(error),
                Attempt::Again(_, asked) => {
                    tokio::time::sleep(asked.unwrap_or(pause)).await;
                    pause *= 2;
                    attempts += 1;
                }
            }
        }
    }

    async fn try_once(&self, attempts: u32) -> Attempt {
        let mut response = match self.client.get(self.url.clone()).send().await {
            Ok(response) => response,
            Err(error) => return self.failed(&error, attempts),
        };
        let status = response.status();
        if !status.is_success() {
            let error = ImageError::HttpStatus { name: self.name.clone(), status: status.as_u16(), attempts };
            if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
                return Attempt::Again(error, retry_after(&response));
            }
            return Attempt::Done(Err(error));
        }
        let limit = self.limits.max_bytes;
        let too_large = || Attempt::Done(Err(ImageError::TooLarge { name: self.name.clone(), limit }));
        if response.content_length().is_some_and(|length| usize::try_from(length).is_ok_and(|length| length > limit)) {
            return too_large();
        }
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > limit => return too_large(),
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) if body.is_empty() => {
                    return Attempt::Done(Err(ImageError::Empty { name: self.name.clone() }));
                }
                Ok(None) => return Attempt::Done(Ok(body)),
                Err(error) => return self.failed(&error, attempts),
            }
        }
    }

    fn failed(&self, error: &reqwest::Error, attempts: u32) -> Attempt {
        let name = self.name.clone();
        for cause in causes(error) {
            if let Some(refused) = cause.downcast_ref::<PrivateAddress>() {
                return Attempt::Done(Err(private_address(name, refused)));
            }
            if cause.is::<TooManyRedirects>() {
                return Attempt::Done(Err(ImageError::Redirects { name, limit: self.limits.max_redirects }));
            }
        }
        let failed = ImageError::Fetch { name, reason: describe(error), attempts };
        if error.is_builder() || error.is_redirect() {
            return Attempt::Done(Err(failed));
        }
        Attempt::Again(failed, None)
    }
}

fn private_address(name: String, refused: &PrivateAddress) -> ImageError {
    ImageError::PrivateAddress { name, address: refused.address.to_string() }
}

/// The pause in seconds that the server asks for.
fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get(reqwest::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| {
        let error: &'a (dyn StdError + 'static) = *error;
        error.source()
    })
}

/// The innermost cause: the outer ones repeat the URL and say little.
fn describe(error: &reqwest::Error) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

#[cfg(test)]
mod tests;
