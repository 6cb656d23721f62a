//! The programs that the tasks need, and which package brings each of them.
//!
//! A program is looked up, not a package: how it came to this machine is nobody's business.

use std::path::PathBuf;

use crate::packages::Manager;

/// What a machine is prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Purpose {
    /// To run a unit in a machine
    Demo,
    /// To build the fixtures and run every test
    Test,
}

/// One program and the package of each manager that has it; `None` where the base system always does.
#[derive(Debug)]
pub(crate) struct Program {
    /// Any one of these will do.
    pub(crate) names: &'static [&'static str],
    apt: &'static str,
    dnf: &'static str,
    pacman: &'static str,
    zypper: &'static str,
}

impl Program {
    const fn new(names: &'static [&'static str], packages: [&'static str; 4]) -> Self {
        let [apt, dnf, pacman, zypper] = packages;
        Self {
            names,
            apt,
            dnf,
            pacman,
            zypper,
        }
    }

    pub(crate) fn package(&self, manager: Manager) -> &'static str {
        match manager {
            Manager::AptGet => self.apt,
            Manager::Dnf => self.dnf,
            Manager::Pacman => self.pacman,
            Manager::Zypper => self.zypper,
        }
    }

    pub(crate) fn is_present(&self) -> bool {
        self.names.iter().any(|name| find(name).is_some())
    }
}

/// Columns: apt-get, dnf, pacman, zypper.
const DEMO: &[Program] = &[Program::new(
    &["systemd-nspawn"],
    [
        "systemd-container",
        "systemd-container",
        "systemd",
        "systemd-container",
    ],
)];

const TEST: &[Program] = &[
    Program::new(
        &["debootstrap"],
        ["debootstrap", "debootstrap", "debootstrap", "debootstrap"],
    ),
    Program::new(
        &["qemu-img"],
        ["qemu-utils", "qemu-img", "qemu-img", "qemu-tools"],
    ),
    Program::new(
        &["mkfs.ext4"],
        ["e2fsprogs", "e2fsprogs", "e2fsprogs", "e2fsprogs"],
    ),
    Program::new(
        &["mkfs.fat"],
        ["dosfstools", "dosfstools", "dosfstools", "dosfstools"],
    ),
    Program::new(
        &["mkfs.btrfs"],
        ["btrfs-progs", "btrfs-progs", "btrfs-progs", "btrfsprogs"],
    ),
    Program::new(
        &["mkfs.xfs"],
        ["xfsprogs", "xfsprogs", "xfsprogs", "xfsprogs"],
    ),
    Program::new(
        &["mksquashfs"],
        [
            "squashfs-tools",
            "squashfs-tools",
            "squashfs-tools",
            "squashfs",
        ],
    ),
    Program::new(
        &["mkfs.erofs"],
        ["erofs-utils", "erofs-utils", "erofs-utils", "erofs-utils"],
    ),
    Program::new(
        &["sfdisk"],
        ["fdisk", "util-linux", "util-linux", "util-linux"],
    ),
    Program::new(&["sgdisk"], ["gdisk", "gdisk", "gptfdisk", "gptfdisk"]),
    Program::new(
        &["nsenter"],
        ["util-linux", "util-linux", "util-linux", "util-linux"],
    ),
    Program::new(
        &["losetup"],
        ["mount", "util-linux", "util-linux", "util-linux"],
    ),
    Program::new(&["ip"], ["iproute2", "iproute", "iproute2", "iproute2"]),
    Program::new(&["tar"], ["tar", "tar", "tar", "tar"]),
    Program::new(&["gzip"], ["gzip", "gzip", "gzip", "gzip"]),
    Program::new(&["xz"], ["xz-utils", "xz", "xz", "xz"]),
    // A real registry for container images.
    Program::new(
        &["docker-registry", "registry", "distribution"],
        [
            "docker-registry",
            "docker-distribution",
            "distribution",
            "distribution-registry",
        ],
    ),
    Program::new(&["zstd"], ["zstd", "zstd", "zstd", "zstd"]),
    Program::new(&["gpg"], ["gnupg", "gnupg2", "gnupg", "gpg2"]),
    Program::new(&["openssl"], ["openssl", "openssl", "openssl", "openssl"]),
    // One of the crates that qcow2 images are compared with builds a zlib of its own.
    Program::new(&["cmake"], ["cmake", "cmake", "cmake", "cmake"]),
    // Which blocks of a file are shared with others.
    Program::new(
        &["filefrag"],
        ["e2fsprogs", "e2fsprogs", "e2fsprogs", "e2fsprogs"],
    ),
    // libFuzzer is C++.
    Program::new(
        &["c++", "g++", "clang++"],
        ["g++", "gcc-c++", "gcc", "gcc-c++"],
    ),
];

/// What `purpose` needs on any machine.
pub(crate) fn needed(purpose: Purpose) -> Vec<&'static Program> {
    match purpose {
        Purpose::Demo => DEMO.iter().collect(),
        Purpose::Test => DEMO.iter().chain(TEST).collect(),
    }
}

/// Finds a program in `PATH`, and in the system folders that some root shells leave out.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_a_package_for_every_manager() {
        for program in needed(Purpose::Test) {
            for manager in Manager::ALL {
                assert!(
                    !program.package(manager).is_empty(),
                    "{program:?} {manager:?}"
                );
            }
        }
    }

    #[test]
    fn a_program_is_found_and_a_made_up_one_is_not() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
