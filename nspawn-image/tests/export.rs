//! Image files converted to raw files, without a store.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nspawn_image::{
    Cancel, ConvertOptions, ErrorKind, ImageError, NoReport, Reporter, StepId, StepKind,
    convert_file,
};

/// A bare ext4 as far as anybody looks: 3 MiB with magic bytes, some data and a hole.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0; 3 << 20];
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    for (index, byte) in bytes[(2 << 20)..].iter_mut().enumerate() {
        *byte = ((index * 31) >> 7) as u8;
    }
    bytes
}

fn qemu_img(arguments: &[&str]) {
    let status = Command::new("qemu-img").args(arguments).status();
    let status = status.expect("qemu-img is needed (package qemu-utils)");
    assert!(status.success(), "{arguments:?}");
}

struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        fs::write(fixture.path("disk.raw"), disk()).unwrap();
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn convert(&self, from: &str, to: &str, options: &ConvertOptions) -> Result<u64, ImageError> {
        convert_file(&self.path(from), &self.path(to), options, &mut NoReport)
    }

    /// What stands in the folder, hidden or not.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

fn is_the_disk(path: &Path) {
    assert!(fs::read(path).unwrap() == disk(), "{}", path.display());
    let found = fs::metadata(path).unwrap();
    assert!(found.blocks() * 512 < 2 << 20, "{} blocks", found.blocks());
}

#[test]
fn every_format_becomes_a_sparse_raw_file() {
    let fixture = Fixture::new();
    qemu_img(&[
        "convert",
        "-c",
        "-O",
        "qcow2",
        &fixture.text("disk.raw"),
        &fixture.text("disk.qcow2"),
    ]);
    for (program, end) in [
        ("gzip", "gz"),
        ("xz", "xz"),
        ("zstd", "zst"),
        ("bzip2", "bz2"),
    ] {
        for source in ["disk.raw", "disk.qcow2"] {
            let packed = Command::new(program)
                .arg("-c")
                .arg(fixture.path(source))
                .output();
            let packed = packed.unwrap_or_else(|error| panic!("{program}: {error}"));
            fs::write(fixture.path(&format!("{source}.{end}")), packed.stdout).unwrap();
        }
    }
    let before = fixture.names();
    let options = ConvertOptions::default();
    for source in &before {
        assert_eq!(
            fixture.convert(source, "out", &options).unwrap(),
            3 << 20,
            "{source}"
        );
        is_the_disk(&fixture.path("out"));
        let mode = fs::metadata(fixture.path("out"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o111, 0, "{mode:o}");
        fs::remove_file(fixture.path("out")).unwrap();
    }
    assert_eq!(fixture.names(), before);
}

#[test]
fn a_snapshot_and_the_files_below_are_as_asked() {
    let fixture = Fixture::new();
    qemu_img(&[
        "convert",
        "-O",
        "qcow2",
        &fixture.text("disk.raw"),
        &fixture.text("base.qcow2"),
    ]);
    qemu_img(&["snapshot", "-c", "first", &fixture.text("base.qcow2")]);
    let base = fixture.text("base.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        &base,
        "-F",
        "qcow2",
        &fixture.text("top.qcow2"),
    ]);
    let mut options = ConvertOptions::default();
    let refused = fixture.convert("top.qcow2", "out", &options).unwrap_err();
    assert!(matches!(refused, ImageError::Qcow2 { .. }), "{refused}");
    options.allow_backing = Some(fixture.0.path().to_owned());
    fixture.convert("top.qcow2", "out", &options).unwrap();
    is_the_disk(&fixture.path("out"));
    options.snapshot = Some("first".to_owned());
    options.replace = true;
    fixture.convert("base.qcow2", "out", &options).unwrap();
    is_the_disk(&fixture.path("out"));
    options.snapshot = Some("second".to_owned());
    fixture.convert("base.qcow2", "out", &options).unwrap_err();
    is_the_disk(&fixture.path("out"));
}

#[test]
fn what_is_no_new_file_is_refused_and_left_as_it_is() {
    let fixture = Fixture::new();
    fs::write(fixture.path("there"), "mine").unwrap();
    fs::create_dir(fixture.path("folder")).unwrap();
    std::os::unix::fs::symlink("there", fixture.path("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", fixture.path("dead")).unwrap();
    fs::write(fixture.path("text"), "hello\n").unwrap();
    let before = fixture.names();
    let mut options = ConvertOptions::default();
    for (to, replace, found) in [
        ("there", false, "exists already"),
        ("link", false, "exists already"),
        ("disk.raw", true, "the image itself"),
        ("folder", true, "a folder"),
        ("dead", true, "a link that leads nowhere"),
        ("no/such/folder", false, "cannot write to"),
        ("/dev/null", true, "a device"),
    ] {
        options.replace = replace;
        let error = fixture.convert("disk.raw", to, &options).unwrap_err();
        assert!(error.to_string().contains(found), "{to}: {error}");
    }
    for (from, found) in [
        ("none", "does not exist"),
        ("folder", "holds no disk"),
        ("text", "is no image"),
    ] {
        let error = fixture.convert(from, "new", &options).unwrap_err();
        assert!(error.to_string().contains(found), "{from}: {error}");
        assert!(error.hint().is_some(), "{error}");
    }
    assert_eq!(fixture.names(), before);
    assert_eq!(fs::read(fixture.path("there")).unwrap(), b"mine");
    options.replace = true;
    fixture.convert("disk.raw", "link", &options).unwrap();
    is_the_disk(&fixture.path("there"));
    assert!(
        fs::symlink_metadata(fixture.path("link"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn an_archive_of_a_tree_is_no_disk() {
    let fixture = Fixture::new();
    for folder in ["tree/usr/lib", "tree/etc"] {
        fs::create_dir_all(fixture.path(folder)).unwrap();
    }
    fs::write(fixture.path("tree/usr/lib/os-release"), "ID=x\n").unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(fixture.path("tree"));
    let status = tar
        .arg("-cf")
        .arg(fixture.path("tree.tar"))
        .arg(".")
        .status();
    let status = status.unwrap();
    assert!(status.success());
    let before = fixture.names();
    let error = fixture
        .convert("tree.tar", "out", &ConvertOptions::default())
        .unwrap_err();
    assert!(matches!(error, ImageError::NotADisk { .. }), "{error}");
    assert_eq!(fixture.names(), before);
}

/// Cancels as soon as the conversion begins.
struct Impatient(Cancel);

impl Reporter for Impatient {
    fn begin(&mut self, kind: StepKind, _: &str, _: Option<u64>) -> StepId {
        if kind == StepKind::Convert {
            self.0.cancel();
        }
        StepId(0)
    }
}

#[test]
fn a_cancel_leaves_nothing() {
    let fixture = Fixture::new();
    let before = fixture.names();
    let options = ConvertOptions::default();
    let mut reporter = Impatient(options.cancel.clone());
    let (from, to) = (fixture.path("disk.raw"), fixture.path("out"));
    let error = convert_file(&from, &to, &options, &mut reporter).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_eq!(fixture.names(), before);
}
