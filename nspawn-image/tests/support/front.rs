//! A registry of a few fixed answers: for what a real one does not do on demand.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// One request as it came: method and path, the head in lower case, and the body.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// What is answered to a path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// An `Authorization` without which the answer is 401 with this challenge.
    pub(crate) guard: Option<(String, String)>,
    /// Bytes after which the first answer is cut.
    pub(crate) cut: Option<usize>,
}

impl Answer {
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            body: body.into(),
            ..Self::default()
        }
    }
}

type Answers = Arc<Mutex<HashMap<String, Answer>>>;

/// The server; every connection has one request and one thread.
pub(crate) struct Front {
    pub(crate) port: u16,
    answers: Answers,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Front {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (answers, asked) = (Answers::default(), Arc::default());
        let front = Self {
            port,
            answers: Arc::clone(&answers),
            asked: Arc::clone(&asked),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
                std::thread::spawn(move || {
                    let _ = serve(stream, &answers, &asked);
                });
            }
        });
        front
    }

    /// Sets the answer to `path`, the query left out.
    pub(crate) fn set(&self, path: &str, answer: Answer) {
        let mut answers = self.answers.lock().unwrap();
        answers.insert(path.to_owned(), answer);
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The requests since the last call.
    pub(crate) fn seen(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn serve(
    mut stream: TcpStream,
    answers: &Answers,
    asked: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && head != "\r\n" {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    // Names in lower case, values as they came.
    let head: String = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| format!("{}: {value}\n", name.to_lowercase()))
        .collect();
    let mut request = Asked {
        line: line.trim_end().trim_end_matches(" HTTP/1.1").to_owned(),
        head,
        body: String::new(),
    };
    let length = request
        .header("content-length")
        .and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    asked.lock().unwrap().push(request.clone());
    let path = request.line.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let mut answer = {
        let mut answers = answers.lock().unwrap();
        let Some(known) = answers.get_mut(path) else {
            return write!(
                stream,
                "HTTP/1.1 404 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            );
        };
        let answer = known.clone();
        known.cut = None;
        answer
    };
    if let Some((wanted, challenge)) = &answer.guard
        && request.header("authorization") != Some(wanted)
    {
        return write!(
            stream,
            "HTTP/1.1 401 X\r\nwww-authenticate: {challenge}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    let total = answer.body.len();
    let from = request.header("range").and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    if answer.status == 200 && from.is_some_and(|from| from >= total) {
        return write!(
            stream,
            "HTTP/1.1 416 X\r\ncontent-range: bytes */{total}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    if let Some(from) = from.filter(|_| answer.status == 200) {
        answer.headers.push((
            "content-range",
            format!("bytes {from}-{}/{total}", total - 1),
        ));
        answer.body.drain(..from);
        answer.status = 206;
    }
    write!(
        stream,
        "HTTP/1.1 {} X\r\nconnection: close\r\n",
        answer.status
    )?;
    for (name, value) in &answer.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    write!(stream, "content-length: {}\r\n\r\n", answer.body.len())?;
    let end = answer.cut.unwrap_or(answer.body.len());
    stream.write_all(&answer.body[..end])
}
