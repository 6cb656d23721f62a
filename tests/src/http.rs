//! A web server on the loopback interface, with every fault a download meets.
//!
//! HTTP/1.1, one request for each connection, a thread for each connection. It serves what [`HttpServer::put`] was
//! given, from memory or from a file, with ranges and validators; a [`Resource`] says what goes wrong.
//!
//! Source: RFC 9110 (ranges, validators, redirects), RFC 9112 (messages).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::sys;

/// Bytes written at a time.
const PIECE: u64 = 64 * 1024;
/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What stands at a path, and what goes wrong with it.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    body: Body,
    etag: Option<String>,
    last_modified: Option<String>,
    headers: Vec<(String, String)>,
    status: Option<u16>,
    location: Option<String>,
    without_ranges: bool,
    content_length: Option<u64>,
    without_content_length: bool,
    cut_after: Option<u64>,
    stall_after: Option<u64>,
    bytes_per_second: Option<u64>,
    failures: Option<(u32, u16)>,
    connections: Option<(usize, Arc<AtomicUsize>)>,
    in_all: Option<(u64, Arc<Mutex<Instant>>)>,
}

#[derive(Clone, Debug)]
enum Body {
    Bytes(Arc<Vec<u8>>),
    File(PathBuf),
}

impl Default for Body {
    fn default() -> Self {
        Self::Bytes(Arc::default())
    }
}

impl Resource {
    /// These bytes.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            body: Body::Bytes(Arc::new(bytes.into())),
            ..Self::default()
        }
    }

    /// The bytes of this file, read as they are sent.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            body: Body::File(path.into()),
            ..Self::default()
        }
    }

    /// A redirection with status 302 to a path or a URL.
    pub fn redirect(location: impl Into<String>) -> Self {
        Self {
            status: Some(302),
            location: Some(location.into()),
            ..Self::default()
        }
    }

    /// Answers with status 503 while so many connections get it already.
    pub fn connections(mut self, most: usize) -> Self {
        self.connections = Some((most, Arc::default()));
        self
    }

    /// Sends at most so many bytes per second over all connections together.
    pub fn bytes_per_second_in_all(mut self, bytes: u64) -> Self {
        self.in_all = Some((bytes, Arc::new(Mutex::new(Instant::now()))));
        self
    }

    /// Nothing but this status: 404, 500, 503.
    pub fn error(status: u16) -> Self {
        Self {
            status: Some(status),
            ..Self::bytes(format!("status {status}\n"))
        }
    }

    /// Sends this `ETag`, quotes included, and answers `If-None-Match` and `If-Range` by it.
    pub fn etag(mut self, etag: impl Into<String>) -> Self {
        self.etag = Some(etag.into());
        self
    }

    /// Sends this `Last-Modified`, and answers `If-Modified-Since` and `If-Range` by it: equal text counts as unchanged.
    pub fn last_modified(mut self, date: impl Into<String>) -> Self {
        self.last_modified = Some(date.into());
        self
    }

    /// Sends one more header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends this status in place of 200.
    pub fn status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// Ignores `Range`, and does not announce ranges.
    pub fn without_ranges(mut self) -> Self {
        self.without_ranges = true;
        self
    }

    /// Announces this length, whatever the body is; the connection is closed at the end of the body.
    pub fn content_length(mut self, bytes: u64) -> Self {
        self.content_length = Some(bytes);
        self
    }

    /// Announces no length: the body ends with the connection.
    pub fn without_content_length(mut self) -> Self {
        self.without_content_length = true;
        self
    }

    /// Closes the connection after so many bytes of a body.
    pub fn cut_after(mut self, bytes: u64) -> Self {
        self.cut_after = Some(bytes);
        self
    }

    /// Sends no more after so many bytes of a body, and keeps the connection open until the server goes.
    pub fn stall_after(mut self, bytes: u64) -> Self {
        self.stall_after = Some(bytes);
        self
    }

    /// Sends no faster than this.
    pub fn bytes_per_second(mut self, bytes: u64) -> Self {
        self.bytes_per_second = Some(bytes.max(1));
        self
    }

    /// Answers the first `times` requests with this status, and serves afterwards.
    pub fn fail_first(mut self, times: u32, status: u16) -> Self {
        self.failures = Some((times, status));
        self
    }
}

/// One request, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET` or `HEAD`, as a rule.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The value of a header; the name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// The server. It stops when dropped, stalled connections included.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    listener: TcpListener,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    resources: Mutex<HashMap<String, Resource>>,
    requests: Mutex<Vec<Request>>,
    arrived: Condvar,
    stopping: AtomicBool,
    stopped: Condvar,
    stop_lock: Mutex<()>,
}

impl HttpServer {
    /// Starts on 127.0.0.1, at a port of the kernel's choice.
    ///
    /// # Panics
    ///
    /// Where no socket can be had.
    #[expect(clippy::new_without_default, reason = "it opens a socket")]
    pub fn new() -> Self {
        Self::on(Ipv4Addr::LOCALHOST.into())
    }

    /// Starts on another address of this host: one that a machine can reach.
    ///
    /// # Panics
    ///
    /// Where the address is not this host's.
    pub fn on(address: IpAddr) -> Self {
        let listener = TcpListener::bind((address, 0))
            .unwrap_or_else(|error| panic!("cannot listen on {address}: {error}"));
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let accepting = listener.try_clone().expect("a second descriptor");
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let acceptor = thread::spawn(move || {
            for stream in accepting.incoming() {
                if for_thread.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = Arc::clone(&for_thread);
                thread::spawn(move || {
                    let _ = shared.serve(&stream); // the client may go at any time
                });
            }
        });
        Self {
            address,
            listener,
            shared,
            acceptor: Some(acceptor),
        }
    }

    /// Puts a resource at a path, in place of what was there; may be called at any time.
    pub fn put(&self, path: &str, resource: Resource) -> &Self {
        lock(&self.shared.resources).insert(path.to_owned(), resource);
        self
    }

    /// Takes the resource at a path away: 404 from now on.
    pub fn remove(&self, path: &str) -> &Self {
        lock(&self.shared.resources).remove(path);
        self
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far, in the order they came.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// Waits until so many requests have come; tells whether they did in time.
    pub fn wait_for_requests(&self, count: usize, timeout: Duration) -> bool {
        let requests = lock(&self.shared.requests);
        let few = |requests: &mut Vec<Request>| requests.len() < count;
        match self
            .shared
            .arrived
            .wait_timeout_while(requests, timeout, few)
        {
            Ok((_, result)) => !result.timed_out(),
            Err(_) => false,
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shared.stop();
        // Wakes the acceptor, also where the address has gone with its interface.
        if sys::stop_listening(&self.listener).is_err() {
            return;
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// A panic of one connection must not hide the test's own.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Shared {
    fn stop(&self) {
        let _guard = lock(&self.stop_lock);
        self.stopping.store(true, Ordering::SeqCst);
        self.stopped.notify_all();
    }

    /// Sleeps, but not beyond the end of the server; tells whether the server goes on.
    fn pause(&self, time: Duration) -> bool {
        let guard = lock(&self.stop_lock);
        let running = |(): &mut ()| !self.stopping.load(Ordering::SeqCst);
        let _ = self.stopped.wait_timeout_while(guard, time, running);
        !self.stopping.load(Ordering::SeqCst)
    }

    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(REQUEST_TIMEOUT))?;
        let Some(request) = read_request(stream)? else {
            return Ok(());
        };
        lock(&self.requests).push(request.clone());
        self.arrived.notify_all();
        let mut resource = self.take_turn(&request);
        let turn = Turn::take(&resource);
        if turn.is_none() {
            resource = Resource::error(503);
        }
        let answer = Answer::to(&request, &resource)?;
        let mut stream = stream;
        stream.write_all(answer.head().as_bytes())?;
        if request.method == "HEAD" {
            return Ok(());
        }
        self.send_body(stream, &answer, &resource)
    }

    /// The resource at the path; a failure that is due is used up.
    fn take_turn(&self, request: &Request) -> Resource {
        let path = request.path.split('?').next().unwrap_or_default();
        let mut resources = lock(&self.resources);
        let Some(resource) = resources.get_mut(path) else {
            return Resource::error(404);
        };
        match &mut resource.failures {
            Some((left, status)) if *left > 0 => {
                *left -= 1;
                Resource::error(*status)
            }
            _ => resource.clone(),
        }
    }

    fn send_body(
        &self,
        mut stream: &TcpStream,
        answer: &Answer,
        resource: &Resource,
    ) -> io::Result<()> {
        let source = Source::open(&resource.body)?;
        let start = Instant::now();
        let mut piece = Vec::new();
        let mut sent = 0;
        while sent < answer.length {
            let mut count = PIECE.min(answer.length - sent);
            if let Some(rate) = resource.bytes_per_second {
                count = count.min((rate / 20).max(1));
            }
            for limit in [resource.cut_after, resource.stall_after]
                .into_iter()
                .flatten()
            {
                count = count.min(limit.saturating_sub(sent));
            }
            if count == 0 {
                break;
            }
            source.read(answer.first + sent, count, &mut piece)?;
            stream.write_all(&piece)?;
            sent += count;
            if let Some(rate) = resource.bytes_per_second {
                let due = Duration::from_secs_f64(sent as f64 / rate as f64);
                if !self.pause(due.saturating_sub(start.elapsed())) {
                    return Ok(());
                }
            }
            if let Some((rate, free)) = &resource.in_all {
                let due = {
                    let mut free = lock(free);
                    *free = (*free).max(Instant::now());
                    *free += Duration::from_secs_f64(count as f64 / *rate as f64);
                    *free
                };
                if !self.pause(due.saturating_duration_since(Instant::now())) {
                    return Ok(());
                }
            }
        }
        let stalls = resource
            .stall_after
            .is_some_and(|limit| sent >= limit && sent < answer.length);
        if stalls && resource.cut_after.is_none_or(|limit| sent < limit) {
            self.pause(Duration::from_secs(3600));
        }
        Ok(())
    }
}

/// One of the connections that a resource serves at once.
struct Turn(Option<Arc<AtomicUsize>>);

impl Turn {
    fn take(resource: &Resource) -> Option<Self> {
        let Some((most, count)) = &resource.connections else {
            return Some(Self(None));
        };
        let turn = Self(Some(Arc::clone(count)));
        (count.fetch_add(1, Ordering::SeqCst) < *most).then_some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn read_request(stream: &TcpStream) -> io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream.take(64 * 1024)).lines();
    let Some(first) = lines.next().transpose()? else {
        return Ok(None);
    };
    let mut words = first.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut headers = Vec::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers,
    }))
}

#[derive(Debug)]
enum Source {
    Bytes(Arc<Vec<u8>>),
    File(File),
}

impl Source {
    fn open(body: &Body) -> io::Result<Self> {
        match body {
            Body::Bytes(bytes) => Ok(Self::Bytes(Arc::clone(bytes))),
            Body::File(path) => File::open(path).map(Self::File),
        }
    }

    fn length(&self) -> io::Result<u64> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::File(file) => Ok(file.metadata()?.len()),
        }
    }

    fn read(&self, at: u64, count: u64, piece: &mut Vec<u8>) -> io::Result<()> {
        let count = usize::try_from(count).map_err(io::Error::other)?;
        piece.resize(count, 0);
        match self {
            Self::Bytes(bytes) => {
                let at = usize::try_from(at).map_err(io::Error::other)?;
                piece.copy_from_slice(&bytes[at..at + count]);
                Ok(())
            }
            Self::File(file) => file.read_exact_at(piece, at),
        }
    }
}

/// Status, headers, and the part of the body that is sent.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    first: u64,
    length: u64,
}

impl Answer {
    fn to(request: &Request, resource: &Resource) -> io::Result<Self> {
        let total = Source::open(&resource.body)?.length()?;
        let mut answer = Self {
            status: resource.status.unwrap_or(200),
            headers: Vec::new(),
            first: 0,
            length: total,
        };
        if resource.status.is_none() {
            if is_unchanged(request, resource) {
                answer.status = 304;
                answer.length = 0;
            } else if let Some(range) = wanted_range(request, resource) {
                answer.apply(range, total);
            }
        }
        answer.add_headers(resource);
        Ok(answer)
    }

    fn apply(&mut self, range: (Option<u64>, Option<u64>), total: u64) {
        let (first, last) = match range {
            (Some(first), last) => (first, last.unwrap_or(u64::MAX).min(total.saturating_sub(1))),
            (None, Some(suffix)) => (total.saturating_sub(suffix), total.saturating_sub(1)),
            (None, None) => return,
        };
        if first > last || first >= total {
            self.status = 416;
            self.length = 0;
            self.headers
                .push(("Content-Range".to_owned(), format!("bytes */{total}")));
            return;
        }
        self.status = 206;
        (self.first, self.length) = (first, last - first + 1);
        self.headers.push((
            "Content-Range".to_owned(),
            format!("bytes {first}-{last}/{total}"),
        ));
    }

    fn add_headers(&mut self, resource: &Resource) {
        let mut add = |name: &str, value: String| self.headers.push((name.to_owned(), value));
        if !resource.without_ranges && resource.status.is_none() {
            add("Accept-Ranges", "bytes".to_owned());
        }
        if !resource.without_content_length && self.status != 304 {
            add(
                "Content-Length",
                resource.content_length.unwrap_or(self.length).to_string(),
            );
        }
        for (name, value) in [
            ("ETag", &resource.etag),
            ("Last-Modified", &resource.last_modified),
            ("Location", &resource.location),
        ] {
            if let Some(value) = value {
                add(name, value.clone());
            }
        }
        add("Connection", "close".to_owned());
        self.headers.extend(resource.headers.iter().cloned());
    }

    fn head(&self) -> String {
        let reason = match self.status {
            200 => "OK",
            206 => "Partial Content",
            301 => "Moved Permanently",
            302 => "Found",
            304 => "Not Modified",
            404 => "Not Found",
            416 => "Range Not Satisfiable",
            500 => "Internal Server Error",
            503 => "Service Unavailable",
            _ => "Status",
        };
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head + "\r\n"
    }
}

fn is_unchanged(request: &Request, resource: &Resource) -> bool {
    match (request.header("if-none-match"), &resource.etag) {
        (Some(wanted), Some(etag)) => wanted
            .split(',')
            .any(|one| one.trim() == etag || one.trim() == "*"),
        (Some(_), None) => false,
        (None, _) => {
            let since = request.header("if-modified-since");
            since.is_some() && since == resource.last_modified.as_deref()
        }
    }
}

/// The one range that was asked for; a list of ranges, and a range of something that has changed, is the whole.
fn wanted_range(request: &Request, resource: &Resource) -> Option<(Option<u64>, Option<u64>)> {
    if resource.without_ranges {
        return None;
    }
    if let Some(validator) = request.header("if-range") {
        let current = [resource.etag.as_deref(), resource.last_modified.as_deref()];
        if validator.starts_with("W/") || !current.contains(&Some(validator)) {
            return None;
        }
    }
    let (first, last) = request
        .header("range")?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let number = |text: &str| {
        if text.is_empty() {
            Some(None)
        } else {
            text.parse().ok().map(Some)
        }
    };
    Some((number(first)?, number(last)?))
}
