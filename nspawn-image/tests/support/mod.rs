//! A small HTTP server on the loopback that can do everything wrong that a server can.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How the server behaves; changed while it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Behaviour {
    pub(crate) body: Arc<Vec<u8>>,
    pub(crate) etag: Option<String>,
    /// Status sent instead of the file.
    pub(crate) status: Option<u16>,
    /// Bytes after which a body is cut, counted from its first.
    pub(crate) cut: Option<usize>,
    /// Answer to a range with the whole file.
    pub(crate) no_ranges: bool,
    /// `Location` of a redirect.
    pub(crate) redirect: Option<String>,
    /// A pause before each body.
    pub(crate) pause: Duration,
    /// Send no length.
    pub(crate) no_length: bool,
    /// A length other than the body's is announced.
    pub(crate) length: Option<usize>,
    pub(crate) last_modified: Option<String>,
    /// Answer to a range with that range, whatever `If-Range` says.
    pub(crate) careless: bool,
    /// Answer to a range with this status.
    pub(crate) range_status: Option<u16>,
    /// Bytes of a body after which nothing comes any more, for ten minutes.
    pub(crate) stall: Option<usize>,
    /// Bytes a second at most.
    pub(crate) rate: Option<usize>,
    /// How the first requests are answered, one after the other, before this behaviour counts.
    pub(crate) turns: Vec<Behaviour>,
    /// The behaviour at each path, without the slash in front; any other path is not there. `None`: this one, at any.
    pub(crate) files: Option<BTreeMap<String, Behaviour>>,
}

/// A bare ext4 as far as anybody looks: 3 MiB with magic bytes, some data and a hole.
pub(crate) fn disk() -> Vec<u8> {
    let mut bytes = vec![0; 3 << 20];
    bytes[1080] = 0x53;
    bytes[1081] = 0xef;
    for (index, byte) in bytes[(2 << 20)..].iter_mut().enumerate() {
        *byte = ((index * 31) >> 7) as u8;
    }
    bytes
}

/// The server; every connection has one thread, as the tests have few.
pub(crate) struct Server {
    pub(crate) behaviour: Arc<Mutex<Behaviour>>,
    /// The head of every request seen.
    pub(crate) requests: Arc<Mutex<Vec<String>>>,
    /// Bytes of bodies that were sent.
    pub(crate) sent: Arc<AtomicUsize>,
    port: u16,
}

impl Server {
    pub(crate) fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self {
            behaviour: Arc::new(Mutex::new(behaviour)),
            requests: Arc::default(),
            sent: Arc::default(),
            port,
        };
        server.listen(listener);
        server
    }

    /// Serves what comes to `listener` too.
    pub(crate) fn listen(&self, listener: TcpListener) {
        let (state, seen) = (Arc::clone(&self.behaviour), Arc::clone(&self.requests));
        let sent = Arc::clone(&self.sent);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, seen) = (Arc::clone(&state), Arc::clone(&seen));
                let sent = Arc::clone(&sent);
                std::thread::spawn(move || {
                    let _ = serve(stream, &state, &seen, &sent);
                });
            }
        });
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

fn serve(
    mut stream: TcpStream,
    state: &Mutex<Behaviour>,
    seen: &Mutex<Vec<String>>,
    sent: &AtomicUsize,
) -> std::io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let path = head.split([' ', '?']).nth(1).unwrap_or_default();
    let path = path.trim_start_matches('/').to_owned();
    let head = head.to_lowercase();
    seen.lock().unwrap().push(head.clone());
    let field = |name: &str| {
        head.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(": ")
                .map(str::to_owned)
        })
    };
    let mut behaviour = {
        let mut state = state.lock().unwrap();
        match state.turns.is_empty() {
            true => state.clone(),
            false => state.turns.remove(0),
        }
    };
    if let Some(mut files) = behaviour.files.take() {
        behaviour = files.remove(&path).unwrap_or(Behaviour {
            status: Some(404),
            ..Behaviour::default()
        });
    }
    let mut extra = String::new();
    if let Some(etag) = &behaviour.etag {
        extra += &format!("etag: {etag}\r\n");
    }
    if let Some(date) = &behaviour.last_modified {
        extra += &format!("last-modified: {date}\r\n");
    }
    if let Some(target) = &behaviour.redirect {
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: {target}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    if let Some(status) = behaviour.status {
        return write!(
            stream,
            "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    if behaviour.etag.is_some() && field("if-none-match") == behaviour.etag {
        return write!(
            stream,
            "HTTP/1.1 304 Not Modified\r\n{extra}connection: close\r\n\r\n"
        );
    }
    let total = behaviour.body.len();
    let range = field("range").and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    if let (Some(status), Some(_)) = (behaviour.range_status, range) {
        return write!(
            stream,
            "HTTP/1.1 {status} X\r\n{extra}content-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    let condition = field("if-range");
    let names = [&behaviour.etag, &behaviour.last_modified];
    let fresh = condition.is_some()
        && (behaviour.careless
            || names
                .iter()
                .any(|name| name.as_ref().map(|name| name.to_lowercase()) == condition));
    let start = range.filter(|_| fresh && !behaviour.no_ranges).unwrap_or(0);
    if start >= total && start > 0 {
        return write!(
            stream,
            "HTTP/1.1 416 X\r\n{extra}content-range: bytes */{total}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    let status = if start > 0 {
        "206 Partial Content"
    } else {
        "200 OK"
    };
    if start > 0 {
        extra += &format!("content-range: bytes {start}-{}/{total}\r\n", total - 1);
    }
    if !behaviour.no_length {
        let length = behaviour.length.unwrap_or(total);
        extra += &format!("content-length: {}\r\n", length - start);
    }
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{extra}connection: close\r\n\r\n"
    )?;
    std::thread::sleep(behaviour.pause);
    let end = behaviour.cut.map_or(total, |cut| (start + cut).min(total));
    let end = behaviour
        .stall
        .map_or(end, |stall| (start + stall).min(end));
    for piece in behaviour.body[start..end].chunks(16 << 10) {
        stream.write_all(piece)?;
        sent.fetch_add(piece.len(), Ordering::Relaxed);
        if let Some(rate) = behaviour.rate {
            std::thread::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64));
        }
    }
    if behaviour.stall.is_some() {
        std::thread::sleep(Duration::from_secs(600));
    }
    Ok(())
}
