//! From a guest offset to what the tables say of it. Tables are read in slices: the bound on memory holds for
//! any image, and a scattered one costs one small read for each slice it uses.

use super::error::Qcow2Error;
use super::header::Header;
use crate::source::ReadAt;

/// Bytes of a table read at once; 2048 entries, or 1024 with subclusters.
const SLICE: u64 = 16 << 10;
/// Entries looked at for the next one that is in use before the caller hears of it, so that it can be cancelled.
const SCAN: u64 = 1 << 16;
/// Bits 9 to 55: the offset in an L1 entry and in a standard L2 entry.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Where the bytes of one cluster are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Nowhere: what the backing file holds, zeros where there is none.
    Unallocated,
    /// Zeros, whatever lies below.
    Zero,
    /// At `host` bytes in the image.
    Data { host: u64 },
    /// At `host` bytes in the image those of the 32 subclusters whose bit is set in `present`; zeros those in
    /// `zero`; the others nowhere.
    Subclusters { host: u64, present: u32, zero: u32 },
    /// `length` bytes at `host` that decompress to the cluster; the length is rounded up to sectors.
    Compressed { host: u64, length: u64 },
}

/// One slice of a table.
struct Slice {
    bytes: Vec<u8>,
    start: u64,
}

impl Slice {
    fn new() -> Self {
        Self {
            bytes: Vec::new(),
            start: 0,
        }
    }

    /// The bytes that are held at and after `offset` in the image; at least one word, or none at its end.
    fn at(&mut self, image: &dyn ReadAt, offset: u64) -> Result<&[u8], Qcow2Error> {
        let held = offset >= self.start && offset + 8 <= self.start + self.bytes.len() as u64;
        if !held {
            self.start = offset / SLICE * SLICE;
            self.bytes.resize(SLICE as usize, 0);
            let read = image.read_at(&mut self.bytes, self.start);
            let count = match read {
                Ok(count) => count,
                Err(source) => {
                    self.bytes.clear();
                    return Err(Qcow2Error::Read {
                        offset: self.start,
                        source,
                    });
                }
            };
            self.bytes.truncate(count);
        }
        let at = (offset - self.start) as usize;
        Ok(self.bytes.get(at..).unwrap_or_default())
    }

    /// The big-endian word at `offset` in the image, both in bytes.
    fn word(&mut self, image: &dyn ReadAt, offset: u64) -> Result<Option<u64>, Qcow2Error> {
        let word = self.at(image, offset)?.first_chunk::<8>();
        Ok(word.map(|word| u64::from_be_bytes(*word)))
    }

    /// How many of the next `most` words at `offset` are zero before one that is not, or before the end of what is
    /// held: the caller asks again from there. `None` where the image ends.
    fn zero_words(
        &mut self,
        image: &dyn ReadAt,
        offset: u64,
        most: u64,
    ) -> Result<Option<u64>, Qcow2Error> {
        let held = self.at(image, offset)?;
        let words = (held.len() / 8).min(usize::try_from(most).unwrap_or(usize::MAX));
        if words == 0 {
            return Ok(None);
        }
        let (words, _) = held[..words * 8].as_chunks::<8>();
        let zeros = words.iter().take_while(|word| **word == [0; 8]).count();
        Ok(Some(zeros as u64))
    }
}

/// Looks up clusters, remembering the last slice of each level.
pub(super) struct Tables<'a> {
    image: &'a dyn ReadAt,
    header: &'a Header,
    length: u64,
    l1: Slice,
    l2: Slice,
}

impl<'a> Tables<'a> {
    pub(super) fn new(image: &'a dyn ReadAt, header: &'a Header, length: u64) -> Self {
        Self {
            image,
            header,
            length,
            l1: Slice::new(),
            l2: Slice::new(),
        }
    }

    /// Where the L2 table for `guest` starts, in bytes; `None` where there is none.
    pub(super) fn l2_table(&mut self, guest: u64) -> Result<Option<u64>, Qcow2Error> {
        let at = self.header.l1_offset + guest / self.header.l1_coverage() * 8;
        let entry = self.l1.word(self.image, at)?;
        let entry = entry.ok_or(Qcow2Error::Truncated {
            what: "the L1 table",
            end: at + 8,
            length: self.length,
        })?;
        let table = entry & OFFSET_MASK;
        if table == 0 {
            return Ok(None);
        }
        if !table.is_multiple_of(self.header.cluster_size()) {
            return Err(Qcow2Error::Entry {
                guest,
                reason: "its L2 table is not aligned to a cluster",
            });
        }
        Ok(Some(table))
    }

    /// The next guest byte at or after `guest` that the tables may say something of; the answer may be early, so
    /// that no call takes long, but is never late.
    pub(super) fn next_mapped(&mut self, guest: u64) -> Result<u64, Qcow2Error> {
        let coverage = self.header.l1_coverage();
        let index = guest / coverage;
        let Some(table) = self.l2_table(guest)? else {
            let start = index + 1;
            let left = self.header.l1_entries.saturating_sub(start).min(SCAN);
            let at = self.header.l1_offset + start * 8;
            let zeros = match left {
                0 => 0,
                _ => self.l1.zero_words(self.image, at, left)?.unwrap_or(0),
            };
            return Ok((start + zeros).saturating_mul(coverage));
        };
        let (size, cluster) = (self.header.l2_entry_size(), self.header.cluster_size());
        let entries = cluster / size;
        let mut entry = guest / cluster % entries;
        let last = entries.min(entry + SCAN);
        while entry < last {
            let at = table + entry * size;
            let words = (entries - entry) * (size / 8);
            // The end of the file is told by the look-up.
            let zeros = self.l2.zero_words(self.image, at, words)?.unwrap_or(0);
            let step = zeros / (size / 8);
            if step == 0 {
                break;
            }
            entry += step;
        }
        let found = index
            .saturating_mul(coverage)
            .saturating_add(entry * cluster);
        Ok(found.max(guest))
    }

    /// What the tables say of the cluster that holds `guest`.
    pub(super) fn look_up(&mut self, guest: u64) -> Result<Mapping, Qcow2Error> {
        let Some(table) = self.l2_table(guest)? else {
            return Ok(Mapping::Unallocated);
        };
        let size = self.header.l2_entry_size();
        let index = guest / self.header.cluster_size() % (self.header.cluster_size() / size);
        let at = table + index * size;
        let cut = Qcow2Error::Truncated {
            what: "an L2 table",
            end: at + size,
            length: self.length,
        };
        let Some(entry) = self.l2.word(self.image, at)? else {
            return Err(cut);
        };
        let bitmap = if self.header.extended_l2 {
            let Some(bitmap) = self.l2.word(self.image, at + 8)? else {
                return Err(cut);
            };
            Some(bitmap)
        } else {
            None
        };
        self.decode(guest, entry, bitmap)
    }

    /// Source: qcow2.txt, "L2 table entry", "Standard Cluster Descriptor", "Compressed Clusters Descriptor",
    /// "Extended L2 Entries".
    fn decode(&self, guest: u64, entry: u64, bitmap: Option<u64>) -> Result<Mapping, Qcow2Error> {
        let damaged = |reason| Err(Qcow2Error::Entry { guest, reason });
        if entry & COMPRESSED != 0 {
            let shift = 62 - (self.header.cluster_bits - 8);
            let host = entry & ((1 << shift) - 1);
            let sectors = (entry >> shift & ((1 << (self.header.cluster_bits - 8)) - 1)) + 1;
            return Ok(Mapping::Compressed {
                host,
                length: sectors * 512 - host % 512,
            });
        }
        let host = entry & OFFSET_MASK;
        if let Some(bitmap) = bitmap {
            let (zero, present) = ((bitmap >> 32) as u32, bitmap as u32);
            if zero & present != 0 {
                return damaged("a subcluster is both allocated and zero");
            }
            if host == 0 && present != 0 {
                return damaged("a subcluster is allocated in a cluster that is not");
            }
            if !host.is_multiple_of(self.header.cluster_size()) {
                return damaged("its data is not aligned to a cluster");
            }
            return Ok(match (present, zero) {
                (0, 0) => Mapping::Unallocated,
                (0, u32::MAX) => Mapping::Zero,
                (u32::MAX, _) => Mapping::Data { host },
                _ => Mapping::Subclusters {
                    host,
                    present,
                    zero,
                },
            });
        }
        if entry & ZERO != 0 {
            if self.header.version < 3 {
                return damaged("a zero cluster in a version 2 image");
            }
            return Ok(Mapping::Zero);
        }
        if host == 0 {
            return Ok(Mapping::Unallocated);
        }
        if !host.is_multiple_of(self.header.cluster_size()) {
            return damaged("its data is not aligned to a cluster");
        }
        Ok(Mapping::Data { host })
    }
}
