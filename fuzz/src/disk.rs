//! Changes to a disk that leave it one with partitions: entries, headers with right checksums, logical partitions, and
//! the first bytes of file systems.
//!
//! Source: UEFI Specification 2.10, chapter 5.

use crate::random::Random;

/// Types as they stand on the disk: x86-64 root, ARM root, Linux, EFI system.
const TYPES: [[u8; 16]; 4] = [
    *b"\xe3\xbc\x68\x4f\xcd\xe8\xb1\x4d\x96\xe7\xfb\xca\xf9\x84\xb7\x09",
    *b"\x45\xb0\x21\xb9\xf0\x1d\xc3\x41\xaf\x44\x4c\x6f\x28\x0d\x3f\xae",
    *b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4",
    *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b",
];
const LABELS: [&str; 6] = ["root", "os_1", "os_10", "os_9~rc1", "_empty", ""];
/// Where file systems have their magic bytes, and what those are.
const MAGIC: [(usize, &[u8]); 6] = [
    (1080, b"\x53\xef"),
    (0, b"XFSB"),
    (0, b"hsqs"),
    (1024, b"\xe2\xe1\xf5\xe0"),
    (0, b"LUKS\xba\xbe"),
    (0x10040, b"_BHRfS_M"),
];
const SECTORS: [usize; 2] = [512, 4096];

/// Changes a disk of `size` bytes that stands at the start of `data`; answers the new size, `max` at most.
pub fn mutate(data: &mut [u8], size: usize, max: usize, seed: u32) -> usize {
    let mut random = Random::new(seed);
    let mut disk = Disk(data[..size.min(max)].to_vec());
    for _ in 0..=random.below(4) {
        disk.change(&mut random, max);
    }
    // Most of the time behind the checksums.
    if !random.once_in(12) {
        disk.fix_sums();
    }
    let size = disk.0.len().min(max);
    data[..size].copy_from_slice(&disk.0[..size]);
    size
}

/// The place of a header and of its entries, all in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Bytes in a sector.
    pub sector: usize,
    /// The header.
    pub header: usize,
    /// Its length.
    pub header_size: usize,
    /// The first entry.
    pub entries: usize,
    /// The length of one.
    pub entry_size: usize,
    /// How many there are.
    pub count: usize,
}

/// A disk as bytes.
#[derive(Clone, Debug)]
pub struct Disk(pub Vec<u8>);

impl Disk {
    fn u32(&self, at: usize) -> usize {
        let found = self.0.get(at..at + 4);
        found.map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])) as usize
    }

    /// What stands at `at`, in bytes.
    pub fn u64(&self, at: usize) -> u64 {
        self.u32(at) as u64 | (self.u32(at + 4) as u64) << 32
    }

    /// Writes what fits.
    pub fn put(&mut self, at: usize, new: &[u8]) {
        if let Some(place) = at
            .checked_add(new.len())
            .and_then(|end| self.0.get_mut(at..end))
        {
            place.copy_from_slice(new);
        }
    }

    /// A header of a GPT at `header`, if there is one whose entries are on the disk.
    pub fn table(&self, header: usize, sector: usize) -> Option<Table> {
        let found = self.0.get(header..header.checked_add(92)?)?;
        let table = Table {
            sector,
            header,
            header_size: self.u32(header + 12),
            entries: usize::try_from(self.u64(header + 72))
                .ok()?
                .checked_mul(sector)?,
            entry_size: self.u32(header + 84),
            count: self.u32(header + 80),
        };
        let end = table
            .count
            .checked_mul(table.entry_size)?
            .checked_add(table.entries)?;
        let fits = found.starts_with(b"EFI PART")
            && (92..=512).contains(&table.header_size)
            && table.count > 0
            && table.entry_size >= 128
            && end <= self.0.len();
        fits.then_some(table)
    }

    /// Both copies of each kind.
    pub fn tables(&self) -> Vec<Table> {
        let mut found = Vec::new();
        for sector in SECTORS {
            let last = (self.0.len() / sector).saturating_sub(1) * sector;
            found.extend(self.table(sector, sector));
            found.extend(self.table(last, sector));
        }
        found
    }

    /// Computes the checksums of one table anew.
    pub fn fix_sum(&mut self, table: Table) {
        let entries = &self.0[table.entries..][..table.count * table.entry_size];
        let sum = crc32fast::hash(entries);
        self.put(table.header + 88, &sum.to_le_bytes());
        self.put(table.header + 16, &[0; 4]);
        let end = (table.header + table.header_size).min(self.0.len());
        let sum = crc32fast::hash(&self.0[table.header..end]);
        self.put(table.header + 16, &sum.to_le_bytes());
    }

    fn fix_sums(&mut self) {
        for table in self.tables() {
            self.fix_sum(table);
        }
    }

    fn change(&mut self, random: &mut Random, max: usize) {
        match random.below(14) {
            0..=4 => self.entry(random),
            5 | 6 => self.header(random),
            7 | 8 => self.mbr(random),
            9 => self.logical(random),
            10 | 11 => self.magic(random),
            12 => self.new_table(random),
            _ => {
                let sectors = max / 512;
                self.0.resize((1 + random.index(sectors)) * 512, 0);
            }
        }
    }

    fn some_table(&self, random: &mut Random) -> Option<Table> {
        let tables = self.tables();
        (!tables.is_empty()).then(|| random.pick(&tables))
    }

    fn entry(&mut self, random: &mut Random) {
        let Some(table) = self.some_table(random) else {
            return;
        };
        let used = if random.once_in(4) { table.count } else { 6 };
        let at = table.entries + random.index(table.count.min(used)) * table.entry_size;
        let sectors = (self.0.len() / table.sector) as u64;
        match random.below(6) {
            0 => {
                let kind = random.pick(&TYPES);
                self.put(at, &kind);
            }
            1 => self.put(at, &[0; 16]),
            2 => {
                let label: Vec<u8> = random
                    .pick(&LABELS)
                    .encode_utf16()
                    .chain([0])
                    .flat_map(u16::to_le_bytes)
                    .collect();
                self.put(at + 56, &label);
            }
            3 => {
                let bits = self.u64(at + 48) ^ 1 << random.pick(&[0, 2, 60, 63, 63]);
                self.put(at + 48, &bits.to_le_bytes());
            }
            _ => {
                let number = |random: &mut Random| match random.below(6) {
                    0 => random.next(),
                    1 => u64::MAX - random.below(2),
                    2 => u64::MAX / table.sector as u64 + random.below(2),
                    _ => random.below(sectors + 2),
                };
                let first = number(random);
                let last = if random.once_in(3) {
                    number(random)
                } else {
                    first.saturating_add(random.below(sectors))
                };
                self.put(at + 32, &first.to_le_bytes());
                self.put(at + 40, &last.to_le_bytes());
                if random.once_in(2) {
                    let kind = random.pick(&TYPES);
                    self.put(at, &kind);
                }
            }
        }
    }

    fn header(&mut self, random: &mut Random) {
        let Some(table) = self.some_table(random) else {
            return;
        };
        let at = table.header;
        let sectors = (self.0.len() / table.sector) as u64;
        match random.below(8) {
            0 => self.put(
                at + 12,
                &(random.pick(&[92_u32, 96, 512, 91, 513])).to_le_bytes(),
            ),
            1 => self.put(at + 72, &random.below(sectors + 1).to_le_bytes()),
            2 => self.put(
                at + 80,
                &(random.pick(&[1_u32, 4, 128, 1024, 1025])).to_le_bytes(),
            ),
            3 => self.put(
                at + 84,
                &(random.pick(&[128_u32, 256, 512, 4096, 160])).to_le_bytes(),
            ),
            4 => self.put(at + 24, &random.below(sectors + 1).to_le_bytes()),
            5 => self.put(at + 40, &random.below(sectors + 1).to_le_bytes()),
            6 => self.put(at + 48, &random.below(sectors + 2).to_le_bytes()),
            _ => self.put(at, b"EFI FART"),
        }
    }

    fn mbr_entry(&mut self, at: usize, random: &mut Random) {
        let sectors = self.0.len() as u64 / 512;
        let kind = random.pick(&[0x83, 0x83, 0x05, 0x0f, 0x85, 0xee, 0xef, 0x82, 0]);
        let status = random.pick(&[0, 0, 0x80, 0x80, 7]);
        let first = match random.below(4) {
            0 => random.next() as u32,
            _ => random.below(sectors + 1) as u32,
        };
        let count = match random.below(4) {
            0 => random.next() as u32,
            _ => random.below(sectors + 1) as u32,
        };
        self.put(at, &[status]);
        self.put(at + 4, &[kind]);
        self.put(at + 8, &first.to_le_bytes());
        self.put(at + 12, &count.to_le_bytes());
    }

    fn mbr(&mut self, random: &mut Random) {
        self.put(510, b"\x55\xaa");
        let at = 446 + 16 * random.index(4);
        self.mbr_entry(at, random);
    }

    /// One more block in the chain of logical partitions, or one that is bent.
    fn logical(&mut self, random: &mut Random) {
        let sectors = self.0.len() / 512;
        let Some(slot) = (0..4).find(|slot| {
            let kind = self.0.get(446 + 16 * slot + 4);
            kind.is_some_and(|kind| matches!(kind, 0x05 | 0x0f | 0x85))
        }) else {
            self.put(446 + 4, &[0x05]);
            self.put(
                446 + 8,
                &(random.below(sectors as u64) as u32).to_le_bytes(),
            );
            self.put(446 + 12, &(sectors as u32).to_le_bytes());
            return;
        };
        let base = self.u32(446 + 16 * slot + 8);
        let mut block = base;
        for _ in 0..random.below(5) {
            let next = self.u32(block.saturating_mul(512).saturating_add(446 + 16 + 8));
            block = base.saturating_add(next);
        }
        let at = block.saturating_mul(512);
        self.put(at.saturating_add(510), b"\x55\xaa");
        self.mbr_entry(at.saturating_add(446), random);
        self.put(at.saturating_add(446 + 16 + 4), &[0x05]);
        let next = random.below(sectors as u64) as u32;
        self.put(at.saturating_add(446 + 16 + 8), &next.to_le_bytes());
    }

    fn magic(&mut self, random: &mut Random) {
        let (offset, magic) = random.pick(&MAGIC);
        let mut starts = vec![0];
        for table in self.tables() {
            for slot in 0..table.count.min(8) {
                let first = self.u64(table.entries + slot * table.entry_size + 32);
                starts.extend(
                    usize::try_from(first)
                        .ok()
                        .and_then(|f| f.checked_mul(table.sector)),
                );
            }
        }
        for slot in 0..4 {
            starts.push(self.u32(446 + 16 * slot + 8) * 512);
        }
        let start = random.pick(&starts);
        self.put(start.saturating_add(offset), magic);
    }

    /// A whole table of either sector size, at both ends of the disk or at one.
    fn new_table(&mut self, random: &mut Random) {
        let sector = random.pick(&SECTORS);
        let sectors = self.0.len() / sector;
        let entry_size = random.pick(&[128_usize, 128, 256]);
        let count = random.pick(&[4_usize, 32, 128]);
        let array = (count * entry_size).div_ceil(sector);
        if sectors < 2 * array + 8 {
            return;
        }
        let places = [(1, 2), (sectors - 1, sectors - 1 - array)];
        let places = match random.below(4) {
            0 => &places[..1],
            1 => &places[1..],
            _ => &places[..],
        };
        for (header, entries) in places {
            let at = header * sector;
            self.put(at, &[0; 92]);
            self.put(at, b"EFI PART\0\0\x01\0");
            self.put(at + 12, &92_u32.to_le_bytes());
            self.put(at + 24, &(*header as u64).to_le_bytes());
            self.put(at + 32, &((sectors - header) as u64).to_le_bytes());
            self.put(at + 40, &(2 + array as u64).to_le_bytes());
            self.put(at + 48, &((sectors - 2 - array) as u64).to_le_bytes());
            self.put(at + 72, &(*entries as u64).to_le_bytes());
            self.put(at + 80, &(count as u32).to_le_bytes());
            self.put(at + 84, &(entry_size as u32).to_le_bytes());
            self.put(entries * sector, &vec![0; count * entry_size]);
            self.put(entries * sector, &TYPES[0]);
            self.put(entries * sector + 32, &(2 + array as u64).to_le_bytes());
            self.put(
                entries * sector + 40,
                &((sectors - 2 - array) as u64).to_le_bytes(),
            );
        }
    }
}
