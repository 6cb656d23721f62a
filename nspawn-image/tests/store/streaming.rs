//! Servers that fail while the image is made beside its download.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nspawn_image::qcow2::Qcow2Error;
use nspawn_image::{DownloadReason, ErrorKind, Image, ImageError};

use super::fixture::{Fixture, Log, noise, qcow2_of, reason, sha256};
use super::support::{Behaviour, Server};

/// Where a download is cut: some clusters have come by then, and most have not.
const CUT: usize = 500_000;

/// A disk and the image of it, whose clusters stand in order.
struct Streamed {
    raw: Vec<u8>,
    packed: Arc<Vec<u8>>,
}

impl Streamed {
    fn new(seed: u64) -> Self {
        Self::of(4 << 20, seed)
    }

    fn of(length: usize, seed: u64) -> Self {
        let raw = noise(length, seed);
        let packed = Arc::new(qcow2_of(&raw, &["-c"]));
        assert!(packed.len() > 3 * CUT, "{} bytes", packed.len());
        Self { raw, packed }
    }

    fn behaviour(&self) -> Behaviour {
        Behaviour {
            body: Arc::clone(&self.packed),
            etag: Some("\"v1\"".into()),
            ..Behaviour::default()
        }
    }

    #[track_caller]
    fn assert_is(&self, image: &Image) {
        assert!(fs::read(image.path()).unwrap() == self.raw);
    }
}

/// The image cut once, and what comes afterwards.
fn cut_then(image: &Streamed, then: Behaviour) -> Server {
    let first = Behaviour {
        cut: Some(CUT),
        ..image.behaviour()
    };
    Server::start(Behaviour {
        turns: vec![first],
        ..then
    })
}

/// From which byte each request was.
fn ranges(server: &Server) -> Vec<usize> {
    let from = |head: &String| {
        let (_, rest) = head.split_once("range: bytes=")?;
        rest.split_once('-')?.0.parse().ok()
    };
    let seen = server.seen();
    seen.iter().map(|head| from(head).unwrap_or(0)).collect()
}

#[test]
fn a_stall_a_cut_and_a_server_that_fails_are_gone_on_from() {
    let image = Streamed::new(1);
    let stalls = Behaviour {
        stall: Some(CUT),
        ..image.behaviour()
    };
    let fails = Behaviour {
        status: Some(503),
        ..Behaviour::default()
    };
    let cut = Behaviour {
        cut: Some(CUT),
        ..image.behaviour()
    };
    let server = Server::start(Behaviour {
        turns: vec![stalls, fails, cut],
        ..image.behaviour()
    });
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.retries = 3;
    options.idle_timeout = Duration::from_secs(1);
    options.checksum = Some(sha256(&image.packed));
    let mut log = Log::default();
    let url = server.url("disk.qcow2").parse().unwrap();
    let pulled = fixture.store.pull(&url, &options, &mut log).unwrap();
    image.assert_is(&pulled);
    assert_eq!(ranges(&server), [0, CUT, CUT, 2 * CUT]);
    for (notice, text) in log.notices.iter().zip([
        "sent nothing for 1 s: trying again from byte 500000",
        "HTTP 503",
        "cut short",
    ]) {
        assert!(notice.contains(text), "{notice}");
    }
    assert_eq!((log.notices.len(), log.open), (3, 0));
    assert_eq!(server.sent.load(Ordering::Relaxed), image.packed.len());
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
}

#[test]
fn a_server_that_starts_anew_on_its_port_is_waited_for() {
    let image = Streamed::new(1);
    let first = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = first.local_addr().unwrap();
    let server = Server::start(image.behaviour());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = first.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            let length = image.packed.len();
            let head =
                format!("HTTP/1.1 200 OK\r\netag: \"v1\"\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&image.packed[..CUT]).unwrap();
            // Nobody listens for a second.
            drop(first);
            drop(stream);
            std::thread::sleep(Duration::from_secs(1));
            server.listen(TcpListener::bind(address).unwrap());
        });
        let fixture = Fixture::new();
        let mut options = fixture.options();
        options.retries = 2;
        let pulled = fixture.pull_with(&format!("http://{address}/disk.qcow2"), &options);
        image.assert_is(&pulled.unwrap());
    });
    assert_eq!(ranges(&server), [CUT]);
}

#[test]
fn a_file_that_changes_between_two_parts_is_taken_anew() {
    let (old, new) = (Streamed::new(1), Streamed::new(2));
    let changed = || Behaviour {
        body: Arc::clone(&new.packed),
        etag: Some("\"v2\"".into()),
        ..Behaviour::default()
    };
    let mut longer = new.packed.to_vec();
    longer.resize(longer.len() + 4096, 0);
    let table = [
        (
            "a part of another version",
            [0, CUT, 0].as_slice(),
            Behaviour {
                careless: true,
                ..changed()
            },
        ),
        (
            "a part of a file of another length",
            &[0, CUT, 0],
            Behaviour {
                careless: true,
                etag: Some("\"v1\"".into()),
                body: Arc::new(longer),
                ..Behaviour::default()
            },
        ),
        (
            "HTTP 412",
            &[0, CUT, 0],
            Behaviour {
                range_status: Some(412),
                ..changed()
            },
        ),
        (
            "HTTP 416",
            &[0, CUT, 0],
            Behaviour {
                range_status: Some(416),
                ..changed()
            },
        ),
        ("the whole of it", &[0, CUT], changed()),
        (
            "no ranges",
            &[0, CUT],
            Behaviour {
                no_ranges: true,
                ..changed()
            },
        ),
    ];
    for (what, requests, then) in table {
        let server = cut_then(&old, then);
        let fixture = Fixture::new();
        let mut options = fixture.options();
        options.retries = 1;
        let pulled = fixture.pull_with(&server.url("disk.qcow2"), &options);
        new.assert_is(&pulled.unwrap_or_else(|error| panic!("{what}: {error:?}")));
        assert_eq!(ranges(&server), requests, "{what}");
        assert_eq!(fixture.left("partial"), Vec::<String>::new(), "{what}");
        // The image and its checksums.
        assert_eq!(fixture.left("blobs").len(), 2, "{what}");
    }
}

#[test]
fn only_a_strong_validator_continues_a_file() {
    let image = Streamed::new(1);
    let changed = Streamed::new(2);
    let date = |day: u32| Some(format!("Mon, 0{day} Jan 2024 00:00:00 GMT"));
    // A weak ETag says nothing of the bytes: what came is of no use.
    let weak = Behaviour {
        etag: Some("W/\"v1\"".into()),
        careless: true,
        ..image.behaviour()
    };
    let cut = |behaviour: &Behaviour| Behaviour {
        cut: Some(CUT),
        ..behaviour.clone()
    };
    let server = Server::start(Behaviour {
        turns: vec![cut(&weak)],
        ..weak.clone()
    });
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.retries = 2;
    let url = server.url("disk.qcow2");
    let error = fixture.pull_with(&url, &options).unwrap_err();
    assert!(matches!(
        reason(error),
        DownloadReason::CutShort {
            received: CUT_BYTES,
            ..
        }
    ));
    image.assert_is(&fixture.pull_with(&url, &options).unwrap());
    assert_eq!(ranges(&server), [0, 0]);

    // A date does, as long as it stays the same.
    let dated = |image: &Streamed, day| Behaviour {
        etag: None,
        last_modified: date(day),
        careless: true,
        ..image.behaviour()
    };
    for (then, requests, result) in [
        (dated(&image, 1), &[0, CUT][..], &image),
        (dated(&changed, 2), &[0, CUT, 0], &changed),
    ] {
        let server = Server::start(Behaviour {
            turns: vec![cut(&dated(&image, 1))],
            ..then
        });
        let fixture = Fixture::new();
        result.assert_is(
            &fixture
                .pull_with(&server.url("disk.qcow2"), &options)
                .unwrap(),
        );
        assert_eq!(ranges(&server), requests);
    }
}

const CUT_BYTES: u64 = CUT as u64;

#[test]
fn no_lie_about_the_length_makes_an_image() {
    let image = Streamed::new(1);
    let total = image.packed.len();
    let nameless = || Behaviour {
        etag: None,
        ..image.behaviour()
    };
    let longer = Behaviour {
        length: Some(total + 1000),
        ..nameless()
    };
    let shorter = Behaviour {
        length: Some(total - 100_000),
        ..nameless()
    };
    let unknown = Behaviour {
        no_length: true,
        cut: Some(total / 2),
        ..nameless()
    };
    for (what, behaviour) in [
        ("longer", longer),
        ("shorter", shorter),
        ("unknown", unknown),
    ] {
        let server = Server::start(behaviour);
        let fixture = Fixture::new();
        let error = fixture.pull(&server.url("disk.qcow2")).unwrap_err();
        match error {
            ImageError::Download(error) => assert!(
                what == "longer"
                    && matches!(error.reason, DownloadReason::CutShort { received, .. } if received == total as u64),
                "{what}: {error:?}"
            ),
            error => {
                let text = format!("{error:?}");
                assert!(
                    what != "longer" && text.contains("Truncated"),
                    "{what}: {text}"
                );
                assert_eq!(error.kind(), ErrorKind::Input);
            }
        }
        assert_eq!(
            (fixture.left("blobs"), fixture.left("refs")),
            (vec![], vec![])
        );
        let made = |name: &String| !name.ends_with(".data") && !name.ends_with(".json");
        assert!(!fixture.left("partial").iter().any(made), "{what}");
        // A digest finds each of them, and the image is taken where a second request tells the truth.
        let server = cut_then(&image, image.behaviour());
        let mut options = fixture.options();
        (options.retries, options.checksum) = (1, Some(sha256(&image.packed)));
        image.assert_is(
            &fixture
                .pull_with(&server.url("disk.qcow2"), &options)
                .unwrap(),
        );
    }
}

#[test]
fn bytes_that_turn_out_wrong_at_the_end_publish_nothing() {
    let image = Streamed::new(1);
    let server = Server::start(Behaviour {
        rate: Some(4 << 20),
        ..image.behaviour()
    });
    let fixture = Fixture::new();
    let mut options = fixture.options();
    options.checksum = Some(sha256(b"other"));
    let error = fixture
        .pull_with(&server.url("disk.qcow2"), &options)
        .unwrap_err();
    assert!(matches!(error, ImageError::Mismatch { .. }), "{error:?}");
    fixture.assert_empty();
    // An import that takes long is ended, not waited for: gigabytes of zeros in a file that arrives at once.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&noise(64 << 10, 1)).unwrap();
    for _ in 0..3 << 10 {
        packed.write_all(&[0; 1 << 20]).unwrap();
    }
    let server = Server::start(Behaviour {
        body: Arc::new(packed.finish().unwrap()),
        ..Behaviour::default()
    });
    options.checksum = None;
    let whole = Instant::now();
    drop(fixture.pull_with(&server.url("disk.gz"), &options).unwrap());
    let whole = whole.elapsed();
    options.checksum = Some(sha256(b"other"));
    fixture.store.remove(&"disk".parse().unwrap()).unwrap();
    let wrong = Instant::now();
    let error = fixture
        .pull_with(&server.url("disk.gz"), &options)
        .unwrap_err();
    assert!(matches!(error, ImageError::Mismatch { .. }), "{error:?}");
    assert!(
        wrong.elapsed() < whole / 2,
        "{:?} of {whole:?}",
        wrong.elapsed()
    );
    fixture.assert_empty();
}

/// The cluster that is damaged: one of the first.
const DAMAGED: u64 = 8;

/// Where the stream of a compressed cluster begins. Source: qcow2.txt, "L2 table entry".
fn cluster_at(image: &[u8], index: u64) -> usize {
    let number = |at: usize| {
        let bytes = image[at..at + 8].try_into().unwrap();
        u64::from_be_bytes(bytes)
    };
    let offset = |entry: u64| (entry & 0x00ff_ffff_ffff_fe00) as usize;
    let table = offset(number(offset(number(40))));
    let entry = number(table + 8 * index as usize);
    assert!(
        entry >> 62 == 1,
        "cluster {index} is not compressed: {entry:x}"
    );
    (entry & ((1 << 54) - 1)) as usize
}

#[test]
fn damage_is_told_early_and_whose_it_is() {
    let image = Streamed::of(24 << 20, 1);
    let mut damaged = image.packed.to_vec();
    // Deflate has no checksum of its own: only where a stream begins is damage sure to be found.
    let at = cluster_at(&damaged, DAMAGED);
    damaged[at..at + 64].fill(0xff);
    let digest = sha256(&damaged);
    let total = damaged.len();
    // The damage is in the first 2 MiB of the disk, which take less; another thread waits for what never comes.
    let server = Server::start(Behaviour {
        body: Arc::new(damaged),
        stall: Some(2 << 20),
        ..Behaviour::default()
    });
    let fixture = Fixture::new();
    let url = server.url("disk.qcow2");
    let is_place = |error: &ImageError| {
        matches!(error, ImageError::Qcow2 { source: Qcow2Error::Compressed { guest, host }, .. }
            if (*guest, *host) == (DAMAGED << 16, at as u64))
    };
    let error = fixture.pull(&url).unwrap_err();
    assert!(is_place(&error), "{error:?}");
    assert!(error.hint().unwrap().contains("again"), "{error:?}");
    let sent = server.sent.swap(0, Ordering::Relaxed);
    assert!(sent < total * 3 / 4, "{sent} of {total} bytes were sent");
    fixture.assert_empty();

    let mut options = fixture.options();
    server.change(|behaviour| behaviour.stall = None);
    options.checksum = Some(digest);
    let error = fixture.pull_with(&url, &options).unwrap_err();
    assert!(
        matches!(&error, ImageError::PublishedDamaged { source, .. } if is_place(source)),
        "{error:?}"
    );
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(
        error.to_string().contains("its checksum is right"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("publisher"));
    fixture.assert_empty();

    options.checksum = Some(sha256(&image.packed));
    let error = fixture.pull_with(&url, &options).unwrap_err();
    assert!(matches!(error, ImageError::Mismatch { .. }), "{error:?}");
    fixture.assert_empty();
}
