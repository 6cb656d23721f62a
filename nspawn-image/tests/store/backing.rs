//! Names of files below an overlay, as a hostile image gives them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nspawn_image::qcow2::{BackingReason, Qcow2Error};
use nspawn_image::{ConvertOptions, ErrorKind, ImageError, NoReport, convert_file};

use super::fixture::{noise, qemu_img};

const LENGTH: usize = 1 << 20;

/// A folder that is allowed, with a disk in it, and another disk outside.
struct Chains(tempfile::TempDir);

impl Chains {
    fn new() -> Self {
        let chains = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(chains.allowed().join("sub")).unwrap();
        fs::write(chains.allowed().join("base.raw"), noise(LENGTH, 1)).unwrap();
        fs::write(chains.outside(), noise(LENGTH, 2)).unwrap();
        chains
    }

    fn allowed(&self) -> PathBuf {
        self.0.path().join("allowed")
    }

    fn outside(&self) -> PathBuf {
        self.0.path().join("secret.raw")
    }

    /// An overlay `file` in the allowed folder, on whatever `name` says; qemu-img does not look.
    fn overlay(&self, file: &str, name: &str, format: &str) {
        let path = self.allowed().join(file);
        let options = ["create", "-q", "-u", "-f", "qcow2", "-F", format];
        let rest = ["-b", name, path.to_str().unwrap(), "1M"];
        qemu_img(&[&options[..], &rest].concat());
    }

    fn convert(&self, file: &str, allowed: &Path) -> Result<Vec<u8>, ImageError> {
        let mut options = ConvertOptions::default();
        options.allow_backing = Some(allowed.to_owned());
        options.replace = true;
        let out = self.0.path().join("out.raw");
        let _ = fs::remove_file(&out);
        let result = convert_file(&self.allowed().join(file), &out, &options, &mut NoReport);
        assert_eq!(out.exists(), result.is_ok());
        result.map(|_| fs::read(out).unwrap())
    }

    /// Why the file below is not used; the error names it and the folder.
    #[track_caller]
    fn refusal(&self, file: &str, allowed: &Path, name: &str) -> BackingReason {
        let error = self.convert(file, allowed).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{error:?}");
        assert!(error.hint().is_some(), "{error:?}");
        let ImageError::Qcow2 { source, .. } = error else {
            panic!("{name:?}: not an error of the image: {error:?}");
        };
        let text = source.to_string();
        let shown = format!("{name:?} in {}", allowed.display());
        assert!(text.contains(&shown), "{text} does not tell {shown}");
        match source {
            Qcow2Error::Backing { reason, .. } => *reason,
            other => panic!("{name:?}: not an error of a file below: {other:?}"),
        }
    }
}

/// Writes over the name in an overlay's header.
fn rename(path: &Path, change: impl FnOnce(&mut [u8])) {
    let mut bytes = fs::read(path).unwrap();
    let number = |at: usize, length| {
        let bytes = &bytes[at..at + length];
        bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let (at, length) = (number(8, 8), number(16, 4));
    assert!(at > 0 && length > 0);
    change(&mut bytes[at..at + length]);
    fs::write(path, bytes).unwrap();
}

fn is_missing(reason: &BackingReason) -> bool {
    matches!(reason, BackingReason::Open(error) if error.kind() == std::io::ErrorKind::NotFound)
}

#[test]
fn no_name_leads_out_of_the_folder_or_to_anything_but_a_file() {
    let chains = Chains::new();
    let allowed = chains.allowed();
    let at = |name: &str| allowed.join(name);
    let absolute = at("base.raw").to_str().unwrap().to_owned();
    let secret = chains.outside().to_str().unwrap().to_owned();
    symlink("../secret.raw", at("out")).unwrap();
    symlink(&absolute, at("absolute")).unwrap();
    symlink("base.raw", at("inside")).unwrap();
    symlink("../base.raw", at("sub/up")).unwrap();
    symlink("round", at("round")).unwrap();
    symlink("..", at("parent")).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(at("fifo"))
            .status()
            .unwrap()
            .success()
    );

    for name in [
        "base.raw",
        "./base.raw",
        "sub/../base.raw",
        "inside",
        "sub/up",
        &absolute,
    ] {
        chains.overlay("top.qcow2", name, "raw");
        let read = chains.convert("top.qcow2", &allowed);
        let read = read.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(read == noise(LENGTH, 1), "{name}");
    }
    let long = format!("{}base.raw", "./".repeat(500));
    chains.overlay("top.qcow2", &long, "raw");
    assert!(chains.convert("top.qcow2", &allowed).is_ok());

    type Test = fn(&BackingReason) -> bool;
    let outside: Test = |reason| matches!(reason, BackingReason::Outside);
    let protocol: Test = |reason| matches!(reason, BackingReason::Protocol);
    let no_file: Test = |reason| matches!(reason, BackingReason::NotAFile);
    let no_open: Test = |reason| matches!(reason, BackingReason::Open(_));
    let table = [
        ("../secret.raw", outside),
        ("sub/../../secret.raw", outside),
        ("sub/../../allowed/base.raw", outside),
        (secret.as_str(), outside),
        ("/etc/passwd", outside),
        ("/proc/self/exe", outside),
        ("out", outside),
        // Where a link leads is looked for in the folder alone, and an absolute one begins elsewhere.
        ("absolute", outside),
        ("parent/secret.raw", outside),
        ("round", no_open),
        ("nbd:localhost:10809", protocol),
        ("nbd://localhost/disk", protocol),
        ("nbd+unix:///disk?socket=/run/nbd", protocol),
        (
            "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
            protocol,
        ),
        ("file:base.raw", protocol),
        ("http://127.0.0.1/base.raw", protocol),
        ("blkdebug::base.raw", protocol),
        ("fat:rw:sub", protocol),
        ("sub", no_file),
        ("fifo", no_file),
        ("none.raw", is_missing),
        ("base.raw/base.raw", no_open),
        ("base.raw\n", is_missing),
        ("base.raw ", is_missing),
        ("line\nfeed\t\u{1b}[31m", is_missing),
    ];
    for (name, expected) in table {
        chains.overlay("top.qcow2", name, "raw");
        let reason = chains.refusal("top.qcow2", &allowed, name);
        assert!(expected(&reason), "{name:?}: {reason:?}");
    }
    chains.overlay("top.qcow2", "null", "raw");
    let device = chains.refusal("top.qcow2", Path::new("/dev"), "null");
    assert!(no_file(&device), "{device:?}");
    // The folder itself is not there.
    let gone = chains.refusal("top.qcow2", &allowed.join("gone"), "null");
    assert!(is_missing(&gone), "{gone:?}");

    // What qemu-img does not write.
    chains.overlay("nul.qcow2", "base.raw.raw", "raw");
    rename(&at("nul.qcow2"), |name| name[8] = 0);
    let nul = chains.refusal("nul.qcow2", &allowed, "base.raw\0raw");
    assert!(no_file(&nul), "{nul:?}");
    chains.overlay("empty.qcow2", "base.raw", "raw");
    let mut bytes = fs::read(at("empty.qcow2")).unwrap();
    bytes[16..20].fill(0);
    fs::write(at("empty.qcow2"), bytes).unwrap();
    let empty = chains.refusal("empty.qcow2", &allowed, "");
    assert!(no_file(&empty), "{empty:?}");
}

#[test]
fn a_chain_ends_and_is_not_too_long() {
    let chains = Chains::new();
    let allowed = chains.allowed();
    chains.overlay("self.qcow2", "self.qcow2", "qcow2");
    chains.overlay("one.qcow2", "two.qcow2", "qcow2");
    chains.overlay("two.qcow2", "sub/../one.qcow2", "qcow2");
    for (file, name) in [
        ("self.qcow2", "self.qcow2"),
        ("one.qcow2", "sub/../one.qcow2"),
    ] {
        let reason = chains.refusal(file, &allowed, name);
        assert!(matches!(reason, BackingReason::Loop), "{file}: {reason:?}");
    }
    // By another name it is the same file.
    fs::hard_link(allowed.join("self.qcow2"), allowed.join("twin.qcow2")).unwrap();
    chains.overlay("self.qcow2", "twin.qcow2", "qcow2");
    fs::remove_file(allowed.join("twin.qcow2")).unwrap();
    fs::hard_link(allowed.join("self.qcow2"), allowed.join("twin.qcow2")).unwrap();
    let reason = chains.refusal("self.qcow2", &allowed, "twin.qcow2");
    assert!(matches!(reason, BackingReason::Loop), "{reason:?}");

    chains.overlay("16", "base.raw", "raw");
    for index in (0..16).rev() {
        chains.overlay(&index.to_string(), &(index + 1).to_string(), "qcow2");
    }
    assert!(chains.convert("1", &allowed).unwrap() == noise(LENGTH, 1));
    let reason = chains.refusal("0", &allowed, "base.raw");
    assert!(matches!(reason, BackingReason::Depth(16)), "{reason:?}");

    chains.overlay("format.qcow2", "base.raw", "vmdk");
    let reason = chains.refusal("format.qcow2", &allowed, "base.raw");
    assert!(
        matches!(reason, BackingReason::Format(ref format) if format == "vmdk"),
        "{reason:?}"
    );
    chains.overlay("no-image.qcow2", "base.raw", "qcow2");
    let reason = chains.refusal("no-image.qcow2", &allowed, "base.raw");
    assert!(
        matches!(reason, BackingReason::Image(Qcow2Error::Magic)),
        "{reason:?}"
    );
}
