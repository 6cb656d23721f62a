//! systemd's private socket, as zbus can take it.
//!
//! systemd signs its answers there with its well-known name. The D-Bus specification has unique names alone as
//! a message's sender, and zbus refuses the others; there is one peer on the socket and the field says nothing.
//! So each message is read whole, and its sender given a unique name of the same length.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;

/// Longest line of the handshake, in bytes; the answer is `OK` and a GUID of 32 digits.
const LINE_MAX: usize = 256;

/// Longest message taken, in bytes. Source: D-Bus specification, "Message Format"; systemd's are far shorter.
const MESSAGE_MAX: usize = 16 << 20;

/// Bytes at a message's start that say how long it is. Source: D-Bus specification, "Message Format".
const FIXED_HEADER: usize = 16;

/// The header field "sender": code 7, signature "s", length 24, the name and its NUL.
const SENDER: &[u8; 33] = b"\x07\x01s\0\x18\0\0\0org.freedesktop.systemd1\0";

/// The same with a unique name.
const RENAMED: &[u8; 33] = b"\x07\x01s\0\x18\0\0\0:1.systemd.private.bus.0\0";

/// Authenticates as root: the connecting process was the machine's root.
///
/// Returns the peer's GUID.
pub(super) fn authenticate(stream: &mut UnixStream, within: Duration) -> io::Result<String> {
    stream.set_read_timeout(Some(within.max(Duration::from_millis(1))))?;
    // "30" is the digit 0, the user's number, in hexadecimal; BEGIN goes with it, since systemd does not look
    // at a message that it reads together with BEGIN until another one comes
    stream.write_all(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")?;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
        if line.len() > LINE_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "an endless answer to AUTH",
            ));
        }
    }
    let answer = String::from_utf8_lossy(&line);
    let Some(guid) = answer.trim_end().strip_prefix("OK ") else {
        let what = format!("AUTH was answered with {:?}", answer.trim_end());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    };
    stream.set_read_timeout(None)?;
    Ok(guid.to_owned())
}

/// An authenticated private socket; made inside the runtime that drives it.
#[derive(Debug)]
pub(super) struct PrivateSocket(tokio::net::UnixStream);

impl PrivateSocket {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(tokio::net::UnixStream::from_std(stream)?))
    }
}

impl Socket for PrivateSocket {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let (read, write) = self.0.into_split();
        Split::new(
            Reader {
                stream: read,
                message: Vec::new(),
                given: 0,
            },
            Writer(write),
        )
    }
}

/// Reads messages whole and hands them on.
#[derive(Debug)]
pub(super) struct Reader {
    stream: OwnedReadHalf,
    message: Vec<u8>,
    given: usize,
}

impl Reader {
    /// Reads the next message; `false` where the peer ended between two.
    async fn fill(&mut self) -> io::Result<bool> {
        let mut message = vec![0; FIXED_HEADER];
        if self.stream.read(&mut message[..1]).await? == 0 {
            return Ok(false);
        }
        self.stream.read_exact(&mut message[1..]).await?;
        let total = total_length(&message)?;
        message.resize(total, 0);
        self.stream.read_exact(&mut message[FIXED_HEADER..]).await?;
        rename_sender(&mut message);
        self.message = message;
        self.given = 0;
        Ok(true)
    }
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        if self.given == self.message.len() && !self.fill().await? {
            return Ok((0, Vec::new()));
        }
        let left = &self.message[self.given..];
        let length = left.len().min(buffer.len());
        buffer[..length].copy_from_slice(&left[..length]);
        self.given += length;
        Ok((length, Vec::new()))
    }
}

/// Writes messages as they are.
#[derive(Debug)]
pub(super) struct Writer(OwnedWriteHalf);

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(buffer).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

/// The length of a whole message, from its fixed header.
fn total_length(header: &[u8]) -> io::Result<usize> {
    let invalid = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "bytes that are no D-Bus message",
        )
    };
    let number = |at: usize| -> io::Result<usize> {
        let bytes: [u8; 4] = header
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .ok_or_else(invalid)?;
        let value = match header[0] {
            b'l' => u32::from_le_bytes(bytes),
            b'B' => u32::from_be_bytes(bytes),
            _ => return Err(invalid()),
        };
        usize::try_from(value).map_err(|_| invalid())
    };
    let (body, fields) = (number(4)?, number(12)?);
    let total = fields
        .checked_next_multiple_of(8)
        .and_then(|f| f.checked_add(body + FIXED_HEADER));
    total
        .filter(|total| *total <= MESSAGE_MAX)
        .ok_or_else(invalid)
}

/// Gives the sender in the header fields another name; the body is left alone.
fn rename_sender(message: &mut [u8]) {
    let Some(length) = message
        .get(12..16)
        .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
    else {
        return;
    };
    // a big-endian peer signs with another length; systemd answers in the machine's own order
    let end = usize::try_from(u32::from_le_bytes(length))
        .unwrap_or(0)
        .saturating_add(FIXED_HEADER);
    let Some(fields) = message.get_mut(FIXED_HEADER..end) else {
        return;
    };
    if let Some(at) = fields
        .windows(SENDER.len())
        .position(|window| window == SENDER)
    {
        fields[at..at + SENDER.len()].copy_from_slice(RENAMED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        let header = |order: u8, body: u32, fields: u32| {
            let mut bytes = vec![order, 2, 0, 1];
            bytes.extend(body.to_le_bytes());
            bytes.extend(1_u32.to_le_bytes());
            bytes.extend(fields.to_le_bytes());
            bytes
        };
        assert_eq!(total_length(&header(b'l', 3, 9)).unwrap(), 16 + 16 + 3);
        assert!(total_length(&header(b'x', 0, 0)).is_err());
        assert!(total_length(&header(b'l', u32::MAX, 0)).is_err());
        assert!(total_length(&header(b'l', 0, u32::MAX)).is_err());
    }

    #[test]
    fn the_sender_alone_is_renamed() {
        let mut message = vec![b'l', 2, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0];
        message.extend(u32::try_from(SENDER.len()).unwrap().to_le_bytes());
        message.extend(SENDER);
        let body = message.len();
        message.extend(SENDER);
        rename_sender(&mut message);
        assert_eq!(&message[FIXED_HEADER..body], RENAMED);
        assert_eq!(&message[body..], SENDER);
        rename_sender(&mut [0; 3]);
        rename_sender(&mut [0xff; 16]);
    }
}
