//! The conversion engine: any source of guest bytes, read in parallel, written as one sparse file.
//!
//! Units of 2 MiB of guest range are handed out by an atomic counter, so that no thread waits for another.
//! Each thread has its own decoder and its own buffers, and writes through a [`Sink`] of its own, so that decoding
//! and the disk overlap; with at most four threads everything together stays below 32 MiB, whatever the image.
//! Blocks of 4 KiB that hold only zeros are left as holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::limits::Cancel;
use crate::qcow2::Qcow2Error;
use crate::sink::{self, Sink};
use crate::source::ReadAt;

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
const MAX_BUFFERS: usize = 3;
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
    fn worker(&self) -> Box<dyn Worker + '_>;
}

/// One thread's view of a [`Units`].
pub(crate) trait Worker {
    /// Reads `length` guest bytes from `offset` into the start of `buffer`, which is a whole unit long, and
    /// appends to `data` the ranges of it that hold data, in rising order; all else is zero.
    fn read(
        &mut self,
        offset: u64,
        length: usize,
        buffer: &mut [u8],
        data: &mut Vec<Range<usize>>,
    ) -> Result<(), Qcow2Error>;

    /// The next guest byte at or after `offset` that may hold data, where this is known at once.
    fn next_data(&mut self, offset: u64) -> Result<u64, Qcow2Error>;
}

/// Runs a conversion to its end; `progress` hears the guest bytes done, from the calling thread.
pub(crate) fn run(
    source: &dyn Units,
    output: &dyn Output,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Qcow2Error> {
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
        buffers: (BUFFERS / workers.max(1)).min(MAX_BUFFERS),
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        error: Mutex::new(None),
    };
    thread::scope(|scope| {
        let (alive, ended) = mpsc::channel::<()>();
        let mut started = 0;
        for _ in 0..workers {
            let (alive, shared) = (alive.clone(), &shared);
            let body = move || {
                if let Err(error) = work(source, output, shared, size) {
                    shared.fail(error);
                }
                drop(alive);
            };
            // Where no thread is to be had, the others do its work, or this one.
            started += usize::from(thread::Builder::new().spawn_scoped(scope, body).is_ok());
        }
        drop(alive);
        if started == 0
            && let Err(error) = work(source, output, &shared, size)
        {
            shared.fail(error);
        }
        while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            progress((shared.next.load(Ordering::Relaxed).saturating_mul(UNIT)).min(size));
            if cancel.is_cancelled() {
                shared.fail(Qcow2Error::Cancelled);
            }
        }
    });
    match shared
        .error
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        Some(error) => Err(error),
        None => {
            progress(size);
            Ok(())
        }
    }
}

struct Shared {
    direct: Option<File>,
    /// Buffers of each thread.
    buffers: usize,
    next: AtomicU64,
    stop: AtomicBool,
    error: Mutex<Option<Qcow2Error>>,
}

impl Shared {
    fn fail(&self, error: Qcow2Error) {
        self.stop.store(true, Ordering::Relaxed);
        self.error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
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
    let mut data = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let unit = shared.next.fetch_add(1, Ordering::Relaxed);
        let Some(offset) = unit.checked_mul(UNIT).filter(|offset| *offset < size) else {
            break;
        };
        let ahead = worker.next_data(offset)? / UNIT;
        if ahead > unit {
            shared.next.fetch_max(ahead, Ordering::Relaxed);
            continue;
        }
        let length = UNIT.min(size - offset) as usize;
        data.clear();
        let buffer = sink.buffer()?;
        worker.read(offset, length, buffer, &mut data)?;
        sink::fill_blocks(&mut buffer[..length], &mut data);
        for range in &data {
            sink.write(range.clone(), offset)?;
        }
    }
    sink.finish()
}

/// Writes `bytes` at `offset`, leaving out the blocks of 4 KiB that are zero, in as few writes as that allows.
pub(crate) fn write_sparse(
    output: &dyn Output,
    bytes: &[u8],
    offset: u64,
) -> Result<(), Qcow2Error> {
    let mut from = 0;
    while let Some(range) = next_data(bytes, from, offset) {
        from = range.end;
        let at = offset + range.start as u64;
        output
            .write_at(&bytes[range], at)
            .map_err(|source| Qcow2Error::Write { offset: at, source })?;
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

/// A raw disk image as a source.
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

    fn worker(&self) -> Box<dyn Worker + '_> {
        Box::new(RawWorker(self))
    }
}

struct RawWorker<'a, S>(&'a RawUnits<S>);

impl<S: ReadAt> Worker for RawWorker<'_, S> {
    fn read(
        &mut self,
        offset: u64,
        length: usize,
        buffer: &mut [u8],
        data: &mut Vec<Range<usize>>,
    ) -> Result<(), Qcow2Error> {
        let end = offset + length as u64;
        let mut at = offset;
        while at < end {
            let found = self
                .0
                .source
                .next_data(at)
                .map_err(|source| Qcow2Error::Read { offset: at, source })?;
            let Some((start, stop)) = found else { break };
            if start >= end {
                break;
            }
            let range = (start - offset) as usize..(stop.min(end) - offset) as usize;
            self.0
                .source
                .read_exact_at(&mut buffer[range.clone()], start)
                .map_err(|source| Qcow2Error::Read {
                    offset: start,
                    source,
                })?;
            data.push(range);
            at = stop;
        }
        Ok(())
    }

    fn next_data(&mut self, offset: u64) -> Result<u64, Qcow2Error> {
        let found = self
            .0
            .source
            .next_data(offset)
            .map_err(|source| Qcow2Error::Read { offset, source })?;
        Ok(found.map_or(self.0.size.next_multiple_of(UNIT), |(start, _)| start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
