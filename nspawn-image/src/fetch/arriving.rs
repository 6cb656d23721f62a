//! A file that is read while it is still being written: a read waits for what has not come yet.
//!
//! So the order in which a file's parts are wanted decides by itself how much of an import overlaps its download:
//! what is laid out in order is converted as it comes, and what needs the end of the file waits for it. What has come
//! is on disk and not in memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::source::ReadAt;

/// A file of a known length, of which a part is there.
#[derive(Debug)]
pub(crate) struct Arriving {
    file: File,
    /// The whole length, in bytes.
    total: u64,
    /// Bytes that can be read, from the start.
    here: AtomicU64,
    /// Whether it was all there from the first: such a file may share its blocks. What has just come has yet to be
    /// written to the disk, which sharing would wait for.
    whole: bool,
    /// Whether no more will come.
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Arriving {
    /// A file of `total` bytes, of which `here` are there.
    pub(crate) fn new(file: File, total: u64, here: u64) -> Self {
        Self {
            file,
            total,
            here: AtomicU64::new(here),
            whole: false,
            ended: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// A file that is all there.
    pub(crate) fn complete(file: File) -> io::Result<Self> {
        let total = file.size()?;
        Ok(Self {
            whole: true,
            ..Self::new(file, total, total)
        })
    }

    /// Tells that `here` bytes are there now.
    pub(super) fn advance(&self, here: u64) {
        let _ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        self.here.store(here.min(self.total), Ordering::Release);
        self.changed.notify_all();
    }

    fn wait(&self, end: u64) -> io::Result<()> {
        if self.here.load(Ordering::Acquire) >= end {
            return Ok(());
        }
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while self.here.load(Ordering::Acquire) < end {
            if *ended {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the download ended before",
                ));
            }
            ended = self
                .changed
                .wait(ended)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

impl ReadAt for Arriving {
    fn size(&self) -> io::Result<u64> {
        Ok(self.total)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.total.saturating_sub(offset)).unwrap_or(usize::MAX);
        let buffer_end = buffer.len().min(left);
        let buffer = &mut buffer[..buffer_end];
        if buffer.is_empty() {
            return Ok(0);
        }
        self.wait(offset + buffer.len() as u64)?;
        let count = ReadAt::read_at(&self.file, buffer, offset)?;
        // Zeros that end what has come are not written.
        buffer[count..].fill(0);
        Ok(buffer.len())
    }

    fn as_file(&self) -> Option<BorrowedFd<'_>> {
        self.whole.then(|| self.file.as_fd())
    }

    fn end_waiting(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_read_waits_for_its_bytes_and_no_longer() {
        let file = tempfile::tempfile().unwrap();
        let writer = file.try_clone().unwrap();
        let arriving = Arc::new(Arriving::new(file, 10, 0));
        let reader = Arc::clone(&arriving);
        let thread = std::thread::spawn(move || {
            let mut buffer = [9; 4];
            reader.read_exact_at(&mut buffer, 2).unwrap();
            buffer
        });
        writer.write_all_at(b"abcdef", 0).unwrap();
        arriving.advance(6);
        assert_eq!(&thread.join().unwrap(), b"cdef");
        let mut buffer = [9; 4];
        assert_eq!(arriving.read_at(&mut buffer, 10).unwrap(), 0);
        let reader = Arc::clone(&arriving);
        let thread = std::thread::spawn(move || reader.read_at(&mut [0; 4], 4));
        arriving.end_waiting();
        let error = thread.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(arriving.read_at(&mut buffer, 2).unwrap(), 4);
    }

    #[test]
    fn zeros_at_the_end_need_not_be_written() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"ab", 0).unwrap();
        let arriving = Arriving::new(file, 8, 8);
        let mut buffer = [9; 16];
        assert_eq!(arriving.read_at(&mut buffer, 1).unwrap(), 7);
        assert_eq!(&buffer[..7], b"b\0\0\0\0\0\0");
    }
}
