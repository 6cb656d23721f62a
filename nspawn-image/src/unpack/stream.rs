//! Decompressing streams under limits: how much comes out, how much for what went in, and a cancel.

use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::Scope;

use super::UnpackError;
use super::ahead::ahead;
use crate::format::Codec;
use crate::limits::{Cancel, Limits};
use crate::source::{Cursor, ReadAt};

/// Bytes that may come out before the ratio counts.
const RATIO_FROM: u64 = 1 << 30;
/// Most memory the xz decoder may take, in bytes; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// What a stream has done, shared by both of its ends.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    read: AtomicU64,
    stopped: AtomicU8,
}

const TOO_LARGE: u8 = 1;
const RATIO: u8 = 2;
const CANCELLED: u8 = 3;

impl Gauge {
    /// Bytes of the packed file that were read.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// The packed side: counts.
struct Input<S> {
    source: Cursor<S>,
    gauge: Arc<Gauge>,
}

impl<S: ReadAt> Read for Input<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.gauge.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// What decompresses `source`, counting in `gauge`; with no codec its bytes are passed on.
fn decoder<'a>(
    source: impl ReadAt + Send + 'a,
    codec: Option<Codec>,
    gauge: &Arc<Gauge>,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let input = BufReader::with_capacity(
        256 << 10,
        Input {
            source: Cursor::new(source),
            gauge: Arc::clone(gauge),
        },
    );
    Ok(match codec {
        None => Box::new(input),
        Some(Codec::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Some(Codec::Xz) => {
            let stream = liblzma::stream::Stream::new_stream_decoder(
                XZ_MEMORY,
                liblzma::stream::CONCATENATED,
            )?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Some(Codec::Zstd) => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        Some(Codec::Bzip2) => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
    })
}

/// The unpacked side of a file: ends with an error where a limit is passed.
pub(crate) struct Stream<'a> {
    inner: Box<dyn Read + 'a>,
    pub(crate) gauge: Arc<Gauge>,
    format: &'static str,
    out: u64,
    limits: Limits,
    packed: u64,
    cancel: Cancel,
}

impl<'a> Stream<'a> {
    /// Decompresses `source`, `packed` bytes long, from its start; with no codec its bytes are passed on. With `scope`,
    /// what decompresses is a thread of it.
    pub(crate) fn open<'env: 'a>(
        source: impl ReadAt + Send + 'env,
        codec: Option<Codec>,
        packed: u64,
        limits: &Limits,
        cancel: &Cancel,
        scope: Option<&'a Scope<'a, 'env>>,
    ) -> io::Result<Self> {
        let gauge = Arc::new(Gauge::default());
        let decoder = decoder(source, codec, &gauge)?;
        let inner: Box<dyn Read + 'a> = match scope.filter(|_| codec.is_some()) {
            Some(scope) => ahead(decoder, scope),
            None => decoder,
        };
        let format = codec.map_or("tar", Codec::name);
        let mut stream = Self::of(inner, format, packed, limits, cancel);
        stream.gauge = gauge;
        Ok(stream)
    }

    /// Bytes that something else decompresses out of `packed` of them.
    pub(super) fn of(
        inner: Box<dyn Read + 'a>,
        format: &'static str,
        packed: u64,
        limits: &Limits,
        cancel: &Cancel,
    ) -> Self {
        Self {
            inner,
            gauge: Arc::default(),
            format,
            out: 0,
            limits: limits.clone(),
            packed,
            cancel: cancel.clone(),
        }
    }

    /// What an error of reading means: a limit, or damage.
    pub(super) fn explain(&self, source: io::Error) -> UnpackError {
        explain(&self.gauge, &self.limits, self.format, source)
    }

    pub(crate) fn explainer(&self) -> impl Fn(io::Error) -> UnpackError + use<> {
        let (gauge, limits, format) = (Arc::clone(&self.gauge), self.limits.clone(), self.format);
        move |source| explain(&gauge, &limits, format, source)
    }

    /// Fills as much of `buffer` as there is.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.read(&mut buffer[done..]) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn stop(&self, reason: u8) -> io::Error {
        self.gauge.stopped.store(reason, Ordering::Relaxed);
        io::Error::other("stopped")
    }
}

fn explain(gauge: &Gauge, limits: &Limits, format: &'static str, source: io::Error) -> UnpackError {
    match gauge.stopped.load(Ordering::Relaxed) {
        TOO_LARGE => UnpackError::TooLarge {
            limit: limits.unpacked,
        },
        RATIO => UnpackError::Ratio {
            ratio: limits.ratio,
        },
        CANCELLED => UnpackError::Cancelled,
        _ => UnpackError::Damaged { format, source },
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(self.stop(CANCELLED));
        }
        let count = self.inner.read(buffer)?;
        self.out += count as u64;
        if self.out > self.limits.unpacked {
            return Err(self.stop(TOO_LARGE));
        }
        if self.out > RATIO_FROM && self.out / self.limits.ratio.max(1) > self.packed {
            return Err(self.stop(RATIO));
        }
        Ok(count)
    }
}
