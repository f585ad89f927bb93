// Fixtures and inputs of the tests are their own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::*;

/// A server on this machine that gives the n-th request (over all connections) the n-th answer, the last one forever.
struct Server {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn new(answers: Vec<Vec<u8>>) -> Self {
        Self::on(Ipv4Addr::LOCALHOST, answers)
    }

    fn on(address: Ipv4Addr, answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    line.clear();
                }
                let number = count.fetch_add(1, Ordering::SeqCst);
                let answer = answers.get(number).or(answers.last()).unwrap();
                // A client that refuses the answer hangs up in the middle of it.
                let _ = stream.write_all(answer);
            }
        });
        Self { address, requests }
    }

    fn url(&self) -> ImageRef {
        ImageRef::Url(format!("http://{}/image.png", self.address).into())
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn ok(body: &[u8]) -> Vec<u8> {
    answer("200 OK", "", body)
}

fn redirect_to(url: &str) -> Vec<u8> {
    answer("302 Found", &format!("location: {url}\r\n"), b"")
}

fn open() -> ImageLimits {
    ImageLimits { allow_private_addresses: true, max_bytes: 1000, ..ImageLimits::default() }
}

/// Refuses every private address but 127.0.0.1.
fn fetcher_for_localhost() -> ImageFetcher {
    let refused: Refused = |address| address != IpAddr::V4(Ipv4Addr::LOCALHOST) && is_private_address(address);
    ImageFetcher { refused, ..ImageFetcher::new(open()) }
}

fn code(result: Result<Arc<[u8]>, ImageError>) -> &'static str {
    result.unwrap_err().code()
}

#[test]
fn downloads_and_keeps_to_the_limit() {
    let server = Server::new(vec![ok(b"pixels"), ok(&[7; 1000]), ok(&[7; 1001])]);
    let fetcher = ImageFetcher::new(open());
    assert_eq!(&*fetcher.fetch(&server.url()).unwrap(), b"pixels");
    assert_eq!(fetcher.fetch(&server.url()).unwrap().len(), 1000);
    assert_eq!(code(fetcher.fetch(&server.url())), "image.too_large");
    let endless = Server::new(vec![[b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n", &[7; 5000][..]].concat()]);
    assert_eq!(code(fetcher.fetch(&endless.url())), "image.too_large");
    let empty = Server::new(vec![ok(b"")]);
    assert_eq!(code(fetcher.fetch(&empty.url())), "image.empty");
}

#[test]
fn tries_again_where_it_may_help() {
    let busy = answer("503 Service Unavailable", "", b"");
    let limited = answer("429 Too Many Requests", "retry-after: 0\r\n", b"");
    let server = Server::new(vec![limited, busy.clone(), ok(b"pixels")]);
    let fetcher = ImageFetcher::new(open());
    assert_eq!(&*fetcher.fetch(&server.url()).unwrap(), b"pixels");
    assert_eq!(server.requests(), 3);

    let server = Server::new(vec![busy]);
    let error = fetcher.fetch(&server.url()).unwrap_err();
    assert!(matches!(error, ImageError::HttpStatus { status: 503, attempts: 3, .. }), "{error:?}");

    let server = Server::new(vec![answer("404 Not Found", "", b"no")]);
    let error = fetcher.fetch(&server.url()).unwrap_err();
    assert!(matches!(error, ImageError::HttpStatus { status: 404, attempts: 1, .. }), "{error:?}");
    assert_eq!(server.requests(), 1);
}

#[test]
fn a_dead_server_is_a_row_error() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fetcher = ImageFetcher::new(ImageLimits { retries: 1, ..open() });
    let error = fetcher.fetch(&ImageRef::Url(format!("http://{address}/").into())).unwrap_err();
    assert!(matches!(error, ImageError::Fetch { attempts: 2, .. }), "{error:?}");
    let fault = vgen_core::Fault::from(error);
    assert_eq!((fault.code.as_ref(), fault.class, fault.attempts), ("image.fetch", vgen_core::FaultClass::Row, 2));
}

#[test]
fn a_silent_server_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = ImageRef::Url(format!("http://{}/", listener.local_addr().unwrap()).into());
    let fetcher = ImageFetcher::new(ImageLimits { timeout: Duration::from_millis(100), ..open() });
    assert_eq!(code(fetcher.fetch(&url)), "image.timeout");
}

#[test]
fn a_download_that_nobody_waits_for_is_broken_off() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url: Arc<str> = format!("http://{}/", listener.local_addr().unwrap()).into();
    let kept = Arc::new(KeptImages::default());
    let fetcher = ImageFetcher::new(open()).keeping(Some(Arc::clone(&kept)));
    let start = std::time::Instant::now();
    let given_up = || start.elapsed() > Duration::from_millis(100);
    assert_eq!(code(fetcher.fetch_unless(&ImageRef::Url(Arc::clone(&url)), &given_up)), "row.cancelled");
    assert!(start.elapsed() < Duration::from_secs(5), "after {:?}", start.elapsed());
    assert_eq!(kept.get(&url), None);
}

#[test]
fn private_addresses_are_refused() {
    let server = Server::new(vec![ok(b"secret")]);
    let fetcher = ImageFetcher::new(ImageLimits::default());
    let port = server.address.port();
    for host in ["127.0.0.1", "localhost", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "0.0.0.0"] {
        let url = ImageRef::Url(format!("http://{host}:{port}/").into());
        assert_eq!(code(fetcher.fetch(&url)), "image.private_address", "{host}");
    }
    assert_eq!(server.requests(), 0);
}

#[test]
fn redirects_are_bounded_and_checked() {
    let fetcher = fetcher_for_localhost();
    let image = Server::new(vec![ok(b"pixels")]);
    let ImageRef::Url(target) = image.url() else { unreachable!() };
    let server = Server::new(vec![redirect_to(&target)]);
    assert_eq!(&*fetcher.fetch(&server.url()).unwrap(), b"pixels");

    let hidden = Server::on(Ipv4Addr::new(127, 0, 0, 2), vec![ok(b"secret")]);
    for host in ["127.0.0.2", "0x7f000002", "[::ffff:127.0.0.2]"] {
        let server = Server::new(vec![redirect_to(&format!("http://{host}:{}/", hidden.address.port()))]);
        assert_eq!(code(fetcher.fetch(&server.url())), "image.private_address", "{host}");
    }
    assert_eq!(hidden.requests(), 0);

    let round = Server::new(vec![redirect_to("/again")]);
    assert_eq!(code(fetcher.fetch(&round.url())), "image.redirects");
    assert_eq!(round.requests(), 6);

    let away = Server::new(vec![redirect_to("file:///etc/passwd")]);
    assert!(matches!(code(fetcher.fetch(&away.url())), "image.fetch" | "image.http_status"));
}

#[test]
fn urls_that_are_none() {
    let fetcher = ImageFetcher::new(ImageLimits::default());
    for url in ["ftp://example.org/a.png", "file:///etc/passwd", "no url", "", "http://"] {
        assert_eq!(code(fetcher.fetch(&ImageRef::Url(url.into()))), "image.url", "{url}");
    }
    let inline = ImageRef::Url("DATA:image/png;base64,AAEC".into());
    assert_eq!(&*fetcher.fetch(&inline).unwrap(), [0, 1, 2]);
}

#[test]
fn files() {
    let folder = tempfile::tempdir().unwrap();
    let fetcher = ImageFetcher::new(ImageLimits { max_bytes: 10, ..ImageLimits::default() });
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        ImageRef::Path(path)
    };
    assert_eq!(&*fetcher.fetch(&file("good", b"0123456789")).unwrap(), b"0123456789");
    assert_eq!(code(fetcher.fetch(&file("big", b"0123456789a"))), "image.too_large");
    assert_eq!(code(fetcher.fetch(&file("empty", b""))), "image.empty");
    assert_eq!(code(fetcher.fetch(&ImageRef::Path(folder.path().join("none")))), "image.not_found");
    assert_eq!(code(fetcher.fetch(&ImageRef::Path(folder.path().to_owned()))), "image.read");
    let bytes = |bytes: &[u8]| ImageRef::Bytes { bytes: bytes.into(), name: None };
    assert_eq!(&*fetcher.fetch(&bytes(b"12")).unwrap(), b"12");
    assert_eq!(code(fetcher.fetch(&bytes(b""))), "image.empty");
    assert_eq!(code(fetcher.fetch(&bytes(&[0; 11]))), "image.too_large");
}

/// Preparation threads may belong to a runtime of their caller.
#[test]
fn works_inside_another_runtime() {
    let server = Server::new(vec![ok(b"pixels")]);
    let url = server.url();
    let runtime = Builder::new_current_thread().build().unwrap();
    let fetched = runtime.block_on(async move { ImageFetcher::new(open()).fetch(&url) });
    assert_eq!(&*fetched.unwrap(), b"pixels");
}
