//! The one file with `unsafe`: writes that the kernel carries out while the next bytes are decoded, blocks that files
//! share, and loop devices.
//!
//! What makes the writes sound: the ring owns the buffers; one that the kernel may still read is neither handed out for
//! writing nor freed.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use io_uring::{IoUring, opcode, types};

/// Writes on their way at once in one ring, each a stretch of a buffer between two holes; more wait for their turn.
const ENTRIES: u32 = 64;
/// What direct I/O wants of addresses, in bytes: the largest block of the usual disks.
const ALIGN: usize = 4096;

/// A queue of writes to one file, and the buffers they are written from.
pub(crate) struct WriteRing {
    ring: IoUring,
    file: File,
    buffers: Vec<Buffer>,
    /// The buffer in use, by its index.
    current: usize,
    /// What is on its way, by the number that the kernel gives back.
    writes: Vec<Option<Write>>,
    on_their_way: usize,
    refused: bool,
}

struct Buffer {
    memory: Vec<u8>,
    start: usize,
    /// Writes from it that are not done.
    pending: usize,
}

impl Buffer {
    fn new(size: usize) -> Self {
        let memory = vec![0; size + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Self {
            memory,
            start,
            pending: 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.memory.len() - ALIGN]
    }
}

struct Write {
    buffer: usize,
    range: Range<usize>,
    offset: u64,
}

/// A write, or the rest of one, that the kernel did not carry out. Its buffer is kept until it is given back.
pub(crate) struct Failed {
    buffer: usize,
    range: Range<usize>,
    /// Where it belongs in the file, in bytes.
    pub(crate) offset: u64,
}

impl WriteRing {
    /// A ring for `file`, which is open for direct I/O, with `buffers` buffers of `size` bytes each.
    ///
    /// # Errors
    ///
    /// What the kernel answers where it has no io_uring or does not allow it.
    pub(crate) fn new(file: File, buffers: usize, size: usize) -> io::Result<Self> {
        Ok(Self {
            ring: IoUring::new(ENTRIES)?,
            file,
            buffers: (0..buffers.max(2)).map(|_| Buffer::new(size)).collect(),
            current: 0,
            writes: (0..ENTRIES).map(|_| None).collect(),
            on_their_way: 0,
            refused: false,
        })
    }

    /// Whether the next buffer can be filled now.
    pub(crate) fn next_is_free(&self) -> bool {
        self.buffers.iter().any(|buffer| buffer.pending == 0)
    }

    /// Whether a buffer other than the current one can be filled now.
    pub(crate) fn has_another(&self) -> bool {
        let free = |(index, buffer): (usize, &Buffer)| index != self.current && buffer.pending == 0;
        self.buffers.iter().enumerate().any(free)
    }

    /// Hands out a free buffer, which is the current one from now on.
    ///
    /// # Panics
    ///
    /// Where none is free.
    pub(crate) fn next_buffer(&mut self) -> &mut [u8] {
        let free = self.buffers.iter().position(|buffer| buffer.pending == 0);
        self.current = free.expect("asked for only where one is free");
        self.bytes_mut()
    }

    /// The current buffer.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffers[self.current].bytes()
    }

    /// The current buffer, to change what is not on its way.
    ///
    /// # Panics
    ///
    /// Where some of it is.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let buffer = &mut self.buffers[self.current];
        assert!(buffer.pending == 0, "the kernel reads this buffer");
        let end = buffer.start + buffer.memory.len() - ALIGN;
        &mut buffer.memory[buffer.start..end]
    }

    /// Whether the file takes direct writes, as far as is known.
    pub(crate) fn is_taking(&self) -> bool {
        !self.refused
    }

    /// Whether nothing is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.on_their_way == 0
    }

    /// Sends `range` of the current buffer on its way to `offset` of the file, all in whole blocks; waits only where
    /// too many are.
    pub(crate) fn write(&mut self, range: Range<usize>, offset: u64) -> io::Result<Vec<Failed>> {
        let mut failed = Vec::new();
        let number = loop {
            match self.writes.iter().position(Option::is_none) {
                Some(number) => break number,
                None => failed.extend(self.wait()?),
            }
        };
        let bytes = &self.bytes()[range.clone()];
        let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let entry = opcode::Write::new(types::Fd(self.file.as_raw_fd()), bytes.as_ptr(), length)
            .offset(offset)
            .build()
            .user_data(number as u64);
        // JUSTIFICATION: the crate leaves it to its users that the memory stays until the write is done.
        // SAFETY: the bytes lie in a buffer that `pending` keeps from being changed or freed until the kernel has
        // answered; the descriptor belongs to `self.file`, which lives as long as the ring.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(io::Error::other)?;
        self.buffers[self.current].pending += 1;
        self.on_their_way += 1;
        self.writes[number] = Some(Write {
            buffer: self.current,
            range,
            offset,
        });
        self.submit(0)?;
        failed.extend(self.collect());
        Ok(failed)
    }

    /// Waits until one write at least is done.
    pub(crate) fn wait(&mut self) -> io::Result<Vec<Failed>> {
        self.submit(1)?;
        Ok(self.collect())
    }

    fn submit(&self, wait_for: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(wait_for) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes back what is done; answers what was not carried out.
    pub(crate) fn collect(&mut self) -> Vec<Failed> {
        let mut failed = Vec::new();
        for answer in self.ring.completion() {
            let number = usize::try_from(answer.user_data()).ok();
            let write = number.and_then(|number| self.writes.get_mut(number)?.take());
            let Some(write) = write else { continue };
            self.on_their_way -= 1;
            let done = usize::try_from(answer.result()).unwrap_or(0);
            if done >= write.range.len() {
                self.buffers[write.buffer].pending -= 1;
                continue;
            }
            // Not this file system: no use in trying again.
            self.refused |= answer.result() < 0;
            failed.push(Failed {
                buffer: write.buffer,
                range: write.range.start + done..write.range.end,
                offset: write.offset + done as u64,
            });
        }
        failed
    }

    /// The bytes of a failed write.
    pub(crate) fn failed_bytes(&self, write: &Failed) -> &[u8] {
        &self.buffers[write.buffer].bytes()[write.range.clone()]
    }

    /// Lets the buffer of a failed write be used again.
    pub(crate) fn give_back(&mut self, write: &Failed) {
        self.buffers[write.buffer].pending -= 1;
    }
}

/// Makes `length` bytes at `to` of `output` share the blocks of those at `from` of `source`, all in bytes.
///
/// # Errors
///
/// `EOPNOTSUPP`, `EXDEV` and `EINVAL` where the file systems cannot. Source: ioctl_ficlonerange(2).
pub(crate) fn clone_range(
    source: BorrowedFd<'_>,
    from: u64,
    length: u64,
    output: &File,
    to: u64,
) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: source.as_raw_fd().into(),
        src_offset: from,
        src_length: length,
        dest_offset: to,
    };
    // JUSTIFICATION: rustix wraps FICLONE alone, which shares whole files.
    // SAFETY: the kernel reads one structure of the kind that FICLONERANGE takes; both descriptors are open.
    let result = unsafe { libc::ioctl(output.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A `LOOP_CONFIGURE` argument. Source: linux/loop.h, `struct loop_config` and, from `device` on, `struct loop_info64`.
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
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
    reserved: [u64; 8],
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
    // JUSTIFICATION: rustix wraps no request of loop devices.
    // SAFETY: the request takes no argument and touches none of our memory.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Attaches `length` bytes from `offset` of `file` to a loop device, read-only, and detached by the kernel when the
/// last user closes it.
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
    let config = LoopConfig {
        file: u32::try_from(file.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?,
        block_size: 512,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset,
        size_limit: length,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
        reserved: [0; 8],
    };
    // JUSTIFICATION: rustix wraps no request of loop devices.
    // SAFETY: the argument is the structure the request asks for, alive for the call, and only read.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Drop for WriteRing {
    fn drop(&mut self) {
        while self.on_their_way > 0 {
            if self.wait().is_err() {
                // The kernel may still read them: better lost than used for something else.
                std::mem::forget(std::mem::take(&mut self.buffers));
                return;
            }
        }
    }
}
