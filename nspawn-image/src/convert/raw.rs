//! A raw disk image as a source of a conversion.

use std::io;
use std::ops::Range;

use super::scratch::Scratch;
use super::{Units, Worker};
use crate::qcow2::Qcow2Error;
use crate::source::ReadAt;

/// A raw disk image as a source.
#[derive(Debug)]
pub(crate) struct RawUnits<S> {
    source: S,
    size: u64,
}

impl<S: ReadAt> RawUnits<S> {
    pub(crate) fn new(source: S) -> io::Result<Self> {
        let size = source.size()?;
        Ok(Self { source, size })
    }
}

impl<S: ReadAt> Units for RawUnits<S> {
    fn size(&self) -> u64 {
        self.size
    }

    fn worker(&self) -> Box<dyn Worker + Send + '_> {
        Box::new(RawWorker(self))
    }

    fn end_waiting(&self) {
        self.source.end_waiting();
    }
}

struct RawWorker<'a, S>(&'a RawUnits<S>);

impl<S: ReadAt> Worker for RawWorker<'_, S> {
    fn read(
        &mut self,
        offset: u64,
        buffer: &mut [u8],
        data: &mut Vec<Range<usize>>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), Qcow2Error> {
        let source = &self.0.source;
        let end = (offset + buffer.len() as u64).min(self.0.size);
        let failed = |offset| move |source| Qcow2Error::Read { offset, source };
        let mut at = offset;
        while at < end {
            let found = source.next_data(at).map_err(failed(at))?;
            let Some((start, stop)) = found.filter(|(start, _)| *start < end) else {
                break;
            };
            let stop = stop.min(end);
            let range = (start - offset) as usize..(stop - offset) as usize;
            if !scratch.share(source, start, start, range.len()) {
                source
                    .read_exact_at(&mut buffer[range.clone()], start)
                    .map_err(failed(start))?;
                data.push(range);
            }
            at = stop;
        }
        Ok(())
    }

    fn next_data(&mut self, offset: u64) -> Result<u64, Qcow2Error> {
        let found = self.0.source.next_data(offset);
        let found = found.map_err(|source| Qcow2Error::Read { offset, source })?;
        Ok(found.map_or(u64::MAX, |(start, _)| start))
    }
}
