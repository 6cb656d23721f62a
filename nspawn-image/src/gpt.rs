//! The GUID partition table. Source: UEFI Specification 2.10, chapter 5.
//!
//! A table is believed under the conditions of Linux block/partitions/efi.c and of libblkid, so that what is found here
//! is what systemd-nspawn finds: a header says where it stands, what is usable holds neither the header nor the entries,
//! and entries that end before they start or lie outside of what is usable are passed over. A disk that is cut short is told by its partitions, not by
//! its header.

use std::fmt;
use std::io;

use crate::disk::{Partition, PartitionType};
use crate::source::ReadAt;

/// A GUID, in the order in which it is printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid([u8; 16]);

// Source: UAPI Group, Discoverable Partitions Specification.
pub(crate) const ROOT_X86_64: Guid = Guid::new(0x4f68_bce3, 0xe8cd, 0x4db1, 0x96e7_fbca_f984_b709);
pub(crate) const ROOT_AARCH64: Guid = Guid::new(0xb921_b045, 0x1df0, 0x41c3, 0xaf44_4c6f_280d_3fae);
pub(crate) const ROOT_RISCV64: Guid = Guid::new(0x72ec_70a6, 0xcf74, 0x40e6, 0xbd49_4bda_08e8_f224);
pub(crate) const LINUX_GENERIC: Guid =
    Guid::new(0x0fc6_3daf, 0x8483, 0x4772, 0x8e79_3d69_d847_7de4);
const KNOWN: [(Guid, &str); 12] = [
    (ROOT_X86_64, "root x86-64"),
    (ROOT_AARCH64, "root ARM64"),
    (ROOT_RISCV64, "root RISC-V 64"),
    (LINUX_GENERIC, "Linux"),
    (
        Guid::new(0x4447_9540, 0xf297, 0x41b2, 0x9af7_d131_d5f0_458a),
        "root x86",
    ),
    (
        Guid::new(0x8484_680c, 0x9521, 0x48c6, 0x9c11_b072_0656_f69e),
        "usr x86-64",
    ),
    (
        Guid::new(0x2c73_57ed, 0xebd2, 0x46d9, 0xaec1_23d4_37ec_2bf5),
        "root verity x86-64",
    ),
    (
        Guid::new(0xc12a_7328, 0xf81f, 0x11d2, 0xba4b_00a0_c93e_c93b),
        "EFI system",
    ),
    (
        Guid::new(0xbc13_c2ff, 0x59e6, 0x4262, 0xa352_b275_fd6f_7172),
        "extended boot loader",
    ),
    (
        Guid::new(0x2168_6148, 0x6449, 0x6e6f, 0x744e_6565_6445_4649),
        "BIOS boot",
    ),
    (
        Guid::new(0x0657_fd6d, 0xa4ab, 0x43c4, 0x84e5_0933_c84b_4f4f),
        "swap",
    ),
    (
        Guid::new(0x933a_c7e1, 0x2eb4, 0x4f13, 0xb844_0e14_e2ae_f915),
        "home",
    ),
];

/// Most entries read: QEMU and Linux tools write 128. More in one table would be no cloud image.
const MAX_ENTRIES: u32 = 1024;
/// Largest entry, in bytes. The specification allows any power of two from 128; nobody writes another.
const MAX_ENTRY: u32 = 4096;

impl Guid {
    const fn new(a: u32, b: u16, c: u16, rest: u64) -> Self {
        let (a, b, c, d) = (
            a.to_be_bytes(),
            b.to_be_bytes(),
            c.to_be_bytes(),
            rest.to_be_bytes(),
        );
        Self([
            a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5],
            d[6], d[7],
        ])
    }

    /// From the form on disk, whose first three fields are little-endian.
    fn from_disk(b: &[u8]) -> Self {
        let mut guid = [0; 16];
        guid.copy_from_slice(&b[..16]);
        guid[..4].reverse();
        guid[4..6].reverse();
        guid[6..8].reverse();
        Self(guid)
    }

    /// The type's name, where it is a common one.
    pub fn known_name(&self) -> Option<&'static str> {
        KNOWN
            .iter()
            .find(|(guid, _)| guid == self)
            .map(|(_, name)| *name)
    }

    /// The form on disk.
    #[cfg(test)]
    pub(crate) fn to_disk(self) -> [u8; 16] {
        Self::from_disk(&self.0).0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

/// What stands where a GPT would be.
pub(crate) enum Found {
    Table {
        sector_size: u64,
        /// Why the first copy was not used, where it is the second.
        first_is: Option<&'static str>,
        partitions: Vec<Partition>,
    },
    Damaged(&'static str),
    Nothing,
}

/// Reads the primary table, else the backup, in sectors of 512 and then 4096 bytes.
pub(crate) fn read(disk: &(impl ReadAt + ?Sized), disk_size: u64) -> io::Result<Found> {
    let mut damaged = None;
    for sector_size in [512, 4096] {
        let last = (disk_size / sector_size).saturating_sub(1) * sector_size;
        for (offset, backup) in [(sector_size, false), (last, true)] {
            match table(disk, disk_size, offset, sector_size)? {
                Ok(Some(partitions)) => {
                    let reason = damaged.unwrap_or("there is no GPT header at the start");
                    return Ok(Found::Table {
                        sector_size,
                        first_is: backup.then_some(reason),
                        partitions,
                    });
                }
                Ok(None) => {}
                Err(reason) => damaged = damaged.or(Some(reason)),
            }
        }
    }
    Ok(damaged.map_or(Found::Nothing, Found::Damaged))
}

type Table = Result<Option<Vec<Partition>>, &'static str>;

fn table(
    disk: &(impl ReadAt + ?Sized),
    disk_size: u64,
    offset: u64,
    sector_size: u64,
) -> io::Result<Table> {
    let mut header = [0; 512];
    if disk.read_at(&mut header, offset)? < 92 || &header[..8] != b"EFI PART" {
        return Ok(Ok(None));
    }
    let u32_at = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let size = u32_at(12) as usize;
    if !(92..=512).contains(&size) {
        return Ok(Err("the GPT header has an impossible size"));
    }
    let stored = u32_at(16);
    let mut summed = header;
    summed[16..20].fill(0);
    if crc32fast::hash(&summed[..size]) != stored {
        return Ok(Err("the GPT header's checksum is wrong"));
    }
    let (own, first_usable, last_usable) = (
        u64_le(&header[24..]),
        u64_le(&header[40..]),
        u64_le(&header[48..]),
    );
    if own != offset / sector_size {
        return Ok(Err("the GPT header says that it stands elsewhere"));
    }
    let (entries_lba, count, entry_size, entries_crc) =
        (u64_le(&header[72..]), u32_at(80), u32_at(84), u32_at(88));
    if !(128..=MAX_ENTRY).contains(&entry_size)
        || !entry_size.is_power_of_two()
        || count > MAX_ENTRIES
    {
        return Ok(Err("the GPT header tells of impossible entries"));
    }
    let length = count as usize * entry_size as usize;
    let Some(start) = entries_lba.checked_mul(sector_size) else {
        return Ok(Err("the GPT's entries lie beyond the disk"));
    };
    if start
        .checked_add(length as u64)
        .is_none_or(|end| end > disk_size)
    {
        return Ok(Err("the GPT's entries lie beyond the disk"));
    }
    let usable = first_usable..=last_usable;
    let end = entries_lba.saturating_add((length as u64).div_ceil(sector_size).max(1) - 1);
    let is_apart = end < first_usable || entries_lba > last_usable;
    if entries_lba < 2 || (entries_lba..=end).contains(&own) {
        return Ok(Err("the GPT says that its entries lie over its header"));
    }
    if first_usable < 2 || usable.contains(&own) || !is_apart {
        return Ok(Err("the GPT says that partitions may lie over it"));
    }
    let mut entries = vec![0; length]; // at most 4 MiB, and within the disk
    disk.read_exact_at(&mut entries, start)?;
    if crc32fast::hash(&entries) != entries_crc {
        return Ok(Err("the checksum of the GPT's entries is wrong"));
    }
    let mut partitions = Vec::new();
    for (index, entry) in entries.chunks_exact(entry_size as usize).enumerate() {
        if entry[..16] == [0; 16] {
            continue;
        }
        let (first, last) = (u64_le(&entry[32..]), u64_le(&entry[40..]));
        if first > last || !usable.contains(&first) || !usable.contains(&last) {
            continue;
        }
        let bytes = (last - first)
            .checked_add(1)
            .and_then(|sectors| sectors.checked_mul(sector_size));
        let (Some(offset), Some(length)) = (first.checked_mul(sector_size), bytes) else {
            continue;
        };
        let units: Vec<u16> = entry[56..128]
            .chunks_exact(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
            .take_while(|u| *u != 0)
            .collect();
        partitions.push(Partition {
            number: index as u32 + 1,
            offset,
            length,
            kind: PartitionType::Guid(Guid::from_disk(entry)),
            label: String::from_utf16_lossy(&units),
            bootable: false,
            hidden: u64_le(&entry[48..]) >> 63 == 1,
        });
    }
    Ok(Ok(Some(partitions)))
}

fn u64_le(bytes: &[u8]) -> u64 {
    let mut buffer = [0; 8];
    buffer.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(buffer)
}
