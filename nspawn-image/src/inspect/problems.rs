//! What of an image will not work in systemd-nspawn on this host, and what will be otherwise than on hardware.

use super::os::{FstabEntry, MachineId, Os};

/// The oldest systemd that starts on a host with the unified cgroup hierarchy alone. Source: systemd NEWS, 232 and 233.
const OLDEST_UNIFIED: u32 = 232;

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Severity {
    /// A machine does not start from it here.
    Fatal,
    /// It starts; something is otherwise than on hardware.
    Note,
}

/// Something to know before a machine is started from an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// What it is, without a full stop.
    pub what: String,
    /// What to do, where something is known to help.
    pub hint: Option<String>,
}

impl Problem {
    pub(super) fn fatal(what: impl Into<String>, hint: impl Into<Option<&'static str>>) -> Self {
        Self {
            severity: Severity::Fatal,
            what: what.into(),
            hint: hint.into().map(str::to_owned),
        }
    }

    pub(super) fn note(what: impl Into<String>, hint: impl Into<Option<&'static str>>) -> Self {
        Self {
            severity: Severity::Note,
            ..Self::fatal(what, hint)
        }
    }
}

/// What of this host matters to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HostFacts {
    /// As systemd names it; `None` for one that is not known here.
    pub(super) architecture: Option<&'static str>,
    /// Whether the host has the unified cgroup hierarchy alone.
    pub(super) unified: bool,
}

impl HostFacts {
    pub(super) fn detect() -> Self {
        /// Source: linux/magic.h, `CGROUP2_SUPER_MAGIC`.
        const CGROUP2: u64 = 0x6367_7270;
        let found = rustix::fs::statfs("/sys/fs/cgroup");
        Self {
            architecture: match std::env::consts::ARCH {
                "x86" => Some("x86"),
                "x86_64" => Some("x86-64"),
                "aarch64" => Some("arm64"),
                "arm" => Some("arm"),
                "riscv64" => Some("riscv64"),
                "loongarch64" => Some("loongarch64"),
                "s390x" => Some("s390x"),
                "powerpc64" if cfg!(target_endian = "little") => Some("ppc64-le"),
                _ => None,
            },
            unified: found.is_ok_and(|found| found.f_type as u64 == CGROUP2),
        }
    }

    /// Whether programs built for `other` run here: this architecture's, and the 32-bit ones it includes.
    fn runs(self, other: &str) -> bool {
        match self.architecture {
            None => true,
            Some(own) => {
                own == other || matches!((own, other), ("x86-64", "x86") | ("arm64", "arm"))
            }
        }
    }
}

pub(super) fn of(os: &Os, host: HostFacts) -> Vec<Problem> {
    let mut found = Vec::new();
    if !os.has_os_release {
        found.push(Problem::fatal(
            "there is no os-release: systemd-nspawn starts no such tree",
            "is this an OS image? its root needs etc/os-release or usr/lib/os-release",
        ));
    }
    match (os.init, os.systemd) {
        (None, _) => found.push(Problem::fatal(
            "there is no systemd and no other init",
            "most container images hold none: install systemd in it, or take a cloud image",
        )),
        (Some(init), None) if !init.ends_with("systemd") => found.push(Problem::fatal(
            format!("its init {init} is not systemd, which is what starts units"),
            "take an image with systemd",
        )),
        (_, Some(version)) if version < OLDEST_UNIFIED && host.unified => {
            found.push(Problem::fatal(
                format!("its systemd {version} does not start with version 2 cgroups alone, as this host has"),
                "take a newer image, or boot the host with systemd.unified_cgroup_hierarchy=0",
            ));
        }
        _ => {}
    }
    if let Some(other) = os.architecture.filter(|other| !host.runs(other)) {
        let own = host.architecture.unwrap_or("another architecture");
        found.push(Problem::fatal(
            format!("it is built for {other}, this host is {own}"),
            "take the publisher's image for this architecture, or set up binfmt_misc with qemu-user",
        ));
    }
    // Subvolumes of the root's own file system are mounted without any device.
    let root = os.fstab.iter().find(|entry| entry.target == "/");
    let is_beside_root = |entry: &&FstabEntry| {
        entry.kind == "btrfs"
            && root.is_some_and(|root| root.kind == "btrfs" && root.source == entry.source)
    };
    let skipped: Vec<&str> = os
        .fstab
        .iter()
        .filter(|entry| entry.is_device() && entry.target != "/" && entry.kind != "swap")
        .filter(|entry| !is_beside_root(entry))
        .map(|entry| entry.target.as_str())
        .collect();
    if !skipped.is_empty() {
        found.push(Problem::note(
            format!(
                "fstab's {} will not be mounted: a container has no disks",
                skipped.join(", ")
            ),
            None,
        ));
    }
    if os.services.iter().any(|name| name == "cloud-init") {
        found.push(Problem::note(
            "cloud-init is on in it and is turned off in machines: users, keys and the like that it makes are missing",
            None,
        ));
    }
    if os.machine_id == MachineId::Set {
        found.push(Problem::note(
            "its machine ID is set: all machines started from it share it",
            "empty /etc/machine-id in the image",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_is_named() {
        let good = Os {
            name: None,
            id: Some("debian".into()),
            version: None,
            has_os_release: true,
            architecture: Some("x86-64"),
            systemd: Some(252),
            init: Some("usr/lib/systemd/systemd"),
            merged_usr: true,
            machine_id: MachineId::Empty,
            services: Vec::new(),
            fstab: Vec::new(),
        };
        let host = HostFacts {
            architecture: Some("x86-64"),
            unified: true,
        };
        assert_eq!(of(&good, host), []);
        let bad = |change: &dyn Fn(&mut Os)| {
            let mut os = good.clone();
            change(&mut os);
            let found = of(&os, host);
            assert_eq!(found.len(), 1, "{found:?}");
            (found[0].severity, found[0].what.clone())
        };
        let entry = |source: &str, target: &str| FstabEntry {
            source: source.into(),
            target: target.into(),
            kind: "ext4".into(),
        };
        type Case<'a> = (&'a dyn Fn(&mut Os), Severity, &'a str);
        let table: [Case<'_>; 9] = [
            (
                &|os| os.has_os_release = false,
                Severity::Fatal,
                "os-release",
            ),
            (&|os| os.init = None, Severity::Fatal, "no systemd"),
            (
                &|os| (os.init, os.systemd) = (Some("sbin/init"), None),
                Severity::Fatal,
                "sbin/init is not systemd",
            ),
            (&|os| os.systemd = Some(229), Severity::Fatal, "systemd 229"),
            (
                &|os| os.architecture = Some("arm64"),
                Severity::Fatal,
                "built for arm64",
            ),
            (
                &|os| os.services.push("cloud-init".into()),
                Severity::Note,
                "cloud-init",
            ),
            (
                &|os| os.machine_id = MachineId::Set,
                Severity::Note,
                "machine ID",
            ),
            (
                &|os| {
                    os.fstab = vec![
                        entry("UUID=1", "/"),
                        entry("LABEL=x", "/boot"),
                        entry("tmpfs", "/tmp"),
                    ];
                },
                Severity::Note,
                "fstab's /boot will",
            ),
            (
                &|os| {
                    os.fstab = vec![
                        entry("UUID=1", "/"),
                        entry("UUID=1", "/home"),
                        entry("UUID=2", "/srv"),
                    ];
                    for entry in &mut os.fstab {
                        entry.kind = "btrfs".into();
                    }
                },
                Severity::Note,
                "fstab's /srv will",
            ),
        ];
        for (change, severity, text) in table {
            let (found, what) = bad(change);
            assert!(found == severity && what.contains(text), "{what}");
        }
        let mut old = good.clone();
        (old.systemd, old.architecture) = (Some(229), Some("x86"));
        let hybrid = HostFacts {
            unified: false,
            ..host
        };
        assert_eq!(of(&old, hybrid), []);
    }
}
