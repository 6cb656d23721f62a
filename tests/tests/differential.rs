//! Random qcow2 images, converted here and by `qemu-img convert`: every byte must be the same.
//!
//! The images are made with qemu-img and qemu-io from a fixed seed: both versions, every cluster size, zlib and
//! zstd, subclusters, odd virtual sizes, zero clusters, discards, snapshots. The test fails where the tools are
//! missing: a comparison that did not happen has not passed.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};

use nspawn_image::Cancel;
use nspawn_image::qcow2::Qcow2;

const IMAGES: u64 = 320;
const SEED: u64 = 0x6e73_7061_776e;
/// Largest virtual size made, in bytes.
const LARGEST: u64 = 24 << 20;

/// A small generator (SplitMix64), so that an image is known by its number alone.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn start(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output();
    output.unwrap_or_else(|error| panic!("{program} is needed (package qemu-utils): {error}"))
}

fn run(program: &str, args: &[&str]) {
    let output = start(program, args);
    assert!(
        output.status.success(),
        "{program} {args:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Makes one image and tells how.
fn make(number: u64, path: &str) -> String {
    let mut random = Random(SEED ^ number.wrapping_mul(0x1234_5677));
    let extended = random.below(4) == 0;
    let bits = if extended {
        14 + random.below(8)
    } else {
        9 + random.below(13)
    };
    let version = if extended || random.below(3) > 0 {
        "1.1"
    } else {
        "0.10"
    };
    let zstd = version == "1.1" && random.below(2) == 0;
    // qemu-img rounds the size up to sectors.
    let size = (random.below(LARGEST) / 512 + 1) * 512;
    let mut options = format!("compat={version},cluster_size={}", 1u64 << bits);
    if extended {
        options += ",extended_l2=on";
    }
    if zstd {
        options += ",compression_type=zstd";
    }
    if version == "1.1" && random.below(4) == 0 {
        options += ",lazy_refcounts=on";
    }
    if !extended && random.below(8) == 0 {
        options += ",preallocation=metadata";
    }
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &options,
            path,
            &size.to_string(),
        ],
    );
    let cluster = 1u64 << bits;
    let mut commands = Vec::new();
    for _ in 0..random.below(24) {
        let start = random.below(size) / 512 * 512;
        let length = ((random.below((4 * cluster).min(size)) / 512) + 1) * 512;
        let length = length.min(size - start);
        let pattern = random.below(256);
        commands.push(match random.below(8) {
            0 => format!("write -z {start} {length}"),
            1 => format!("discard {start} {length}"),
            2 | 3 => {
                // Compressed writes start at a cluster and are whole, apart from the last.
                let start = start / cluster * cluster;
                let length = (random.below(6) + 1) * cluster;
                format!(
                    "write -q -c -P {pattern} {start} {}",
                    length.min(size - start)
                )
            }
            4 => format!("write -q -P 0 {start} {length}"),
            _ => format!("write -q -P {pattern} {start} {length}"),
        });
    }
    if !commands.is_empty() {
        let mut args = vec!["-f", "qcow2"];
        for command in &commands {
            args.extend(["-c", command.as_str()]);
        }
        args.push(path);
        // QEMU refuses a compressed write where a cluster is allocated already: the other commands count.
        start("qemu-io", &args);
    }
    if random.below(6) == 0 {
        run("qemu-img", &["snapshot", "-c", "one", path]);
        run(
            "qemu-io",
            &["-f", "qcow2", "-c", "write -q -P 77 0 512", path],
        );
    }
    if random.below(4) == 0 {
        let packed = format!("{path}.packed");
        let mut args = vec![
            "convert", "-q", "-f", "qcow2", "-O", "qcow2", "-c", "-o", &options, path, &packed,
        ];
        if options.contains("preallocation") {
            args.retain(|arg| *arg != "-c");
        }
        run("qemu-img", &args);
        fs::rename(packed, path).unwrap();
    }
    format!("image {number}: {options}, {size} bytes, {commands:?}")
}

fn same(left: &Path, right: &Path) -> Option<u64> {
    let (mut left, mut right) = (File::open(left).unwrap(), File::open(right).unwrap());
    if left.metadata().unwrap().len() != right.metadata().unwrap().len() {
        return Some(
            left.metadata()
                .unwrap()
                .len()
                .min(right.metadata().unwrap().len()),
        );
    }
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let count = left.read(&mut a).unwrap();
        if count == 0 {
            return None;
        }
        right.read_exact(&mut b[..count]).unwrap();
        if a[..count] != b[..count] {
            let first = (0..count).find(|index| a[*index] != b[*index]).unwrap();
            return Some(at + first as u64);
        }
        at += count as u64;
    }
}

#[test]
fn every_byte_is_what_qemu_img_writes() {
    let dir = tempfile::tempdir().unwrap();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= IMAGES {
                        return;
                    }
                    let path = |kind: &str| dir.path().join(format!("{number}.{kind}"));
                    let (image, ours, theirs) = (path("qcow2"), path("ours"), path("theirs"));
                    let what = make(number, image.to_str().unwrap());
                    let qcow2 = Qcow2::open(File::open(&image).unwrap(), LARGEST).expect(&what);
                    let output = File::create_new(&ours).unwrap();
                    qcow2
                        .convert(&output, &Cancel::default(), &mut |_| {})
                        .expect(&what);
                    let names = [image.to_str().unwrap(), theirs.to_str().unwrap()];
                    run(
                        "qemu-img",
                        &[
                            "convert", "-q", "-f", "qcow2", "-O", "raw", names[0], names[1],
                        ],
                    );
                    if let Some(at) = same(&ours, &theirs) {
                        panic!("byte {at} differs in {what}");
                    }
                    for file in [image, ours, theirs] {
                        fs::remove_file(file).unwrap();
                    }
                }
            });
        }
    });
}
