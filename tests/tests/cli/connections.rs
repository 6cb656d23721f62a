//! Long downloads take several connections, and mind what a server does with them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nspawn_tests::cli::Cli;
use nspawn_tests::http::{HttpServer, Request, Resource};
use nspawn_tests::random::noise;

use crate::sha256;

/// Bytes of the image: more than what is not worth dividing.
const LENGTH: usize = 48 << 20;
/// For each connection, in bytes per second: a second of it leaves enough to divide.
const RATE: u64 = 8_000_000;

fn slow(bytes: &[u8]) -> Resource {
    Resource::bytes(bytes).bytes_per_second(RATE)
}

fn pull(cli: &Cli, server: &HttpServer, bytes: &[u8], more: &[&str]) -> String {
    let (url, checksum) = (server.url("/disk.raw"), format!("sha256:{}", sha256(bytes)));
    let mut args = vec!["image", "pull", "--checksum", &checksum];
    args.extend(more);
    args.push(&url);
    let finished = cli.command(args).timeout(Duration::from_secs(60)).run();
    finished.expect_code(0);
    let path = finished.stdout.trim();
    assert!(fs::read(Path::new(path)).unwrap() == bytes, "other bytes");
    finished.stderr
}

fn ranges(requests: &[Request]) -> Vec<&str> {
    requests
        .iter()
        .filter_map(|request| request.header("range"))
        .collect()
}

#[test]
fn a_long_download_is_divided() {
    let (cli, server, bytes) = (Cli::new(), HttpServer::new(), noise(LENGTH, 1));
    server.put("/disk.raw", slow(&bytes).etag("\"1\""));
    pull(&cli, &server, &bytes, &[]);
    let requests = server.requests();
    let ranges = ranges(&requests);
    assert!(ranges.len() > 5, "{ranges:?}");
    for request in requests.iter().filter(|one| one.header("range").is_some()) {
        assert_eq!(request.header("if-range"), Some("\"1\""));
    }
    // Together they ask for every byte behind the first connection's once.
    let bounds = |range: &str| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    };
    let mut bounds: Vec<_> = ranges.iter().filter_map(|range| bounds(range)).collect();
    bounds.sort_unstable();
    assert_eq!(bounds.len(), ranges.len(), "{ranges:?}");
    for pair in bounds.windows(2) {
        assert_eq!(pair[0].1 + 1, pair[1].0, "{ranges:?}");
    }
    assert_eq!(bounds.last().map(|range| range.1 + 1), Some(LENGTH));
}

#[test]
fn one_connection_is_one_request() {
    let (cli, server, bytes) = (Cli::new(), HttpServer::new(), noise(LENGTH, 1));
    server.put(
        "/disk.raw",
        slow(&bytes).bytes_per_second(4 * RATE).etag("\"1\""),
    );
    pull(&cli, &server, &bytes, &["--connections", "1"]);
    assert_eq!(ranges(&server.requests()), [""; 0]);
}

#[test]
fn without_a_strong_name_for_the_file_nothing_is_divided() {
    let (cli, server, bytes) = (Cli::new(), HttpServer::new(), noise(LENGTH, 1));
    server.put(
        "/disk.raw",
        slow(&bytes).bytes_per_second(4 * RATE).etag("W/\"1\""),
    );
    pull(&cli, &server, &bytes, &[]);
    assert_eq!(ranges(&server.requests()), [""; 0]);
}

#[test]
fn a_server_that_refuses_several_connections_is_asked_by_one() {
    let (cli, server, bytes) = (Cli::new(), HttpServer::new(), noise(LENGTH, 1));
    let resource = slow(&bytes).bytes_per_second(12_000_000).etag("\"1\"");
    server.put("/disk.raw", resource.connections(2));
    let stderr = pull(&cli, &server, &bytes, &[]);
    assert!(stderr.contains("trying again from byte"), "{stderr}");
    let requests = server.requests();
    let last = ranges(&requests).last().copied().unwrap_or_default();
    assert!(last.ends_with('-'), "{last}");
}

#[test]
fn a_file_that_changes_under_the_segments_is_got_anew() {
    let (cli, server, old) = (Cli::new(), HttpServer::new(), noise(LENGTH, 1));
    let mut new: Vec<u8> = old.iter().rev().copied().collect();
    new[..2048].copy_from_slice(&old[..2048]);
    server.put("/disk.raw", slow(&old).etag("\"1\""));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(server.wait_for_requests(4, Duration::from_secs(30)));
            let whole = Resource::bytes(new.clone()).etag("\"2\"");
            server.put("/disk.raw", whole);
        });
        pull(&cli, &server, &new, &[]);
    });
}

#[test]
fn the_number_of_connections_has_bounds() {
    let cli = Cli::new();
    for number in ["0", "17", "1.5", "many"] {
        let finished = cli.run([
            "image",
            "pull",
            "--connections",
            number,
            "http://127.0.0.1:9/x",
        ]);
        finished.expect_code(2);
        assert!(
            finished.stderr.contains("--connections"),
            "{}",
            finished.stderr
        );
    }
}
