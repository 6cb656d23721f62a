//! A disk that is full, at every stage of a pull.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nspawn_image::{
    ConvertOptions, ErrorKind, Image, ImageError, NoReport, PruneOptions, Store, convert_file,
};

use super::fixture::{Fixture, assert_sound, names, noise, qcow2_of};
use super::support::{Behaviour, Server};

const PAGE: usize = 4096;
/// More than any of the images takes.
const LARGE: usize = 64 << 20;

/// A file system in memory that ends with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "needs root: run `cargo xtask test` as root"
        );
        let disk = Self(tempfile::tempdir().unwrap());
        disk.mount_with("size=64m");
        disk
    }

    fn mount_with(&self, options: &str) {
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", "tmpfs", "-o", options, "small"]);
        assert!(
            mount.arg(self.0.path()).status().unwrap().success(),
            "{options}"
        );
    }

    fn resize(&self, size: usize) {
        self.mount_with(&format!("remount,size={size}"));
    }

    /// Bytes taken.
    fn used(&self) -> usize {
        let found = rustix::fs::statvfs(self.0.path()).unwrap();
        (found.f_blocks - found.f_bfree) as usize * found.f_frsize as usize
    }

    /// Panics unless so much is taken soon: a process that another test just starts has copies of this one's open files
    /// for a moment.
    #[track_caller]
    fn assert_used(&self, expected: usize) {
        let start = Instant::now();
        while self.used() != expected {
            let taken = self.used() - expected;
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{taken} bytes are lost"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// A store on a small disk, and one image in some layout.
struct Full {
    disk: SmallDisk,
    store: Store,
    fixture: Fixture,
    server: Server,
    reference: String,
    expected: Expected,
    /// What an empty store takes.
    empty: usize,
    /// What was being done where the disk was full.
    stages: BTreeSet<String>,
}

enum Expected {
    Disk(Vec<u8>),
    /// The files in `usr`.
    Tree(Vec<Vec<u8>>),
}

/// How a failed pull went on.
#[derive(Debug, PartialEq, Eq)]
enum Again {
    FromStart,
    From(usize),
    /// No byte was asked for.
    Local,
}

impl Full {
    fn new(name: &str, bytes: Vec<u8>, expected: Expected, is_remote: bool) -> Self {
        let disk = SmallDisk::mount();
        let fixture = Fixture::new();
        let reference = fixture.file(name, &bytes);
        let server = Server::start(Behaviour {
            body: Arc::new(bytes),
            etag: Some("\"v\"".into()),
            ..Behaviour::default()
        });
        let reference = if is_remote {
            server.url(name)
        } else {
            reference
        };
        let store = Store::open(disk.0.path().join("store")).unwrap();
        let empty = disk.used();
        Self {
            disk,
            store,
            fixture,
            server,
            reference,
            expected,
            empty,
            stages: BTreeSet::new(),
        }
    }

    fn pull(&self) -> Result<Image, ImageError> {
        let reference = self.reference.parse().unwrap();
        let pulled = self
            .store
            .pull(&reference, &self.fixture.options(), &mut NoReport);
        pulled.inspect(|image| assert_sound(&self.store, image))
    }

    fn files(&self, folder: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.disk.0.path().join("store").join(folder)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().is_none_or(|end| end != "lock"))
            .collect()
    }

    /// Removes everything, and panics where something stays.
    #[track_caller]
    fn clear(&self) {
        for image in self.store.list().unwrap() {
            self.store.remove(&image.name).unwrap();
        }
        let mut options = PruneOptions::default();
        options.partial = true;
        self.store.prune(&options, &mut NoReport).unwrap();
        for folder in ["blobs", "refs", "partial"] {
            assert_eq!(self.files(folder), Vec::<PathBuf>::new());
        }
        // A process that another test just starts has copies of this one's open files for a moment.
        let start = Instant::now();
        while self.disk.used() != self.empty {
            let taken = self.disk.used() - self.empty;
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{taken} bytes are lost"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Pulls on a disk with room for `size` bytes, then again on a larger one; `true` where there was room at once.
    fn step(&mut self, size: usize) -> bool {
        self.disk.resize(self.empty + size);
        let first = self.pull();
        let fits = first.is_ok();
        let mut kept = 0;
        if let Err(error) = &first {
            let ImageError::NoSpace { verb, path } = error else {
                panic!("{size}: {error:?}");
            };
            assert_eq!(error.kind(), ErrorKind::Host);
            let text = error.to_string();
            assert!(text.contains("no space left") && text.contains(path.to_str().unwrap()));
            assert!(error.hint().unwrap().contains("free some space"), "{error}");
            let below = path.strip_prefix(self.disk.0.path().join("store"));
            let below = below.unwrap_or_else(|_| panic!("{text}: where is that?"));
            self.stages.insert(stage(verb, below));
            // What goes on may stay, and nothing else.
            for path in self.files("partial") {
                let end = path.extension().unwrap().to_owned();
                assert!(end == "data" || end == "json", "{}", path.display());
                if end == "data" {
                    kept = fs::metadata(path).unwrap().len() as usize;
                }
            }
            assert_eq!(
                (self.files("blobs"), self.files("refs")),
                (vec![], vec![]),
                "{size}: {text}"
            );
            assert_eq!(self.store.list().unwrap().len(), 0);
            self.server.seen();
        }
        self.disk.resize(LARGE);
        let image = self
            .pull()
            .unwrap_or_else(|error| panic!("{size}: {error:?}"));
        match &self.expected {
            Expected::Disk(bytes) => assert!(fs::read(image.path()).unwrap() == *bytes, "{size}"),
            Expected::Tree(files) => {
                for (index, file) in files.iter().enumerate() {
                    let found = fs::read(image.path().join(format!("usr/{index}"))).unwrap();
                    assert!(found == *file, "{size}: {index}");
                }
            }
        }
        if !fits {
            let again = match self.server.seen().first() {
                None => Again::Local,
                Some(head) => match head.split_once("range: bytes=") {
                    None => Again::FromStart,
                    Some((_, rest)) => {
                        Again::From(rest.split('-').next().unwrap().parse().unwrap())
                    }
                },
            };
            let expected = match (self.reference.starts_with("http"), kept) {
                (false, _) => Again::Local,
                (true, 0) => Again::FromStart,
                (true, kept) => Again::From(kept),
            };
            assert_eq!(again, expected, "{size}");
            self.stages.extend((kept > 0).then(|| "resumed".to_owned()));
        }
        drop((image, first));
        self.clear();
        fits
    }

    /// Goes through all sizes, roughly, and then to the last page that is missing.
    fn run(&mut self) -> BTreeSet<String> {
        let rough = 192 << 10;
        let mut fits = (1..LARGE / rough)
            .map(|step| step * rough)
            .find(|size| self.step(*size))
            .unwrap();
        let mut fails = fits - rough;
        while fits - fails > PAGE {
            let between = fails + (fits - fails) / PAGE / 2 * PAGE;
            match self.step(between) {
                true => fits = between,
                false => fails = between,
            }
        }
        std::mem::take(&mut self.stages)
    }
}

/// `write partial/*.data` for one.
fn stage(verb: &str, path: &Path) -> String {
    let mut parts = path.iter().map(|part| part.to_str().unwrap());
    let (folder, file) = (parts.next().unwrap(), parts.next().unwrap_or_default());
    let end = file.rsplit_once('.').map_or(file, |(_, end)| end);
    format!("{verb} {folder}/*.{end}")
}

fn tree_archive(files: &[Vec<u8>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(liblzma::write::XzEncoder::new(Vec::new(), 0));
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    add("usr/lib/os-release", b"ID=test\n");
    for (index, file) in files.iter().enumerate() {
        add(&format!("usr/{index}"), file);
    }
    builder.into_inner().unwrap().finish().unwrap()
}

#[track_caller]
fn assert_stages(found: &BTreeSet<String>, expected: &[&str]) {
    for stage in expected {
        assert!(found.contains(*stage), "{stage} is not among {found:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn root_a_disk_full_of_a_streamed_image() {
    let raw = noise(2 << 20, 1);
    let packed = qcow2_of(&raw, &["-c"]);
    let found = Full::new("disk.qcow2", packed, Expected::Disk(raw), true).run();
    assert_stages(
        &found,
        &["write partial/*.data", "write partial/*.raw", "resumed"],
    );
}

#[test]
#[ignore = "needs root"]
fn root_a_disk_full_of_a_tree() {
    let files: Vec<Vec<u8>> = (0..40).map(|seed| noise(48 << 10, seed)).collect();
    let archive = tree_archive(&files);
    let found = Full::new("os.tar.xz", archive, Expected::Tree(files), true).run();
    assert_stages(
        &found,
        &[
            "write partial/*.data",
            "write partial/*.tree",
            "write refs/*.json",
            "resumed",
        ],
    );
}

#[test]
#[ignore = "needs root"]
fn root_a_disk_full_of_a_download_that_is_the_image() {
    let raw = noise(2 << 20, 1);
    let found = Full::new("disk.raw", raw.clone(), Expected::Disk(raw), true).run();
    assert_stages(
        &found,
        &["write partial/*.data", "write refs/*.json", "resumed"],
    );
}

#[test]
#[ignore = "needs root"]
fn root_a_disk_full_of_a_spooled_image() {
    let raw = noise(1 << 20, 1);
    let mut packed = liblzma::write::XzEncoder::new(Vec::new(), 0);
    packed.write_all(&qcow2_of(&raw, &[])).unwrap();
    let packed = packed.finish().unwrap();
    let found = Full::new("disk.qcow2.xz", packed, Expected::Disk(raw), false).run();
    assert_stages(&found, &["write partial/*.spool", "write partial/*.raw"]);
}

#[test]
#[ignore = "needs root"]
fn root_a_disk_full_of_a_conversion() {
    let raw = noise(2 << 20, 1);
    let fixture = Fixture::new();
    let mut packed = liblzma::write::XzEncoder::new(Vec::new(), 0);
    packed.write_all(&qcow2_of(&raw, &[])).unwrap();
    let source = fixture.file("disk.qcow2.xz", &packed.finish().unwrap());
    let disk = SmallDisk::mount();
    let target = disk.0.path().join("out.raw");
    let options = ConvertOptions::default();
    let convert = || convert_file(source.as_ref(), &target, &options, &mut NoReport);
    let empty = disk.used();
    // Where the spool ends, where the result does, and where both fit.
    for (size, fits) in [(1 << 20, false), (3 << 20, false), (5 << 20, true)] {
        disk.resize(size);
        let result = convert();
        assert_eq!(result.is_ok(), fits, "{size}: {result:?}");
        if let Err(error) = result {
            let is_told = matches!(&error, ImageError::NoSpace { path, .. } if *path == target);
            assert!(is_told && error.hint().is_some(), "{error:?}");
            assert_eq!(names(disk.0.path()), Vec::<String>::new());
            disk.assert_used(empty);
        }
    }
    assert!(fs::read(&target).unwrap() == raw);
}

#[test]
#[ignore = "needs root"]
fn root_a_full_disk_is_said_and_nothing_is_left_on_it() {
    let mut noise = noise(3 << 20, 1);
    for byte in &mut noise[4096..] {
        *byte = byte.wrapping_mul(0x1d) ^ 0x55;
    }
    let small = SmallDisk::mount();
    small.resize(2 << 20);
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
