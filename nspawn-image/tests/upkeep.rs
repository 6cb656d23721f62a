//! The store over time: damage found, room made, images refreshed and shown to machined, by several processes at once.

#[path = "support/fixture.rs"]
mod fixture;
mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use nspawn_image::{
    Cancel, Damage, DownloadReason, Image, ImageError, ImageName, ImageRef, NoReport, PruneOptions,
    PrunedKind, PullOptions, Soundness, Store, Verify,
};
use support::{Behaviour, Server, disk};

/// A store, and a server of disks that differ in their last byte.
struct Fixture {
    here: fixture::Fixture,
    server: Server,
}

impl std::ops::Deref for Fixture {
    type Target = fixture::Fixture;

    fn deref(&self) -> &Self::Target {
        &self.here
    }
}

impl Fixture {
    fn new() -> Self {
        let here = fixture::Fixture::new();
        let server = Server::start(Behaviour {
            files: Some(BTreeMap::new()),
            ..Behaviour::default()
        });
        Self { here, server }
    }

    /// Puts a disk whose last byte is `mark` on the server.
    fn serve(&self, path: &str, mark: u8) -> String {
        let mut body = disk();
        *body.last_mut().unwrap() = mark;
        let file = Behaviour {
            body: Arc::new(body),
            etag: Some(format!("\"{mark}\"")),
            ..Behaviour::default()
        };
        self.server.change(|behaviour| {
            behaviour
                .files
                .get_or_insert_default()
                .insert(path.to_owned(), file);
        });
        self.server.url(path)
    }

    fn options() -> PullOptions {
        let mut options = PullOptions::default();
        options.verify = Verify::No;
        options.retries = 0;
        options
    }

    fn pull(&self, url: &str) -> Image {
        let reference: ImageRef = url.parse().unwrap();
        self.store
            .pull(&reference, &Self::options(), &mut NoReport)
            .unwrap()
    }

    fn verify(&self, name: &str) -> Result<Soundness, ImageError> {
        self.store
            .verify(&name.parse().unwrap(), &Cancel::default(), &mut NoReport)
    }

    /// Removes what `change` asks for, that which is new too; what was removed, and of which kind.
    fn prune(&self, change: impl FnOnce(&mut PruneOptions)) -> Vec<(PrunedKind, String)> {
        let mut options = PruneOptions::default();
        options.spare = Duration::ZERO;
        change(&mut options);
        let report = self.store.prune(&options, &mut NoReport).unwrap();
        let removed = report.removed.iter();
        removed
            .map(|removed| (removed.kind, removed.name.clone()))
            .collect()
    }

    fn names(&self) -> Vec<String> {
        let images = self.store.list().unwrap();
        images.iter().map(|image| image.name.to_string()).collect()
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("store").join(below)
    }

    /// Makes an image look as if it was used last so many days ago.
    fn age(&self, name: &str, days: u64) {
        let record = File::open(self.path(&format!("refs/{name}.json"))).unwrap();
        let text = fs::read_to_string(self.path(&format!("refs/{name}.json"))).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["created"] = 0.into();
        fs::write(self.path(&format!("refs/{name}.json")), value.to_string()).unwrap();
        record
            .set_modified(SystemTime::now() - Duration::from_secs(days * 86400))
            .unwrap();
    }
}

/// A tree with what a copy may get wrong.
fn tree(at: &Path) {
    fs::create_dir_all(at.join("usr/lib")).unwrap();
    fs::create_dir_all(at.join("etc")).unwrap();
    fs::write(at.join("usr/lib/os-release"), "ID=x\n").unwrap();
    fs::write(at.join("usr/one"), "one").unwrap();
    fs::hard_link(at.join("usr/one"), at.join("usr/two")).unwrap();
    std::os::unix::fs::symlink("/usr/one", at.join("etc/link")).unwrap();
    let sparse = File::create(at.join("etc/sparse")).unwrap();
    sparse.write_all_at(b"x", 8 << 20).unwrap();
    let mode = |name: &str, mode| {
        fs::set_permissions(at.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("usr/one", 0o4755);
    mode("etc", 0o700);
}

fn tree_archive(fixture: &Fixture) -> String {
    let folder = fixture.dir.path().join("tree");
    tree(&folder);
    let archive = fixture.dir.path().join("os.tar");
    let mut tar = std::process::Command::new("tar");
    let tar = tar
        .arg("-C")
        .arg(&folder)
        .arg("-cSf")
        .arg(&archive)
        .arg(".");
    assert!(tar.status().unwrap().success());
    archive.to_str().unwrap().to_owned()
}

/// Bytes that have one checksum.
const UNIT: u64 = 2 << 20;

#[test]
fn a_flipped_bit_is_found_and_placed() {
    let fixture = Fixture::new();
    let image = fixture.pull(&fixture.serve("one.raw", 1));
    fs::set_permissions(image.path(), fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().write(true).open(image.path()).unwrap();
    // In a hole as well as in data.
    for at in [1 << 20, (2 << 20) + 5] {
        let mut byte = [0];
        File::open(image.path())
            .unwrap()
            .read_exact_at(&mut byte, at)
            .unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        let Soundness::Damaged(damage) = fixture.verify("one").unwrap() else {
            panic!("damage at {at} was not found");
        };
        let unit = at / UNIT * UNIT;
        let expected = format!("bytes {unit} to {} differ", (unit + UNIT).min(3 << 20));
        assert_eq!(damage.to_string(), expected);
        file.write_all_at(&byte, at).unwrap();
        assert_eq!(fixture.verify("one").unwrap(), Soundness::Sound);
    }
    file.set_len(2 << 20).unwrap();
    assert!(matches!(
        fixture.verify("one").unwrap(),
        Soundness::Damaged(Damage::Length { .. })
    ));
    let sums = fixture
        .files("blobs")
        .into_iter()
        .find(|name| name.ends_with(".sums"));
    let sums = fixture.path("blobs").join(sums.unwrap());
    fs::write(&sums, "nspawn-run content 2\n").unwrap();
    assert!(matches!(
        fixture.verify("one"),
        Err(ImageError::Record { .. })
    ));
    // Of a version that wrote them another way, or that wrote none.
    fs::write(&sums, "nspawn-run content 1\ndisk 3\n").unwrap();
    assert_eq!(fixture.verify("one").unwrap(), Soundness::Recorded);
    fs::remove_file(&sums).unwrap();
    assert_eq!(fixture.verify("one").unwrap(), Soundness::Recorded);
    assert_eq!(fixture.verify("one").unwrap(), Soundness::Sound);
    assert!(matches!(
        fixture.verify("two"),
        Err(ImageError::NotStored { .. })
    ));
    drop(image);
    fixture.store.remove(&"one".parse().unwrap()).unwrap();
    assert_eq!(fixture.files("blobs"), Vec::<String>::new());
}

#[test]
fn a_changed_file_of_a_tree_is_found() {
    let fixture = Fixture::new();
    let image = fixture.pull(&tree_archive(&fixture));
    let said = || match fixture.verify("os").unwrap() {
        Soundness::Damaged(damage) => damage.to_string(),
        other => panic!("{other:?}"),
    };
    let one = image.path().join("usr/one");
    let mode = |mode| fs::set_permissions(&one, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o755);
    assert_eq!(said(), "/usr/one differs, and 1 more");
    mode(0o4755);
    assert_eq!(fixture.verify("os").unwrap(), Soundness::Sound);
    fs::write(image.path().join("usr/lib/os-release"), "ID=y\n").unwrap();
    assert_eq!(said(), "/usr/lib/os-release differs");
}

#[test]
fn nothing_goes_unless_it_is_asked_for() {
    let fixture = Fixture::new();
    for (mark, name) in [(1, "one"), (2, "two"), (3, "three"), (4, "four")] {
        drop(fixture.pull(&fixture.serve(&format!("{name}.raw"), mark)));
        fixture.age(name, u64::from(mark) * 10);
    }
    assert_eq!(fixture.prune(|_| {}), []);
    // The longest unused goes first; what is held, or named, stays.
    let held = fixture
        .store
        .locate(&"four".parse().unwrap(), "/".as_ref())
        .unwrap();
    let three = fixture.store.list().unwrap()[2].clone();
    assert_eq!(three.name.as_str(), "three");
    let images = |names: &[&str]| -> Vec<(PrunedKind, String)> {
        names
            .iter()
            .map(|name| (PrunedKind::Image, (*name).to_owned()))
            .collect()
    };
    type Case<'a> = (&'a dyn Fn(&mut PruneOptions), &'a [&'a str]);
    let cases: [Case<'_>; 6] = [
        (&|o| o.keep = Some(0), &["three", "two", "one"]),
        (&|o| o.keep = Some(2), &["three"]),
        (
            &|o| o.older_than = Some(Duration::from_secs(15 * 86400)),
            &["three", "two"],
        ),
        (
            &|o| (o.keep, o.older_than) = (Some(1), Some(Duration::from_secs(5 * 86400))),
            &["three", "two"],
        ),
        (&|o| o.max_size = Some(three.disk_usage * 3), &["three"]),
        (
            &|o| (o.keep, o.in_use) = (Some(0), vec![three.path.clone()]),
            &["two", "one"],
        ),
    ];
    for (change, names) in cases {
        let found = fixture.prune(|options| {
            change(options);
            options.dry_run = true;
        });
        assert_eq!(found, images(names));
    }
    assert_eq!(fixture.names().len(), 4);
    // A second name keeps the image, whatever becomes of the first.
    let mut options = Fixture::options();
    options.name = Some("other".parse().unwrap());
    let url = fixture.server.url("one.raw").parse().unwrap();
    drop(fixture.store.pull(&url, &options, &mut NoReport).unwrap());
    fixture.age("one", 10);
    assert_eq!(
        fixture.prune(|o| o.keep = Some(1)),
        images(&["three", "two", "one"])
    );
    assert_eq!(fixture.names(), ["four", "other"]);
    // Two images, each with its checksums.
    assert_eq!(fixture.files("blobs").len(), 4);
    // What was used this minute stays, unless it is asked for.
    let spared = fixture.prune(|o| (o.keep, o.spare) = (Some(0), Duration::from_secs(60)));
    assert_eq!(spared, []);
    drop(held);
    assert_eq!(
        fixture.prune(|o| o.keep = Some(0)),
        images(&["four", "other"])
    );
    assert_eq!(fixture.files("blobs"), Vec::<String>::new());
    assert_eq!(fixture.files("partial"), ["refs.lock"]);
}

#[test]
fn what_leads_nowhere_goes() {
    let fixture = Fixture::new();
    for (mark, name) in [(1, "lost"), (2, "dead"), (3, "kept")] {
        drop(fixture.pull(&fixture.serve(&format!("{name}.raw"), mark)));
        fixture.verify(name).unwrap();
    }
    fs::remove_file(fixture.path("refs/lost.json")).unwrap();
    let dead = fixture.store.list().unwrap().remove(0);
    fs::remove_file(&dead.path).unwrap();
    let old = SystemTime::now() - Duration::from_secs(2 * 86400);
    for (name, is_old) in [("a.data", true), ("a.json", true), ("b.data", false)] {
        let file = File::create(fixture.path("partial").join(name)).unwrap();
        if is_old {
            file.set_modified(old).unwrap();
        }
    }
    let kinds = |removed: Vec<(PrunedKind, String)>| -> Vec<PrunedKind> {
        removed.into_iter().map(|(kind, _)| kind).collect()
    };
    // While a name cannot be read, any image may be its.
    fs::write(fixture.path("refs/broken.json"), "{").unwrap();
    let found = kinds(fixture.prune(|o| o.dry_run = true));
    assert_eq!(
        found,
        [PrunedKind::Name, PrunedKind::Leftover, PrunedKind::Partial]
    );
    fs::remove_file(fixture.path("refs/broken.json")).unwrap();
    let found = kinds(fixture.prune(|_| {}));
    let expected = [
        PrunedKind::Name,
        PrunedKind::Partial,
        PrunedKind::Leftover,
        PrunedKind::Unnamed,
    ];
    for kind in expected {
        assert!(found.contains(&kind), "{kind:?} is not among {found:?}");
    }
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(fixture.names(), ["kept"]);
    assert_eq!(fixture.files("blobs").len(), 2);
    assert_eq!(fixture.files("partial"), ["b.data", "b.lock", "refs.lock"]);
    assert_eq!(
        kinds(fixture.prune(|o| o.partial = true)),
        [PrunedKind::Partial]
    );
    assert_eq!(fixture.verify("kept").unwrap(), Soundness::Sound);
}

#[test]
fn an_image_in_use_outlives_its_name() {
    let fixture = Fixture::new();
    let url = fixture.serve("disk.raw", 1);
    let held = fixture.pull(&url);
    let before = fs::read(held.path()).unwrap();
    fixture.serve("disk.raw", 2);
    let mut options = Fixture::options();
    options.refresh = true;
    let fresh = fixture
        .store
        .pull(&url.parse().unwrap(), &options, &mut NoReport)
        .unwrap();
    assert_ne!(fresh.path(), held.path());
    assert_eq!(fixture.names(), ["disk"]);
    fixture.prune(|o| o.keep = Some(1));
    assert!(fs::read(held.path()).unwrap() == before);
    let path = held.path().to_owned();
    drop(held);
    assert_eq!(fixture.prune(|_| {}).len(), 1);
    assert!(!path.exists() && fresh.path().exists());
}

#[test]
fn without_a_network_the_store_serves_what_it_has() {
    let fixture = Fixture::new();
    let url = fixture.serve("disk.raw", 1);
    let mut options = Fixture::options();
    options.offline = true;
    let pull = || {
        fixture
            .store
            .pull(&url.parse().unwrap(), &options, &mut NoReport)
    };
    let ImageError::Download(error) = pull().unwrap_err() else {
        panic!("it is no error of a download");
    };
    assert!(matches!(error.reason, DownloadReason::Offline), "{error}");
    assert!(error.hint().is_some());
    let image = fixture.pull(&url);
    fixture.server.seen();
    assert_eq!(pull().unwrap().path(), image.path());
    assert_eq!(fixture.server.seen(), Vec::<String>::new());
}

const LOCK: &str = "NSPAWN_IMAGE_TEST_LOCK";

/// No test of its own: a process that holds the lock of an image, as a machine that runs from it does.
#[test]
#[ignore = "started by machined_is_given_a_copy_of_its_own"]
fn lock_in_a_child() {
    let Ok(path) = std::env::var(LOCK) else {
        return;
    };
    let file = File::create(&path).unwrap();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    fs::write(format!("{path}.held"), "").unwrap();
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// A lock that another process holds until this value goes.
struct Held(std::process::Child);

impl Held {
    /// Source: systemd, `image_path_lock`.
    fn by_a_child(path: &Path) -> Self {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "lock_in_a_child", "--ignored", "--quiet"])
            .env(LOCK, path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null());
        let held = Self(child.spawn().unwrap());
        let sign = PathBuf::from(format!("{}.held", path.display()));
        let start = std::time::Instant::now();
        while !sign.exists() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the child holds no lock"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::remove_file(sign).unwrap();
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn machined_is_given_a_copy_of_its_own() {
    let fixture = Fixture::new();
    let machines = fixture.dir.path().join("machines");
    let name: ImageName = "web".parse().unwrap();
    let publish = |image: &Image, replace| {
        image.publish(&machines, &name, replace, &Cancel::default(), &mut NoReport)
    };
    let disk = fixture.pull(&fixture.serve("disk.raw", 1));
    let path = publish(&disk, false).unwrap();
    assert_eq!(path, machines.join("web.raw"));
    assert!(fs::read(&path).unwrap() == fs::read(disk.path()).unwrap());
    let (copy, base) = (
        fs::metadata(&path).unwrap(),
        fs::metadata(disk.path()).unwrap(),
    );
    assert_ne!(copy.ino(), base.ino());
    assert_eq!((copy.nlink(), base.nlink()), (1, 1));
    assert_eq!(copy.mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&machines).unwrap().mode() & 0o777, 0o700);
    fs::write(&path, "changed by its machine").unwrap();

    let tree = fixture.pull(&tree_archive(&fixture));
    for image in [&disk, &tree] {
        assert!(matches!(publish(image, false), Err(ImageError::Exists(_))));
    }
    assert_eq!(fs::read(&path).unwrap(), b"changed by its machine");

    let held = Held::by_a_child(&machines.join(".#web.raw.lck"));
    let refused = publish(&tree, true).unwrap_err();
    assert!(matches!(refused, ImageError::InUse { .. }), "{refused}");
    drop(held);
    let path = publish(&tree, true).unwrap();
    assert_eq!(path, machines.join("web"));
    let left: Vec<_> = fs::read_dir(&machines)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["web"]);
    let found = |name: &str| fs::symlink_metadata(path.join(name)).unwrap();
    assert_eq!(found("usr/one").ino(), found("usr/two").ino());
    assert_eq!(found("usr/one").mode() & 0o7777, 0o4755);
    assert_eq!(found("etc").mode() & 0o7777, 0o700);
    assert!(found("etc/sparse").blocks() * 512 < 1 << 20);
    assert_eq!(found("etc/sparse").len(), (8 << 20) + 1);
    assert_eq!(
        fs::read_link(path.join("etc/link")).unwrap(),
        Path::new("/usr/one")
    );
    let original = fs::symlink_metadata(tree.path().join("usr/lib")).unwrap();
    assert_eq!(found("usr/lib").mtime(), original.mtime());
    let path = publish(&disk, true).unwrap();
    assert_eq!(path, machines.join("web.raw"));
    assert!(!machines.join("web").exists());
    // What a killed call left is taken over.
    let half = machines.join(".web.nspawn-run.work/new/usr");
    fs::create_dir_all(&half).unwrap();
    fs::write(half.join("half"), "half").unwrap();
    publish(&tree, true).unwrap();
    assert!(!machines.join("web/usr/half").exists());
    assert_eq!(fixture::names(&machines), ["web"]);
}

/// No test of its own: a process that starts no other, which would have copies of its locks for a moment.
#[test]
#[ignore = "started by a_look_at_an_image_is_no_use_of_it"]
fn look_in_a_child() {
    if std::env::var(LOCK).as_deref() != Ok("look") {
        return;
    }
    let fixture = fixture::Fixture::new();
    let packed = zstd::encode_all(&disk()[..], 1).unwrap();
    let image = fixture.file("disk.raw.zst", &packed);
    let look = || {
        for image in fixture.store.list().unwrap() {
            assert!(!image.in_use);
        }
    };
    drop(fixture.pull(&image).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..1000).for_each(|_| look()));
        }
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            // What is just pulled or removed may be in use.
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    fixture.store.list().unwrap();
                }
            });
        }
        let removed = (0..100).try_for_each(|_| {
            drop(fixture.pull(&image)?);
            fixture.store.remove(&"disk".parse().unwrap())
        });
        stop.store(true, Ordering::Relaxed);
        removed.unwrap();
    });
}

#[test]
fn a_look_at_an_image_is_no_use_of_it() {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "look_in_a_child", "--ignored"]);
    let output = child.env(LOCK, "look").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

/// Pulls of two images at once with prunes, and with removals where these are wanted: every pull gives a whole image, and
/// nobody sees an error.
fn at_once(with_removals: bool) {
    let fixture = Fixture::new();
    let disk_url = fixture.serve("disk.raw", 1);
    let tree_path = tree_archive(&fixture);
    let root = &fixture.path("");
    let (removed, stop) = (&AtomicUsize::new(0), &AtomicBool::new(false));
    let puller = |reference: &str| {
        // Once each has got in the other's way a few times, that is enough.
        for round in 0..2000 {
            if round >= 25 && (with_removals || removed.load(Ordering::Relaxed) >= 5) {
                return;
            }
            let store = Store::open(root).unwrap();
            let reference = reference.parse().unwrap();
            let image = store
                .pull(&reference, &Fixture::options(), &mut NoReport)
                .unwrap();
            if image.path().is_dir() {
                assert!(image.path().join("usr/lib/os-release").exists());
            } else {
                assert_eq!(fs::read(image.path()).unwrap().len(), 3 << 20);
            }
        }
    };
    let pruner = || {
        let mut options = PruneOptions::default();
        (options.keep, options.spare, options.partial) = (Some(0), Duration::ZERO, true);
        while !stop.load(Ordering::Relaxed) {
            let report = Store::open(root)
                .unwrap()
                .prune(&options, &mut NoReport)
                .unwrap();
            removed.fetch_add(report.removed.len(), Ordering::Relaxed);
        }
    };
    let remover = || {
        let store = Store::open(root).unwrap();
        while with_removals && !stop.load(Ordering::Relaxed) {
            for name in ["disk", "os"] {
                match store.remove(&name.parse().unwrap()) {
                    Ok(()) | Err(ImageError::NotStored { .. } | ImageError::InUse { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let references = [&disk_url, &tree_path, &disk_url, &tree_path];
        let pullers = references.map(|reference| scope.spawn(move || puller(reference)));
        scope.spawn(pruner);
        scope.spawn(remover);
        let results = pullers.map(|puller| puller.join());
        stop.store(true, Ordering::Relaxed);
        for result in results {
            result.unwrap();
        }
    });
    assert!(with_removals || removed.load(Ordering::Relaxed) >= 5);
    fixture.prune(|o| (o.keep, o.partial) = (Some(0), true));
    assert_eq!(fixture.files("blobs"), Vec::<String>::new());
    assert_eq!(fixture.files("refs"), Vec::<String>::new());
    assert_eq!(fixture.files("partial"), ["refs.lock"]);
}

#[test]
fn pulls_and_prunes_at_once() {
    at_once(false);
}

#[test]
fn pulls_prunes_and_removals_at_once() {
    at_once(true);
}
