//! One thread's reader of clusters: neighbours are read together, compressed ones decoded in place.

use std::ops::Range;

use libdeflater::Decompressor;
use zstd::zstd_safe::{self, DCtx, DParameter, InBuffer, OutBuffer};

use super::error::Qcow2Error;
use super::header::{Compression, Header};
use super::tables::{Mapping, Tables};
use crate::convert::Worker;
use crate::source::ReadAt;

/// Compressed bytes read at once where they are neighbours. One cluster alone has at most 4 MiB, as its length
/// is given in sectors with `cluster_bits - 8` bits.
const GROUP: u64 = 2 << 20;
/// Bytes between two compressed clusters that are read along rather than skipped.
const GAP: u64 = 16 << 10;
/// Clusters have at most 2 MiB: no window of theirs is larger. As a power of two, with room for odd encoders.
const ZSTD_WINDOW_LOG: u32 = 23;

/// A stretch of the unit that stands uncompressed in the image.
struct Plain {
    to: Range<usize>,
    host: u64,
}

/// A cluster of the unit that stands compressed in the image.
struct Packed {
    to: usize,
    host: u64,
    length: u64,
}

pub(super) struct ClusterReader<'a> {
    image: &'a dyn ReadAt,
    header: &'a Header,
    length: u64,
    tables: Tables<'a>,
    decoder: Decoder,
    input: Vec<u8>,
    plain: Vec<Plain>,
    packed: Vec<Packed>,
}

impl<'a> ClusterReader<'a> {
    pub(super) fn new(image: &'a dyn ReadAt, header: &'a Header, length: u64) -> Self {
        Self {
            image,
            header,
            length,
            tables: Tables::new(image, header, length),
            decoder: Decoder::new(header.compression),
            input: Vec::new(),
            plain: Vec::new(),
            packed: Vec::new(),
        }
    }

    /// Collects what the unit is made of.
    fn map(&mut self, offset: u64, length: usize) -> Result<(), Qcow2Error> {
        let cluster = self.header.cluster_size() as usize;
        self.plain.clear();
        self.packed.clear();
        for start in (0..length).step_by(cluster) {
            let end = (start + cluster).min(length);
            match self.tables.look_up(offset + start as u64)? {
                Mapping::Unallocated | Mapping::Zero => {}
                Mapping::Compressed { host, length } => self.packed.push(Packed {
                    to: start,
                    host,
                    length,
                }),
                Mapping::Data {
                    host,
                    present: u32::MAX,
                } => self.add_plain(start..end, host),
                Mapping::Data { host, present } => {
                    let subcluster = cluster / 32;
                    for index in (0..32).filter(|index| present >> index & 1 == 1) {
                        let from = start + index * subcluster;
                        if from < end {
                            let to = from..(from + subcluster).min(end);
                            self.add_plain(to, host + (index * subcluster) as u64);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn add_plain(&mut self, to: Range<usize>, host: u64) {
        if let Some(last) = self.plain.last_mut()
            && last.to.end == to.start
            && last.host + last.to.len() as u64 == host
        {
            last.to.end = to.end;
            return;
        }
        self.plain.push(Plain { to, host });
    }

    fn read_plain(&self, buffer: &mut [u8]) -> Result<(), Qcow2Error> {
        for piece in &self.plain {
            let place = &mut buffer[piece.to.clone()];
            let count =
                self.image
                    .read_at(place, piece.host)
                    .map_err(|source| Qcow2Error::Read {
                        offset: piece.host,
                        source,
                    })?;
            if count == place.len() {
                continue;
            }
            // Writers may leave out the zeros that end the last cluster, on a sector's border. Anything else
            // is a file that was cut.
            let missing = (place.len() - count) as u64;
            if !self.length.is_multiple_of(512) || missing >= self.header.cluster_size() {
                let end = piece.host + place.len() as u64;
                return Err(Qcow2Error::Truncated {
                    what: "a cluster",
                    end,
                    length: self.length,
                });
            }
            place[count..].fill(0);
        }
        Ok(())
    }

    fn read_packed(&mut self, guest: u64, buffer: &mut [u8]) -> Result<(), Qcow2Error> {
        let cluster = self.header.cluster_size() as usize;
        let mut first = 0;
        while first < self.packed.len() {
            let start = self.packed[first].host;
            let mut end = start + self.packed[first].length;
            let mut last = first + 1;
            while let Some(next) = self.packed.get(last) {
                let near = next.host >= start && next.host <= end + GAP;
                if !near || next.host + next.length > start + GROUP {
                    break;
                }
                end = end.max(next.host + next.length);
                last += 1;
            }
            if start >= self.length {
                return Err(Qcow2Error::Truncated {
                    what: "a compressed cluster",
                    end,
                    length: self.length,
                });
            }
            self.input
                .resize((end.min(self.length) - start) as usize, 0);
            let count = self
                .image
                .read_at(&mut self.input, start)
                .map_err(|source| Qcow2Error::Read {
                    offset: start,
                    source,
                })?;
            for packed in &self.packed[first..last] {
                // The length is rounded up to sectors and may reach beyond the file.
                let from = ((packed.host - start) as usize).min(count);
                let to = (from + packed.length as usize).min(count);
                let place = &mut buffer[packed.to..packed.to + cluster];
                if !self.decoder.decode(&self.input[from..to], place) {
                    let end = packed.host + packed.length;
                    // Less than a sector may be missing: what is rounded up need not be there.
                    if end >= self.length + 512 {
                        return Err(Qcow2Error::Truncated {
                            what: "a compressed cluster",
                            end,
                            length: self.length,
                        });
                    }
                    return Err(Qcow2Error::Compressed {
                        guest: guest + packed.to as u64,
                        host: packed.host,
                    });
                }
            }
            first = last;
        }
        Ok(())
    }
}

impl Worker for ClusterReader<'_> {
    fn read(
        &mut self,
        offset: u64,
        length: usize,
        buffer: &mut [u8],
        data: &mut Vec<Range<usize>>,
    ) -> Result<(), Qcow2Error> {
        self.map(offset, length)?;
        self.read_plain(buffer)?;
        self.read_packed(offset, buffer)?;
        let cluster = self.header.cluster_size() as usize;
        data.extend(self.plain.iter().map(|piece| piece.to.clone()));
        data.extend(
            self.packed
                .iter()
                .map(|packed| packed.to..(packed.to + cluster).min(length)),
        );
        data.sort_unstable_by_key(|range| range.start);
        data.dedup_by(|next, last| {
            let joined = last.end == next.start;
            if joined {
                last.end = next.end;
            }
            joined
        });
        Ok(())
    }

    fn next_data(&mut self, offset: u64) -> Result<u64, Qcow2Error> {
        if self.tables.l2_table(offset)?.is_some() {
            return Ok(offset);
        }
        let coverage = self.header.l1_coverage();
        Ok((offset / coverage + 1).saturating_mul(coverage))
    }
}

/// The decompressor of one thread.
enum Decoder {
    Zlib(Decompressor),
    Zstd(DCtx<'static>),
}

impl Decoder {
    fn new(compression: Compression) -> Self {
        match compression {
            Compression::Zlib => Self::Zlib(Decompressor::new()),
            Compression::Zstd => Self::Zstd(DCtx::create()),
        }
    }

    /// Fills `output`, a whole cluster; bytes after the compressed data are no error. What the fast decoders
    /// refuse is tried again as QEMU does it, which takes streams that are longer than the cluster.
    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> bool {
        match self {
            Self::Zlib(decoder) => {
                matches!(decoder.deflate_decompress(input, output), Ok(count) if count == output.len())
                    || inflate_slowly(input, output)
            }
            Self::Zstd(context) => {
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
    while output.pos() < size {
        let before = (input.pos, output.pos());
        if context.decompress_stream(&mut output, &mut input).is_err()
            || before == (input.pos, output.pos())
        {
            return false;
        }
    }
    true
}
