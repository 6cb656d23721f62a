//! Waiting for a descriptor with a deadline.

use std::os::fd::AsFd;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{MachineError, SystemContext as _};

/// Waits until `fd` can be read; `false` where the deadline came first.
pub(crate) fn readable(fd: impl AsFd, deadline: Instant) -> Result<bool, MachineError> {
    Ok(first_readable(&[fd.as_fd()], deadline)?.is_some())
}

/// Waits until one of `fds` can be read or has ended; its index, `None` where the deadline came first.
pub(crate) fn first_readable(
    fds: &[std::os::fd::BorrowedFd<'_>],
    deadline: Instant,
) -> Result<Option<usize>, MachineError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled: Vec<PollFd<'_>> = fds
            .iter()
            .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        match poll(
            &mut polled,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        ) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).doing("wait for an event"),
            Ok(0) if left.is_zero() => return Ok(None),
            Ok(0) => {}
            Ok(_) => {
                let ready = polled
                    .iter()
                    .position(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
                if ready.is_some() {
                    return Ok(ready);
                }
            }
        }
    }
}
