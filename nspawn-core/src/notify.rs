//! The socket on which systemd-nspawn reports. Source: sd_notify(3), systemd-nspawn(1) `--notify-ready=`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::error::{MachineError, PathContext as _, SystemContext as _};

/// Largest datagram looked at, in bytes; systemd's own limit for a status text is 4 KiB.
const DATAGRAM_MAX: usize = 8192;

/// One message of systemd-nspawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// `X_NSPAWN_LEADER_PID=`, as systemd-nspawn's own PID namespace counts.
    pub(crate) leader_pid: Option<u32>,
    /// `READY=1`: the guest's boot is done.
    pub(crate) ready: bool,
    /// `STATUS=`.
    pub(crate) status: Option<String>,
}

impl Message {
    fn parse(datagram: &[u8]) -> Self {
        let text = String::from_utf8_lossy(datagram);
        let mut message = Self::default();
        for line in text.lines() {
            match line.split_once('=') {
                Some(("X_NSPAWN_LEADER_PID", pid)) => message.leader_pid = pid.parse().ok(),
                Some(("READY", "1")) => message.ready = true,
                Some(("STATUS", status)) if !status.is_empty() => {
                    message.status = Some(status.to_owned())
                }
                _ => {}
            }
        }
        message
    }
}

/// The receiving end.
#[derive(Debug)]
pub(crate) struct NotifySocket(UnixDatagram);

impl NotifySocket {
    /// Makes the socket at `path`, in place of what a killed run left there.
    pub(crate) fn bind(path: &Path) -> Result<Self, MachineError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).at("remove", path);
            }
            _ => {}
        }
        let socket = UnixDatagram::bind(path).at("make the socket", path)?;
        socket.set_nonblocking(true).at("make the socket", path)?;
        Ok(Self(socket))
    }

    /// Takes the next message; `None` where none is waiting.
    pub(crate) fn receive(&self) -> Result<Option<Message>, MachineError> {
        let mut datagram = [0; DATAGRAM_MAX];
        match self.0.recv(&mut datagram) {
            Ok(length) => Ok(Some(Message::parse(&datagram[..length]))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).doing("read systemd-nspawn's report"),
        }
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_line_by_line() {
        let leader = Message::parse(b"STATUS=Container running.\nX_NSPAWN_LEADER_PID=8\n");
        assert_eq!(leader.leader_pid, Some(8));
        assert_eq!(leader.status.as_deref(), Some("Container running."));
        assert!(!leader.ready);
        assert!(Message::parse(b"READY=1").ready);
        assert_eq!(
            Message::parse(b"\xff\xfe=\nX_NSPAWN_LEADER_PID=x"),
            Message::default()
        );
    }
}
