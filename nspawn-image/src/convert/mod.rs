//! The conversion engine: any source of guest bytes, read in parallel, written as one sparse file.
//!
//! Units of 2 MiB of guest range are handed out by an atomic counter, several at once where nothing is in them, so
//! that no thread waits for another. Each thread has its own decoder and its own buffers, and writes through a
//! [`Sink`] of its own, so that decoding and the disk overlap; with at most four threads everything together stays
//! below 32 MiB, whatever the image. Blocks of 4 KiB that hold only zeros are left as holes, and blocks that the file
//! system can share with the source are not copied at all. Where checksums are wanted, they are taken of the buffers
//! before they are written, while the processor's caches hold them.

mod checksum;
mod raw;
pub(crate) mod scratch;
mod sink;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

pub(crate) use checksum::DiskSums;
pub(crate) use raw::RawUnits;
use scratch::{Scratch, Sharing};
use sink::Sink;

use crate::limits::Cancel;
use crate::qcow2::Qcow2Error;

/// Guest bytes in one unit of work: no cluster is larger.
pub(crate) const UNIT: u64 = 2 << 20;
/// What is left as a hole where it is zero, in bytes: the block size of the usual file systems.
pub(crate) const BLOCK: usize = 4096;
/// More threads would break the bound on memory: each has up to 4 MiB of packed bytes beside its buffers.
const MAX_WORKERS: usize = 4;
/// Buffers of all threads together, each of one unit. A thread has two at least: one is filled while the other is
/// on its way to the disk.
const BUFFERS: usize = 8;
/// Buffers of one thread; more are of no use.
const MAX_BUFFERS: usize = 4;
/// Units taken at once after a stretch without data: looking for the next data is quick.
const EMPTY_BATCH: u64 = 32;
/// How often progress is told and a cancel seen.
const TICK: Duration = Duration::from_millis(100);

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Where converted bytes go. Bytes never written read as zeros.
pub trait Output: Sync {
    /// Makes the output `size` bytes long, all zeros.
    ///
    /// # Errors
    ///
    /// What the system answers.
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Writes all of `data` at `offset`, in bytes. Called from several threads, never twice for one byte.
    ///
    /// # Errors
    ///
    /// What the system answers.
    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// The same output opened past the page cache (`O_DIRECT`), where it can be: it then gets the blocks that are
    /// aligned to 4 KiB, and `write_at` the others and those that were refused.
    fn direct(&self) -> Option<File> {
        None
    }

    /// The file that the output is, where it can share blocks with others.
    fn as_file(&self) -> Option<&File> {
        None
    }
}

/// The file must be empty before.
impl Output for File {
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn direct(&self) -> Option<File> {
        use std::os::fd::AsRawFd as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        // A second opening, as the flag belongs to the opening and not to the descriptor.
        File::options()
            .write(true)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
            .open(format!("/proc/self/fd/{}", self.as_raw_fd()))
            .ok()
    }

    fn as_file(&self) -> Option<&File> {
        Some(self)
    }
}

/// An output in memory, for tests and small images.
impl Output for Mutex<Vec<u8>> {
    fn set_size(&self, size: u64) -> io::Result<()> {
        let size =
            usize::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut bytes = self.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.clear();
        bytes.resize(size, 0);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = self.lock().unwrap_or_else(PoisonError::into_inner);
        let place = usize::try_from(offset)
            .ok()
            .and_then(|start| bytes.get_mut(start..start + data.len()));
        place
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?
            .copy_from_slice(data);
        Ok(())
    }
}

/// Something that can be read in units by several threads.
pub(crate) trait Units: Sync {
    /// Guest bytes in all.
    fn size(&self) -> u64;
    /// The state of one thread.
    fn worker(&self) -> Box<dyn Worker + Send + '_>;
    /// Ends the reads that wait for bytes which have yet to come: the conversion has failed.
    fn end_waiting(&self);
}

/// One thread's view of a [`Units`].
pub(crate) trait Worker {
    /// Reads guest bytes from `offset` into `buffer`, and appends to `data` the ranges of it that hold data; all
    /// else is zero and left as it was in `buffer`, or already there in the output. What is behind the end is zero.
    fn read(
        &mut self,
        offset: u64,
        buffer: &mut [u8],
        data: &mut Vec<Range<usize>>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), Qcow2Error>;

    /// The next guest byte at or after `offset` that may hold data, where this is known at once; it may be said too
    /// early and may lie behind the end.
    fn next_data(&mut self, offset: u64) -> Result<u64, Qcow2Error>;
}

/// Runs a conversion to its end; `progress` hears the guest bytes done, from the calling thread.
pub(crate) fn run(
    source: &dyn Units,
    output: &dyn Output,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Qcow2Error> {
    run_with(source, output, false, cancel, progress).map(drop)
}

/// As [`run`]; answers the checksums of what was written where they are wanted.
pub(crate) fn run_with(
    source: &dyn Units,
    output: &dyn Output,
    summed: bool,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64),
) -> Result<Option<DiskSums>, Qcow2Error> {
    let size = source.size();
    output
        .set_size(size)
        .map_err(|source| Qcow2Error::Write { offset: 0, source })?;
    let units = size.div_ceil(UNIT);
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let workers = cpus
        .min(MAX_WORKERS)
        .min(usize::try_from(units).unwrap_or(MAX_WORKERS));
    let shared = Shared {
        direct: output.direct(),
        shares: AtomicBool::new(true),
        buffers: (BUFFERS / workers.max(1)).min(MAX_BUFFERS),
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        error: Mutex::new(None),
        sums: summed.then(Mutex::default),
    };
    thread::scope(|scope| {
        let (alive, ended) = mpsc::channel::<()>();
        let mut threads = Vec::new();
        for _ in 0..workers {
            let (alive, shared) = (alive.clone(), &shared);
            let body = move || {
                if let Err(error) = work(source, output, shared, size) {
                    shared.fail(error, source);
                }
                drop(alive);
            };
            // Where no thread is to be had, the others do its work, or this one.
            threads.extend(thread::Builder::new().spawn_scoped(scope, body));
        }
        drop(alive);
        if threads.is_empty()
            && let Err(error) = work(source, output, &shared, size)
        {
            shared.fail(error, source);
        }
        while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            let next = shared.next.load(Ordering::Relaxed);
            progress(next.saturating_mul(UNIT).min(size));
            if cancel.is_cancelled() {
                shared.fail(Qcow2Error::Cancelled, source);
            }
        }
        // The scope waits for their work alone; joined, their memory is gone too.
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let error = shared.error.into_inner();
    if let Some(error) = error.unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    progress(size);
    Ok(shared.sums.map(|units| DiskSums {
        size,
        units: units.into_inner().unwrap_or_else(PoisonError::into_inner),
    }))
}

struct Shared {
    direct: Option<File>,
    /// Whether blocks can be shared, as far as is known.
    shares: AtomicBool,
    /// Buffers of each thread.
    buffers: usize,
    next: AtomicU64,
    stop: AtomicBool,
    error: Mutex<Option<Qcow2Error>>,
    /// The checksums of the units done, by their numbers, where they are wanted.
    sums: Option<Mutex<BTreeMap<u64, u64>>>,
}

impl Shared {
    /// Ends the other threads; the first error counts.
    fn fail(&self, error: Qcow2Error, source: &dyn Units) {
        self.stop.store(true, Ordering::Relaxed);
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        // After the error is noted: what this ends has an error of its own.
        source.end_waiting();
    }
}

fn work(
    source: &dyn Units,
    output: &dyn Output,
    shared: &Shared,
    size: u64,
) -> Result<(), Qcow2Error> {
    let mut worker = source.worker();
    let mut sink = Sink::new(output, shared.direct.as_ref(), shared.buffers);
    let mut scratch = Scratch::new(output.as_file().map(|output| Sharing {
        output,
        works: &shared.shares,
        summed: shared.sums.is_some(),
    }));
    let mut data = Vec::new();
    let mut batch = 1;
    while !shared.stop.load(Ordering::Relaxed) {
        let first = shared.next.fetch_add(batch, Ordering::Relaxed);
        let Some(start) = first.checked_mul(UNIT).filter(|start| *start < size) else {
            break;
        };
        let end = start.saturating_add(batch.saturating_mul(UNIT)).min(size);
        let mut at = start;
        batch = EMPTY_BATCH;
        while at < end && !shared.stop.load(Ordering::Relaxed) {
            let found = worker.next_data(at)?;
            if found / UNIT > at / UNIT {
                at = found / UNIT * UNIT;
                if at >= end {
                    shared.next.fetch_max(at / UNIT, Ordering::Relaxed);
                }
                continue;
            }
            batch = 1;
            let length = UNIT.min(size - at) as usize;
            data.clear();
            let buffer = &mut sink.buffer()?[..length];
            worker.read(at, buffer, &mut data, &mut scratch)?;
            if let Some(sums) = &shared.sums {
                sink::fill_blocks(buffer, &mut data);
                let sum = data
                    .iter()
                    .map(|range| checksum::of_blocks(&buffer[range.clone()], range.start))
                    .fold(scratch.take_shared_sum(), u64::wrapping_add);
                if sum != 0 {
                    let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
                    sums.insert(at / UNIT, sum);
                }
            }
            sink.write(&mut data, length, at)?;
            at += length as u64;
        }
    }
    sink.finish()
}

/// Writes `bytes` at `offset`, leaving out the blocks of 4 KiB that are zero, in as few writes as that allows. An
/// error comes with its place.
pub(crate) fn write_sparse(
    output: &dyn Output,
    bytes: &[u8],
    offset: u64,
) -> Result<(), (u64, io::Error)> {
    let mut from = 0;
    while let Some(range) = next_data(bytes, from, offset) {
        from = range.end;
        let at = offset + range.start as u64;
        output
            .write_at(&bytes[range], at)
            .map_err(|source| (at, source))?;
    }
    Ok(())
}

/// The next blocks at or after `from` that are not all zero, as many as follow each other; `bytes` stand at `offset`
/// of the disk, from whose start blocks are counted.
pub(crate) fn next_data(bytes: &[u8], from: usize, offset: u64) -> Option<Range<usize>> {
    let block_end = |at: usize| bytes.len().min(at + BLOCK - (offset as usize + at) % BLOCK);
    let is_zero = |at: usize, end: usize| bytes[at..end] == ZEROS[..end - at];
    let mut start = from;
    while start < bytes.len() && is_zero(start, block_end(start)) {
        start = block_end(start);
    }
    if start >= bytes.len() {
        return None;
    }
    let mut end = block_end(start);
    while end < bytes.len() && !is_zero(end, block_end(end)) {
        end = block_end(end);
    }
    Some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::ReadAt;

    #[test]
    fn raw_keeps_every_byte_and_skips_zero_blocks() {
        let mut source = vec![0_u8; 5 * UNIT as usize + 1000];
        for at in [
            0,
            4095,
            4096,
            UNIT as usize - 1,
            3 * UNIT as usize,
            5 * UNIT as usize + 999,
        ] {
            source[at] = 7;
        }
        let output = Mutex::new(vec![9; 3]);
        let mut last = 0;
        run(
            &RawUnits::new(source.clone()).unwrap(),
            &output,
            &Cancel::default(),
            &mut |done| last = done,
        )
        .unwrap();
        assert!(output.into_inner().unwrap() == source);
        assert_eq!(last, source.len() as u64);
    }

    #[test]
    fn a_holey_file_stays_holey() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let path = dir.path().join(name);
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(path)
                .unwrap()
        };
        let (source, output) = (open("source"), open("output"));
        source.set_len(1 << 30).unwrap();
        source.write_all_at(b"data", 777 << 20).unwrap();
        run(
            &RawUnits::new(source).unwrap(),
            &output,
            &Cancel::default(),
            &mut |_| {},
        )
        .unwrap();
        let mut found = [0; 4];
        ReadAt::read_exact_at(&output, &mut found, 777 << 20).unwrap();
        assert_eq!(&found, b"data");
        let metadata = output.metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 <= 64 << 10, "{}", metadata.blocks());
    }

    #[test]
    fn a_failing_output_is_an_error_with_its_place() {
        struct Full;
        impl Output for Full {
            fn set_size(&self, _: u64) -> io::Result<()> {
                Ok(())
            }
            fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
                Err(io::ErrorKind::StorageFull.into())
            }
        }
        let mut source = vec![0; 8192];
        source[4096] = 1;
        let units = RawUnits::new(source).unwrap();
        let error = run(&units, &Full, &Cancel::default(), &mut |_| {}).unwrap_err();
        assert!(
            matches!(error, Qcow2Error::Write { offset: 4096, .. }),
            "{error}"
        );
    }
}
