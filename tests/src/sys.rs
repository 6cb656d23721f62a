//! The system calls that std does not wrap. The one file of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::usage::Usage;

/// Source: linux/loop.h.
const LOOP_CTL_ADD: libc::Ioctl = 0x4C80;

/// Sends a signal by number; real-time signals have no other name.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // JUSTIFICATION: std sends nothing but SIGKILL, and that to children only.
    // SAFETY: the call takes two integers by value and touches none of our memory.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `SIGRTMIN+offset`, as the C library numbers it.
pub(crate) fn realtime_signal(offset: i32) -> i32 {
    libc::SIGRTMIN() + offset
}

/// Waits until the process has ended, at most `timeout`; tells whether it did. Reaps nothing.
pub(crate) fn wait_for_exit(pid: i32, timeout: Duration) -> io::Result<bool> {
    let fd = match pidfd_open(pid) {
        Ok(fd) => fd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(true),
        Err(error) => return Err(error),
    };
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .as_millis();
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // JUSTIFICATION: std waits for a child without a limit, and for others not at all.
        // SAFETY: `poll` is one valid pollfd that lives across the call, and its descriptor is open.
        let ready =
            unsafe { libc::poll(&raw mut poll, 1, i32::try_from(left).unwrap_or(i32::MAX)) };
        match ready {
            0 => return Ok(false),
            1.. => return Ok(true),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // JUSTIFICATION: stable std does not wrap pidfd_open.
    // SAFETY: the call takes two integers by value and touches none of our memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).expect("a descriptor fits");
    // SAFETY: the kernel just returned this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the loop device with this number; one that exists is fine.
pub(crate) fn add_loop_device(number: u32) -> io::Result<()> {
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    // JUSTIFICATION: no program of the base system makes a loop device by its number.
    // SAFETY: this request takes its argument by value; the descriptor is open.
    let result = unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            LOOP_CTL_ADD,
            libc::c_ulong::from(number),
        )
    };
    if result >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::AlreadyExists {
        Ok(())
    } else {
        Err(error)
    }
}

/// Ends the accept(2) that another thread waits in, and every later one.
pub(crate) fn stop_listening(listener: &TcpListener) -> io::Result<()> {
    // JUSTIFICATION: std has no shutdown for a listener.
    // SAFETY: the call takes two integers by value; the descriptor is open.
    match unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits for a child of ours to end, and reaps it.
pub(crate) fn wait_with_usage(pid: i32) -> io::Result<(ExitStatus, Usage)> {
    let mut status = 0;
    // SAFETY: rusage is a struct of integers, for which all zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // JUSTIFICATION: std does not tell what a child took.
        // SAFETY: both pointers are to live values of the types that wait4(2) writes.
        if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.unsigned_abs())
            + Duration::from_micros(time.tv_usec.unsigned_abs())
    };
    let usage = Usage {
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        memory: usage.ru_maxrss.unsigned_abs() * 1024, // Linux counts KiB: getrusage(2)
    };
    Ok((ExitStatus::from_raw(status), usage))
}
