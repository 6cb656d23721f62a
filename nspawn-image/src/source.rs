//! Reading at an offset, from a file or from memory, so that every parser is tested and fuzzed without a file.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt;

/// Bytes that can be read at any offset, from many threads at once.
pub trait ReadAt: Sync {
    /// The length, in bytes.
    ///
    /// # Errors
    ///
    /// What the system answers.
    fn size(&self) -> io::Result<u64>;

    /// Reads into `buffer` from `offset`, in bytes; fewer than asked for only at the end.
    ///
    /// # Errors
    ///
    /// What the system answers; reading past the end is no error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills `buffer` from `offset`, in bytes.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` where the bytes end before.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.read_at(buffer, offset)? == buffer.len() {
            return Ok(());
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    /// The next stretch of bytes that may hold data at or after `offset`: start and end, in bytes. `None`
    /// where only holes are left. A source that knows no holes answers with all that is left.
    ///
    /// # Errors
    ///
    /// What the system answers.
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let length = self.size()?;
        Ok((offset < length).then_some((offset, length)))
    }

    /// The file that the source is, where it can share blocks with others.
    fn as_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Ends with an error every read that waits, now or later, for bytes that have yet to come: what they were wanted
    /// for has failed. A source that never waits has nothing to do.
    fn end_waiting(&self) {}
}

/// A position in a source, for what reads from front to back.
#[derive(Debug)]
pub(crate) struct Cursor<S> {
    source: S,
    at: u64,
}

impl<S: ReadAt> Cursor<S> {
    /// At the first byte.
    pub(crate) fn new(source: S) -> Self {
        Self { source, at: 0 }
    }
}

impl<S: ReadAt> io::Read for Cursor<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl<S: ReadAt> io::Seek for Cursor<S> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let at = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::End(by) => self.source.size()?.checked_add_signed(by),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl ReadAt for File {
    /// The end by seeking, as a block device has no length in its metadata; the position is not used.
    fn size(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(self, rustix::fs::SeekFrom::End(0))?)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(self, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        use rustix::fs::{SeekFrom, seek};
        let length = self.size()?;
        if offset >= length {
            return Ok(None);
        }
        match seek(self, SeekFrom::Data(offset)) {
            Ok(start) => {
                let end = seek(self, SeekFrom::Hole(start)).unwrap_or(length);
                Ok(Some((start, end)))
            }
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(rustix::io::Errno::INVAL) => Ok(Some((offset, length))),
            Err(error) => Err(error.into()),
        }
    }

    fn as_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl ReadAt for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        let count = buffer.len().min(self.len() - start);
        buffer[..count].copy_from_slice(&self[start..start + count]);
        Ok(count)
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        self.as_slice().size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.as_slice().read_at(buffer, offset)
    }
}

impl<T: ReadAt + Send + ?Sized> ReadAt for &T {
    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        (**self).next_data(offset)
    }

    fn as_file(&self) -> Option<BorrowedFd<'_>> {
        (**self).as_file()
    }

    fn end_waiting(&self) {
        (**self).end_waiting();
    }
}
