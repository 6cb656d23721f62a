//! Running a program inside a machine, as its root user.
//!
//! The program joins the leader's namespaces itself: no bus, no machined, no shell in between.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::cgroup::Cgroup;
use crate::error::{MachineError, PathContext as _, SystemContext as _};
use crate::machine::Machine;
use crate::sys::{self, GuestEntry};

/// Where programs are looked for inside a machine.
const GUEST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The cgroup of programs run inside a machine, below the machine's.
pub(crate) const EXEC_CGROUP: &str = "exec";

/// A program to run inside a machine; see [`Machine::command`].
#[derive(Debug)]
pub struct MachineCommand<'a> {
    machine: &'a Machine,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
}

/// A program that runs inside a machine on a terminal of its own.
#[derive(Debug)]
pub struct TerminalChild {
    /// The program.
    pub child: Child,
    /// The terminal's outer end: read what the program writes, write what it is to read.
    pub terminal: File,
}

/// Gives the terminal `to` the size of the terminal `from`.
///
/// # Errors
///
/// [`MachineError::System`] where one of them is no terminal.
pub fn copy_terminal_size(
    from: std::os::fd::BorrowedFd<'_>,
    to: std::os::fd::BorrowedFd<'_>,
) -> Result<(), MachineError> {
    sys::copy_window_size(from, to).doing("set the terminal's size")
}

impl Machine {
    /// Describes a program to run inside the machine, as root, with an empty environment but for `PATH`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> MachineCommand<'_> {
        MachineCommand {
            machine: self,
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: vec![
                ("PATH".into(), GUEST_PATH.into()),
                ("HOME".into(), "/root".into()),
                ("LANG".into(), "C.UTF-8".into()),
            ],
            stdin: None,
            stdout: None,
            stderr: None,
        }
    }

    /// Runs a program inside the machine and collects its output; its standard input is empty.
    ///
    /// # Errors
    ///
    /// [`MachineError::Exec`] where it cannot be run, [`MachineError::Gone`] where the machine has ended.
    pub fn exec<S: AsRef<OsStr>>(
        &self,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<Output, MachineError> {
        let mut argv = argv.into_iter();
        let program = argv
            .next()
            .map(|s| s.as_ref().to_owned())
            .unwrap_or_default();
        self.command(program)
            .args(argv)
            .stdin(Stdio::null())
            .output()
    }
}

impl MachineCommand<'_> {
    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets standard input; the caller's own by default.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Sets standard output; the caller's own by default.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Sets standard error; the caller's own by default.
    #[must_use]
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stderr = Some(stderr.into());
        self
    }

    /// Starts the program.
    ///
    /// # Errors
    ///
    /// [`MachineError::Exec`] where it cannot be run, [`MachineError::Gone`] where the machine has ended.
    pub fn spawn(self) -> Result<Child, MachineError> {
        self.start(false)
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn status(self) -> Result<ExitStatus, MachineError> {
        let mut child = self.spawn()?;
        child.wait().doing("wait for a program")
    }

    /// Runs the program to its end and collects its output.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn output(self) -> Result<Output, MachineError> {
        let child = self.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.wait_with_output().doing("read a program's output")
    }

    /// Starts the program on a new terminal, which is its controlling one.
    ///
    /// The terminal has the size of `like` from the start, where that is a terminal.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    pub fn spawn_on_terminal(
        mut self,
        like: Option<BorrowedFd<'_>>,
    ) -> Result<TerminalChild, MachineError> {
        let (outer, inner) = open_terminal(self.machine)?;
        if let Some(like) = like {
            // what is no terminal has no size
            let _ = copy_terminal_size(like, outer.as_fd());
        }
        let copy = |fd: &OwnedFd| fd.try_clone().doing("open a terminal");
        self.stdin = Some(copy(&inner)?.into());
        self.stdout = Some(copy(&inner)?.into());
        self.stderr = Some(inner.into());
        Ok(TerminalChild {
            child: self.start(true)?,
            terminal: outer,
        })
    }

    fn start(self, terminal: bool) -> Result<Child, MachineError> {
        let machine = self.machine;
        let gone = || MachineError::Gone {
            name: machine.name().clone(),
        };
        if machine.has_ended() {
            return Err(gone());
        }
        let entry = entry(machine, terminal)?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(self.env);
        for (stdio, set) in [
            (
                self.stdin,
                Command::stdin as fn(&mut Command, Stdio) -> &mut Command,
            ),
            (self.stdout, Command::stdout),
            (self.stderr, Command::stderr),
        ] {
            if let Some(stdio) = stdio {
                set(&mut command, stdio);
            }
        }
        sys::before_guest(&mut command, entry);
        command.spawn().map_err(|source| {
            if machine.has_ended() {
                return gone();
            }
            let program = self.program.to_string_lossy().into_owned();
            MachineError::Exec {
                name: machine.name().clone(),
                program,
                source,
            }
        })
    }
}

/// Connects to a socket in the machine, as its root user and as one of its processes.
///
/// The outer error is of this side; the inner one is what the kernel said of the connection.
pub(crate) fn connect(
    machine: &Machine,
    path: &str,
) -> Result<io::Result<UnixStream>, MachineError> {
    let address = UnixAddr::new(path).doing("name a socket")?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket =
        socket(AddressFamily::Unix, SockType::Stream, flags, None).doing("make a socket")?;
    let mut command = Command::new("/");
    let shared = socket.try_clone().doing("make a socket")?;
    sys::connect_and_end(&mut command, entry(machine, false)?, shared, address);
    Ok(match command.spawn() {
        Err(error) if error.raw_os_error() == Some(sys::CONNECTED) => Ok(socket.into()),
        Err(error) => Err(error),
        Ok(mut child) => {
            let _ = child.wait();
            Err(io::ErrorKind::Other.into())
        }
    })
}

/// Opens a terminal of the machine's own, which has a name in there; one of the host's where it has none.
///
/// The machine is not trusted: no link is followed out of it, and nothing but the terminal multiplexer is opened.
fn open_terminal(machine: &Machine) -> Result<(File, OwnedFd), MachineError> {
    /// Source: linux Documentation/admin-guide/devices.txt.
    const MULTIPLEXER: (u32, u32) = (5, 2);
    let inside = Path::new("/proc")
        .join(machine.leader().pid.to_string())
        .join("root");
    let root = File::open(&inside).at("open", &inside)?;
    let found = openat2(
        &root,
        "dev/pts/ptmx",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    );
    let found = found.ok().map(File::from).and_then(|file| {
        let meta = file.metadata().ok()?;
        let is_multiplexer = meta.file_type().is_char_device()
            && (
                rustix::fs::major(meta.rdev()),
                rustix::fs::minor(meta.rdev()),
            ) == MULTIPLEXER;
        is_multiplexer.then_some((file, meta.uid()))
    });
    let (path, owner) = match &found {
        Some((file, owner)) => {
            let path = Path::new("/proc/self/fd").join(file.as_raw_fd().to_string());
            (path, Some(*owner))
        }
        None => (PathBuf::from("/dev/ptmx"), None),
    };
    let outer = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(&path)
        .at("open", &path)?;
    let inner = sys::pty_peer(outer.as_fd()).doing("open a terminal")?;
    if let Some(owner) = owner {
        // the machine's root may be another user of the host
        fchown(&inner, Some(owner), None).doing("open a terminal")?;
    }
    Ok((outer, inner))
}

/// Opens what a process needs to enter the machine.
fn entry(machine: &Machine, terminal: bool) -> Result<GuestEntry, MachineError> {
    let proc = Path::new("/proc").join(machine.leader().pid.to_string());
    let root_path = proc.join("root");
    let root = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(&root_path)
        .at("open", &root_path)?;
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    let user = |proc: &Path| fs::read_link(proc.join("ns/user")).ok();
    // joining the namespace one is in already is an error
    if user(&proc) != user(Path::new("/proc/self")) {
        namespaces |= CloneFlags::CLONE_NEWUSER;
    }
    let cgroup_procs = match machine.record()?.cgroup {
        Some(path) => {
            let cgroups = &machine.host().cgroups;
            let cgroup = Cgroup::named(path).child(EXEC_CGROUP);
            cgroup.make(cgroups)?;
            Some(cgroup.open_procs(cgroups)?)
        }
        None => None,
    };
    let leader = machine
        .leader_fd()
        .try_clone_to_owned()
        .doing("name the machine's PID 1")?;
    Ok(GuestEntry {
        leader,
        root: root.into(),
        namespaces,
        cgroup_procs,
        terminal,
    })
}
