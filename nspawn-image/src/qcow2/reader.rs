//! Reading the guest's disk at any place, without converting it: to look at partitions and small files.

use std::io;
use std::sync::{Mutex, PoisonError};

use crate::convert::scratch::Scratch;
use crate::convert::{Units, Worker};
use crate::source::ReadAt;

/// The disk that an image holds; made by [`Qcow2::reader`](super::Qcow2::reader).
pub struct Qcow2Reader<'a> {
    size: u64,
    state: Mutex<(Box<dyn Worker + Send + 'a>, Scratch<'static>)>,
}

impl std::fmt::Debug for Qcow2Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2Reader")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl<'a> Qcow2Reader<'a> {
    pub(super) fn new(image: &'a dyn Units) -> Self {
        Self {
            size: image.size(),
            state: Mutex::new((image.worker(), Scratch::new(None))),
        }
    }
}

impl ReadAt for Qcow2Reader<'_> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        let buffer = &mut buffer[..count];
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (worker, scratch) = &mut *state;
        let mut data = Vec::new();
        worker
            .read(offset, buffer, &mut data, scratch)
            .map_err(io::Error::other)?;
        let mut zero_from = 0;
        for range in data {
            buffer[zero_from..range.start].fill(0);
            zero_from = range.end;
        }
        buffer[zero_from..].fill(0);
        Ok(count)
    }
}
