//! Waiting with a deadline: for a child's end, and for a state that nothing announces.

use std::io;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys;

/// How long to sleep between two looks at a state that no event announces.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits for `child` to end; `None` where it still runs after `timeout`.
///
/// # Panics
///
/// Where the kernel has no pidfd (before Linux 5.3).
pub fn child(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    if let Some(status) = child.try_wait().expect("the child is ours") {
        return Some(status);
    }
    let pid = i32::try_from(child.id()).expect("a process id fits");
    match sys::wait_for_exit(pid, timeout) {
        Ok(false) => None,
        Ok(true) => Some(child.wait().expect("the child is ours")),
        Err(error) => panic!("cannot wait for process {pid}: {error}"),
    }
}

/// Waits for a process that need not be a child to end; tells whether it did.
///
/// # Errors
///
/// What pidfd_open(2) and poll(2) report, except for a process that is gone already.
pub fn process_exit(pid: i32, timeout: Duration) -> io::Result<bool> {
    sys::wait_for_exit(pid, timeout)
}

/// Looks again and again until `done` gives a value; gives up after `timeout`.
pub fn until<T>(timeout: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = done() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(LOOK_EVERY);
    }
}
