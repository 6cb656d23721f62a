use super::*;

const MIB: u64 = 1 << 20;
const EFI: &str = "EFI";

use crate::gpt::Guid;

/// A disk of 8 MiB whose GPT holds `partitions`: type, label, start and end in MiB.
fn gpt_disk(sector: usize, partitions: &[(Guid, &str, u64, u64)]) -> Vec<u8> {
    let mut disk = vec![0; 8 * MIB as usize];
    disk[510] = 0x55;
    disk[511] = 0xaa;
    disk[450] = 0xee;
    disk[458] = 1;
    disk[462] = 1;
    let mut entries = vec![0; 128 * 128];
    for (slot, (guid, label, start, end)) in partitions.iter().enumerate() {
        let entry = &mut entries[slot * 128..][..128];
        entry[..16].copy_from_slice(&guid.to_disk());
        entry[16] = 1;
        entry[32..40].copy_from_slice(&(start * MIB / sector as u64).to_le_bytes());
        entry[40..48].copy_from_slice(&(end * MIB / sector as u64 - 1).to_le_bytes());
        for (unit, at) in label.encode_utf16().zip((56..).step_by(2)) {
            entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    let last = disk.len() / sector - 1;
    let table_sectors = entries.len() / sector;
    for (lba, entries_lba) in [(1, 2), (last, last - table_sectors)] {
        let mut header = [0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[24..32].copy_from_slice(&(lba as u64).to_le_bytes());
        header[40..48].copy_from_slice(&(2 + table_sectors as u64).to_le_bytes());
        header[48..56].copy_from_slice(&((last - table_sectors - 1) as u64).to_le_bytes());
        header[72..80].copy_from_slice(&(entries_lba as u64).to_le_bytes());
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        let crc = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        disk[lba * sector..][..92].copy_from_slice(&header);
        disk[entries_lba * sector..][..entries.len()].copy_from_slice(&entries);
    }
    disk
}

fn put(disk: &mut [u8], at: u64, bytes: &[u8]) {
    disk[at as usize..][..bytes.len()].copy_from_slice(bytes);
}

fn ext4(mut disk: Vec<u8>, offset: u64) -> Vec<u8> {
    put(&mut disk, offset + 1080, &[0x53, 0xef]);
    disk
}

fn root(disk: &Vec<u8>) -> Result<RootPartition, DiskError> {
    PartitionTable::read(disk)?.root(disk, Architecture::X86_64)
}

#[test]
fn root_of_a_cloud_layout_in_both_sector_sizes() {
    let bios = gpt::Guid::known_name;
    assert_eq!(bios(&gpt::ROOT_X86_64), Some("root x86-64"));
    for sector in [512, 4096] {
        for guid in [gpt::ROOT_X86_64, gpt::LINUX_GENERIC] {
            let disk = gpt_disk(
                sector,
                &[(guid, "root", 2, 6), (gpt::ROOT_AARCH64, EFI, 1, 2)],
            );
            let found = root(&ext4(disk, 2 * MIB)).unwrap();
            assert_eq!((found.offset, found.length), (2 * MIB, 4 * MIB));
            assert_eq!(
                (found.number, found.filesystem),
                (Some(1), FileSystem::Ext4)
            );
            assert_eq!(
                (found.kind, found.label.as_str()),
                (Some(PartitionType::Guid(guid)), "root")
            );
        }
    }
}

#[test]
fn the_backup_is_used_when_the_first_copy_is_broken() {
    for sector in [512_u64, 4096] {
        let mut disk = ext4(
            gpt_disk(sector as usize, &[(gpt::ROOT_X86_64, "", 2, 6)]),
            2 * MIB,
        );
        put(&mut disk, sector + 40, &[9]);
        let table = PartitionTable::read(&disk).unwrap();
        assert_eq!(
            (table.scheme, table.sector_size),
            (Scheme::GptBackup, sector)
        );
        let warnings = &root(&disk).unwrap().warnings;
        assert_eq!(warnings, &table.warnings);
        assert!(
            warnings[0]
                .to_string()
                .contains("header's checksum is wrong"),
            "{warnings:?}"
        );
        put(&mut disk, sector, &[0; 8]);
        let warning = PartitionTable::read(&disk).unwrap().warnings[0].to_string();
        assert!(warning.contains("no GPT header at the start"), "{warning}");
        put(&mut disk, 8 * MIB - sector + 40, &[9]);
        assert!(matches!(root(&disk), Err(DiskError::Damaged(_))));
    }
}

/// Changes the header or an entry of both copies and makes their checksums right again.
fn with_tables(mut disk: Vec<u8>, change: impl Fn(&mut [u8], &mut [u8])) -> Vec<u8> {
    let last = disk.len() - 512;
    for at in [512, last] {
        let u64_at = |disk: &[u8], at: usize| {
            u64::from_le_bytes(disk[at..at + 8].try_into().unwrap()) as usize
        };
        let start = u64_at(&disk, at + 72) * 512;
        let mut header = disk[at..at + 92].to_vec();
        let mut entries = disk[start..start + 128 * 128].to_vec();
        change(&mut header, &mut entries);
        header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
        header[16..20].fill(0);
        let crc = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        disk[at..at + 92].copy_from_slice(&header);
        disk[start..start + entries.len()].copy_from_slice(&entries);
    }
    disk
}

#[test]
fn a_table_that_partitions_may_lie_over_is_damaged() {
    let disk = || gpt_disk(512, &[(gpt::ROOT_X86_64, "", 2, 6)]);
    assert!(matches!(
        root(&ext4(with_tables(disk(), |_, _| {}), 2 * MIB)),
        Ok(found) if found.offset == 2 * MIB
    ));
    // The entries at the start would lie in what is usable, those at the end do not.
    let bent = with_tables(disk(), |header, _| put(header, 40, &33_u64.to_le_bytes()));
    let scheme = PartitionTable::read(&bent).unwrap().scheme;
    assert_eq!(scheme, Scheme::GptBackup);
    let table: [(usize, u64, &str); 5] = [
        (24, 3, "stands elsewhere"),
        (40, 0, "lie over it"),
        (40, 1, "lie over it"),
        (72, 4096, "lie over it"),
        (72, 1, "entries lie over"),
    ];
    for (at, value, text) in table {
        let bent = with_tables(disk(), |header, _| {
            put(header, at as u64, &value.to_le_bytes())
        });
        let error = root(&bent).unwrap_err().to_string();
        assert!(error.contains(text), "{at}: {error}");
    }
}

#[test]
fn entries_outside_of_what_is_usable_are_passed_over() {
    for (first, last) in [
        (0_u64, 8191_u64),
        (1, 8191),
        (4096, 16383),
        (4096, u64::MAX / 512),
    ] {
        let disk = gpt_disk(
            512,
            &[(gpt::ROOT_X86_64, "no", 1, 2), (gpt::ROOT_X86_64, "", 2, 6)],
        );
        let disk = with_tables(disk, |_, entries| {
            put(entries, 32, &first.to_le_bytes());
            put(entries, 40, &last.to_le_bytes());
        });
        let table = PartitionTable::read(&disk).unwrap();
        assert_eq!(table.partitions.len(), 1, "{first} {last}");
        assert_eq!(root(&ext4(disk, 2 * MIB)).unwrap().number, Some(2));
    }
}

#[test]
fn the_newest_label_wins_and_hidden_or_empty_ones_never() {
    let root_type = gpt::ROOT_X86_64;
    let table = [
        (root_type, "os_9", 1, 2),
        (root_type, "os_10", 2, 3),
        (root_type, "os_2", 3, 4),
        (root_type, "_empty", 4, 5),
    ];
    assert_eq!(
        root(&ext4(gpt_disk(512, &table), 2 * MIB)).unwrap().label,
        "os_10"
    );
}

#[test]
fn what_cannot_be_told_is_an_error_that_lists_it() {
    let linux = gpt::LINUX_GENERIC;
    let several = root(&gpt_disk(512, &[(linux, "a", 1, 2), (linux, "b", 2, 3)])).unwrap_err();
    assert_eq!(
        several.to_string(),
        r#"several partitions could be the root: 1 (Linux, "a", 1 MiB), 2 (Linux, "b", 1 MiB)"#
    );
    let none = root(&gpt_disk(512, &[(gpt::ROOT_AARCH64, "", 1, 2)])).unwrap_err();
    assert_eq!(
        none.to_string(),
        "no root partition among 1 (root ARM64, 1 MiB)"
    );
    assert!(matches!(root(&gpt_disk(512, &[])), Err(DiskError::Empty)));
    assert!(matches!(root(&vec![0; 4096]), Err(DiskError::NoTable)));
    assert!(matches!(root(&vec![0; 100]), Err(DiskError::TooShort(100))));
    assert!(matches!(
        root(&gpt_disk(512, &[(linux, "", 1, 2)])),
        Err(DiskError::NoFileSystem(_))
    ));
    let mut cut = gpt_disk(512, &[(linux, "", 1, 7)]);
    cut.truncate(5 * MIB as usize);
    assert!(matches!(root(&cut), Err(DiskError::Beyond { end, .. }) if end == 7 * MIB));
    for (magic, word) in [
        (&b"LUKS\xba\xbe"[..], "LUKS"),
        (&b"verity\0\0"[..], "verity"),
    ] {
        let mut disk = gpt_disk(512, &[(linux, "", 1, 2)]);
        put(&mut disk, MIB, magic);
        assert!(root(&disk).unwrap_err().to_string().contains(word));
    }
}

fn mbr_disk(entries: &[(u8, u8, u32, u32)]) -> Vec<u8> {
    let mut disk = vec![0; 4 * MIB as usize];
    for (slot, (status, kind, first, count)) in entries.iter().enumerate() {
        let at = 446 + 16 * slot;
        disk[at] = *status;
        disk[at + 4] = *kind;
        disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&count.to_le_bytes());
    }
    put(&mut disk, 510, &[0x55, 0xaa]);
    disk
}

#[test]
fn mbr_takes_the_bootable_or_only_linux_partition() {
    let one = ext4(
        mbr_disk(&[(0, 0xef, 2048, 100), (0, 0x83, 4096, 2048)]),
        2 * MIB,
    );
    assert_eq!(root(&one).unwrap().number, Some(2));
    let bootable = ext4(
        mbr_disk(&[(0, 0x83, 2048, 100), (0x80, 0x83, 4096, 2048)]),
        2 * MIB,
    );
    assert_eq!(root(&bootable).unwrap().offset, 2 * MIB);
    let two = mbr_disk(&[(0, 0x83, 2048, 100), (0, 0x83, 4096, 2048)]);
    assert!(matches!(root(&two), Err(DiskError::Several(found)) if found.len() == 2));
    assert!(matches!(root(&mbr_disk(&[])), Err(DiskError::Empty)));
    assert!(matches!(
        root(&mbr_disk(&[(0, 0xee, 1, 1)])),
        Err(DiskError::Damaged(_))
    ));
    let mut logical = mbr_disk(&[(0, 0x05, 2048, 4096)]);
    let block = mbr_disk(&[(0, 0x83, 2048, 1024), (0, 0x05, 0, 0)]);
    put(&mut logical, MIB, &block[..512]);
    let found = root(&ext4(logical.clone(), 2 * MIB)).unwrap();
    assert_eq!((found.number, found.offset), (Some(5), 2 * MIB));
    // one that starts where its own entry stands
    put(&mut logical, MIB + 446 + 8, &[0; 4]);
    assert!(matches!(root(&logical), Err(DiskError::Empty)));
}

#[test]
fn a_bare_file_system_is_a_root() {
    for (at, magic, filesystem) in [
        (1080, &[0x53, 0xef][..], FileSystem::Ext4),
        (0, b"XFSB", FileSystem::Xfs),
        (0x10040, b"_BHRfS_M", FileSystem::Btrfs),
        (0, b"hsqs", FileSystem::Squashfs),
        (1024, &[0xe2, 0xe1, 0xf5, 0xe0], FileSystem::Erofs),
    ] {
        let mut disk = vec![0; MIB as usize];
        put(&mut disk, at, magic);
        let found = root(&disk).unwrap();
        assert_eq!(
            (found.filesystem, found.number, found.length),
            (filesystem, None, MIB)
        );
    }
}
