//! The four package managers: which one is here, and the commands they take.

use std::process::Command;

use crate::programs;

/// A package manager that the tasks can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manager {
    AptGet,
    Dnf,
    Pacman,
    Zypper,
}

impl Manager {
    pub(crate) const ALL: [Self; 4] = [Self::AptGet, Self::Dnf, Self::Pacman, Self::Zypper];

    /// The first one found; a machine with two of them is Debian with a foreign tool more often than not.
    pub(crate) fn detect() -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|manager| programs::find(manager.program()).is_some())
    }

    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::AptGet => "apt-get",
            Self::Dnf => "dnf",
            Self::Pacman => "pacman",
            Self::Zypper => "zypper",
        }
    }

    /// Fetches the index of packages, where that is a step of its own.
    ///
    /// A stale index names package files that are gone, and a fresh machine has none.
    pub(crate) fn update(self) -> Option<Command> {
        let arguments: &[&str] = match self {
            Self::AptGet => &["update", "--quiet"],
            Self::Dnf | Self::Pacman => return None,
            Self::Zypper => &["--non-interactive", "refresh"],
        };
        Some(self.command(arguments))
    }

    pub(crate) fn install(self, packages: &[&str]) -> Command {
        let arguments: &[&str] = match self {
            Self::AptGet => &["install", "--yes", "--quiet", "--no-install-recommends"],
            Self::Dnf => &["install", "--assumeyes", "--setopt=install_weak_deps=False"],
            // An index without the upgrade is a partial upgrade, which Arch does not support.
            Self::Pacman => &[
                "--sync",
                "--refresh",
                "--sysupgrade",
                "--needed",
                "--noconfirm",
            ],
            Self::Zypper => &["--non-interactive", "install", "--no-recommends"],
        };
        let mut command = self.command(arguments);
        command.args(packages);
        command
    }

    fn command(self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program());
        command.args(arguments);
        if self == Self::AptGet {
            command.env("DEBIAN_FRONTEND", "noninteractive");
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::shown;

    #[test]
    fn commands_never_ask() {
        let cases = [
            (
                Manager::AptGet,
                "DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends zstd",
            ),
            (
                Manager::Dnf,
                "dnf install --assumeyes --setopt=install_weak_deps=False zstd",
            ),
            (
                Manager::Pacman,
                "pacman --sync --refresh --sysupgrade --needed --noconfirm zstd",
            ),
            (
                Manager::Zypper,
                "zypper --non-interactive install --no-recommends zstd",
            ),
        ];
        for (manager, expected) in cases {
            assert_eq!(shown(&manager.install(&["zstd"])), expected);
        }
    }
}
