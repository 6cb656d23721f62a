//! How one thread of a conversion writes: past the page cache and without waiting where the kernel and the file
//! system let it, else by plain writes.

use std::fs::File;
use std::ops::Range;

use super::{BLOCK, Output, UNIT, next_data};
use crate::qcow2::Qcow2Error;
use crate::sys::{Failed, WriteRing};

/// A unit with less data goes through the page cache, in bytes: a small write past it costs as much as a large one.
const DIRECT_UNIT: usize = 512 << 10;
/// So does a stretch between two holes that is smaller, in bytes.
const DIRECT_WRITE: usize = 32 << 10;

/// A thread's way to the output, and the buffers it fills.
pub(super) struct Sink<'a> {
    output: &'a dyn Output,
    way: Way,
}

enum Way {
    /// Writes are on their way while the next buffer is filled.
    Ring(Box<WriteRing>),
    Plain(Vec<u8>),
}

impl<'a> Sink<'a> {
    /// `direct` is the output opened past the page cache, if it could be; `buffers` are used with it.
    pub(super) fn new(output: &'a dyn Output, direct: Option<&File>, buffers: usize) -> Self {
        // Old kernels, sandboxes and settings refuse the ring.
        let ring = direct
            .and_then(|file| file.try_clone().ok())
            .and_then(|file| WriteRing::new(file, buffers, UNIT as usize).ok());
        let way = match ring {
            Some(ring) => Way::Ring(Box::new(ring)),
            None => Way::Plain(vec![0; UNIT as usize]),
        };
        Self { output, way }
    }

    /// A buffer of one unit, with whatever it held before.
    pub(super) fn buffer(&mut self) -> Result<&mut [u8], Qcow2Error> {
        if let Way::Ring(ring) = &mut self.way {
            while !ring.next_is_free() {
                let failed = ring.wait().map_err(write_error(0))?;
                redo(self.output, ring, failed)?;
            }
        }
        Ok(match &mut self.way {
            Way::Ring(ring) => ring.next_buffer(),
            Way::Plain(buffer) => buffer,
        })
    }

    /// Writes what is not zero in the ranges `data` of the last buffer, of which `length` bytes count and which
    /// stands at `offset` of the disk.
    ///
    /// Where the disk is slower than what fills the buffers, some units go through the page cache: no thread waits.
    pub(super) fn write(
        &mut self,
        data: &mut Vec<Range<usize>>,
        length: usize,
        offset: u64,
    ) -> Result<(), Qcow2Error> {
        let direct = match &mut self.way {
            Way::Plain(_) => false,
            Way::Ring(ring) => {
                let failed = ring.collect();
                redo(self.output, ring, failed)?;
                let much = data.iter().map(Range::len).sum::<usize>() >= DIRECT_UNIT;
                much && ring.is_taking() && ring.has_another()
            }
        };
        if direct {
            fill_blocks(&mut self.current_mut()[..length], data);
        }
        for range in data.iter() {
            self.write_range(range.clone(), offset, direct)?;
        }
        Ok(())
    }

    fn current_mut(&mut self) -> &mut [u8] {
        match &mut self.way {
            Way::Ring(ring) => ring.bytes_mut(),
            Way::Plain(buffer) => buffer,
        }
    }

    fn current(&self) -> &[u8] {
        match &self.way {
            Way::Ring(ring) => ring.bytes(),
            Way::Plain(buffer) => buffer,
        }
    }

    fn write_range(
        &mut self,
        range: Range<usize>,
        offset: u64,
        direct: bool,
    ) -> Result<(), Qcow2Error> {
        let mut from = range.start;
        loop {
            let bytes = self.current();
            let Some(data) = next_data(&bytes[..range.end], from, offset) else {
                return Ok(());
            };
            from = data.end;
            // The end of the disk need not end a block.
            let whole = data.start..data.end / BLOCK * BLOCK;
            let direct = direct && whole.len() >= DIRECT_WRITE;
            let rest = if direct { whole.end..data.end } else { data };
            if !rest.is_empty() {
                let at = offset + rest.start as u64;
                self.output
                    .write_at(&bytes[rest], at)
                    .map_err(write_error(at))?;
            }
            if let Way::Ring(ring) = &mut self.way
                && direct
            {
                let at = offset + whole.start as u64;
                let failed = ring.write(whole, at).map_err(write_error(at))?;
                redo(self.output, ring, failed)?;
            }
        }
    }

    /// Waits until all is written.
    pub(super) fn finish(mut self) -> Result<(), Qcow2Error> {
        if let Way::Ring(ring) = &mut self.way {
            while !ring.is_idle() {
                let failed = ring.wait().map_err(write_error(0))?;
                redo(self.output, ring, failed)?;
            }
        }
        Ok(())
    }
}

/// Writes by plain writes what the ring could not; what is wrong with the disk itself shows here again.
fn redo(output: &dyn Output, ring: &mut WriteRing, failed: Vec<Failed>) -> Result<(), Qcow2Error> {
    for write in failed {
        output
            .write_at(ring.failed_bytes(&write), write.offset)
            .map_err(write_error(write.offset))?;
        ring.give_back(&write);
    }
    Ok(())
}

fn write_error(offset: u64) -> impl FnOnce(std::io::Error) -> Qcow2Error {
    move |source| Qcow2Error::Write { offset, source }
}

/// Widens ranges to whole blocks, the added bytes zeroed, so that they can be written past the page cache and have
/// checksums. The last one ends with `unit` at the latest. Ranges that are whole blocks already stay as they are.
pub(super) fn fill_blocks(unit: &mut [u8], data: &mut Vec<Range<usize>>) {
    let mut kept = 0;
    // Where the bytes of the last kept range end that were really read.
    let mut filled = 0;
    for index in 0..data.len() {
        let range = data[index].clone();
        let start = range.start / BLOCK * BLOCK;
        if kept > 0 && start <= data[kept - 1].end {
            unit[filled..range.start].fill(0);
            kept -= 1;
            data[kept].end = range.end;
        } else {
            unit[start..range.start].fill(0);
            data[kept] = start..range.end;
        }
        filled = range.end;
        let end = filled.next_multiple_of(BLOCK).min(unit.len());
        data[kept].end = end;
        // Bytes of the next range may follow in the same block: they are there already.
        let next = data.get(index + 1).map_or(end, |next| next.start.min(end));
        unit[filled..next].fill(0);
        filled = filled.max(next);
        kept += 1;
    }
    data.truncate(kept);
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // a list with one range in it is what is meant
mod tests {
    use super::*;

    #[test]
    fn ranges_become_whole_blocks_and_the_rest_of_them_zero() {
        type Ranges<'a> = &'a [Range<usize>];
        let cases: [(Ranges<'_>, Ranges<'_>); 6] = [
            (&[], &[]),
            (&[0..4096], &[0..4096]),
            (&[512..1024, 1536..2048], &[0..4096]),
            (&[4000..5000, 8192..8193], &[0..12288]),
            (&[0..1, 12288..12289], &[0..4096, 12288..16384]),
            (&[4608..5120, 20479..20480], &[4096..8192, 16384..20480]),
        ];
        for (ranges, expected) in cases {
            let mut unit = vec![9; 20480];
            let mut wanted = vec![9; 20480];
            for range in expected {
                wanted[range.clone()].fill(0);
            }
            for range in ranges {
                unit[range.clone()].fill(1);
                wanted[range.clone()].fill(1);
            }
            let mut data = ranges.to_vec();
            fill_blocks(&mut unit, &mut data);
            assert_eq!(data, expected, "{ranges:?}");
            assert!(unit == wanted, "{ranges:?}");
        }
    }

    #[test]
    fn the_last_block_ends_with_the_unit() {
        let mut unit = vec![9; 5000];
        let mut data = vec![4500..4600];
        fill_blocks(&mut unit, &mut data);
        assert_eq!(data, [4096..5000]);
        assert!(unit[4096..4500].iter().all(|byte| *byte == 0));
        assert!(unit[4600..].iter().all(|byte| *byte == 0));
    }

    /// An output whose direct opening is another file than the one that plain writes go to.
    struct Odd {
        plain: File,
        direct: Option<File>,
    }

    impl Output for Odd {
        fn set_size(&self, size: u64) -> std::io::Result<()> {
            self.plain.set_len(size)
        }
        fn write_at(&self, data: &[u8], offset: u64) -> std::io::Result<()> {
            Output::write_at(&self.plain, data, offset)
        }
        fn direct(&self) -> Option<File> {
            self.direct.as_ref().and_then(|file| file.try_clone().ok())
        }
    }

    #[test]
    fn every_way_writes_the_same_bytes() {
        use super::super::{RawUnits, run};
        use crate::limits::Cancel;

        // Pieces of every alignment, zero blocks between them, and an end within a block and a sector.
        let mut source = vec![0_u8; 5 * UNIT as usize + 4321];
        for (index, byte) in source.iter_mut().enumerate() {
            if !(index / 5000).is_multiple_of(3) {
                *byte = (index / 7 % 255) as u8 + 1;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        let open = || File::create(&path).unwrap();
        let (first, second, third) = (open(), open(), open());
        let cases = [
            (
                "plain",
                Odd {
                    plain: first,
                    direct: None,
                },
            ),
            (
                "direct",
                Odd {
                    direct: second.direct(),
                    plain: second,
                },
            ),
            // A file that takes no writes stands for a file system that refuses them past the page cache.
            (
                "refused",
                Odd {
                    direct: File::open(&path).ok(),
                    plain: third,
                },
            ),
        ];
        for (name, output) in cases {
            output.plain.set_len(0).unwrap();
            let units = RawUnits::new(source.clone()).unwrap();
            run(&units, &output, &Cancel::default(), &mut |_| {}).unwrap();
            assert!(std::fs::read(&path).unwrap() == source, "{name}");
        }
    }

    #[test]
    fn what_the_disk_refuses_is_an_error_of_the_plain_write() {
        use super::super::{RawUnits, run};
        use crate::limits::Cancel;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        struct Full(File);
        impl Output for Full {
            fn set_size(&self, _: u64) -> std::io::Result<()> {
                Ok(())
            }
            fn write_at(&self, _: &[u8], _: u64) -> std::io::Result<()> {
                Err(std::io::ErrorKind::StorageFull.into())
            }
            fn direct(&self) -> Option<File> {
                self.0.try_clone().ok()
            }
        }
        let units = RawUnits::new(vec![1; 1 << 20]).unwrap();
        let output = Full(File::open(&path).unwrap());
        let error = run(&units, &output, &Cancel::default(), &mut |_| {}).unwrap_err();
        assert!(
            matches!(error, Qcow2Error::Write { offset: 0, .. }),
            "{error}"
        );
    }
}
