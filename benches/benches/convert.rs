//! How fast a qcow2 image becomes sparse raw, here and by `qemu-img convert -m 16 -W`, both to a new file on the
//! same file system. Unit: seconds of wall time; throughput in bytes of data in the image per second.
//!
//! Outputs are compared once before anything is measured. The table compares whole processes, which take turns in
//! changing order; the page cache holds the input, and has nothing to write back when the clock starts. Once it stops
//! at the end of the process, and once after `sync -d` of the output, which neither converter does by itself.
//! Our time is given as a share of qemu-img's.
#![allow(missing_docs, clippy::print_stdout)]

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use nspawn_benches::{data_dir, median, quick, wanted};
use nspawn_image::Cancel;
use nspawn_image::qcow2::Qcow2;

/// Data in the dense inputs, in MiB.
const DATA_MIB: u64 = 1024;
const QUICK_DATA_MIB: u64 = 32;
/// Data scattered over the sparse input, in MiB.
const SCATTERED_MIB: u64 = 200;
const QUICK_SCATTERED_MIB: u64 = 8;
/// Pairs of runs behind each ratio; they take turns, so that noise hits both.
const ROUNDS: usize = 7;
/// The argument for one conversion and nothing else.
const ALONE: &str = "--convert-alone";

struct Input {
    name: &'static str,
    path: PathBuf,
    bytes: u64,
}

fn qemu(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} is needed (package qemu-utils): {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Real files are what images hold: the files of /usr/lib in the order of their names, again from the start
/// where they do not fill it.
fn data(path: &Path, bytes: u64) {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from("/usr/lib")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder) else {
            continue;
        };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    assert!(!files.is_empty());
    let mut out = BufWriter::new(File::create(path).unwrap());
    let mut left = bytes;
    for file in files.iter().cycle() {
        let Ok(file) = File::open(file) else { continue };
        left -= std::io::copy(&mut file.take(left), &mut out).unwrap();
        if left == 0 {
            break;
        }
    }
    out.flush().unwrap();
}

/// Makes what is missing; a name is only there when its file is complete.
fn make(name: &str, size: u64, with: impl FnOnce(&str)) -> PathBuf {
    let path = data_dir().join(format!("{name}-{size}.img"));
    if !path.exists() {
        let temporary = path.with_extension("new");
        let _ = fs::remove_file(&temporary);
        with(temporary.to_str().unwrap());
        fs::rename(temporary, &path).unwrap();
    }
    path
}

fn inputs() -> Vec<Input> {
    let (mib, scattered) = if quick() {
        (QUICK_DATA_MIB, QUICK_SCATTERED_MIB)
    } else {
        (DATA_MIB, SCATTERED_MIB)
    };
    let bytes = mib << 20;
    let raw = make("raw", bytes, |path| data(Path::new(path), bytes));
    let raw = raw.to_str().unwrap();
    let convert = |name, options: &[&str]| {
        let path = make(name, bytes, |path| {
            let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
            args.extend_from_slice(options);
            args.extend([raw, path]);
            qemu("qemu-img", &args);
        });
        Input { name, path, bytes }
    };
    let sparse = scattered << 20;
    let terabyte = |name, piece: u64| Input {
        name,
        path: make(name, sparse, |path| {
            qemu("qemu-img", &["create", "-q", "-f", "qcow2", path, "1T"]);
            let pieces = sparse / piece;
            let apart = (1 << 40) / pieces / piece * piece;
            let write = |index: u64| {
                let (byte, at) = (index % 255 + 1, index * apart);
                format!("write -q -P {byte} {at} {piece}")
            };
            let commands: Vec<String> = (0..pieces).map(write).collect();
            let mut args = vec!["-f", "qcow2"];
            args.extend(commands.iter().flat_map(|command| ["-c", command.as_str()]));
            args.push(path);
            qemu("qemu-io", &args);
        }),
        bytes: sparse,
    };
    vec![
        convert("zlib", &["-c"]),
        convert("zstd", &["-c", "-o", "compression_type=zstd"]),
        convert("uncompressed", &[]),
        // 1 TiB of virtual size.
        terabyte("sparse-1M", 1 << 20),
        terabyte("sparse-64K", 64 << 10),
    ]
}

fn ours(input: &Path, output: &Path) -> Duration {
    let _ = fs::remove_file(output);
    let start = Instant::now();
    let image = Qcow2::open(File::open(input).unwrap(), 2 << 40).unwrap();
    let file = File::create_new(output).unwrap();
    image
        .convert(&file, &Cancel::default(), &mut |_| {})
        .unwrap();
    start.elapsed()
}

/// One run of ours as a whole process: this program again.
fn ours_alone(input: &Path, output: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(ALONE).args([input, output]);
    command
}

fn theirs(input: &Path, output: &Path) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-m", "16", "-W", "-f", "qcow2", "-O", "raw"]);
    command.args([input, output]);
    command
}

/// Runs one of them; answers the times to its end and to the data being on the disk.
fn timed(mut command: Command, output: &Path) -> (Duration, Duration) {
    let _ = fs::remove_file(output);
    assert!(Command::new("sync").status().unwrap().success());
    let start = Instant::now();
    assert!(command.status().unwrap().success());
    let ended = start.elapsed();
    File::open(output).unwrap().sync_data().unwrap();
    (ended, start.elapsed())
}

fn measure(criterion: &mut Criterion) {
    let output = data_dir().join("output.raw");
    let mut group = criterion.benchmark_group("convert");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(if quick() { 1 } else { 10 }));
    for input in inputs() {
        group.throughput(Throughput::Bytes(input.bytes));
        group.bench_function(input.name, |bencher| {
            bencher.iter_custom(|count| (0..count).map(|_| ours(&input.path, &output)).sum());
        });
    }
    group.finish();
    let _ = fs::remove_file(output);
}

fn check(input: &Path, output: &Path) {
    ours(input, output);
    let names = [input.to_str().unwrap(), output.to_str().unwrap()];
    qemu(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", names[0], names[1]],
    );
}

fn compare() {
    let output = data_dir().join("output.raw");
    println!(
        "{:<14} {:>9} {:>9} {:>6}   {:>9} {:>9} {:>6}",
        "image", "ours, s", "qemu, s", "ratio", "on disk", "on disk", "ratio"
    );
    for input in inputs() {
        check(&input.path, &output);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..if quick() { 3 } else { ROUNDS } {
            for turn in [round % 2 == 0, round % 2 != 0] {
                if turn {
                    ours.push(timed(ours_alone(&input.path, &output), &output));
                } else {
                    theirs.push(timed(crate::theirs(&input.path, &output), &output));
                }
            }
        }
        let (ours, ours_on_disk): (Vec<_>, Vec<_>) = ours.into_iter().unzip();
        let (theirs, theirs_on_disk): (Vec<_>, Vec<_>) = theirs.into_iter().unzip();
        print!("{:<14}", input.name);
        for (ours, theirs) in [(ours, theirs), (ours_on_disk, theirs_on_disk)] {
            let (ours, theirs) = (median(&ours), median(&theirs));
            print!(" {ours:>9.3} {theirs:>9.3} {:>6.2}  ", ours / theirs);
        }
        println!();
    }
    let _ = fs::remove_file(output);
}

criterion_group!(benches, measure);

fn main() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == ALONE) {
        let paths: Vec<PathBuf> = args.map(PathBuf::from).collect();
        ours(&paths[0], &paths[1]);
        return;
    }
    if wanted("convert/ratio") {
        compare();
    }
    benches();
}
