//! The one file with `unsafe`: what neither std, nix nor rustix wraps, and the code that runs between fork
//! and exec.
//!
//! Everything that runs between fork and exec is a plain system call on values prepared before: no
//! allocation, no lock.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sched::CloneFlags;

/// A `LOOP_CONFIGURE` argument. Source: linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// Source: linux/loop.h, `struct loop_info64`.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// Source: linux/loop.h.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// Asks `/dev/loop-control` for the number of a free loop device; it is not reserved for the caller.
///
/// # Errors
///
/// What the kernel says. Source: loop(4).
pub(crate) fn loop_get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the request takes no argument and touches none of our memory.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Attaches `length` bytes from `offset` of `file` to a loop device, read-only, and detached by the kernel
/// when the last user closes it.
///
/// # Errors
///
/// `EBUSY` where another process took the device first. Source: loop(4), `LOOP_CONFIGURE`, Linux 5.8.
pub(crate) fn loop_attach(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    offset: u64,
    length: u64,
) -> io::Result<()> {
    // SAFETY: both are plain integers and arrays of them, for which all zeroes is a value.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = u32::try_from(file.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    config.block_size = 512;
    config.info.offset = offset;
    config.info.size_limit = length;
    config.info.flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
    // SAFETY: the argument is the structure the request asks for, alive for the call, and only read.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Source: linux/mount.h.
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Source: linux/mount.h, `struct mount_attr`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes a detached mount read-only and maps its owners through a user namespace.
///
/// # Errors
///
/// `EINVAL` where the file system cannot be id-mapped. Source: mount_setattr(2), Linux 5.12.
pub(crate) fn mount_id_map(
    mount: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
) -> io::Result<()> {
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        userns_fd: u64::try_from(user_namespace.as_raw_fd())
            .map_err(|_| io::ErrorKind::InvalidInput)?,
    };
    // JUSTIFICATION: neither nix 0.31 nor rustix 1.1 wraps mount_setattr.
    // SAFETY: the path is an empty NUL-terminated string, the structure is alive for the call and its size
    // is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Asks a machine's PID 1 to halt. Asking again changes nothing, unlike a second SIGTERM to systemd-nspawn.
///
/// # Errors
///
/// `ESRCH` where it has ended. Source: systemd(1), "SIGRTMIN+3"; pidfd_send_signal(2).
pub(crate) fn ask_to_halt(leader: BorrowedFd<'_>) -> io::Result<()> {
    // JUSTIFICATION: rustix leaves real-time signals to the C library, which numbers them.
    let signal = libc::SIGRTMIN() + 3;
    let no_information = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: takes integers and no information.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            leader.as_raw_fd(),
            signal,
            no_information,
            0,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// What a machine's first process does between fork and exec.
#[derive(Debug)]
pub(crate) struct SupervisorSetup {
    /// The open `cgroup.procs` of the cgroup to join.
    pub(crate) cgroup_procs: OwnedFd,
    /// The process that spawns, against a death between fork and `PR_SET_PDEATHSIG`.
    pub(crate) parent: OwnedFd,
}

/// Lets the child join its cgroup, die with the thread that spawned it, and see its own PID namespace
/// in `/proc`.
pub(crate) fn before_supervisor(command: &mut Command, setup: SupervisorSetup) {
    let hook = move || {
        if nix::unistd::write(setup.cgroup_procs.as_fd(), b"0").is_err() {
            return Err(io::Error::last_os_error());
        }
        nix::unistd::setsid()?;
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
        let mut parent = [nix::poll::PollFd::new(
            setup.parent.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        if nix::poll::poll(&mut parent, nix::poll::PollTimeout::ZERO)? != 0 {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // SAFETY: all three strings are NUL-terminated literals; the data argument may be null.
        let mounted = unsafe {
            libc::mount(
                c"proc".as_ptr(),
                c"/proc".as_ptr(),
                c"proc".as_ptr(),
                0,
                std::ptr::null(),
            )
        };
        if mounted < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    };
    // SAFETY: the closure only makes system calls on values it owns; it neither allocates nor locks.
    unsafe { command.pre_exec(hook) };
}

/// Puts the child in a user namespace of its own, in which nobody is mapped yet.
pub(crate) fn in_new_user_namespace(command: &mut Command) {
    // SAFETY: the closure makes one system call with a constant.
    unsafe { command.pre_exec(|| Ok(nix::sched::unshare(CloneFlags::CLONE_NEWUSER)?)) };
}

/// What a process does between fork and exec to become one of the machine's.
#[derive(Debug)]
pub(crate) struct GuestEntry {
    /// The leader.
    pub(crate) leader: OwnedFd,
    /// The leader's root directory.
    pub(crate) root: OwnedFd,
    /// The namespaces to join.
    pub(crate) namespaces: CloneFlags,
    /// The open `cgroup.procs` of the cgroup to join, where there is one.
    pub(crate) cgroup_procs: Option<OwnedFd>,
    /// Whether standard input is a terminal that becomes the controlling one.
    pub(crate) terminal: bool,
    /// Whether the end of the calling thread asks the process to end.
    pub(crate) ends_with_caller: bool,
}

impl GuestEntry {
    /// Makes the calling process, which has one thread, one of the machine's root user.
    ///
    /// The PID namespace takes effect for children, so that it is a child that returns from here. The caller's
    /// own child stays outside and does nothing but wait: a dead process of the machine that nobody waits for
    /// would keep the machine's own end from completing, whatever the caller does.
    fn enter(&self) -> io::Result<()> {
        nix::sched::setns(self.leader.as_fd(), CloneFlags::CLONE_NEWPID)?;
        nix::unistd::setsid()?;
        if self.ends_with_caller {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?;
        }
        // blocked from before the child is there, so that its end is not missed
        let before = nix::sys::signal::SigSet::all()
            .thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
        // JUSTIFICATION: the C library's fork runs handlers, which may lock.
        // SAFETY: without CLONE_VM this is fork(2) on copied memory, in a process of one thread.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        match child {
            0 => {
                before.thread_set_mask()?;
                self.become_guest()
            }
            ..0 => Err(io::Error::last_os_error()),
            _ => attend(
                libc::pid_t::try_from(child).unwrap_or(-1),
                self.leader.as_raw_fd(),
            ),
        }
    }

    fn become_guest(&self) -> io::Result<()> {
        if let Some(procs) = &self.cgroup_procs {
            nix::unistd::write(procs.as_fd(), b"0")?;
        }
        nix::unistd::setsid()?;
        if self.terminal {
            // SAFETY: the request takes an integer; descriptor 0 is the terminal the caller opened.
            if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        nix::sched::setns(self.leader.as_fd(), self.namespaces)?;
        nix::unistd::fchdir(self.root.as_fd())?;
        nix::unistd::chroot(c".")?;
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(0.into(), 0.into(), 0.into())?;
        nix::unistd::setresuid(0.into(), 0.into(), 0.into())?;
        // last: changing users takes it back
        Ok(nix::sys::prctl::set_pdeathsig(
            nix::sys::signal::Signal::SIGKILL,
        )?)
    }
}

/// Waits for a child, passes signals on to it and ends as it did; holds nothing open meanwhile but `leader`.
///
/// All signals are blocked.
fn attend(child: libc::pid_t, leader: libc::c_int) -> ! {
    // SAFETY: take integers; nothing here uses another descriptor any more.
    unsafe {
        if leader > 0 {
            libc::syscall(libc::SYS_close_range, 0, leader - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, leader + 1, u32::MAX, 0);
    }
    // SAFETY: an array of integers, for which zero is a value; filled by the next call.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours, alive for the call.
    unsafe { libc::sigfillset(&raw mut all) };
    loop {
        // SAFETY: the set is alive for the call; no information is asked for.
        let signal = unsafe { libc::sigwaitinfo(&raw const all, std::ptr::null_mut()) };
        if signal > 0 && signal != libc::SIGCHLD {
            // SAFETY: takes integers; the child is not waited for yet, so that the number is still its own.
            unsafe { libc::kill(child, signal) };
            continue;
        }
        let mut status = 0;
        // SAFETY: the status is an integer of ours, alive for the call.
        let waited = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
        if waited == 0 {
            continue;
        }
        // at a shutdown the machine's PID 1 waits for this child to be gone, and is told of its own children alone
        // SAFETY: takes integers and no information; the descriptor was kept open for this.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                leader,
                libc::SIGCHLD,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            );
        }
        if waited == child && libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status);
            // SAFETY: take integers and our set; the signal's default action ends this process.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
                libc::sigprocmask(libc::SIG_UNBLOCK, &raw const all, std::ptr::null_mut());
            }
        }
        let code = if waited == child {
            libc::WEXITSTATUS(status)
        } else {
            125
        };
        // SAFETY: ends the process without running anything of the copied program.
        unsafe { libc::_exit(code) }
    }
}

/// Lets the child enter a machine as its root user.
pub(crate) fn before_guest(command: &mut Command, entry: GuestEntry) {
    // SAFETY: the closure only makes system calls on values it owns; it neither allocates nor locks.
    unsafe { command.pre_exec(move || entry.enter()) };
}

/// The error that [`connect_and_end`] ends a child with when it has connected.
pub(crate) const CONNECTED: i32 = libc::ECANCELED;

/// Lets the child enter a machine, connect `socket` to `address` there and end with [`CONNECTED`].
///
/// The socket is the caller's too. It must be a process of the machine that connects: the other end asks the
/// kernel for the peer's user and process as its own namespaces number them.
pub(crate) fn connect_and_end(
    command: &mut Command,
    entry: GuestEntry,
    socket: OwnedFd,
    address: nix::sys::socket::UnixAddr,
) {
    let hook = move || {
        entry.enter()?;
        nix::sys::socket::connect(socket.as_raw_fd(), &address)?;
        Err(io::Error::from_raw_os_error(CONNECTED))
    };
    // SAFETY: the closure only makes system calls on values it owns; it neither allocates nor locks.
    unsafe { command.pre_exec(hook) };
}

/// The other side of a pseudo terminal, of which `master` is the one to read and write.
///
/// # Errors
///
/// What the kernel says. Source: pts(4), ioctl_tty(2).
pub(crate) fn pty_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let raw = master.as_raw_fd();
    // SAFETY: the call takes the descriptor by value and touches none of our memory.
    if unsafe { libc::unlockpt(raw) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TIOCGPTPEER takes flags by value and returns a new descriptor or -1.
    let peer = unsafe {
        libc::ioctl(
            raw,
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )
    };
    if peer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(peer) })
}

/// Gives a terminal the size of another: columns and rows.
///
/// # Errors
///
/// What the kernel says. Source: ioctl_tty(2).
pub(crate) fn copy_window_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: four integers, for which zero is a value.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the argument is the structure the request fills, alive for the call.
    if unsafe { libc::ioctl(from.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the argument is the structure the request reads, alive for the call.
    if unsafe { libc::ioctl(to.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
