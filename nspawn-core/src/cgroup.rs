//! The cgroup of a machine: made fresh, joined before exec, killed and removed as a whole.
//!
//! systemd-nspawn with `--keep-unit` makes `payload/` and `supervisor/` below the cgroup it is started in, so
//! that each machine needs one of its own. Source: systemd docs/CONTAINER_INTERFACE, CGROUP_DELEGATION.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

use crate::error::{MachineError, PathContext as _, SystemContext as _};
use crate::host::Cgroups;

/// Where cgroup2 is mounted in a unified layout, and in each machine's mount namespace.
pub(crate) const CGROUP2: &str = "/sys/fs/cgroup";

/// A cgroup by its path in the cgroup2 hierarchy, `/` being what this process sees as the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Names a cgroup; makes nothing. `path` is absolute within the hierarchy.
    pub(crate) fn named(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Its path in the hierarchy.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup `name` below this one.
    pub(crate) fn child(&self, name: &str) -> Self {
        Self {
            path: self.path.join(name),
        }
    }

    /// Makes it, with all above it.
    pub(crate) fn make(&self, cgroups: &Cgroups) -> Result<(), MachineError> {
        self.visit(cgroups, |dir| fs::create_dir_all(dir).at("make", dir))
    }

    /// Opens its `cgroup.procs` for a process that writes "0" to join.
    pub(crate) fn open_procs(&self, cgroups: &Cgroups) -> Result<OwnedFd, MachineError> {
        self.visit(cgroups, |dir| {
            let path = dir.join("cgroup.procs");
            let file = OpenOptions::new()
                .write(true)
                .open(&path)
                .at("open", &path)?;
            Ok(file.into())
        })
    }

    /// Moves the process `pid` into it.
    pub(crate) fn add(&self, cgroups: &Cgroups, pid: u32) -> Result<(), MachineError> {
        self.visit(cgroups, |dir| {
            let path = dir.join("cgroup.procs");
            fs::write(&path, pid.to_string()).at("write", &path)
        })
    }

    /// Hands all its controllers on to its children, as far as the kernel lets it.
    pub(crate) fn hand_on_controllers(&self, cgroups: &Cgroups) -> Result<(), MachineError> {
        self.visit(cgroups, |dir| {
            let path = dir.join("cgroup.controllers");
            for controller in fs::read_to_string(&path)
                .at("read", &path)?
                .split_whitespace()
            {
                // a controller that cannot be had costs its limits, not the machine
                let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            Ok(())
        })
    }

    /// Kills every process in it and below, and waits until they are gone. No such cgroup is no error.
    pub(crate) fn kill(&self, cgroups: &Cgroups, deadline: Instant) -> Result<(), MachineError> {
        self.visit(cgroups, |dir| {
            if !dir.exists() {
                return Ok(());
            }
            match fs::write(dir.join("cgroup.kill"), "1") {
                Err(error) if error.kind() == io::ErrorKind::NotFound => kill_each(dir),
                Err(error) => return Err(error).at("kill the processes in", dir),
                Ok(()) => {}
            }
            wait_empty(dir, deadline)
        })
    }

    /// Removes it and all below it; all must be empty. No such cgroup is no error.
    pub(crate) fn remove(&self, cgroups: &Cgroups) -> Result<(), MachineError> {
        self.visit(cgroups, |dir| remove_tree(dir).at("remove", dir))
    }

    /// Calls `work` with the folder of this cgroup in a mounted hierarchy.
    ///
    /// Where the host has cgroup2 mounted nowhere, it is mounted for the time of the call in a mount
    /// namespace that only the called thread sees.
    fn visit<T: Send>(
        &self,
        cgroups: &Cgroups,
        work: impl FnOnce(&Path) -> Result<T, MachineError> + Send,
    ) -> Result<T, MachineError> {
        let relative = self.path.strip_prefix("/").unwrap_or(&self.path);
        match cgroups {
            Cgroups::Unified => work(&Path::new(CGROUP2).join(relative)),
            Cgroups::Mixed {
                cgroup2: Some(root),
            } => work(&root.join(relative)),
            Cgroups::Mixed { cgroup2: None } => std::thread::scope(|scope| {
                let visitor = scope.spawn(|| {
                    private_mounts()?;
                    mount_private_cgroup2()?;
                    work(&Path::new(CGROUP2).join(relative))
                });
                visitor.join().unwrap_or_else(|_| {
                    Err(io::Error::other("a helper thread died")).doing("look at the cgroups")
                })
            }),
        }
    }
}

/// Gives the calling thread a mount namespace of its own, which still sees what the host mounts later.
pub(crate) fn private_mounts() -> Result<(), MachineError> {
    unshare(CloneFlags::CLONE_NEWNS).doing("make a mount namespace")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .at("change the propagation of", Path::new("/"))
}

/// Mounts a cgroup2 hierarchy where systemd looks for one; in a private mount namespace only.
pub(crate) fn mount_private_cgroup2() -> Result<(), MachineError> {
    let point = Path::new(CGROUP2);
    // covers the version 1 hierarchies: what is below a mount point cannot be reached through it
    mount(
        Some("cgroup2"),
        point,
        Some("cgroup2"),
        MsFlags::empty(),
        None::<&str>,
    )
    .at("mount cgroup2 at", point)
}

fn kill_each(dir: &Path) {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in procs
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 1)
    {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
    for child in fs::read_dir(dir).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_each(&child.path());
        }
    }
}

/// Waits for `populated 0` in `cgroup.events`; the kernel raises POLLPRI at each change.
fn wait_empty(dir: &Path, deadline: Instant) -> Result<(), MachineError> {
    let path = dir.join("cgroup.events");
    let file = File::open(&path).at("open", &path)?;
    loop {
        let events = fs::read_to_string(&path).at("read", &path)?;
        if !events.lines().any(|line| line == "populated 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut)).at("kill the processes in", dir);
        }
        let mut change = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        // the file's first poll reports the state as of its opening
        let _ = rustix::io::pread(&file, &mut [0_u8; 64], 0);
        poll(
            &mut change,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        )
        .doing("wait for a cgroup")?;
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
