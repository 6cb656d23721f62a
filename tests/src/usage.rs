//! Runs a program and tells what it took of the machine.

use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use crate::sys;

/// Processor time and memory of a process that has ended, and of its children that it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// The most memory it held at once, in bytes.
    pub memory: u64,
}

/// How a process ended, and what it wrote to standard error.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

/// Runs `command` to its end, in a process group of its own. Its standard error is kept.
///
/// # Errors
///
/// Where it cannot be started or waited for; `TimedOut` where it did not end within `limit`, and was killed.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<(Ended, Usage)> {
    let mut child = command.stderr(Stdio::piped()).process_group(0).spawn()?;
    let reader = child.stderr.take().map(|mut pipe| {
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = pipe.read_to_end(&mut text); // what came until then is of use
            text
        })
    });
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let ended = sys::wait_for_exit(pid, limit)?;
    if !ended {
        // With its children, which may hold its standard error open.
        sys::kill(-pid, libc::SIGKILL)?;
    }
    let (status, usage) = sys::wait_with_usage(pid)?;
    let stderr = reader.and_then(|reader| reader.join().ok());
    if !ended {
        let error = format!("it did not end within {} s", limit.as_secs());
        return Err(io::Error::new(io::ErrorKind::TimedOut, error));
    }
    Ok((
        Ended {
            status,
            stderr: stderr.unwrap_or_default(),
        },
        usage,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_end_is_ended_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & sleep 1000"]);
        let error = run(&mut command, Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let mut command = Command::new("sh");
        command.args(["-c", "echo it >&2; exit 3"]);
        let (ended, _) = run(&mut command, Duration::from_secs(100)).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert_eq!(ended.stderr, b"it\n");
    }
}
