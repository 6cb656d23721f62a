//! Processes named so that a recycled PID is never taken for the one that was meant.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{MachineError, SystemContext as _};

/// A process by PID and start time, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Host PID.
    pub pid: u32,
    /// Start time in clock ticks since boot. Source: proc_pid_stat(5), field 22.
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process that has the number `pid` now.
    ///
    /// `None` where there is none.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let start_ticks = start_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self { pid, start_ticks })
    }

    /// Opens a pidfd, where the process is still the one that was named.
    ///
    /// # Errors
    ///
    /// `ESRCH` where it is gone. Source: pidfd_open(2).
    pub fn open(&self) -> io::Result<OwnedFd> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let pid = i32::try_from(self.pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(gone)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        // after the opening: from here on the descriptor means this process alone
        if Self::of(self.pid) == Some(*self) {
            Ok(pidfd)
        } else {
            Err(gone())
        }
    }

    /// Whether it is still there and no zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.open().is_ok_and(|pidfd| !has_ended(&pidfd))
    }
}

/// A program that does nothing, and ends when its standard input does: it holds what needs a process.
pub(crate) fn placeholder() -> Command {
    let mut command = Command::new("/bin/cat");
    command
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn start_ticks(stat: &str) -> Option<u64> {
    // the name in field 2 may hold spaces and parentheses
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Sends a signal to the process behind a pidfd; one that has ended is no error.
pub(crate) fn send_signal(pidfd: impl AsFd, signal: Signal) -> Result<(), MachineError> {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).doing("send a signal"),
    }
}

/// Whether the process behind a pidfd has ended.
pub(crate) fn has_ended(pidfd: impl AsFd) -> bool {
    wait_end(pidfd, Instant::now())
}

/// Waits until the process behind a pidfd has ended; `false` where the deadline came first.
pub(crate) fn wait_end(pidfd: impl AsFd, deadline: Instant) -> bool {
    // an error can only be a descriptor that is none, and then there is nothing to wait for
    crate::wait::readable(pidfd, deadline).unwrap_or(true)
}

/// The host PID of the process that is `inner` in the PID namespace of `supervisor`, one of its children.
///
/// `inner` is what the supervisor says of itself; it is PID 1 of a namespace below its own.
pub(crate) fn child_by_inner_pid(supervisor: u32, inner: u32) -> Option<u32> {
    let all = fs::read_dir("/proc").ok()?;
    let pids = all
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            return false;
        };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let parent: Option<u32> = field("PPid:").and_then(|text| text.trim().parse().ok());
        let spaces: Vec<u32> = field("NSpid:")
            .map(|t| {
                t.split_whitespace()
                    .filter_map(|p| p.parse().ok())
                    .collect()
            })
            .unwrap_or_default();
        parent == Some(supervisor) && spaces.len() >= 2 && spaces[spaces.len() - 2] == inner
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_time_is_read_past_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        assert_eq!(start_ticks(stat), Some(4711));
        assert_eq!(start_ticks("garbage"), None);
    }

    #[test]
    fn a_recycled_pid_is_another_process() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let other = ProcessId {
            start_ticks: me.start_ticks + 1,
            ..me
        };
        assert!(!other.is_alive());
        assert!(other.open().is_err());
    }
}
