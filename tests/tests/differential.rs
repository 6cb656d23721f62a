//! Random qcow2 images, converted here and by `qemu-img convert`: every byte must be the same.
//!
//! The images are made with qemu-img and qemu-io from a fixed seed: both versions, every cluster size, zlib and
//! zstd, subclusters, odd virtual sizes, zero clusters, discards, snapshots, chains of raw and qcow2 files. Read at
//! random places they must say the same, the output must be sparse, and two other crates are asked where they can read
//! an image at all. The test fails where the tools are missing: a comparison that did not happen has not passed.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};

use nspawn_image::qcow2::{OpenOptions, Qcow2, Qcow2Error};
use nspawn_image::{Cancel, NoReport, PullOptions, Soundness, Store, Verify};
use nspawn_tests::random::Random;

const IMAGES: u64 = 400;
const SEED: u64 = 0x6e73_7061_776e;
/// Of how many images one is pulled too.
const PULLED: u64 = 4;
/// Largest virtual size made, in bytes.
const LARGEST: u64 = 24 << 20;

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

/// How an image is read.
#[derive(Default)]
struct Made {
    /// How it was made.
    what: String,
    /// Whether files lie below it, in the same folder.
    overlay: bool,
    /// Whether the snapshot `one` is to be compared too.
    snapshot: bool,
    /// Whether other crates can be asked: they know neither subclusters nor zstd, nor files below.
    plain: bool,
}

/// Options of `qemu-img create` for one file of a chain.
struct Layer {
    cluster: u64,
    options: String,
    zstd: bool,
    extended: bool,
}

fn layer(random: &mut Random) -> Layer {
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
    Layer {
        cluster: 1 << bits,
        options,
        zstd,
        extended,
    }
}

/// Writes at random places of an image, in every way that qemu-io has.
fn scribble(random: &mut Random, path: &str, format: &str, cluster: u64, size: u64) -> String {
    let mut commands = Vec::new();
    for _ in 0..random.below(24) {
        let start = random.below(size) / 512 * 512;
        let length = ((random.below((4 * cluster).min(size)) / 512) + 1) * 512;
        let length = length.min(size - start);
        let pattern = random.below(256);
        commands.push(match random.below(8) {
            0 => format!("write -z {start} {length}"),
            1 => format!("discard {start} {length}"),
            2 | 3 if format == "qcow2" => {
                // Compressed writes start at a cluster and are whole, apart from the last. QEMU refuses one where a
                // cluster is allocated already, and now and then damages the image by that.
                let start = start / cluster * cluster;
                for index in 0..random.below(6) {
                    let at = start + index * cluster;
                    if at < size {
                        let length = cluster.min(size - at);
                        commands.push(format!("write -q -c -P {pattern} {at} {length}"));
                    }
                }
                continue;
            }
            4 => format!("write -q -P 0 {start} {length}"),
            _ => format!("write -q -P {pattern} {start} {length}"),
        });
    }
    if !commands.is_empty() {
        let mut args = vec!["-f", format];
        for command in &commands {
            args.extend(["-c", command.as_str()]);
        }
        args.push(path);
        // Those that are refused do not matter: the others count.
        start("qemu-io", &args);
    }
    format!("{commands:?}")
}

/// Makes the files below an image, the lowest first; answers the name and format of the uppermost.
fn chain(random: &mut Random, path: &str) -> (Option<(String, &'static str)>, String) {
    let mut below: Option<(String, &'static str)> = None;
    let mut what = String::new();
    for depth in 0..random.below(4).saturating_sub(1) {
        let file = format!("{path}.base{depth}");
        // Shorter and longer than what stands on it.
        let size = (random.below(LARGEST) / 512 + 1) * 512;
        let layer = layer(random);
        let format = if depth == 0 && random.below(2) == 0 {
            "raw"
        } else {
            "qcow2"
        };
        let size_text = size.to_string();
        let mut args = vec!["create", "-q", "-f", format];
        if format == "qcow2" {
            args.extend(["-o", &layer.options]);
        }
        if let Some((name, format)) = &below {
            args.extend(["-b", name, "-F", format]);
        }
        args.extend([file.as_str(), &size_text]);
        run("qemu-img", &args);
        let done = scribble(random, &file, format, layer.cluster, size);
        what += &format!("{format} of {size}: {}, {done}; below ", layer.options);
        let name = Path::new(&file).file_name().unwrap();
        below = Some((name.to_str().unwrap().to_owned(), format));
    }
    (below, what)
}

/// Makes one image and tells how.
fn make(number: u64, path: &str) -> Made {
    let mut random = Random::of(SEED ^ number.wrapping_mul(0x1234_5677));
    let random = &mut random;
    let (below, mut what) = if random.below(3) == 0 {
        chain(random, path)
    } else {
        (None, String::new())
    };
    let mut layer = layer(random);
    // qemu-img rounds the size up to sectors.
    let size = (random.below(LARGEST) / 512 + 1) * 512;
    if below.is_none() && !layer.extended && random.below(8) == 0 {
        layer.options += ",preallocation=metadata";
    }
    let size_text = size.to_string();
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &layer.options];
    if let Some((name, format)) = &below {
        args.extend(["-b", name, "-F", format]);
    }
    args.extend([path, &size_text]);
    run("qemu-img", &args);
    let commands = scribble(random, path, "qcow2", layer.cluster, size);
    let snapshot = random.below(6) == 0;
    if snapshot {
        run("qemu-img", &["snapshot", "-c", "one", path]);
        scribble(random, path, "qcow2", layer.cluster, size);
    } else if below.is_none() && random.below(4) == 0 {
        let packed = format!("{path}.packed");
        let mut args = vec![
            "convert",
            "-q",
            "-f",
            "qcow2",
            "-O",
            "qcow2",
            "-c",
            "-o",
            &layer.options,
            path,
            &packed,
        ];
        if layer.options.contains("preallocation") {
            args.retain(|arg| *arg != "-c");
        }
        if start("qemu-img", &args).status.success() {
            fs::rename(packed, path).unwrap();
        }
    }
    what += &format!(
        "image {number}: {}, {size} bytes, {commands}",
        layer.options
    );
    Made {
        what,
        overlay: below.is_some(),
        snapshot,
        plain: below.is_none() && !layer.zstd && !layer.extended,
    }
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

/// Fails where a block that is all zero takes room in `file`: the output is as sparse as its blocks let it be.
fn assert_sparse(file: &Path, what: &str) {
    use nspawn_image::ReadAt as _;
    const BLOCK: usize = 4096;
    let opened = File::open(file).unwrap();
    let mut at = 0;
    while let Some((start, end)) = opened.next_data(at).unwrap() {
        let mut bytes = vec![0; (end - start) as usize];
        opened.read_exact_at(&mut bytes, start).unwrap();
        let zero = bytes
            .chunks(BLOCK)
            .position(|block| block.iter().all(|byte| *byte == 0));
        if let Some(index) = zero {
            let at = start + (index * BLOCK) as u64;
            panic!("the zero block at byte {at} takes room in {what}");
        }
        at = end;
    }
}

/// Reads at random places without converting, and compares with the converted file.
fn assert_reader(image: &Qcow2<File>, converted: &Path, number: u64, what: &str) {
    use nspawn_image::ReadAt as _;
    let mut random = Random::of(number);
    let converted = File::open(converted).unwrap();
    let reader = image.reader();
    let size = reader.size().unwrap();
    assert_eq!(size, image.header().virtual_size);
    for _ in 0..20 {
        let at = random.below(size + 1);
        let length = random.below(300_000) as usize;
        let (mut ours, mut theirs) = (vec![1; length], vec![2; length]);
        let count = reader.read_at(&mut ours, at).expect(what);
        let expected = converted.read_at(&mut theirs, at).unwrap();
        assert_eq!(count, expected, "{at} {what}");
        assert!(ours[..count] == theirs[..count], "{at}+{length} {what}");
    }
}

/// What other crates make of an image: whether each agrees with qemu-img. They may refuse, hang or panic.
fn ask_peers(image: &Path, theirs: &Path, agreed: &[AtomicU64; 2]) {
    let program = nspawn_tests::fixture::target_dir().join("peers/release/nspawn-peers");
    assert!(
        program.exists(),
        "{} is missing: run `cargo xtask fixture`",
        program.display()
    );
    for (name, agreed) in ["qcow2-rs", "qcow"].iter().zip(agreed) {
        let output = image.with_extension(name);
        let status = Command::new("timeout")
            .arg("10")
            .arg(&program)
            .arg(name)
            .args([image, &output])
            .output()
            .unwrap()
            .status;
        if status.success() && same(&output, theirs).is_none() {
            agreed.fetch_add(1, Ordering::Relaxed);
        }
        let _ = fs::remove_file(output);
    }
}

#[derive(Default)]
struct Counts {
    /// Images that each peer read as qemu-img did.
    agreed: [AtomicU64; 2],
    /// Images that qemu-io made and qemu-img cannot read.
    damaged: AtomicU64,
}

/// Pulls an image into a store: the bytes are the same, and its checksums, taken meanwhile, are theirs.
fn assert_pulled(image: &Path, open: &OpenOptions, expected: &Path, what: &str) {
    let dir = tempfile::tempdir_in(image.parent().unwrap()).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut options = PullOptions::default();
    options.verify = Verify::No;
    options.limits.virtual_size = open.limit;
    options.snapshot = open.snapshot.clone();
    options.allow_backing = open.backing.clone();
    let reference = image.to_str().unwrap().parse().unwrap();
    let pulled = store.pull(&reference, &options, &mut NoReport).expect(what);
    if let Some(at) = same(pulled.path(), expected) {
        panic!("byte {at} differs where {what} is pulled");
    }
    let name = pulled.name().unwrap();
    let found = store.verify(name, &Cancel::default(), &mut NoReport);
    assert_eq!(found.expect(what), Soundness::Sound, "{what}");
}

fn compare(dir: &Path, number: u64, counts: &Counts) {
    let path = |kind: &str| dir.join(format!("{number}.{kind}"));
    let (image, ours, theirs) = (path("qcow2"), path("ours"), path("theirs"));
    let made = make(number, image.to_str().unwrap());
    let what = &made.what;
    let mut options = OpenOptions::default();
    options.limit = LARGEST;
    if made.overlay {
        let refused = Qcow2::open_with(File::open(&image).unwrap(), &options).unwrap_err();
        assert!(matches!(refused, Qcow2Error::BackingFile(_)), "{refused}");
        options.backing = Some(dir.to_owned());
        options.path = Some(image.clone());
    }
    let snapshots: &[Option<&str>] = if made.snapshot {
        &[None, Some("one")]
    } else {
        &[None]
    };
    for snapshot in snapshots {
        options.snapshot = snapshot.map(str::to_owned);
        let qcow2 = Qcow2::open_with(File::open(&image).unwrap(), &options).expect(what);
        let output = File::create(&ours).unwrap();
        let converted = qcow2.convert(&output, &Cancel::default(), &mut |_| {});
        let names = [image.to_str().unwrap(), theirs.to_str().unwrap()];
        let mut args = vec!["convert", "-q", "-f", "qcow2", "-O", "raw"];
        if snapshot.is_some() {
            args.extend(["-l", "snapshot.name=one"]);
        }
        args.extend(names);
        if !start("qemu-img", &args).status.success() {
            assert!(converted.is_err(), "only qemu-img refuses {what}");
            counts.damaged.fetch_add(1, Ordering::Relaxed);
            break;
        }
        converted.expect(what);
        if let Some(at) = same(&ours, &theirs) {
            panic!("byte {at} differs in {what}, snapshot {snapshot:?}");
        }
        assert_sparse(&ours, what);
        assert_reader(&qcow2, &ours, number, what);
        if number.is_multiple_of(PULLED) {
            assert_pulled(&image, &options, &theirs, what);
        }
        if made.plain && snapshot.is_none() {
            ask_peers(&image, &theirs, &counts.agreed);
        }
    }
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name();
        if name.to_str().unwrap().starts_with(&format!("{number}.")) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn every_byte_is_what_qemu_img_writes() {
    let dir = tempfile::tempdir().unwrap();
    let next = AtomicU64::new(0);
    let counts = Counts::default();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= IMAGES {
                        return;
                    }
                    compare(dir.path(), number, &counts);
                }
            });
        }
    });
    let damaged = counts.damaged.into_inner();
    assert!(damaged < IMAGES / 20, "{damaged} images cannot be read");
    // A peer that never agrees was never asked.
    for (name, agreed) in ["qcow2-rs", "qcow"].iter().zip(counts.agreed) {
        let agreed = agreed.into_inner();
        assert!(agreed > 20, "{name} agrees on {agreed} images alone");
    }
}
