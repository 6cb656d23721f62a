//! The images that are measured: made once, kept in `target/bench-data`.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{data_dir, quick};

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

/// How much data an input holds.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Data in a dense image, in bytes.
    pub dense: u64,
    /// Data scattered over a sparse one, in bytes.
    pub scattered: u64,
    /// Virtual size of the sparse one, in bytes.
    pub sparse: u64,
}

impl Size {
    /// The two sizes that all is measured at, the larger one first.
    pub fn both() -> [Self; 2] {
        let size = |dense, scattered, sparse| Self {
            dense: dense * MIB,
            scattered: scattered * MIB,
            sparse,
        };
        if quick() {
            [size(32, 8, 1 << 40), size(8, 2, 1 << 36)]
        } else {
            [size(1024, 200, 1 << 40), size(128, 20, 1 << 37)]
        }
    }
}

/// An image of one kind.
#[derive(Clone, Debug)]
pub struct Input {
    /// The kind: `zlib`, `overlay`.
    pub kind: &'static str,
    /// Its data, in words.
    pub size: String,
    /// The image.
    pub path: PathBuf,
    /// Bytes of data in it.
    pub bytes: u64,
    /// Whether it names another image that it stands on, which lies beside it.
    pub chained: bool,
}

/// A number of bytes in words.
pub fn words(bytes: u64) -> String {
    match bytes / MIB {
        mib if mib.is_multiple_of(1 << 20) => format!("{} TiB", mib >> 20),
        mib if mib.is_multiple_of(1024) => format!("{} GiB", mib / 1024),
        mib => format!("{mib} MiB"),
    }
}

/// Runs a program of QEMU's.
///
/// # Panics
///
/// Where it is absent or fails.
pub fn qemu(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} is needed (package qemu-utils): {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Makes what is missing; a name is only there when its file is complete.
///
/// # Panics
///
/// Where it cannot be made.
pub fn make(name: &str, with: impl FnOnce(&str)) -> PathBuf {
    let path = data_dir().join(name);
    if !path.exists() {
        let temporary = data_dir().join(format!("new-{name}"));
        let _ = fs::remove_file(&temporary); // of a run that was ended
        with(temporary.to_str().expect("a path in UTF-8"));
        fs::rename(temporary, &path).expect("the input gets its name");
    }
    path
}

/// A disk full of data: the files of /usr/lib in the order of their names, as real files are what images hold; again
/// from the start where they do not fill it.
///
/// # Panics
///
/// Where it cannot be made.
pub fn raw(bytes: u64) -> PathBuf {
    make(&format!("raw-{bytes}.img"), |path| {
        fill(Path::new(path), bytes)
    })
}

fn fill(path: &Path, bytes: u64) {
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
    assert!(!files.is_empty(), "/usr/lib is empty");
    let mut out = BufWriter::new(File::create(path).expect("the input can be made"));
    let mut left = bytes;
    for file in files.iter().cycle() {
        let Ok(file) = File::open(file) else { continue };
        left -= std::io::copy(&mut file.take(left), &mut out).expect("the input can be written");
        if left == 0 {
            break;
        }
    }
    out.flush().expect("the input can be written");
}

/// A dense qcow2 image, made with these options of `qemu-img convert`.
///
/// # Panics
///
/// Where it cannot be made.
pub fn dense(kind: &'static str, bytes: u64, options: &[&str]) -> Input {
    let raw = raw(bytes);
    let path = make(&format!("{kind}-{bytes}.qcow2"), |path| {
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow2"];
        args.extend_from_slice(options);
        args.extend([raw.to_str().expect("a path in UTF-8"), path]);
        qemu("qemu-img", &args);
    });
    Input {
        kind,
        size: words(bytes),
        path,
        bytes,
        chained: false,
    }
}

/// An image on a compressed base, of which a quarter was written anew.
///
/// # Panics
///
/// Where it cannot be made.
pub fn overlay(bytes: u64) -> Input {
    let base = dense("zlib", bytes, &["-c"]);
    let base = base.path.file_name().and_then(|name| name.to_str());
    let base = base.expect("a name in UTF-8");
    let path = make(&format!("overlay-{bytes}.qcow2"), |path| {
        let create = [
            "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, path,
        ];
        qemu("qemu-img", &create);
        // Every fourth MiB.
        let commands: Vec<String> = (0..bytes / (4 * MIB))
            .map(|index| format!("write -q -P {} {} {MIB}", index % 255 + 1, index * 4 * MIB))
            .collect();
        write(path, &commands);
    });
    Input {
        kind: "overlay",
        size: words(bytes),
        path,
        bytes,
        chained: true,
    }
}

/// A large and almost empty image, with data in pieces of so many bytes.
///
/// # Panics
///
/// Where it cannot be made.
pub fn sparse(kind: &'static str, size: Size, piece: u64) -> Input {
    let (bytes, whole) = (size.scattered, size.sparse);
    let path = make(&format!("{kind}-{bytes}.qcow2"), |path| {
        let text = whole.to_string();
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", path, &text]);
        let pieces = bytes / piece;
        let apart = whole / pieces / piece * piece;
        let commands: Vec<String> = (0..pieces)
            .map(|index| format!("write -q -P {} {} {piece}", index % 255 + 1, index * apart))
            .collect();
        write(path, &commands);
    });
    Input {
        kind,
        size: format!("{} in {}", words(bytes), words(whole)),
        path,
        bytes,
        chained: false,
    }
}

fn write(path: &str, commands: &[String]) {
    let mut args = vec!["-f", "qcow2"];
    args.extend(commands.iter().flat_map(|command| ["-c", command.as_str()]));
    args.push(path);
    qemu("qemu-io", &args);
}
