//! The web server of the test library does what the tests of downloads rely on.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nspawn_tests::http::{HttpServer, Resource};

/// Sends a GET with these header lines; status, head and body of the answer.
fn get(server: &HttpServer, path: &str, headers: &str) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a head")
        + 4;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, answer[end..].to_vec())
}

#[test]
fn ranges_are_served() {
    let server = HttpServer::new();
    server.put("/a", Resource::bytes("0123456789").etag("\"one\""));
    let cases = [
        ("Range: bytes=2-4\r\n", 206, "234", Some("bytes 2-4/10")),
        ("Range: bytes=7-\r\n", 206, "789", Some("bytes 7-9/10")),
        ("Range: bytes=-2\r\n", 206, "89", Some("bytes 8-9/10")),
        ("Range: bytes=8-99\r\n", 206, "89", Some("bytes 8-9/10")),
        ("Range: bytes=10-\r\n", 416, "", Some("bytes */10")),
        (
            "Range: bytes=7-\r\nIf-Range: \"one\"\r\n",
            206,
            "789",
            Some("bytes 7-9/10"),
        ),
        (
            "Range: bytes=7-\r\nIf-Range: \"two\"\r\n",
            200,
            "0123456789",
            None,
        ),
        ("Range: bytes=0-1,3-4\r\n", 200, "0123456789", None),
        ("If-None-Match: \"one\"\r\n", 304, "", None),
        ("If-None-Match: \"two\"\r\n", 200, "0123456789", None),
        ("", 200, "0123456789", None),
    ];
    for (headers, status, body, range) in cases {
        let (got_status, head, got_body) = get(&server, "/a", headers);
        assert_eq!(
            (got_status, got_body.as_slice()),
            (status, body.as_bytes()),
            "{headers:?}: {head}"
        );
        match range {
            Some(range) => assert!(
                head.contains(&format!("Content-Range: {range}\r\n")),
                "{headers:?}: {head}"
            ),
            None => assert!(!head.contains("Content-Range"), "{headers:?}: {head}"),
        }
    }
    assert_eq!(server.requests().len(), cases.len());
    assert_eq!(server.requests()[0].header("range"), Some("bytes=2-4"));
}

#[test]
fn faults_are_as_ordered() {
    let server = HttpServer::new();
    server
        .put("/cut", Resource::bytes("0123456789").cut_after(3))
        .put("/long", Resource::bytes("0123").content_length(9))
        .put("/open", Resource::bytes("0123").without_content_length())
        .put("/busy", Resource::bytes("0123").fail_first(1, 503))
        .put("/loop", Resource::redirect("/loop"));
    let (_, head, body) = get(&server, "/cut", "");
    assert!(
        head.contains("Content-Length: 10\r\n") && body == b"012",
        "{head}"
    );
    let (_, head, body) = get(&server, "/long", "");
    assert!(
        head.contains("Content-Length: 9\r\n") && body == b"0123",
        "{head}"
    );
    let (_, head, body) = get(&server, "/open", "");
    assert!(
        !head.contains("Content-Length") && body == b"0123",
        "{head}"
    );
    assert_eq!(get(&server, "/busy", "").0, 503);
    assert_eq!(get(&server, "/busy", "").0, 200);
    let (status, head, _) = get(&server, "/loop", "");
    assert!(
        status == 302 && head.contains("Location: /loop\r\n"),
        "{head}"
    );
    assert_eq!(get(&server, "/none", "").0, 404);
}

#[test]
fn a_rate_is_kept_and_a_stall_ends_with_the_server() {
    let server = HttpServer::new();
    server.put(
        "/slow",
        Resource::bytes(vec![0; 20_000]).bytes_per_second(100_000),
    );
    let start = Instant::now();
    assert_eq!(get(&server, "/slow", "").2.len(), 20_000);
    assert!(
        start.elapsed() >= Duration::from_millis(190),
        "{:?}",
        start.elapsed()
    );

    server.put("/stall", Resource::bytes("0123456789").stall_after(4));
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(b"GET /stall HTTP/1.1\r\n\r\n").unwrap();
    assert!(server.wait_for_requests(2, Duration::from_secs(5)));
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .expect_err("a stalled connection stays open");
    assert!(answer.ends_with(b"\r\n\r\n0123"));
    drop(server);
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}
