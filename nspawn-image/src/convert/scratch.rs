//! What one thread of a conversion keeps from one read to the next, shared by all layers of an image: decoders, the
//! packed bytes, one cluster that was decoded for a part of it, and the way to share blocks instead of copying them.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use libdeflater::Decompressor;
use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use super::checksum::{self, DiskSums};
use crate::qcow2::Compression;
use crate::source::ReadAt;

/// Clusters have at most 2 MiB: no window of theirs is larger. As a power of two, with room for odd encoders.
const ZSTD_WINDOW_LOG: u32 = 23;
/// What the file systems that share blocks want of a range's place and length, in bytes.
const SHARE_ALIGN: u64 = 4096;
/// A smaller range is copied: sharing it costs more, and leaves the file in pieces.
const SHARE_LEAST: usize = 64 << 10;

/// One thread's memory.
#[derive(Default)]
pub(crate) struct Scratch<'a> {
    decoders: Decoders,
    /// Packed bytes as they stand in the image.
    pub(crate) input: Vec<u8>,
    /// A cluster of which a part was wanted, and which one it is: the layer's depth and the guest offset.
    cluster: Vec<u8>,
    held: Option<(usize, u64)>,
    sharing: Option<Sharing<'a>>,
    /// What the blocks that were shared add to the checksum of their unit.
    shared_sum: u64,
    /// Shared bytes, read for their checksum.
    shared: Vec<u8>,
}

/// The output, as long as it takes shared blocks.
#[derive(Clone, Copy)]
pub(crate) struct Sharing<'a> {
    pub(crate) output: &'a File,
    pub(crate) works: &'a AtomicBool,
    /// Whether checksums are wanted of what is shared.
    pub(crate) summed: bool,
}

impl<'a> Scratch<'a> {
    pub(crate) fn new(sharing: Option<Sharing<'a>>) -> Self {
        Self {
            sharing,
            ..Self::default()
        }
    }

    /// Makes `length` bytes at `to` of the output share the blocks of those at `from` of `source`, all in bytes;
    /// `false` where they are to be copied. Source: ioctl_ficlonerange(2).
    pub(crate) fn share(
        &mut self,
        source: &(impl ReadAt + ?Sized),
        from: u64,
        to: u64,
        length: usize,
    ) -> bool {
        let Some(sharing) = self
            .sharing
            .filter(|sharing| sharing.works.load(Ordering::Relaxed))
        else {
            return false;
        };
        let aligned = [from, to, length as u64]
            .iter()
            .all(|number| number.is_multiple_of(SHARE_ALIGN));
        if length < SHARE_LEAST || !aligned {
            return false;
        }
        let Some(file) = source.as_file() else {
            return false;
        };
        let mut sum = 0;
        if sharing.summed {
            // What cannot be read is told where it is read to be copied.
            match self.sum(source, from, to, length) {
                Ok(found) => sum = found,
                Err(_) => return false,
            }
        }
        let shared = crate::sys::clone_range(file, from, length as u64, sharing.output, to);
        if shared.is_err() {
            // Another file system, or one that cannot: no use in asking for every range.
            sharing.works.store(false, Ordering::Relaxed);
            return false;
        }
        self.shared_sum = self.shared_sum.wrapping_add(sum);
        true
    }

    /// What the bytes to be shared add to the checksum of their unit.
    fn sum(
        &mut self,
        source: &(impl ReadAt + ?Sized),
        from: u64,
        to: u64,
        length: usize,
    ) -> io::Result<u64> {
        self.shared.resize(SHARE_LEAST, 0);
        let (mut sum, mut done) = (0_u64, 0);
        while done < length {
            let count = SHARE_LEAST.min(length - done);
            let piece = &mut self.shared[..count];
            source.read_exact_at(piece, from + done as u64)?;
            let start = (to + done as u64) % DiskSums::UNIT;
            sum = sum.wrapping_add(checksum::of_blocks(piece, start as usize));
            done += count;
        }
        Ok(sum)
    }

    /// What was shared since the last call adds this to the checksum of its unit.
    pub(super) fn take_shared_sum(&mut self) -> u64 {
        std::mem::take(&mut self.shared_sum)
    }

    /// The decoded bytes of a cluster, where it was the last one that was decoded for a part of it.
    pub(crate) fn held(&self, depth: usize, guest: u64) -> Option<&[u8]> {
        (self.held == Some((depth, guest))).then_some(&self.cluster[..])
    }

    /// Decodes all of `input` as the cluster at `guest`, which is then held.
    pub(crate) fn decode_held(
        &mut self,
        compression: Compression,
        size: usize,
        depth: usize,
        guest: u64,
    ) -> bool {
        self.held = None;
        self.cluster.resize(size, 0);
        let done = self
            .decoders
            .decode(compression, &self.input, &mut self.cluster);
        self.held = done.then_some((depth, guest));
        done
    }

    /// Fills `output`, a whole cluster, from `from..to` of the input.
    pub(crate) fn decode(
        &mut self,
        compression: Compression,
        from: usize,
        to: usize,
        output: &mut [u8],
    ) -> bool {
        self.decoders
            .decode(compression, &self.input[from..to], output)
    }
}

/// The decompressors of one thread, made when they are first wanted.
#[derive(Default)]
struct Decoders {
    zlib: Option<Decompressor>,
    zstd: Option<DCtx<'static>>,
}

impl Decoders {
    /// Fills `output`, a whole cluster; bytes after the compressed data are no error. What the fast decoders
    /// refuse is tried again as QEMU does it, which takes deflate streams that are longer than the cluster, and zstd
    /// frames that make it up together.
    fn decode(&mut self, compression: Compression, input: &[u8], output: &mut [u8]) -> bool {
        match compression {
            Compression::Zlib => {
                let decoder = self.zlib.get_or_insert_with(Decompressor::new);
                matches!(decoder.deflate_decompress(input, output), Ok(count) if count == output.len())
                    || inflate_slowly(input, output)
            }
            Compression::Zstd => {
                let context = self.zstd.get_or_insert_with(DCtx::create);
                let whole = zstd_safe::find_frame_compressed_size(input)
                    .ok()
                    .and_then(|size| input.get(..size));
                let done = whole.and_then(|frame| context.decompress(output, frame).ok());
                done == Some(output.len()) || unzstd_slowly(input, output)
            }
        }
    }
}

fn inflate_slowly(input: &[u8], output: &mut [u8]) -> bool {
    let mut stream = flate2::Decompress::new(false);
    let status = stream.decompress(input, output, flate2::FlushDecompress::Finish);
    status.is_ok() && stream.total_out() == output.len() as u64
}

fn unzstd_slowly(input: &[u8], output: &mut [u8]) -> bool {
    let mut context = DCtx::create();
    if context
        .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
        .is_err()
    {
        return false;
    }
    let size = output.len();
    let mut input = InBuffer::around(input);
    let mut output = OutBuffer::around(output);
    let mut left_of_frame = 0;
    while output.pos() < size {
        let before = (input.pos, output.pos());
        match context.decompress_stream(&mut output, &mut input) {
            Ok(left) if before != (input.pos, output.pos()) => left_of_frame = left,
            _ => return false,
        }
    }
    // A frame that goes on holds more than a cluster, which nothing that is sound does.
    left_of_frame == 0
}
