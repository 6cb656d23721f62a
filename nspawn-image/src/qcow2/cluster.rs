//! One thread's reader of clusters: neighbours are read together, compressed ones decoded in place, and what an
//! overlay does not hold is read from the layer below.

use std::ops::Range;

use super::error::Qcow2Error;
use super::header::Header;
use super::tables::{Mapping, Tables};
use crate::convert::Worker;
use crate::convert::scratch::Scratch;
use crate::source::ReadAt;

/// Compressed bytes read at once where they are neighbours. One cluster alone has at most 4 MiB, as its length
/// is given in sectors with `cluster_bits - 8` bits.
const GROUP: u64 = 2 << 20;
/// Bytes between two compressed clusters that are read along rather than skipped.
const GAP: u64 = 16 << 10;

/// A stretch of the range that stands uncompressed in the image.
struct Plain {
    to: Range<usize>,
    host: u64,
}

/// A cluster of the range that stands compressed in the image, or a part of one.
struct Packed {
    to: Range<usize>,
    /// Where the whole cluster starts for the guest, in bytes.
    guest: u64,
    /// Bytes of the cluster before the part.
    skip: usize,
    host: u64,
    length: u64,
}

pub(super) struct ClusterReader<'a> {
    image: &'a dyn ReadAt,
    header: &'a Header,
    length: u64,
    tables: Tables<'a>,
    below: Option<Box<dyn Worker + Send + 'a>>,
    /// Layers above this one.
    depth: usize,
    plain: Vec<Plain>,
    packed: Vec<Packed>,
    holes: Vec<Range<usize>>,
}

impl<'a> ClusterReader<'a> {
    pub(super) fn new(
        image: &'a dyn ReadAt,
        header: &'a Header,
        length: u64,
        below: Option<Box<dyn Worker + Send + 'a>>,
        depth: usize,
    ) -> Self {
        Self {
            image,
            header,
            length,
            tables: Tables::new(image, header, length),
            below,
            depth,
            plain: Vec::new(),
            packed: Vec::new(),
            holes: Vec::new(),
        }
    }

    /// Collects what the range is made of.
    fn map(&mut self, offset: u64, length: usize) -> Result<(), Qcow2Error> {
        let cluster = self.header.cluster_size();
        self.plain.clear();
        self.packed.clear();
        self.holes.clear();
        let end = offset + length as u64;
        let mut at = offset;
        while at < end {
            let guest = at / cluster * cluster;
            let stop = (guest + cluster).min(end);
            let to = (at - offset) as usize..(stop - offset) as usize;
            match self.tables.look_up(at)? {
                Mapping::Unallocated => self.add_hole(to),
                Mapping::Zero => {}
                Mapping::Compressed { host, length } => self.packed.push(Packed {
                    to,
                    guest,
                    skip: (at - guest) as usize,
                    host,
                    length,
                }),
                Mapping::Data { host } => self.add_plain(to, host + (at - guest)),
                Mapping::Subclusters {
                    host,
                    present,
                    zero,
                } => {
                    let subcluster = cluster / 32;
                    let mut from = at;
                    while from < stop {
                        let index = (from - guest) / subcluster;
                        let until = (guest + (index + 1) * subcluster).min(stop);
                        let to = (from - offset) as usize..(until - offset) as usize;
                        if present >> index & 1 == 1 {
                            self.add_plain(to, host + (from - guest));
                        } else if zero >> index & 1 == 0 {
                            self.add_hole(to);
                        }
                        from = until;
                    }
                }
            }
            at = stop;
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

    /// Remembers what only a layer below can hold.
    fn add_hole(&mut self, to: Range<usize>) {
        if self.below.is_none() {
            return;
        }
        match self.holes.last_mut() {
            Some(last) if last.end == to.start => last.end = to.end,
            _ => self.holes.push(to),
        }
    }

    fn read_plain(
        &self,
        offset: u64,
        buffer: &mut [u8],
        data: &mut Vec<Range<usize>>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), Qcow2Error> {
        for piece in &self.plain {
            let guest = offset + piece.to.start as u64;
            if scratch.share(self.image, piece.host, guest, piece.to.len()) {
                continue;
            }
            data.push(piece.to.clone());
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
                return Err(self.cut("a cluster", end));
            }
            place[count..].fill(0);
        }
        Ok(())
    }

    fn cut(&self, what: &'static str, end: u64) -> Qcow2Error {
        Qcow2Error::Truncated {
            what,
            end,
            length: self.length,
        }
    }

    fn read_packed(
        &self,
        buffer: &mut [u8],
        data: &mut Vec<Range<usize>>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), Qcow2Error> {
        let cluster = self.header.cluster_size() as usize;
        let mut rest = &self.packed[..];
        while let Some(packed) = rest.first() {
            data.push(packed.to.clone());
            if packed.to.len() < cluster {
                self.read_part(packed, &mut buffer[packed.to.clone()], scratch)?;
                rest = &rest[1..];
                continue;
            }
            let start = packed.host;
            let mut end = start + packed.length;
            let mut count = 1;
            while let Some(next) = rest.get(count) {
                let near = next.host >= start && next.host <= end + GAP;
                if !near || next.host + next.length > start + GROUP || next.to.len() < cluster {
                    break;
                }
                end = end.max(next.host + next.length);
                data.push(next.to.clone());
                count += 1;
            }
            self.read_input(start, end, scratch)?;
            for packed in &rest[..count] {
                // The length is rounded up to sectors and may reach beyond the file.
                let from = ((packed.host - start) as usize).min(scratch.input.len());
                let to = (from + packed.length as usize).min(scratch.input.len());
                let place = &mut buffer[packed.to.clone()];
                if !scratch.decode(self.header.compression, from, to, place) {
                    return Err(self.undecodable(packed));
                }
            }
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Reads a part of a compressed cluster; the whole of it is kept for the next part.
    fn read_part(
        &self,
        packed: &Packed,
        place: &mut [u8],
        scratch: &mut Scratch<'_>,
    ) -> Result<(), Qcow2Error> {
        if scratch.held(self.depth, packed.guest).is_none() {
            self.read_input(packed.host, packed.host + packed.length, scratch)?;
            let size = self.header.cluster_size() as usize;
            if !scratch.decode_held(self.header.compression, size, self.depth, packed.guest) {
                return Err(self.undecodable(packed));
            }
        }
        if let Some(whole) = scratch.held(self.depth, packed.guest) {
            place.copy_from_slice(&whole[packed.skip..packed.skip + place.len()]);
        }
        Ok(())
    }

    /// Reads the packed bytes from `start` to `end`, or to the end of the file.
    fn read_input(
        &self,
        start: u64,
        end: u64,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), Qcow2Error> {
        if start >= self.length {
            return Err(self.cut("a compressed cluster", end));
        }
        scratch
            .input
            .resize((end.min(self.length) - start) as usize, 0);
        let count = self
            .image
            .read_at(&mut scratch.input, start)
            .map_err(|source| Qcow2Error::Read {
                offset: start,
                source,
            })?;
        scratch.input.truncate(count);
        Ok(())
    }

    fn undecodable(&self, packed: &Packed) -> Qcow2Error {
        let end = packed.host + packed.length;
        // Less than a sector may be missing: what is rounded up need not be there.
        if end >= self.length + 512 {
            return self.cut("a compressed cluster", end);
        }
        Qcow2Error::Compressed {
            guest: packed.guest,
            host: packed.host,
        }
    }

    fn read_below(
        &mut self,
        offset: u64,
        buffer: &mut [u8],
        data: &mut Vec<Range<usize>>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), Qcow2Error> {
        let Some(below) = &mut self.below else {
            return Ok(());
        };
        for hole in &self.holes {
            let first = data.len();
            let place = &mut buffer[hole.clone()];
            below.read(offset + hole.start as u64, place, data, scratch)?;
            for range in &mut data[first..] {
                *range = range.start + hole.start..range.end + hole.start;
            }
        }
        Ok(())
    }
}

impl Worker for ClusterReader<'_> {
    fn read(
        &mut self,
        offset: u64,
        buffer: &mut [u8],
        data: &mut Vec<Range<usize>>,
        scratch: &mut Scratch<'_>,
    ) -> Result<(), Qcow2Error> {
        // A layer below may be shorter than what stands on it: nothing is behind its end.
        let length = self.header.virtual_size.saturating_sub(offset);
        let length = buffer
            .len()
            .min(usize::try_from(length).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..length];
        self.map(offset, length)?;
        let first = data.len();
        self.read_plain(offset, buffer, data, scratch)?;
        self.read_packed(buffer, data, scratch)?;
        self.read_below(offset, buffer, data, scratch)?;
        let own = &mut data[first..];
        own.sort_unstable_by_key(|range| range.start);
        let kept = join_neighbours(own);
        data.truncate(first + kept);
        Ok(())
    }

    fn next_data(&mut self, offset: u64) -> Result<u64, Qcow2Error> {
        let mut next = u64::MAX;
        if offset < self.header.virtual_size {
            next = self.tables.next_mapped(offset)?;
        }
        match &mut self.below {
            Some(below) if next > offset => Ok(next.min(below.next_data(offset)?)),
            _ => Ok(next),
        }
    }
}

/// Joins ranges that touch, in place; answers how many are left.
fn join_neighbours(ranges: &mut [Range<usize>]) -> usize {
    let mut kept = 0;
    for index in 0..ranges.len() {
        let range = ranges[index].clone();
        if kept > 0 && ranges[kept - 1].end == range.start {
            ranges[kept - 1].end = range.end;
        } else {
            ranges[kept] = range;
            kept += 1;
        }
    }
    kept
}
