//! The store against a real server on the loopback and real files.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nspawn_image::{
    Cancel, Digest, DownloadReason, ErrorKind, Image, ImageError, ImageKind, NoReport, PullOptions,
    Reporter, StepId, StepKind, Store, Verify,
};
use support::{Behaviour, Server, disk};

fn qcow2(dir: &Path) -> Vec<u8> {
    let (raw, packed) = (dir.join("made.raw"), dir.join("made.qcow2"));
    fs::write(&raw, disk()).unwrap();
    let status = std::process::Command::new("qemu-img")
        .args(["convert", "-c", "-O", "qcow2"])
        .args([&raw, &packed])
        .status()
        .expect("qemu-img is needed (package qemu-utils)");
    assert!(status.success());
    fs::read(packed).unwrap()
}

fn sha256(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::Sha256(sha2::Sha256::digest(bytes).into())
}

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    fn options(&self) -> PullOptions {
        let mut options = PullOptions::default();
        options.machines_dir = self.dir.path().join("machines");
        options.retries = 0;
        // The server answers any path with the image: what stands beside one is the matter of other tests.
        options.verify = Verify::No;
        options.idle_timeout = Duration::from_secs(5);
        options
    }

    fn pull(&self, reference: &str) -> Result<Image, ImageError> {
        self.store
            .pull(&reference.parse().unwrap(), &self.options(), &mut NoReport)
    }

    /// Files under `folder` of the store, without locks.
    fn left(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path().join("store").join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.ends_with(".lock")).collect();
        names.sort();
        names
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn reason(error: ImageError) -> DownloadReason {
    match error {
        ImageError::Download(error) => error.reason,
        other => panic!("not a download error: {other}"),
    }
}

#[test]
fn a_url_is_downloaded_once_and_converted() {
    let fixture = Fixture::new();
    let body = qcow2(fixture.dir.path());
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
    let body = Arc::new(disk());
    let server = Server::start(Behaviour {
        body,
        pause: Duration::from_secs(20),
        ..Behaviour::default()
    });
    let mut options = fixture.options();
    options.idle_timeout = Duration::from_secs(1);
    let url = server.url("disk.raw").parse().unwrap();
    let start = Instant::now();
    let error = fixture
        .store
        .pull(&url, &options, &mut NoReport)
        .unwrap_err();
    assert!(matches!(
        reason(error),
        DownloadReason::CutShort { received: 0, .. } | DownloadReason::Stalled(1)
    ));
    options.idle_timeout = Duration::from_secs(60);
    options.cancel = Cancel::default();
    let cancel = options.cancel.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        cancel.cancel();
    });
    let error = fixture
        .store
        .pull(&url, &options, &mut NoReport)
        .unwrap_err();
    assert!(matches!(error, ImageError::Cancelled));
    assert!(start.elapsed() < Duration::from_secs(5));
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

#[derive(Default)]
struct Log {
    notices: Vec<String>,
    steps: Vec<StepKind>,
    open: i32,
}

impl Reporter for Log {
    fn begin(&mut self, kind: StepKind, _: &str, _: Option<u64>) -> StepId {
        self.steps.push(kind);
        self.open += 1;
        StepId(self.steps.len() as u64)
    }

    fn end(&mut self, _: StepId) {
        self.open -= 1;
    }

    fn notice(&mut self, text: &str) {
        self.notices.push(text.to_owned());
    }
}

#[test]
fn a_wrong_checksum_shows_both_and_publishes_nothing() {
    let fixture = Fixture::new();
    let server = Server::start(Behaviour {
        body: Arc::new(disk()),
        ..Behaviour::default()
    });
    let raw = fixture.file("disk.raw", &disk());
    let image = qcow2(fixture.dir.path());
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
fn local_files_in_every_format() {
    let fixture = Fixture::new();
    let raw = disk();
    let image = qcow2(fixture.dir.path());
    let in_place = fixture.pull(&fixture.file("a.raw", &raw)).unwrap();
    assert!(in_place.path().ends_with("a.raw") && in_place.lock().is_none());
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let xz = |bytes: &[u8]| {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let bzip2 = |bytes: &[u8]| {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let tar = |name: &str, bytes: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
        builder.into_inner().unwrap()
    };
    let forms = [
        ("b.qcow2", image.clone()),
        ("c.raw.gz", gzip(&raw)),
        ("d.raw.xz", xz(&raw)),
        ("e.raw.zst", zstd::encode_all(&raw[..], 1).unwrap()),
        ("f.raw.bz2", bzip2(&raw)),
        ("g.qcow2.xz", xz(&image)),
        ("h.tar.xz", xz(&tar("disk.raw", &raw))),
        ("i.tar", tar("./disk.qcow2", &image)),
    ];
    for (name, bytes) in forms {
        let path = fixture.file(name, &bytes);
        let image = fixture
            .pull(&path)
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(fs::read(image.path()).unwrap() == raw, "{name}");
        assert_eq!(image.digest(), Some(sha256(&bytes)));
        let mut log = Log::default();
        fixture
            .store
            .pull(&path.parse().unwrap(), &fixture.options(), &mut log)
            .unwrap();
        assert!(
            log.steps.is_empty(),
            "{name} is known by its identity: {:?}",
            log.steps
        );
    }
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
}

#[test]
fn trees_from_folders_and_archives() {
    let fixture = Fixture::new();
    let tree = fixture.dir.path().join("machines/tree");
    fs::create_dir_all(tree.join("usr/lib")).unwrap();
    let error = fixture.pull(tree.to_str().unwrap()).unwrap_err();
    assert!(matches!(
        error,
        ImageError::NoTree {
            missing: "usr/lib/os-release",
            ..
        }
    ));
    fs::write(tree.join("usr/lib/os-release"), "ID=test\n").unwrap();
    let by_name = fixture.pull("tree").unwrap();
    assert_eq!(
        (by_name.kind(), by_name.path()),
        (ImageKind::Tree, fs::canonicalize(&tree).unwrap().as_path())
    );
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all("./", &tree).unwrap();
    let path = fixture.file("os.tar", &builder.into_inner().unwrap());
    let image = fixture.pull(&path).unwrap();
    assert_eq!(image.kind(), ImageKind::Tree);
    assert_eq!(
        fs::read(image.path().join("usr/lib/os-release")).unwrap(),
        b"ID=test\n"
    );
    let listed = fixture.store.list().unwrap();
    assert_eq!(
        (listed.len(), listed[0].name.as_str(), listed[0].in_use),
        (1, "os", true)
    );
    let name = image.name().unwrap().clone();
    assert!(matches!(
        fixture.store.remove(&name),
        Err(ImageError::InUse { .. })
    ));
    let blob = image.path().to_owned();
    drop(image);
    fixture.store.remove(&name).unwrap();
    assert!(!blob.exists());
    assert!(matches!(
        fixture.pull("os"),
        Err(ImageError::UnknownName { .. })
    ));
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
}

#[test]
fn what_is_no_image_is_named() {
    let fixture = Fixture::new();
    let table: [(&str, &[u8], &str); 6] = [
        ("empty", b"", "an empty file"),
        ("text", b"hello, world\n", "a text file"),
        ("page", b"<html>", "a web page"),
        ("random", &[0xa5; 5000], "neither a partition table"),
        ("disk.vhdx", b"vhdxfile", "Hyper-V"),
        ("disk.zip", b"PK\x03\x04", "zip"),
    ];
    for (name, bytes, text) in table {
        let error = fixture.pull(&fixture.file(name, bytes)).unwrap_err();
        assert!(
            error.to_string().contains(text) && error.to_string().contains(name),
            "{error}"
        );
        assert_eq!(error.kind(), ErrorKind::Input);
    }
    assert!(matches!(
        fixture.pull("./no/such/file"),
        Err(ImageError::Missing(_))
    ));
    let refused = reason(fixture.pull("oci:127.0.0.1:1/debian:12").unwrap_err());
    assert!(matches!(refused, DownloadReason::Refused(_)), "{refused}");
    let mut image = qcow2(fixture.dir.path());
    image.truncate(image.len() / 2);
    let error = fixture
        .pull(&fixture.file("cut.qcow2", &image))
        .unwrap_err();
    assert!(
        matches!(&error, ImageError::Qcow2 { source, .. } if source.to_string().contains("cut short")),
        "{error:?}"
    );
    let mut bytes = zstd::encode_all(&disk()[..], 1).unwrap();
    bytes.truncate(bytes.len() - 9);
    let error = fixture.pull(&fixture.file("cut.zst", &bytes)).unwrap_err();
    assert!(matches!(error, ImageError::Unpack { .. }), "{error:?}");
    assert_eq!(
        (fixture.left("blobs"), fixture.left("partial")),
        (vec![], vec![])
    );
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

const CHILD_STORE: &str = "NSPAWN_IMAGE_TEST_STORE";
const CHILD_URL: &str = "NSPAWN_IMAGE_TEST_URL";

/// No test of its own: the process that the next one kills.
#[test]
#[ignore = "started by a_pull_killed_at_any_time_leaves_a_store_that_works"]
fn pull_in_a_child() {
    let (Ok(store), Ok(url)) = (std::env::var(CHILD_STORE), std::env::var(CHILD_URL)) else {
        return;
    };
    let store = Store::open(store).unwrap();
    store
        .pull(
            &url.parse().unwrap(),
            &PullOptions::default(),
            &mut NoReport,
        )
        .unwrap();
}

#[test]
fn a_pull_killed_at_any_time_leaves_a_store_that_works() {
    let fixture = Fixture::new();
    let body = Arc::new(qcow2(fixture.dir.path()));
    let behaviour = Behaviour {
        body,
        etag: Some("\"v\"".into()),
        pause: Duration::from_millis(30),
        ..Behaviour::default()
    };
    let server = Server::start(behaviour);
    let url = server.url("disk.qcow2");
    let store = fixture.dir.path().join("store");
    let mut killed = 0;
    for round in 0..40 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pull_in_a_child", "--ignored", "--quiet"])
            .env(CHILD_STORE, &store)
            .env(CHILD_URL, &url)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(20 + round * 3));
        killed += u32::from(child.try_wait().unwrap().is_none());
        let _ = child.kill();
        child.wait().unwrap();
        // Absent or complete, at any time.
        for image in fixture.store.list().unwrap() {
            assert!(fs::read(&image.path).unwrap() == disk());
            fixture.store.remove(&image.name).unwrap();
        }
    }
    assert!(
        killed > 5,
        "{killed} of 40 were killed before they were done"
    );
    Store::open(&store).unwrap();
    assert!(fs::read(fixture.pull(&url).unwrap().path()).unwrap() == disk());
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
    assert_eq!(fixture.left("blobs").len(), 1);
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

/// A file system of 2 MiB that ends with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "needs root: run `cargo xtask test` as root"
        );
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "small"])
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(mounted.success());
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg(self.0.path())
            .status();
    }
}

#[test]
#[ignore = "needs root"]
fn root_a_full_disk_is_said_and_nothing_is_left_on_it() {
    let mut noise = disk();
    let mut state = 1_u64;
    for byte in &mut noise[4096..] {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let small = SmallDisk::mount();
    let mut fixture = Fixture::new();
    let local = fixture.file("noise.raw.zst", &zstd::encode_all(&noise[..], 1).unwrap());
    let server = Server::start(Behaviour {
        body: Arc::new(noise),
        etag: Some("\"v\"".into()),
        ..Behaviour::default()
    });
    fixture.store = Store::open(small.0.path().join("store")).unwrap();
    for reference in [server.url("disk.raw"), local] {
        let error = fixture.pull(&reference).unwrap_err();
        assert!(matches!(error, ImageError::NoSpace { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Host);
        for folder in ["blobs", "refs", "partial"] {
            let entries = fs::read_dir(small.0.path().join("store").join(folder))
                .unwrap()
                .flatten();
            let left: Vec<_> = entries
                .filter(|entry| entry.path().extension().is_none_or(|end| end != "lock"))
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}
