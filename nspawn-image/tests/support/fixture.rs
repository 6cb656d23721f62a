//! A store in a temporary folder, images made by `qemu-img`, and what a pull says meanwhile.
#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nspawn_image::{
    Cancel, Digest, DownloadReason, Image, ImageError, NoReport, PullOptions, Reporter, Soundness,
    StepId, StepKind, Store, Verify,
};

/// A store in a temporary folder, in which there is room for more.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file beside the store and returns its path.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// One attempt, quick to give up; nothing is looked for beside the image, as a test's server may answer any path.
    pub(crate) fn options(&self) -> PullOptions {
        let mut options = PullOptions::default();
        options.machines_dir = self.path("machines");
        options.retries = 0;
        options.verify = Verify::No;
        options.idle_timeout = Duration::from_secs(5);
        options
    }

    pub(crate) fn pull(&self, reference: &str) -> Result<Image, ImageError> {
        self.pull_with(reference, &self.options())
    }

    pub(crate) fn pull_with(
        &self,
        reference: &str,
        options: &PullOptions,
    ) -> Result<Image, ImageError> {
        let reference = reference.parse().unwrap();
        let pulled = self.store.pull(&reference, options, &mut NoReport);
        pulled.inspect(|image| assert_sound(&self.store, image))
    }

    /// Files under `folder` of the store.
    pub(crate) fn files(&self, folder: &str) -> Vec<String> {
        names(&self.path("store").join(folder))
    }

    /// Panics unless nothing was published, and nothing is left of the attempt.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        for folder in ["blobs", "refs", "partial"] {
            assert_eq!(self.left(folder), Vec::<String>::new(), "{folder}");
        }
    }

    /// The same without locks.
    pub(crate) fn left(&self, folder: &str) -> Vec<String> {
        let mut names = self.files(folder);
        names.retain(|name| !name.ends_with(".lock"));
        names
    }
}

/// Panics unless an image is what the checksums say that were taken while it was made.
#[track_caller]
pub(crate) fn assert_sound(store: &Store, image: &Image) {
    if let Some(name) = image.name() {
        let found = store.verify(name, &Cancel::default(), &mut NoReport);
        assert_eq!(found.unwrap(), Soundness::Sound, "{name}");
    }
}

/// What stands in a folder, hidden or not, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub(crate) fn qemu_img(arguments: &[&str]) {
    let status = Command::new("qemu-img").args(arguments).status();
    let status = status.expect("qemu-img is needed (package qemu-utils)");
    assert!(status.success(), "{arguments:?}");
}

/// A raw disk as a qcow2 image, with these options of `qemu-img convert`.
pub(crate) fn qcow2_of(raw: &[u8], options: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("made.raw"), dir.path().join("made.qcow2"));
    fs::write(&from, raw).unwrap();
    let paths = [from.to_str().unwrap(), to.to_str().unwrap()];
    let arguments = ["convert", "-O", "qcow2"];
    qemu_img(&[&arguments[..], options, &paths].concat());
    fs::read(to).unwrap()
}

/// A bare ext4 as far as anybody looks: data that packs to about half, the same for the same `seed`.
pub(crate) fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for byte in &mut bytes[4096..] {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *byte = (seed >> 60) as u8;
    }
    bytes[1080..1082].copy_from_slice(&[0x53, 0xef]);
    bytes
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::Sha256(sha2::Sha256::digest(bytes).into())
}

pub(crate) fn reason(error: ImageError) -> DownloadReason {
    match error {
        ImageError::Download(error) => error.reason,
        other => panic!("not a download error: {other}"),
    }
}

/// What a pull says.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) notices: Vec<String>,
    pub(crate) steps: Vec<StepKind>,
    /// Steps that have not ended.
    pub(crate) open: i32,
}

impl Reporter for Log {
    fn begin(&mut self, kind: StepKind, _: &str, _: Option<u64>) -> StepId {
        self.steps.push(kind);
        self.open += 1;
        StepId(self.steps.len() as u64)
    }

    fn end(&mut self, _: StepId) {
        self.open -= 1;
    }

    fn notice(&mut self, text: &str) {
        self.notices.push(text.to_owned());
    }
}
