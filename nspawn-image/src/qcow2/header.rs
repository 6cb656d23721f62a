//! The header of a qcow2 image: every field checked before it is used.
//!
//! Source: QEMU docs/interop/qcow2.txt, "Header", "Header extensions".

use super::error::Qcow2Error;
use super::snapshot::Snapshot;
use crate::source::ReadAt;

const MAGIC: u32 = 0x5146_49fb;
/// The largest L1 table QEMU opens, in bytes. Source: QEMU block/qcow2.h, QCOW_MAX_L1_SIZE.
const MAX_L1_BYTES: u64 = 32 << 20;
/// The most snapshots QEMU opens. Source: QEMU block/qcow2.h, QCOW_MAX_SNAPSHOTS.
const MAX_SNAPSHOTS: u32 = 65536;
/// The longest name of a backing file, in bytes. Source: qcow2.txt, "Header", bytes 16-19.
const MAX_BACKING_NAME: u32 = 1023;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = 0x1f;

const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Raw deflate.
    Zlib,
    /// Zstandard.
    Zstd,
}

/// A header that is within every limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes in a cluster as a power of two: 9 to 21.
    pub cluster_bits: u32,
    /// Whether table entries are 16 bytes with a bitmap of 32 subclusters.
    pub extended_l2: bool,
    /// How clusters are compressed.
    pub compression: Compression,
    /// Whether the image was not closed in order: its reference counts may be wrong, its data is not.
    pub dirty: bool,
    /// Entries in the L1 table.
    pub l1_entries: u64,
    /// Where the L1 table starts, in bytes.
    pub l1_offset: u64,
    /// The number of internal snapshots.
    pub snapshot_count: u32,
    /// Where their table starts, in bytes.
    pub snapshots_offset: u64,
    /// The file below, where the image is an overlay.
    pub backing: Option<Backing>,
}

/// The file that an overlay lies on, as its header names it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Backing {
    /// Its name: a path, or something with a protocol.
    pub name: String,
    /// Its format, where the header gives it.
    pub format: Option<String>,
}

/// The fixed part of a header is 104 bytes; the rest of the first cluster holds extensions and names.
struct Raw {
    bytes: Vec<u8>,
}

impl Raw {
    fn u32(&self, at: usize) -> u32 {
        self.bytes
            .get(at..at + 4)
            .map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }

    fn text(&self, at: u64, length: u64) -> String {
        let start = usize::try_from(at)
            .unwrap_or(usize::MAX)
            .min(self.bytes.len());
        let end = start.saturating_add(length as usize).min(self.bytes.len());
        String::from_utf8_lossy(&self.bytes[start..end])
            .trim_end_matches('\0')
            .to_owned()
    }

    /// Type, place and length of each header extension, those that fit into the first cluster.
    fn extensions(&self, header_length: u32) -> Vec<(u32, u64, u64)> {
        let mut found = Vec::new();
        let mut at = header_length as usize;
        while at + 8 <= self.bytes.len() && found.len() < 256 {
            let (kind, length) = (self.u32(at), self.u32(at + 4) as usize);
            if kind == 0 || length > self.bytes.len() - at - 8 {
                break;
            }
            found.push((kind, at as u64 + 8, length as u64));
            at += 8 + length.next_multiple_of(8);
        }
        found
    }
}

impl Header {
    /// Reads a header and refuses what is never converted. `limit` is the largest virtual size accepted, in
    /// bytes.
    ///
    /// # Errors
    ///
    /// See [`Qcow2Error`]. Never panics, and allocates at most 2 MiB, whatever the image holds.
    ///
    /// Source: QEMU docs/interop/qcow2.txt, "Header"; 21 is QEMU's own ceiling (2 MiB clusters).
    pub fn read(image: &(impl ReadAt + ?Sized), limit: u64) -> Result<Self, Qcow2Error> {
        let length = image
            .size()
            .map_err(|source| Qcow2Error::Read { offset: 0, source })?;
        let mut raw = Raw {
            bytes: vec![0; 112],
        };
        let got = image
            .read_at(&mut raw.bytes, 0)
            .map_err(|source| Qcow2Error::Read { offset: 0, source })?;
        if got < 4 || raw.u32(0) != MAGIC {
            return Err(Qcow2Error::Magic);
        }
        if got < 72 {
            return Err(Qcow2Error::Truncated {
                what: "the header",
                end: 72,
                length,
            });
        }
        let version = raw.u32(4);
        if !matches!(version, 2 | 3) {
            return Err(Qcow2Error::Version(version));
        }
        let cluster_bits = raw.u32(20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(Qcow2Error::Field {
                field: "cluster_bits",
                value: cluster_bits.into(),
            });
        }
        raw.bytes.resize(1 << cluster_bits, 0);
        let got = image
            .read_at(&mut raw.bytes, 0)
            .map_err(|source| Qcow2Error::Read { offset: 0, source })?;
        raw.bytes.truncate(got);
        Self::parse(&raw, version, cluster_bits, length, limit)
    }

    fn parse(
        raw: &Raw,
        version: u32,
        cluster_bits: u32,
        length: u64,
        limit: u64,
    ) -> Result<Self, Qcow2Error> {
        let field = |field, value| Err(Qcow2Error::Field { field, value });
        let (mut incompatible, mut header_length, mut compression) = (0, 72, Compression::Zlib);
        if version == 3 {
            header_length = raw.u32(100);
            if header_length < 104 || header_length % 8 != 0 || header_length > 1 << cluster_bits {
                return field("header_length", header_length.into());
            }
            if (raw.bytes.len() as u64) < u64::from(header_length) {
                return Err(Qcow2Error::Truncated {
                    what: "the header",
                    end: header_length.into(),
                    length,
                });
            }
            incompatible = raw.u64(72);
            if raw.u32(96) > 6 {
                return field("refcount_order", raw.u32(96).into());
            }
        }
        let extensions = raw.extensions(header_length);
        Self::check_features(raw, incompatible, &extensions)?;
        if incompatible & INCOMPATIBLE_COMPRESSION != 0 {
            compression = match (header_length > 104).then(|| raw.bytes[104]) {
                Some(1) => Compression::Zstd,
                Some(0) | None => return field("compression_type", 0),
                Some(other) => return Err(Qcow2Error::Compression(other)),
            };
        } else if header_length > 104 && raw.bytes[104] != 0 {
            return field("compression_type", raw.bytes[104].into());
        }
        match raw.u32(32) {
            0 => {}
            1 => return Err(Qcow2Error::Encrypted("AES")),
            2 => return Err(Qcow2Error::Encrypted("LUKS")),
            other => return field("crypt_method", other.into()),
        }
        let (backing_offset, backing_length) = (raw.u64(8), raw.u32(16));
        let mut backing = None;
        if backing_offset != 0 {
            if backing_length > MAX_BACKING_NAME {
                return field("backing_file_size", backing_length.into());
            }
            let format = extensions
                .iter()
                .find(|(kind, ..)| *kind == EXTENSION_BACKING_FORMAT)
                .map(|(_, at, length)| raw.text(*at, *length))
                // As QEMU takes it: none was given.
                .filter(|format| !format.is_empty());
            backing = Some(Backing {
                name: raw.text(backing_offset, backing_length.into()),
                format,
            });
        }
        let virtual_size = raw.u64(24);
        if virtual_size > limit {
            return Err(Qcow2Error::TooLarge {
                size: virtual_size,
                limit,
            });
        }
        let extended_l2 = incompatible & INCOMPATIBLE_EXTENDED_L2 != 0;
        if extended_l2 && cluster_bits < 14 {
            return field("cluster_bits", cluster_bits.into());
        }
        let header = Self {
            version,
            virtual_size,
            cluster_bits,
            extended_l2,
            compression,
            dirty: incompatible & INCOMPATIBLE_DIRTY != 0,
            l1_entries: raw.u32(36).into(),
            l1_offset: raw.u64(40),
            snapshot_count: raw.u32(60),
            snapshots_offset: raw.u64(64),
            backing,
        };
        header.check_tables(length)?;
        Ok(header)
    }

    fn check_features(
        raw: &Raw,
        incompatible: u64,
        extensions: &[(u32, u64, u64)],
    ) -> Result<(), Qcow2Error> {
        let find = |wanted: u32| extensions.iter().find(|(kind, ..)| *kind == wanted);
        let unknown = incompatible & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            // Each entry: type 0 for incompatible, bit number, and a name of 46 bytes padded with zeros.
            let (start, length) =
                find(EXTENSION_FEATURE_NAMES).map_or((0, 0), |(_, at, length)| (*at, *length));
            let names = &raw.bytes[start as usize..(start + length) as usize];
            let name = |bit: u32| {
                let entry = names
                    .chunks_exact(48)
                    .find(|entry| entry[0] == 0 && u32::from(entry[1]) == bit);
                let text = entry.map(|entry| {
                    String::from_utf8_lossy(&entry[2..])
                        .trim_end_matches('\0')
                        .to_owned()
                });
                text.map_or_else(
                    || format!("bit {bit}"),
                    |text| format!("{text:?} (bit {bit})"),
                )
            };
            let listed: Vec<String> = (0..64)
                .filter(|bit| unknown >> bit & 1 == 1)
                .map(name)
                .collect();
            return Err(Qcow2Error::Features(listed.join(", ")));
        }
        if incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return Err(Qcow2Error::Corrupt);
        }
        if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
            let name = find(EXTENSION_DATA_FILE).map(|(_, at, length)| raw.text(*at, *length));
            return Err(Qcow2Error::DataFile(name.unwrap_or_default()));
        }
        Ok(())
    }

    /// The same image as it was at a snapshot: another size and other tables.
    pub(super) fn at_snapshot(
        &self,
        snapshot: &Snapshot,
        length: u64,
        limit: u64,
    ) -> Result<Self, Qcow2Error> {
        let size = snapshot.virtual_size.unwrap_or(self.virtual_size);
        if size > limit {
            return Err(Qcow2Error::TooLarge { size, limit });
        }
        let header = Self {
            virtual_size: size,
            l1_offset: snapshot.l1_offset,
            l1_entries: snapshot.l1_entries.into(),
            ..self.clone()
        };
        header.check_tables(length)?;
        Ok(header)
    }

    fn check_tables(&self, length: u64) -> Result<(), Qcow2Error> {
        let field = |field, value| Err(Qcow2Error::Field { field, value });
        let l1_bytes = self.l1_entries * 8;
        if l1_bytes > MAX_L1_BYTES
            || self.virtual_size.div_ceil(self.l1_coverage()) > self.l1_entries
        {
            return field("l1_size", self.l1_entries);
        }
        if !self.l1_offset.is_multiple_of(self.cluster_size()) {
            return field("l1_table_offset", self.l1_offset);
        }
        let Some(end) = self.l1_offset.checked_add(l1_bytes) else {
            return field("l1_table_offset", self.l1_offset);
        };
        if end > length {
            return Err(Qcow2Error::Truncated {
                what: "the L1 table",
                end,
                length,
            });
        }
        if self.snapshot_count > MAX_SNAPSHOTS {
            return field("nb_snapshots", self.snapshot_count.into());
        }
        if self.snapshot_count > 0 && !self.snapshots_offset.is_multiple_of(self.cluster_size()) {
            return field("snapshots_offset", self.snapshots_offset);
        }
        Ok(())
    }

    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes in an entry of an L2 table.
    pub(crate) fn l2_entry_size(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Guest bytes that one entry of the L1 table maps.
    pub(crate) fn l1_coverage(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size() * self.cluster_size()
    }
}
