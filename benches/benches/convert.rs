//! How fast a qcow2 image becomes sparse raw, here and by `qemu-img convert -m 16 -W`, systemd's importer and the crate
//! qcow2-rs, all to a new file on the same file system.
//!
//! Outputs are compared once before anything is measured. The table compares whole processes, which take turns in
//! changing order; the page cache holds the input, and has nothing to write back when the clock starts. Once it stops
//! at the end of the process, and once after `sync -d` of the output, which neither converter does by itself.
//! Criterion then measures our function alone, inside one process.
#![allow(missing_docs)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use nspawn_benches::inputs::{self, Input, Size, qemu};
use nspawn_benches::process::{self, Contestant};
use nspawn_benches::program::importd;
use nspawn_benches::table::{Goal, Row};
use nspawn_benches::{data_dir, quick, rounds, slow_rounds, wanted};
use nspawn_image::Cancel;
use nspawn_image::qcow2::{OpenOptions, Qcow2};
use nspawn_tests::fixture::target_dir;

/// The argument for one conversion and nothing else.
const ALONE: &str = "--convert-alone";
/// No image is larger, in bytes.
const LIMIT: u64 = 2 << 40;

fn every_input() -> Vec<(Input, Vec<Goal>)> {
    let memory = Goal::Memory(32.0);
    let mut inputs = Vec::new();
    for size in Size::both() {
        let zstd = ["-c", "-o", "compression_type=zstd"];
        let zlib_goals = vec![Goal::Ended(0.30), Goal::Cpu(0.40), memory];
        inputs.extend([
            (inputs::dense("zlib", size.dense, &["-c"]), zlib_goals),
            (
                inputs::dense("zstd", size.dense, &zstd),
                vec![Goal::Ended(0.50), memory],
            ),
            (
                inputs::dense("uncompressed", size.dense, &[]),
                vec![Goal::Ended(1.0), memory],
            ),
            (inputs::overlay(size.dense), vec![Goal::Ended(0.40), memory]),
        ]);
        for (kind, piece) in [("sparse-1M", 1 << 20), ("sparse-64K", 64 << 10)] {
            let mut goals = vec![memory];
            // The smaller one is a few milliseconds of either.
            if size.sparse == 1 << 40 {
                goals.insert(0, Goal::Ended(0.10));
            }
            inputs.push((inputs::sparse(kind, size, piece), goals));
        }
    }
    inputs
}

/// One conversion in this process.
fn convert(input: &Path, output: &Path) -> Duration {
    let _ = fs::remove_file(output); // of the run before
    let start = Instant::now();
    let mut options = OpenOptions::default();
    options.limit = LIMIT;
    options.backing = input.parent().map(Path::to_owned);
    options.path = Some(input.to_owned());
    let image = Qcow2::open_with(File::open(input).unwrap(), &options).unwrap();
    let file = File::create_new(output).unwrap();
    image
        .convert(&file, &Cancel::default(), &mut |_| {})
        .unwrap();
    start.elapsed()
}

/// One run of ours as a whole process: this program again.
fn ours(input: &Path, output: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(ALONE).args([input, output]);
    command
}

fn qemu_img(input: &Path, output: &Path) -> Command {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-m", "16", "-W", "-f", "qcow2", "-O", "raw"]);
    command.args([input, output]);
    command
}

/// Copies the image into a folder, and unpacks it there.
fn systemd_import(input: &Path, output: &Path) -> Command {
    let mut command = Command::new(importd("systemd-import"));
    command.args(["raw", "--sync=no"]);
    let name = output.file_stem().unwrap();
    command.arg(format!(
        "--image-root={}",
        output.parent().unwrap().display()
    ));
    command.arg(input).arg(name);
    command
}

fn qcow2_rs(input: &Path, output: &Path) -> Command {
    let mut command = Command::new(target_dir().join("peers/release/nspawn-peers"));
    command.arg("qcow2-rs").args([input, output]);
    command
}

fn measure(criterion: &mut Criterion) {
    let output = data_dir().join("output.raw");
    let mut group = criterion.benchmark_group("function");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(if quick() { 1 } else { 10 }));
    for (input, _) in every_input() {
        let name = format!("{}/{}", input.kind, input.size);
        group.throughput(Throughput::Bytes(input.bytes));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| (0..count).map(|_| convert(&input.path, &output)).sum());
        });
    }
    group.finish();
    let _ = fs::remove_file(output);
}

fn check(input: &Path, output: &Path) {
    let _ = fs::remove_file(output); // of the run before
    assert!(ours(input, output).status().unwrap().success());
    let names = [input.to_str().unwrap(), output.to_str().unwrap()];
    qemu(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", names[0], names[1]],
    );
}

fn compare() {
    let output = data_dir().join("output.raw");
    for (input, goals) in every_input() {
        let name = format!("convert/{}", input.kind);
        if !wanted(&name) {
            continue;
        }
        check(&input.path, &output);
        let contestant = |name, rounds, command: fn(&Path, &Path) -> Command| {
            let (input, output) = (&input.path, &output);
            Contestant {
                name,
                rounds,
                output: output.clone(),
                command: Box::new(move || {
                    let _ = fs::remove_file(output); // of the run before
                    command(input, output)
                }),
            }
        };
        let mut contestants = vec![
            contestant("ours", rounds(), ours),
            contestant("qemu-img -m 16 -W", rounds(), qemu_img),
        ];
        // The others lose what an overlay stands on, or write every byte of a terabyte.
        if !input.chained && !input.kind.starts_with("sparse") {
            contestants.push(contestant("systemd-import", slow_rounds(), systemd_import));
            contestants.push(contestant("qcow2-rs", slow_rounds(), qcow2_rs));
        }
        let costs = process::compare(&contestants);
        for (index, contestant) in contestants.iter().enumerate().skip(1) {
            let row = Row {
                name: &name,
                size: &input.size,
                peer: contestant.name,
                ours: costs[0].unwrap_or_default(),
                theirs: costs[index],
                goals: if index == 1 { &goals } else { &[] },
            };
            row.tell();
        }
    }
    let _ = fs::remove_file(output);
}

criterion_group!(benches, measure);

fn main() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == ALONE) {
        let paths: Vec<PathBuf> = args.map(PathBuf::from).collect();
        convert(&paths[0], &paths[1]);
        return;
    }
    compare();
    // Criterion takes one filter at most.
    if wanted("function/") || std::env::args().any(|arg| arg.starts_with("function/")) {
        benches();
    }
}
