//! The master boot record, with logical partitions. Source: UEFI Specification 2.10, 5.2; Linux block/partitions/msdos.c.

use std::io;

use crate::disk::{Partition, PartitionType};
use crate::source::ReadAt;

/// Most logical partitions followed: a chain may loop.
const MAX_LOGICAL: u32 = 60;

/// What stands where an MBR would be.
pub(crate) enum Found {
    Table(Vec<Partition>),
    /// The MBR of a disk that should have a GPT.
    Protective,
    Nothing,
}

struct Entry {
    status: u8,
    kind: u8,
    first: u64,
    sectors: u64,
}

fn entries(disk: &(impl ReadAt + ?Sized), sector: u64) -> io::Result<Option<[Entry; 4]>> {
    let mut block = [0; 512];
    if disk.read_at(&mut block, sector * 512)? < 512 || block[510..] != [0x55, 0xaa] {
        return Ok(None);
    }
    Ok(Some([0, 1, 2, 3].map(|index| {
        let e = &block[446 + 16 * index..][..16];
        Entry {
            status: e[0],
            kind: e[4],
            first: u64::from(u32::from_le_bytes([e[8], e[9], e[10], e[11]])),
            sectors: u64::from(u32::from_le_bytes([e[12], e[13], e[14], e[15]])),
        }
    })))
}

/// Reads the table. Entries that make no sense mean that it is none: a FAT boot sector ends like an MBR.
pub(crate) fn read(disk: &(impl ReadAt + ?Sized), disk_size: u64) -> io::Result<Found> {
    let Some(primary) = entries(disk, 0)? else {
        return Ok(Found::Nothing);
    };
    if primary.iter().any(|entry| entry.kind == 0xee) {
        return Ok(Found::Protective);
    }
    let sectors = disk_size / 512;
    let sane = |e: &Entry| {
        e.kind == 0 || (e.status & 0x7f == 0 && e.first > 0 && e.sectors > 0 && e.first < sectors)
    };
    if !primary.iter().all(sane) {
        return Ok(Found::Nothing);
    }
    let mut partitions = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(&primary) {
        match entry.kind {
            0 => {}
            0x05 | 0x0f | 0x85 => extended = Some(entry.first),
            _ => partitions.push(partition(number, entry, 0)),
        }
    }
    if let Some(base) = extended {
        logical(disk, base, sectors, &mut partitions)?;
    }
    Ok(Found::Table(partitions))
}

fn partition(number: u32, entry: &Entry, base: u64) -> Partition {
    Partition {
        number,
        offset: (base + entry.first) * 512,
        length: entry.sectors * 512,
        kind: PartitionType::Mbr(entry.kind),
        label: String::new(),
        bootable: entry.status == 0x80,
        hidden: false,
    }
}

/// Follows the chain of logical partitions: in each block, the first entry is relative to the block, the
/// second, which leads to the next block, to the extended partition.
fn logical(
    disk: &(impl ReadAt + ?Sized),
    base: u64,
    sectors: u64,
    partitions: &mut Vec<Partition>,
) -> io::Result<()> {
    let mut block = base;
    // In any order: where one was taken away and made anew, the chain runs backwards too.
    let mut seen = Vec::new();
    for number in 5..5 + MAX_LOGICAL {
        if block >= sectors || seen.contains(&block) {
            return Ok(());
        }
        seen.push(block);
        let Some([entry, next, ..]) = entries(disk, block)? else {
            return Ok(());
        };
        // One that starts with its own entry is none.
        if entry.kind != 0 && entry.first > 0 && entry.sectors > 0 {
            partitions.push(partition(number, &entry, block));
        }
        if !matches!(next.kind, 0x05 | 0x0f | 0x85) {
            return Ok(());
        }
        block = base + next.first;
    }
    Ok(())
}
