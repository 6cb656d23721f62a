//! Any bytes as a disk: never a panic and the same answer twice; a root partition is one of the table's, within the
//! disk and apart from the table; and the copy of a table says what the table says.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use nspawn_fuzz::disk::{Disk, Table, mutate};
use nspawn_image::{Architecture, DiskError, PartitionTable, RootPartition, Scheme};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 4 == 0 {
        fuzzer_mutate(data, size, max_size)
    } else {
        mutate(data, size, max_size, seed)
    }
});

fuzz_target!(|bytes: &[u8]| {
    let first = PartitionTable::read(bytes);
    let again = PartitionTable::read(bytes);
    assert_eq!(format!("{first:?}"), format!("{again:?}"));
    let table = match first {
        Ok(table) => table,
        Err(error) => return said(&error),
    };
    assert_eq!(table.disk_size, bytes.len() as u64);
    assert!(matches!(table.sector_size, 512 | 4096));
    assert_eq!(table.warnings.is_empty(), table.scheme != Scheme::GptBackup);
    for (index, partition) in table.partitions.iter().enumerate() {
        assert!(
            partition.length > 0 && partition.offset > 0,
            "{partition:?}"
        );
        assert!(partition.number > 0);
        assert!(partition.offset.is_multiple_of(table.sector_size));
        assert!(partition.length.is_multiple_of(table.sector_size));
        let earlier = &table.partitions[..index];
        assert!(earlier.iter().all(|other| other.number < partition.number));
        assert!(!partition.to_string().is_empty());
    }
    for architecture in [
        Architecture::X86_64,
        Architecture::Aarch64,
        Architecture::Other,
    ] {
        let root = table.root(bytes, architecture);
        let again = table.root(bytes, architecture);
        assert_eq!(format!("{root:?}"), format!("{again:?}"));
        match root {
            Ok(root) => check_root(bytes, &table, &root),
            Err(error) => said(&error),
        }
    }
    if table.scheme == Scheme::Gpt {
        check_copy(bytes, &table);
    }
});

fn said(error: &DiskError) {
    assert!(!error.to_string().is_empty() && !error.hint().is_empty());
}

fn check_root(bytes: &[u8], table: &PartitionTable, root: &RootPartition) {
    let end = root.offset.checked_add(root.length);
    assert!(end.is_some_and(|end| end <= table.disk_size), "{root:?}");
    assert!(root.length > 0);
    let Some(number) = root.number else {
        assert_eq!(table.scheme, Scheme::Bare);
        assert_eq!((root.offset, root.length), (0, table.disk_size));
        return;
    };
    let is_it = |partition: &&nspawn_image::Partition| partition.number == number;
    let partition = table
        .partitions
        .iter()
        .find(is_it)
        .expect("a partition of the table");
    assert!(!partition.hidden);
    assert_eq!(
        (partition.offset, partition.length),
        (root.offset, root.length)
    );
    assert_eq!(
        (Some(partition.kind), &partition.label),
        (root.kind, &root.label)
    );
    // What the table itself takes is no part of it.
    let (start, end) = (root.offset, root.offset + root.length);
    let apart = |from: usize, length: usize| end <= from as u64 || start >= (from + length) as u64;
    assert!(apart(0, 512), "the root holds the MBR");
    if let Some(used) = used(bytes, table) {
        assert!(apart(used.header, 512), "the root holds the GPT's header");
        assert!(
            apart(used.entries, used.count * used.entry_size),
            "the root holds the GPT's entries"
        );
    }
}

/// The table that was read.
fn used(bytes: &[u8], table: &PartitionTable) -> Option<Table> {
    let sector = table.sector_size as usize;
    let header = match table.scheme {
        Scheme::Gpt => sector,
        Scheme::GptBackup => (bytes.len() / sector - 1) * sector,
        _ => return None,
    };
    Disk(bytes.to_vec()).table(header, sector)
}

/// A copy of the table behind the disk's end says the same where the first one is gone.
fn check_copy(bytes: &[u8], table: &PartitionTable) {
    let Some(first) = used(bytes, table) else {
        return;
    };
    let mut disk = Disk(bytes.to_vec());
    // On a disk that was cut, the copy would stand where partitions may.
    if disk.u64(first.header + 48) >= (bytes.len() / first.sector) as u64 {
        return;
    }
    let array = first.count * first.entry_size;
    let entries = bytes.len().next_multiple_of(4096);
    let header = (entries + array).next_multiple_of(4096) + 4096 - first.sector;
    disk.0.resize(header + first.sector, 0);
    disk.0
        .copy_within(first.entries..first.entries + array, entries);
    disk.0
        .copy_within(first.header..first.header + first.header_size, header);
    disk.put(header + 24, &((header / first.sector) as u64).to_le_bytes());
    disk.put(header + 32, &1_u64.to_le_bytes());
    disk.put(
        header + 72,
        &((entries / first.sector) as u64).to_le_bytes(),
    );
    // Entries of an MBR that lay behind the end until now would count.
    disk.put(446, &[0; 64]);
    disk.put(450, &[0xee]);
    disk.put(510, &[0x55, 0xaa]);
    if first.sector == 4096 {
        // A table in the smaller sectors, whose entries lay behind the end until now, would go before.
        disk.put(512, &[0; 8]);
    }
    let copy = disk.table(header, first.sector).expect("the copy");
    disk.fix_sum(copy);
    let both = PartitionTable::read(&disk.0).expect("the first table is there");
    assert_eq!(
        (both.scheme, &both.partitions),
        (Scheme::Gpt, &table.partitions)
    );
    disk.put(first.header, &[0; 8]);
    let copy = PartitionTable::read(&disk.0).expect("the copy is there");
    assert_eq!(
        (copy.scheme, copy.sector_size),
        (Scheme::GptBackup, table.sector_size)
    );
    assert_eq!(copy.partitions, table.partitions);
}
