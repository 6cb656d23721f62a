//! File systems that share blocks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nspawn_image::{ConvertOptions, NoReport, PullOptions, Store, Verify, convert_file};

use super::fixture::{assert_sound, noise, qemu_img};

/// What is no data is a hole, so that there is something that is not shared.
const LENGTH: usize = 16 << 20;
const HOLE: std::ops::Range<usize> = 5 << 20..7 << 20;

/// A file system in a file, mounted as long as the value lives.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new(mkfs: &[&str], mib: u64) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "needs root: run `cargo xtask test` as root"
        );
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk");
        File::create(&file).unwrap().set_len(mib << 20).unwrap();
        run(mkfs, &[&file]);
        let mounted = Self { dir };
        fs::create_dir(mounted.path()).unwrap();
        run(&["mount", "-o", "loop"], &[&file, &mounted.path()]);
        mounted
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("at")
    }

    /// Bytes taken, once everything is on the disk.
    fn used(&self) -> u64 {
        let folder = File::open(self.path()).unwrap();
        rustix::fs::syncfs(&folder).unwrap();
        let found = rustix::fs::statvfs(self.path()).unwrap();
        (found.f_blocks - found.f_bfree) * found.f_frsize
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

fn run(words: &[&str], paths: &[&Path]) -> String {
    let mut command = Command::new(words[0]);
    let output = command.args(&words[1..]).args(paths).output();
    let output = output.unwrap_or_else(|error| panic!("{words:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn disk() -> Vec<u8> {
    let mut disk = noise(LENGTH, 1);
    disk[HOLE].fill(0);
    disk
}

/// Bytes of a file whose blocks others have too, and bytes of blocks in all. Source: filefrag(8), `-v`.
fn extents(path: &Path) -> (u64, u64) {
    let listed = run(&["filefrag", "-v", "-b1"], &[path]);
    let (mut shared, mut all) = (0, 0);
    for line in listed.lines() {
        let columns: Vec<&str> = line.split(':').map(str::trim).collect();
        let is_extent = columns.len() >= 4 && columns[0].parse::<u32>().is_ok();
        if is_extent {
            let length: u64 = columns[3].parse().unwrap();
            all += length;
            shared += if line.contains("shared") { length } else { 0 };
        }
    }
    (shared, all)
}

#[track_caller]
fn assert_shares(mkfs: &[&str], mib: u64) {
    let mounted = Mounted::new(mkfs, mib);
    let path = |name: &str| mounted.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    fs::write(path("made.raw"), disk()).unwrap();
    let plain = [
        "convert",
        "-O",
        "qcow2",
        &text("made.raw"),
        &text("plain.qcow2"),
    ];
    qemu_img(&plain);
    let packed = [
        "convert",
        "-c",
        "-O",
        "qcow2",
        &text("made.raw"),
        &text("packed.qcow2"),
    ];
    qemu_img(&packed);
    fs::remove_file(path("made.raw")).unwrap();
    let convert = |from: &str, to: &str| {
        let options = ConvertOptions::default();
        convert_file(&path(from), &path(to), &options, &mut NoReport).unwrap();
    };
    let data = (LENGTH - HOLE.len()) as u64;
    let before = mounted.used();
    convert("plain.qcow2", "shared.raw");
    let taken = mounted.used() - before;
    assert!(
        taken < data / 8,
        "{mkfs:?}: {taken} bytes were taken for {data}"
    );
    let (shared, all) = extents(&path("shared.raw"));
    assert!(
        shared >= data - (64 << 10) && all == data,
        "{mkfs:?}: {shared} of {all} are shared"
    );
    // Both count right, as what cannot be shared shows.
    let before = mounted.used();
    convert("packed.qcow2", "copied.raw");
    assert!(mounted.used() - before >= data);
    assert_eq!(extents(&path("copied.raw")).0, 0);
    qemu_img(&[
        "convert",
        "-O",
        "raw",
        &text("plain.qcow2"),
        &text("referee.raw"),
    ]);
    let referee = fs::read(path("referee.raw")).unwrap();
    assert!(referee == disk());
    for name in ["shared.raw", "copied.raw"] {
        assert!(fs::read(path(name)).unwrap() == referee, "{name}");
    }
    // Blocks that a store shares with an image have checksums as those that it copies.
    let store = Store::open(path("store")).unwrap();
    let mut options = PullOptions::default();
    options.verify = Verify::No;
    let before = mounted.used();
    let reference = text("plain.qcow2").parse().unwrap();
    let image = store.pull(&reference, &options, &mut NoReport).unwrap();
    assert!(mounted.used() - before < data / 8);
    assert!(fs::read(image.path()).unwrap() == referee);
    assert_sound(&store, &image);
    // A change of one is none of the other.
    let before = fs::read(path("plain.qcow2")).unwrap();
    fs::write(path("shared.raw"), vec![7; LENGTH]).unwrap();
    assert!(fs::read(path("plain.qcow2")).unwrap() == before);
}

#[test]
#[ignore = "needs root"]
fn root_plain_clusters_are_shared_on_btrfs() {
    assert_shares(&["mkfs.btrfs", "--quiet"], 256);
}

#[test]
#[ignore = "needs root"]
fn root_plain_clusters_are_shared_on_xfs() {
    assert_shares(&["mkfs.xfs", "-q", "-m", "reflink=1"], 384);
}
