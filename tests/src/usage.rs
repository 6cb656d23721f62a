//! Runs a program and tells what it took of the machine.

use std::io::{self, Read as _};
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

/// Runs `command` to its end. Its standard error is kept.
///
/// # Errors
///
/// Where it cannot be started or waited for.
pub fn run(command: &mut Command) -> io::Result<(Ended, Usage)> {
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let reader = child.stderr.take().map(|mut pipe| {
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = pipe.read_to_end(&mut text); // what came until then is of use
            text
        })
    });
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let (status, usage) = sys::wait_with_usage(pid)?;
    let stderr = reader.and_then(|reader| reader.join().ok());
    Ok((
        Ended {
            status,
            stderr: stderr.unwrap_or_default(),
        },
        usage,
    ))
}
