//! What a test must leave as it was: the host, looked at before and after.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use crate::wait;

/// The file whose lock orders tests that look at the whole host.
const LOCK: &str = "/run/lock/nspawn-run-tests";
/// What a settled host may still need: the kernel tears namespaces and interfaces down in its own time.
const SETTLE: Duration = Duration::from_secs(10);

/// Panics unless the test runs as root.
///
/// # Panics
///
/// As anybody else.
pub fn require_root() {
    let root = fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    assert!(root, "needs root: run `cargo xtask test` as root");
}

/// Held by a test that boots machines, so that tests in other threads and processes know of it.
#[derive(Debug)]
#[must_use = "the lock lasts as long as this value"]
pub struct HostLock(#[expect(dead_code, reason = "dropped to unlock")] File);

/// For a test that boots machines beside others; waits while another one has the host [to itself](alone).
///
/// # Panics
///
/// Where the lock file cannot be made.
pub fn shared() -> HostLock {
    let file = lock_file();
    file.lock_shared().expect("a lock");
    HostLock(file)
}

/// For a test that looks at the whole host; waits until no other one boots machines.
///
/// # Panics
///
/// Where the lock file cannot be made.
pub fn alone() -> HostLock {
    let file = lock_file();
    file.lock().expect("a lock");
    HostLock(file)
}

fn lock_file() -> File {
    require_root();
    if let Some(dir) = Path::new(LOCK).parent() {
        let _ = fs::create_dir_all(dir); // opening the file says why, if this failed
    }
    File::create(LOCK).unwrap_or_else(|error| panic!("cannot open {LOCK}: {error}"))
}

/// Everything on the host that a machine could leave behind.
///
/// ```no_run
/// use nspawn_tests::host::{HostSnapshot, alone};
///
/// let _lock = alone();
/// let before = HostSnapshot::take();
/// // ... boot machines, kill them ...
/// before.assert_unchanged();
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSnapshot {
    facts: BTreeSet<String>,
}

impl HostSnapshot {
    /// Looks at the host.
    pub fn take() -> Self {
        let mut facts = BTreeSet::new();
        mounts(&mut facts);
        loop_devices(&mut facts);
        cgroups(Path::new("/sys/fs/cgroup"), 6, &mut facts);
        interfaces(&mut facts);
        processes(&mut facts);
        run_entries(Path::new("/run/nspawn-run"), 3, &mut facts);
        Self { facts }
    }

    /// Looks at what belongs to one test alone: what names, in itself or in its processes' command lines, one of these
    /// words. Tests that run beside each other can each look at their own so.
    pub fn naming(words: &[String]) -> Self {
        let names_one = |text: &str| words.iter().any(|word| text.contains(word.as_str()));
        let mut facts = Self::take().facts;
        facts.retain(|fact| names_one(fact));
        for pid in process_ids() {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if names_one(&line) && is_program(pid) {
                facts.insert(format!("process {pid} {line}"));
            }
        }
        Self { facts }
    }

    /// What was seen, a line each; empty where nothing was.
    pub fn text(&self) -> String {
        self.facts.iter().map(|fact| format!("{fact}\n")).collect()
    }

    /// What is on the host now that was not before (`+`), and what is gone (`-`), a line each; empty where nothing is.
    ///
    /// Gone processes, mounts and the like do count: a test must not end what it did not start.
    pub fn difference(&self, now: &Self) -> String {
        let mut text = String::new();
        for fact in now.facts.difference(&self.facts) {
            let _ = writeln!(text, "+ {fact}");
        }
        for fact in self.facts.difference(&now.facts) {
            let _ = writeln!(text, "- {fact}");
        }
        text
    }

    /// Waits until the host is as it was; the difference that is left at the deadline, if any.
    pub fn settle(&self, timeout: Duration) -> Option<String> {
        let mut difference = String::new();
        let settled = wait::until(timeout, || {
            difference = self.difference(&Self::take());
            difference.is_empty().then_some(())
        });
        match settled {
            Some(()) => None,
            None => Some(difference),
        }
    }

    /// Panics with a readable difference unless the host becomes what it was, within 10 s.
    ///
    /// # Panics
    ///
    /// Where something was left behind, or is gone.
    #[track_caller]
    pub fn assert_unchanged(&self) {
        if let Some(difference) = self.settle(SETTLE) {
            panic!("the host is not as it was (+ left behind, - gone):\n{difference}");
        }
    }
}

/// The mounts of our own namespace, and those of every other one that mention us.
fn mounts(facts: &mut BTreeSet<String>) {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let mut seen = BTreeSet::new();
    for pid in process_ids() {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else {
            continue;
        };
        if !seen.insert(namespace.clone()) {
            continue;
        }
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else {
            continue;
        };
        let is_own = Some(&namespace) == own.as_ref();
        for mount in text.lines().filter_map(short_mount) {
            if is_own {
                facts.insert(format!("mount {mount}"));
            } else if ["nspawn", "/dev/loop", "/nt-"]
                .iter()
                .any(|part| mount.contains(part))
            {
                facts.insert(format!("mount {mount} in {}", namespace.display()));
            }
        }
    }
}

/// `POINT TYPE SOURCE` of a line of mountinfo. Source: proc_pid_mountinfo(5).
fn short_mount(line: &str) -> Option<String> {
    let point = line.split(' ').nth(4)?;
    let mut rest = line.split_once(" - ")?.1.split(' ');
    Some(format!("{point} {} {}", rest.next()?, rest.next()?))
}

/// Loop devices in use, and the nodes of the first eight, which every kernel has from the start.
fn loop_devices(facts: &mut BTreeSet<String>) {
    for name in names("/sys/block").filter(|name| name.starts_with("loop")) {
        if let Ok(file) = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")) {
            facts.insert(format!("loop device {name} backed by {}", file.trim_end()));
        }
    }
    for node in (0..8)
        .map(|number| format!("/dev/loop{number}"))
        .filter(|node| Path::new(node).exists())
    {
        facts.insert(format!("loop node {node}"));
    }
}

fn cgroups(dir: &Path, depth: u32, facts: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("nspawn-run-")
        {
            facts.insert(format!("cgroup {}", entry.path().display()));
        }
        if depth > 0 {
            cgroups(&entry.path(), depth - 1, facts);
        }
    }
}

fn interfaces(facts: &mut BTreeSet<String>) {
    let ours = |name: &String| {
        ["ve-", "vb-", "vz-", "nr-"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    };
    facts.extend(
        names("/sys/class/net")
            .filter(ours)
            .map(|name| format!("interface {name}")),
    );
}

/// Whether a process has ended and waits for its parent alone: the parent of a detached one is the host's PID 1, which
/// takes its time.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // the name may hold anything; the state follows its last parenthesis
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Our program, systemd-nspawn, and what lives in the cgroup of a machine: a payload whose supervisor is gone.
fn processes(facts: &mut BTreeSet<String>) {
    for pid in process_ids().filter(|&pid| !has_ended(pid)) {
        let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else {
            continue;
        };
        let name = name.trim_end();
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let of_machine = ["/nspawn-", "/machine.slice/", "/payload/"]
            .iter()
            .any(|part| cgroups.contains(part));
        if of_machine || name == "systemd-nspawn" || name == "nspawn-run" {
            let cgroup = cgroups
                .lines()
                .find_map(|line| line.strip_prefix("0::"))
                .unwrap_or_default();
            facts.insert(format!("process {pid} {name} in {cgroup}"));
        }
    }
}

/// Whether a process is our program or systemd-nspawn: others may name a test's folder without being of its machine.
fn is_program(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    ["nspawn-run", "systemd-nspawn"].contains(&name.trim_end())
}

fn run_entries(dir: &Path, depth: u32, facts: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        // What every start makes and no end removes.
        if path != Path::new("/run/nspawn-run/machines") {
            facts.insert(format!("entry {}", path.display()));
        }
        if depth > 0 && !path.is_symlink() {
            run_entries(&path, depth - 1, facts);
        }
    }
}

fn process_ids() -> impl Iterator<Item = u32> {
    names("/proc").filter_map(|name| name.parse().ok())
}

fn names(dir: &str) -> impl Iterator<Item = String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_told_by_its_point_type_and_source() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        assert_eq!(short_mount(line).as_deref(), Some("/mnt2 ext3 /dev/root"));
        assert_eq!(short_mount("36 35"), None);
    }

    #[test]
    fn a_difference_names_both_directions() {
        let snapshot = |facts: &[&str]| HostSnapshot {
            facts: facts.iter().map(|&fact| fact.to_owned()).collect(),
        };
        let before = snapshot(&["interface ve-a", "loop node /dev/loop0"]);
        let now = snapshot(&["interface ve-b", "loop node /dev/loop0"]);
        assert_eq!(
            before.difference(&now),
            "+ interface ve-b\n- interface ve-a\n"
        );
        assert_eq!(before.difference(&before), "");
    }
}
