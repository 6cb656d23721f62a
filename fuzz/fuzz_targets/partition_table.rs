//! Any bytes as a disk: never a panic, and a root partition lies within the disk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nspawn_image::{Architecture, PartitionTable};

fuzz_target!(|bytes: &[u8]| {
    let disk = bytes.to_vec();
    let Ok(table) = PartitionTable::read(&disk) else {
        return;
    };
    assert_eq!(table.disk_size, disk.len() as u64);
    match table.root(&disk, Architecture::X86_64) {
        Ok(root) => assert!(
            root.offset
                .checked_add(root.length)
                .is_some_and(|end| end <= table.disk_size)
        ),
        Err(error) => assert!(!error.to_string().is_empty() && !error.hint().is_empty()),
    }
});
