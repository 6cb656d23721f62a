//! Servers that fail, in every way one does.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nspawn_image::{Cancel, DownloadReason, ErrorKind, ImageError, NoReport};

use super::fixture::{Fixture, Log, reason, sha256};
use super::support::{Behaviour, Server, disk};

#[test]
fn each_failure_of_a_server_is_its_own_error_and_leaves_nothing() {
    let fixture = Fixture::new();
    let server = Server::start(Behaviour {
        body: Arc::new(disk()),
        ..Behaviour::default()
    });
    let url = server.url("disk.raw");
    let fail = |change: fn(&mut Behaviour)| {
        server.change(|b| {
            *b = Behaviour {
                body: Arc::new(disk()),
                ..Behaviour::default()
            }
        });
        server.change(change);
        let error = fixture.pull(&url).unwrap_err();
        assert!(
            error.to_string().contains(&url) || error.to_string().contains("127.0.0.1"),
            "{error}"
        );
        assert!(error.hint().is_some(), "{error}");
        reason(error)
    };
    assert!(matches!(
        fail(|b| b.status = Some(404)),
        DownloadReason::NotFound(404)
    ));
    assert!(matches!(
        fail(|b| b.status = Some(403)),
        DownloadReason::Denied(403)
    ));
    assert!(matches!(
        fail(|b| b.status = Some(500)),
        DownloadReason::Server(500)
    ));
    assert!(matches!(
        fail(|b| b.status = Some(204)),
        DownloadReason::Status(204)
    ));
    assert!(matches!(
        fail(|b| b.redirect = Some("/again".into())),
        DownloadReason::Redirects(10)
    ));
    let cut = fail(|b| b.cut = Some(70_000));
    assert!(
        matches!(
            cut,
            DownloadReason::CutShort {
                expected: 3_145_728,
                received: 70_000
            }
        ),
        "{cut}"
    );
    let gone = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let refused = fixture
        .pull(&format!("http://127.0.0.1:{gone}/x"))
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Network);
    assert!(matches!(reason(refused), DownloadReason::Refused(_)));
    let unknown = fixture.pull("http://no-such-host.invalid/x").unwrap_err();
    assert!(
        matches!(reason(unknown), DownloadReason::UnknownHost(host) if host == "no-such-host.invalid")
    );
    server.change(|b| {
        *b = Behaviour {
            body: Arc::new(disk()),
            ..Behaviour::default()
        }
    });
    let tls = fixture.pull(&url.replace("http:", "https:")).unwrap_err();
    assert!(matches!(reason(tls), DownloadReason::Tls { .. }));
    let mut options = fixture.options();
    options.limits.download = 1 << 20;
    for no_length in [false, true] {
        server.change(|b| b.no_length = no_length);
        let error = fixture
            .store
            .pull(&url.parse().unwrap(), &options, &mut NoReport)
            .unwrap_err();
        assert!(matches!(
            reason(error),
            DownloadReason::TooLarge { limit: 1_048_576 }
        ));
    }
    options.offline = true;
    let error = fixture
        .store
        .pull(&url.parse().unwrap(), &options, &mut NoReport)
        .unwrap_err();
    assert!(matches!(reason(error), DownloadReason::Offline));
    assert_eq!(fixture.left("blobs"), Vec::<String>::new());
    assert_eq!(fixture.left("refs"), Vec::<String>::new());
}

#[test]
fn a_silent_server_is_given_up_and_a_cancel_ends_the_wait() {
    let fixture = Fixture::new();
    // So long that only a limit of ours can end the wait.
    let silence = Duration::from_secs(600);
    let server = Server::start(Behaviour {
        body: Arc::new(disk()),
        pause: silence,
        ..Behaviour::default()
    });
    let mut options = fixture.options();
    options.idle_timeout = Duration::from_secs(1);
    let url = server.url("disk.raw");
    let start = Instant::now();
    let error = fixture.pull_with(&url, &options).unwrap_err();
    assert!(matches!(
        reason(error),
        DownloadReason::CutShort { received: 0, .. } | DownloadReason::Stalled(1)
    ));
    assert!(start.elapsed() >= options.idle_timeout);
    assert!(start.elapsed() < silence / 10);
    options.idle_timeout = silence;
    options.cancel = Cancel::default();
    let cancel = options.cancel.clone();
    let cancelled = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        cancel.cancel();
        Instant::now()
    });
    let error = fixture.pull_with(&url, &options).unwrap_err();
    let end = Instant::now();
    assert!(matches!(error, ImageError::Cancelled));
    assert!(end.duration_since(cancelled.join().unwrap()) < options.idle_timeout / 10);
}

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let fixture = Fixture::new();
    let body = Arc::new(disk());
    let server = Server::start(Behaviour {
        body,
        etag: Some("\"v1\"".into()),
        cut: Some(1 << 20),
        ..Behaviour::default()
    });
    let url = server.url("disk.raw");
    assert!(matches!(
        reason(fixture.pull(&url).unwrap_err()),
        DownloadReason::CutShort {
            received: 1_048_576,
            ..
        }
    ));
    server.seen();
    let mut options = fixture.options();
    options.checksum = Some(sha256(&disk()));
    options.retries = 2;
    let mut log = Log::default();
    let image = fixture
        .store
        .pull(&url.parse().unwrap(), &options, &mut log)
        .unwrap();
    assert!(fs::read(image.path()).unwrap() == disk());
    let seen = server.seen();
    assert!(
        seen[0].contains("range: bytes=1048576-") && seen[0].contains("if-range: \"v1\""),
        "{seen:?}"
    );
    assert!(seen[1].contains("range: bytes=2097152-"), "{seen:?}");
    assert!(
        log.notices[0].contains("trying again from byte 2097152"),
        "{:?}",
        log.notices
    );
    assert_eq!(log.open, 0);

    // The file changes between two parts: the whole of the new one is taken.
    let fixture = Fixture::new();
    assert!(fixture.pull(&url).is_err());
    let mut other = disk();
    other[9999] = 9;
    server.change(|b| {
        (b.body, b.etag, b.cut) = (Arc::new(other.clone()), Some("\"v2\"".into()), None)
    });
    assert!(fs::read(fixture.pull(&url).unwrap().path()).unwrap() == other);
}

#[test]
fn a_complete_part_is_not_downloaded_again() {
    let fixture = Fixture::new();
    let body = Arc::new(disk());
    let server = Server::start(Behaviour {
        body,
        etag: Some("\"v1\"".into()),
        cut: Some(3_000_000),
        ..Behaviour::default()
    });
    let url = server.url("disk.raw");
    fixture.pull(&url).unwrap_err();
    let data = fixture
        .left("partial")
        .into_iter()
        .find(|name| name.ends_with(".data"))
        .unwrap();
    fs::write(fixture.dir.path().join("store/partial").join(data), disk()).unwrap();
    server.change(|b| b.cut = None);
    server.seen();
    assert!(fs::read(fixture.pull(&url).unwrap().path()).unwrap() == disk());
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn redirects_are_followed_ten_times_and_credentials_stay_with_their_host() {
    let fixture = Fixture::new();
    let file = Behaviour {
        body: Arc::new(disk()),
        ..Behaviour::default()
    };
    let redirect = |to: String| Behaviour {
        redirect: Some(to),
        ..Behaviour::default()
    };
    let other = Server::start(Behaviour {
        files: Some([("disk.raw".to_owned(), file.clone())].into()),
        ..Behaviour::default()
    });
    // `1` leads to the file by ten redirects, `0` by eleven.
    let mut files: BTreeMap<String, Behaviour> = (0..11)
        .map(|index| (index.to_string(), redirect(format!("/{}", index + 1))))
        .collect();
    files.insert("11".to_owned(), file);
    files.insert("here".to_owned(), redirect("/11".to_owned()));
    files.insert("there".to_owned(), redirect(other.url("disk.raw")));
    files.insert("circle".to_owned(), redirect("/elcric".to_owned()));
    files.insert("elcric".to_owned(), redirect("/circle".to_owned()));
    let server = Server::start(Behaviour {
        files: Some(files),
        ..Behaviour::default()
    });
    for path in ["0", "circle"] {
        let error = fixture.pull(&server.url(path)).unwrap_err();
        assert!(error.hint().is_some());
        assert!(matches!(reason(error), DownloadReason::Redirects(10)));
        assert_eq!(server.seen().len(), 11, "{path}");
    }
    fixture.pull(&server.url("1")).unwrap();
    assert_eq!(server.seen().len(), 11);
    let with_password = |path| server.url(path).replace("//", "//user:s3cret@");
    let has_password = |head: &String| head.contains("authorization: basic dxnlcjpzm2nyzxq=");
    fixture.pull(&with_password("here")).unwrap();
    assert!(server.seen().iter().all(has_password));
    fixture.pull(&with_password("there")).unwrap();
    assert!(server.seen().iter().all(has_password));
    let seen = other.seen();
    assert_eq!(seen.len(), 1);
    assert!(!seen[0].contains("authorization"), "{seen:?}");
}
