//! What this host can do, found out before anything is made.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use caps::{CapSet, Capability};

use crate::error::MachineError;

/// Oldest systemd-nspawn this crate drives: 247 brought `--set-credential`, and cgroup2 guests were settled.
const OLDEST_NSPAWN: u32 = 247;

/// What each capability is needed for. Source: capabilities(7).
const CAPABILITIES: [(Capability, &str); 12] = [
    (Capability::CAP_SYS_ADMIN, "mounts and namespaces"),
    (Capability::CAP_NET_ADMIN, "addresses and links"),
    (Capability::CAP_SYS_CHROOT, "entering the machine's root"),
    (
        Capability::CAP_SYS_PTRACE,
        "entering the machine's namespaces",
    ),
    (Capability::CAP_MKNOD, "device nodes of the machine"),
    (Capability::CAP_CHOWN, "owners of the machine's files"),
    (Capability::CAP_FOWNER, "modes of the machine's files"),
    (Capability::CAP_DAC_OVERRIDE, "files of the machine's users"),
    (Capability::CAP_SETUID, "the machine's users"),
    (Capability::CAP_SETGID, "the machine's groups"),
    (Capability::CAP_SETFCAP, "mapping the machine's root user"),
    (Capability::CAP_KILL, "stopping the machine"),
];

/// Where this crate keeps its folders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// What outlives a boot: `/var/lib/nspawn-run`.
    pub state: PathBuf,
    /// What does not: `/run/nspawn-run`.
    pub run: PathBuf,
}

impl Default for Dirs {
    fn default() -> Self {
        Self {
            state: "/var/lib/nspawn-run".into(),
            run: "/run/nspawn-run".into(),
        }
    }
}

/// How the host's cgroups are mounted. Source: systemd docs/CGROUP_DELEGATION.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cgroups {
    /// One cgroup2 hierarchy at `/sys/fs/cgroup`.
    Unified,
    /// Version 1 hierarchies; a private cgroup2 mount is made for each machine.
    Mixed {
        /// Where the host has cgroup2 mounted, if anywhere.
        cgroup2: Option<PathBuf>,
    },
}

/// One thing that was looked at, for `doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCheck {
    /// What was looked at.
    pub name: &'static str,
    /// What was found.
    pub found: String,
    /// The problem, where it is one.
    pub problem: Option<HostProblem>,
}

/// Something that keeps machines from running, or takes a feature away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostProblem {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub hint: String,
    /// Whether no machine can run at all.
    pub fatal: bool,
}

/// A host that can run machines, and how.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) nspawn: PathBuf,
    pub(crate) nspawn_version: u32,
    pub(crate) init_is_systemd: bool,
    pub(crate) cgroups: Cgroups,
    pub(crate) dirs: Dirs,
}

impl Host {
    /// Looks at the host, with the usual folders.
    ///
    /// # Errors
    ///
    /// [`MachineError::Host`] with everything that keeps machines from running.
    pub fn detect() -> Result<Self, MachineError> {
        Self::detect_with(Dirs::default())
    }

    /// Looks at the host, with folders of the caller's.
    ///
    /// # Errors
    ///
    /// [`MachineError::Host`] with everything that keeps machines from running.
    pub fn detect_with(dirs: Dirs) -> Result<Self, MachineError> {
        let mut problems = Vec::new();
        let mut keep =
            |check: HostCheck| problems.extend(check.problem.filter(|problem| problem.fatal));
        keep(check_root());
        if is_root() {
            keep(check_capabilities());
        }
        let (nspawn_check, nspawn) = check_nspawn();
        keep(nspawn_check);
        let (cgroup_check, cgroups) = check_cgroups();
        keep(cgroup_check);
        keep(check_filesystem("overlay"));
        match nspawn {
            Some((nspawn, nspawn_version)) if problems.is_empty() => Ok(Self {
                nspawn,
                nspawn_version,
                init_is_systemd: init_is_systemd(),
                cgroups,
                dirs,
            }),
            _ => Err(MachineError::Host(problems)),
        }
    }

    /// Everything that is looked at, good or bad, for a person to read.
    #[must_use]
    pub fn examine() -> Vec<HostCheck> {
        let init = HostCheck {
            name: "init",
            found: if init_is_systemd() {
                "systemd".into()
            } else {
                "not systemd".into()
            },
            problem: None,
        };
        let mut checks = vec![check_root()];
        if is_root() {
            // without root they are missing anyway
            checks.push(check_capabilities());
        }
        checks.extend([
            check_nspawn().0,
            init,
            check_cgroups().0,
            check_filesystem("overlay"),
            check_loop(),
            check_user_namespaces(),
        ]);
        checks
    }

    /// The version of systemd-nspawn: 252 of "systemd 252 (252.39)".
    #[must_use]
    pub fn nspawn_version(&self) -> u32 {
        self.nspawn_version
    }

    /// The systemd-nspawn program.
    #[must_use]
    pub fn nspawn(&self) -> &Path {
        &self.nspawn
    }

    /// Whether systemd is the host's PID 1.
    #[must_use]
    pub fn init_is_systemd(&self) -> bool {
        self.init_is_systemd
    }

    /// The folders in use.
    #[must_use]
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }
}

/// Whether systemd is PID 1. Source: sd_booted(3).
fn init_is_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn good(name: &'static str, found: impl Into<String>) -> HostCheck {
    HostCheck {
        name,
        found: found.into(),
        problem: None,
    }
}

fn bad(
    name: &'static str,
    fatal: bool,
    what: impl Into<String>,
    hint: impl Into<String>,
) -> HostCheck {
    let what = what.into();
    HostCheck {
        name,
        found: what.clone(),
        problem: Some(HostProblem {
            what,
            hint: hint.into(),
            fatal,
        }),
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn check_root() -> HostCheck {
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return good("user", "root");
    }
    bad(
        "user",
        true,
        format!("running as user {uid}, machines need root"),
        "run it with sudo",
    )
}

fn check_capabilities() -> HostCheck {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    let missing: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(capability, _)| !held.contains(capability))
        .map(|(capability, purpose)| format!("{capability} ({purpose})"))
        .collect();
    if missing.is_empty() {
        return good("capabilities", "all that are needed");
    }
    bad(
        "capabilities",
        true,
        format!("missing {}", missing.join(", ")),
        "run it as root, in a container with all capabilities (docker run --privileged)",
    )
}

/// Finds systemd-nspawn in the places programs are kept.
fn check_nspawn() -> (HostCheck, Option<(PathBuf, u32)>) {
    let folders = [
        "/usr/bin",
        "/bin",
        "/usr/local/bin",
        "/run/current-system/sw/bin",
        "/usr/sbin",
    ];
    let found = folders
        .iter()
        .map(|folder| Path::new(folder).join("systemd-nspawn"))
        .find(|path| path.is_file());
    let Some(path) = found else {
        let check = bad(
            "systemd-nspawn",
            true,
            "systemd-nspawn is not installed",
            "install it: apt install systemd-container, dnf install systemd-container, zypper install \
             systemd-container; on Arch it is part of systemd",
        );
        return (check, None);
    };
    let output = Command::new(&path).arg("--version").env_clear().output();
    let text = output
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    match parse_version(&text) {
        Some(version) if version >= OLDEST_NSPAWN => (
            good("systemd-nspawn", format!("version {version}")),
            Some((path, version)),
        ),
        Some(version) => {
            let what = format!("systemd-nspawn {version} is too old, {OLDEST_NSPAWN} is needed");
            (bad("systemd-nspawn", true, what, "update systemd"), None)
        }
        None => {
            let what = format!("{} does not tell its version", path.display());
            (
                bad(
                    "systemd-nspawn",
                    true,
                    what,
                    "run `systemd-nspawn --version` to see why",
                ),
                None,
            )
        }
    }
}

/// The number in `systemd 252 (252.39-1)`.
fn parse_version(text: &str) -> Option<u32> {
    let word = text.strip_prefix("systemd ")?.split_whitespace().next()?;
    word.split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

fn check_cgroups() -> (HostCheck, Cgroups) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroups = parse_cgroups(&mounts);
    let check = match &cgroups {
        Cgroups::Unified
            if rustix::fs::access("/sys/fs/cgroup", rustix::fs::Access::WRITE_OK).is_err() =>
        {
            bad(
                "cgroups",
                true,
                "/sys/fs/cgroup is mounted read-only",
                "in a container: run it privileged, so that it may make cgroups",
            )
        }
        Cgroups::Unified => good("cgroups", "unified"),
        Cgroups::Mixed { .. } => match check_filesystem("cgroup2").problem {
            None => good(
                "cgroups",
                "version 1 or hybrid: each machine gets a private cgroup2 mount, without limits",
            ),
            Some(problem) => HostCheck {
                name: "cgroups",
                found: problem.what.clone(),
                problem: Some(problem),
            },
        },
    };
    (check, cgroups)
}

/// Reads how cgroups are mounted from `/proc/self/mountinfo`. Source: proc_pid_mountinfo(5).
fn parse_cgroups(mountinfo: &str) -> Cgroups {
    let mut cgroup2 = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(point) = left.split(' ').nth(4) else {
            continue;
        };
        if right.starts_with("cgroup2 ") {
            if point == "/sys/fs/cgroup" {
                return Cgroups::Unified;
            }
            cgroup2.get_or_insert_with(|| PathBuf::from(point));
        }
    }
    Cgroups::Mixed { cgroup2 }
}

fn check_filesystem(name: &'static str) -> HostCheck {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let listed = known
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some(name));
    // a module may be loaded by the first mount
    let module = || {
        let folder = Path::new("/lib/modules")
            .join(kernel_release())
            .join("kernel/fs")
            .join(module_folder(name));
        folder.is_dir()
    };
    if listed || module() {
        return good(name, "available");
    }
    bad(
        name,
        true,
        format!("the kernel has no {name} file system"),
        format!("load it: modprobe {name}"),
    )
}

fn module_folder(filesystem: &str) -> &str {
    if filesystem == "overlay" {
        "overlayfs"
    } else {
        filesystem
    }
}

fn check_loop() -> HostCheck {
    if Path::new("/dev/loop-control").exists() {
        return good("loop devices", "available");
    }
    bad(
        "loop devices",
        false,
        "/dev/loop-control is missing: disk images cannot be mounted, folders can",
        "load the module: modprobe loop",
    )
}

fn check_user_namespaces() -> HostCheck {
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    match most.trim().parse::<u64>() {
        Ok(0) => bad(
            "user namespaces",
            false,
            "switched off by user.max_user_namespaces = 0",
            "allow them: sysctl user.max_user_namespaces=15000",
        ),
        Ok(most) => good("user namespaces", format!("up to {most}")),
        Err(_) => bad(
            "user namespaces",
            false,
            "the kernel has none",
            "run with --private-users=no",
        ),
    }
}

/// The kernel's release, such as `6.12.0`; empty where `/proc` does not tell.
fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The argument list in one line, for people; quoted where a shell would need it.
#[must_use]
pub fn shell_line(program: &Path, args: &[OsString]) -> String {
    let quote = |text: String| {
        let plain = !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_=:/.,@%+".contains(c));
        if plain {
            text
        } else {
            format!("'{}'", text.replace('\'', "'\\''"))
        }
    };
    let mut words = vec![quote(program.display().to_string())];
    words.extend(
        args.iter()
            .map(|arg| quote(arg.to_string_lossy().into_owned())),
    );
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_are_read() {
        let table = [
            ("systemd 252 (252.39-1~deb12u2)\n+PAM", Some(252)),
            ("systemd 257~rc1 (257)\n", Some(257)),
            ("systemd v9", None),
            ("", None),
        ];
        for (text, version) in table {
            assert_eq!(parse_version(text), version, "{text:?}");
        }
    }

    #[test]
    fn cgroup_layouts_are_told_apart() {
        let unified = "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let hybrid = "29 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      30 29 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let legacy = "29 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(parse_cgroups(unified), Cgroups::Unified);
        let cgroup2 = Some("/sys/fs/cgroup/unified".into());
        assert_eq!(parse_cgroups(hybrid), Cgroups::Mixed { cgroup2 });
        assert_eq!(parse_cgroups(legacy), Cgroups::Mixed { cgroup2: None });
    }

    #[test]
    fn a_command_line_can_be_pasted() {
        let args = ["--a=b", "x y", "it's"].map(OsString::from);
        assert_eq!(
            shell_line(Path::new("/usr/bin/x"), &args),
            "/usr/bin/x --a=b 'x y' 'it'\\''s'"
        );
    }
}
