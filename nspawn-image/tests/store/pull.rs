//! What a pull brings into the store, and what it finds there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use nspawn_image::{Digest, ImageError, ImageKind, NoReport, Store};

use super::fixture::{Fixture, qcow2_of, sha256};
use super::support::{Behaviour, Server, disk};

#[test]
fn a_url_is_downloaded_once_and_converted() {
    let fixture = Fixture::new();
    let body = qcow2_of(&disk(), &["-c"]);
    let server = Server::start(Behaviour {
        body: Arc::new(body.clone()),
        etag: Some("\"v1\"".into()),
        ..Behaviour::default()
    });
    let url = server.url("debian-12.qcow2?token=s3cret");
    let image = fixture.pull(&url).unwrap();
    assert_eq!(image.kind(), ImageKind::Disk);
    assert_eq!(image.digest(), Some(sha256(&body)));
    assert_eq!(image.name().unwrap().as_str(), "debian-12");
    assert!(fs::read(image.path()).unwrap() == disk());
    let metadata = fs::metadata(image.path()).unwrap();
    assert!(
        metadata.blocks() * 512 < 2 << 20,
        "{} blocks",
        metadata.blocks()
    );
    assert_eq!(metadata.mode() & 0o222, 0);
    assert_eq!(image.root_partition().unwrap().number, None);
    assert_eq!(server.seen().len(), 1);
    assert_eq!(fixture.pull(&url).unwrap().path(), image.path());
    assert_eq!(
        server.seen().len(),
        0,
        "what is there is used without the network"
    );
    let mut options = fixture.options();
    options.refresh = true;
    fixture
        .store
        .pull(&url.parse().unwrap(), &options, &mut NoReport)
        .unwrap();
    assert!(server.seen()[0].contains("if-none-match: \"v1\""));
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
    let record = fs::read_to_string(fixture.dir.path().join("store/refs/debian-12.json")).unwrap();
    assert!(!record.contains("s3cret"), "{record}");
    let by_name = fixture.pull("debian-12").unwrap();
    assert_eq!(by_name.path(), image.path());
    server.change(|b| {
        let mut other = disk();
        other[2000] = 1;
        b.body = Arc::new(other);
        b.etag = Some("\"v2\"".into());
    });
    let newer = fixture
        .store
        .pull(&url.parse().unwrap(), &options, &mut NoReport)
        .unwrap();
    assert_ne!(newer.path(), image.path());
    assert!(
        image.path().exists(),
        "a refresh never touches an image in use"
    );
}

#[test]
fn a_wrong_checksum_shows_both_and_publishes_nothing() {
    let fixture = Fixture::new();
    let server = Server::start(Behaviour {
        body: Arc::new(disk()),
        ..Behaviour::default()
    });
    let raw = fixture.file("disk.raw", &disk());
    let image = qcow2_of(&disk(), &["-c"]);
    let packed = fixture.file("disk.qcow2", &image);
    let mut options = fixture.options();
    for wrong in [sha256(b"other"), Digest::Sha512([7; 64])] {
        options.checksum = Some(wrong);
        for reference in [server.url("disk.raw"), raw.clone(), packed.clone()] {
            let error = fixture
                .store
                .pull(&reference.parse().unwrap(), &options, &mut NoReport)
                .unwrap_err();
            assert!(error.to_string().contains(&wrong.to_string()), "{error}");
            assert!(
                matches!(error, ImageError::Mismatch { expected, actual, .. } if *expected == wrong && *actual != wrong)
            );
        }
    }
    assert_eq!(
        (fixture.left("blobs"), fixture.left("refs")),
        (vec![], vec![])
    );
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
    // What is stored under a URL is not taken for what is asked for now.
    let url = server.url("disk.raw");
    fixture.pull(&url).unwrap();
    assert!(matches!(
        fixture
            .store
            .pull(&url.parse().unwrap(), &options, &mut NoReport),
        Err(ImageError::Mismatch { .. })
    ));
    options.checksum = Some(sha256(&disk()));
    fixture
        .store
        .pull(&url.parse().unwrap(), &options, &mut NoReport)
        .unwrap();
}

#[test]
fn two_pulls_of_one_url_are_one_download() {
    let fixture = Fixture::new();
    let body = Arc::new(disk());
    let server = Server::start(Behaviour {
        body,
        pause: Duration::from_millis(400),
        ..Behaviour::default()
    });
    let url = server.url("disk.raw");
    let paths: Vec<_> = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| fixture.pull(&url).unwrap().path().to_owned()))
            .collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
    });
    assert!(paths.iter().all(|path| *path == paths[0]));
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn what_a_killed_import_left_is_swept() {
    let fixture = Fixture::new();
    let partial = fixture.dir.path().join("store/partial");
    fs::write(partial.join("abc.raw"), "half").unwrap();
    fs::create_dir(partial.join("def.tree")).unwrap();
    fs::write(partial.join("url.data"), "a download that can go on").unwrap();
    Store::open(fixture.dir.path().join("store")).unwrap();
    assert_eq!(fixture.left("partial"), ["url.data"]);
}
