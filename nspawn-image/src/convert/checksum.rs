//! Checksums of a disk's bytes, by which damage to it is found later.
//!
//! There is one for each unit of 2 MiB that is not all zero: the sum, modulo 2^64, of those of its blocks of 4 KiB that
//! hold anything but zeros. That of a block is the XXH3 of its bytes, seeded with the block's number within the unit. So
//! a hole and zeros are the same, and the pieces of a unit may come in any order: decoded, or shared with another file.

use std::collections::BTreeMap;
use std::io;

use twox_hash::XxHash3_64;

use super::{BLOCK, Output, RawUnits, UNIT, ZEROS, run_with};
use crate::limits::Cancel;
use crate::qcow2::Qcow2Error;
use crate::source::ReadAt;

/// The checksums of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskSums {
    /// Its length, in bytes.
    pub(crate) size: u64,
    /// The checksum of each unit of [`DiskSums::UNIT`] bytes, by its number; a unit of zeros is not listed.
    pub(crate) units: BTreeMap<u64, u64>,
}

impl DiskSums {
    /// Bytes that have one checksum.
    pub(crate) const UNIT: u64 = UNIT;

    /// Reads a disk for nothing but its checksums; `progress` hears the bytes done.
    pub(crate) fn of(
        disk: impl ReadAt,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self, Qcow2Error> {
        let units = RawUnits::new(disk).map_err(|source| Qcow2Error::Read { offset: 0, source })?;
        let sums = run_with(&units, &Nowhere, true, cancel, progress)?;
        Ok(sums.expect("checksums were asked for"))
    }
}

/// An output that keeps nothing.
struct Nowhere;

impl Output for Nowhere {
    fn set_size(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// What the blocks in `bytes` add to the checksum of their unit, in which they begin at `start`, at a whole block.
pub(super) fn of_blocks(bytes: &[u8], start: usize) -> u64 {
    let first = start / BLOCK;
    let blocks = bytes.chunks(BLOCK).zip(first..);
    blocks
        .filter(|(block, _)| **block != ZEROS[..block.len()])
        .map(|(block, number)| XxHash3_64::oneshot_with_seed(number as u64, block))
        .fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn sums(disk: impl ReadAt) -> DiskSums {
        DiskSums::of(disk, &Cancel::default(), &mut |_| {}).unwrap()
    }

    #[test]
    fn holes_and_zeros_are_the_same_and_every_bit_counts() {
        let mut bytes = vec![0; 3 * UNIT as usize + 5000];
        let written = [0, UNIT as usize + 7, 3 * UNIT as usize + 4999];
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for at in written {
            bytes[at] = 1;
            file.write_all_at(&[1], at as u64).unwrap();
        }
        let sound = sums(&bytes);
        assert_eq!(sound, sums(file));
        assert_eq!(sound.size, bytes.len() as u64);
        assert_eq!(sound.units.keys().copied().collect::<Vec<_>>(), [0, 1, 3]);
        for at in [
            0,
            1,
            4096,
            UNIT as usize - 1,
            2 * UNIT as usize,
            bytes.len() - 1,
        ] {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                let changed = sums(&bytes);
                let unit = at as u64 / UNIT;
                assert_ne!(
                    sound.units.get(&unit),
                    changed.units.get(&unit),
                    "{at} {bit}"
                );
                bytes[at] ^= 1 << bit;
            }
        }
    }

    #[test]
    fn blocks_that_change_places_are_found() {
        let mut bytes = vec![0; UNIT as usize];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = (index / BLOCK + 1) as u8;
        }
        let sound = of_blocks(&bytes, 0);
        let parts = [
            of_blocks(&bytes[..8192], 0),
            of_blocks(&bytes[8192..], 8192),
        ];
        assert_eq!(sound, parts[0].wrapping_add(parts[1]));
        let (one, two) = bytes.split_at_mut(BLOCK);
        one.swap_with_slice(&mut two[..BLOCK]);
        assert_ne!(sound, of_blocks(&bytes, 0));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error() {
        struct Broken;
        impl ReadAt for Broken {
            fn size(&self) -> io::Result<u64> {
                Ok(UNIT)
            }
            fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let error = DiskSums::of(Broken, &Cancel::default(), &mut |_| {}).unwrap_err();
        assert!(
            matches!(error, Qcow2Error::Read { offset: 0, .. }),
            "{error}"
        );
    }
}
