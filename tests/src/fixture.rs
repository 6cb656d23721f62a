//! Where the fixtures are: images and roots that `cargo xtask fixture` builds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root partition's first byte in `debian.raw` and its kin.
pub const ROOT_OFFSET: u64 = 262_144 * 512;
/// Virtual size of the disk images, in bytes.
pub const DISK_SIZE: u64 = 2 << 30;

/// A file of the Debian fixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debian {
    /// `debian.raw`: GPT, root of the discoverable type.
    Raw,
    /// `debian-generic.raw`: the same, root of the generic Linux type.
    RawGeneric,
    /// `debian.qcow2`: zlib clusters.
    Qcow2,
    /// `debian-zstd.qcow2`: zstd clusters.
    Qcow2Zstd,
    /// `debian.tar`: the root file system.
    Tar,
    /// `debian-disk.tar.xz`: `disk.raw` in a sparse tar, as the distribution publishes it.
    DiskTarXz,
    /// `SHA256SUMS` of all the others.
    Sha256Sums,
}

impl Debian {
    /// The name of the file.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Raw => "debian.raw",
            Self::RawGeneric => "debian-generic.raw",
            Self::Qcow2 => "debian.qcow2",
            Self::Qcow2Zstd => "debian-zstd.qcow2",
            Self::Tar => "debian.tar",
            Self::DiskTarXz => "debian-disk.tar.xz",
            Self::Sha256Sums => "SHA256SUMS",
        }
    }

    /// The file itself. Never to be written: all tests share it.
    ///
    /// # Panics
    ///
    /// Where the fixture was not built.
    pub fn path(self) -> PathBuf {
        built("debian", "cargo xtask fixture").join(self.file_name())
    }

    /// The SHA-256 of the file, in hex, as the fixture's own list has it.
    ///
    /// # Panics
    ///
    /// Where the fixture was not built, and for [`Debian::Sha256Sums`], which is not in the list.
    pub fn sha256(self) -> String {
        let list = Self::Sha256Sums.path();
        let text = std::fs::read_to_string(&list)
            .unwrap_or_else(|error| panic!("{}: {error}", list.display()));
        text.lines()
            .find_map(|line| line.strip_suffix(self.file_name())?.strip_suffix("  "))
            .unwrap_or_else(|| panic!("{} does not list {}", list.display(), self.file_name()))
            .to_owned()
    }
}

/// The Debian fixture's root in one file system, as a disk image: `btrfs`, `xfs`, `ext4`, `erofs` or `squashfs`. Never to
/// be written: all tests share it.
///
/// # Panics
///
/// Where the fixture was not built.
pub fn in_filesystem(name: &str) -> PathBuf {
    built("filesystems", "cargo xtask fixture").join(format!("{name}.raw"))
}

/// The root folder of the nested systemd host; boot it with [`SystemdHost`](crate::systemd_host::SystemdHost).
///
/// # Panics
///
/// Where the fixture was not built.
pub fn systemd_host_root() -> PathBuf {
    built("systemd-host", "cargo xtask fixture --systemd-host").join("root")
}

fn built(name: &str, command: &str) -> PathBuf {
    let dir = target_dir().join("fixture").join(name);
    assert!(
        dir.join("VERSION").exists(),
        "the fixture {} is absent: run `{command}` as root",
        dir.display()
    );
    dir
}

/// The workspace's root.
///
/// # Panics
///
/// Never: this crate stands in the workspace.
pub fn workspace_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ stands in the workspace")
}

/// The target folder, as cargo names it; asked once.
///
/// # Panics
///
/// Where cargo cannot be run.
pub fn target_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(workspace_dir())
            .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
            .output()
            .expect("cargo runs");
        serde_json::from_slice::<serde_json::Value>(&output.stdout)
            .ok()
            .and_then(|metadata| metadata["target_directory"].as_str().map(PathBuf::from))
            .unwrap_or_else(|| {
                panic!(
                    "cargo metadata: {}",
                    String::from_utf8_lossy(&output.stderr)
                )
            })
    })
}
