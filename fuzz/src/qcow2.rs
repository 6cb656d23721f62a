//! Changes to a qcow2 image that leave it one, or nearly: header fields, table entries, new clusters and compressed
//! streams, snapshots and backing names.
//!
//! Source: QEMU docs/interop/qcow2.txt.

use std::io::Write as _;

use crate::random::Random;

/// Bits 9 to 55 of an entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Names that the target has files for, and some that lead elsewhere.
const NAMES: [&str; 8] = [
    "base.raw",
    "base.qcow2",
    "./base.raw",
    "folder/../base.qcow2",
    "../base.raw",
    "none",
    "json:{}",
    "",
];

/// Changes an image of `size` bytes that stands at the start of `data`; answers the new size, `max` at most.
pub fn mutate(data: &mut [u8], size: usize, max: usize, seed: u32) -> usize {
    let mut random = Random::new(seed);
    let mut image = Image {
        bytes: data[..size.min(max)].to_vec(),
        max,
    };
    if image.bytes.len() < 112 {
        image.bytes.resize(112.min(max), 0);
    }
    if image.bytes.len() >= 112 {
        for _ in 0..=random.below(4) {
            image.change(&mut random);
        }
    }
    let size = image.bytes.len().min(max);
    data[..size].copy_from_slice(&image.bytes[..size]);
    size
}

struct Image {
    bytes: Vec<u8>,
    max: usize,
}

impl Image {
    fn change(&mut self, random: &mut Random) {
        match random.below(16) {
            0..=2 => self.header(random),
            3 => self.l1_entry(random),
            4..=7 => self.l2_entry(random),
            8 => self.data_cluster(random),
            9..=11 => self.stream(random),
            12 => self.l2_table(random),
            13 => self.snapshots(random),
            14 => self.backing(random),
            _ => self.length(random),
        }
    }

    fn u32(&self, at: usize) -> u32 {
        let found = self.bytes.get(at..at + 4);
        found.map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) << 32 | u64::from(self.u32(at + 4))
    }

    fn put(&mut self, at: usize, new: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + new.len()) {
            place.copy_from_slice(new);
        }
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    fn cluster_bits(&self) -> u32 {
        self.u32(20).clamp(9, 21)
    }

    fn cluster(&self) -> usize {
        1 << self.cluster_bits()
    }

    fn is_extended(&self) -> bool {
        self.u32(4) == 3 && self.u64(72) & 16 != 0
    }

    fn entry_size(&self) -> usize {
        if self.is_extended() { 16 } else { 8 }
    }

    /// The start of some cluster of the file, its end included.
    fn place(&self, random: &mut Random) -> u64 {
        let clusters = self.bytes.len() as u64 / self.cluster() as u64;
        random.below(clusters + 1) * self.cluster() as u64
    }

    /// A place for `length` more bytes at a cluster's border; `None` where the file would be too long.
    fn append(&mut self, length: usize) -> Option<usize> {
        let at = self.bytes.len().next_multiple_of(self.cluster());
        if at + length > self.max {
            return None;
        }
        self.bytes.resize(at + length, 0);
        Some(at)
    }

    fn header(&mut self, random: &mut Random) {
        let near = |random: &mut Random, value: u64| match random.below(5) {
            0 => value.wrapping_add(1),
            1 => value.wrapping_sub(1),
            2 => value << 1,
            3 => value >> 1,
            _ => random.next() >> random.below(64),
        };
        match random.below(16) {
            0 => {
                let version = random.pick(&[2, 3, 3, 4]);
                self.put32(4, version);
            }
            1 => {
                let bits = random.pick(&[9, 10, 12, 14, 16, 21, 8, 22]);
                self.put32(20, bits);
            }
            2..=4 => {
                let cluster = self.cluster() as u64;
                let size = match random.below(4) {
                    // Large ones take long.
                    0 => random.below(9 << 20) >> random.below(10),
                    1 => (random.below(40) + 1) * cluster,
                    2 => (random.below(40) * cluster).wrapping_sub(random.below(600)),
                    _ => near(random, self.u64(24)),
                };
                self.put64(24, size);
            }
            5 => {
                let entries = near(random, self.u32(36).into());
                self.put32(36, entries as u32);
            }
            6 => {
                let place = self.place(random);
                self.put64(40, place);
            }
            7..=9 => {
                let bits = self.u64(72) ^ 1 << random.pick(&[0, 1, 2, 3, 3, 4, 4, 5, 40]);
                self.put64(72, bits);
            }
            10 => {
                let kind = random.pick(&[0, 1, 1, 2]);
                self.put(104, &[kind]);
            }
            11 => {
                let length = random.pick(&[104, 112, 120, 72, 105]);
                self.put32(100, length);
            }
            12 => {
                let place = self.place(random);
                self.put64(48, place);
                let order = random.below(8) as u32;
                self.put32(96, order);
            }
            13 => {
                let method = random.pick(&[0, 0, 1, 2, 3]);
                self.put32(32, method);
            }
            14 => {
                let count = random.below(4) as u32;
                self.put32(60, count);
                let place = self.place(random);
                self.put64(64, place);
            }
            _ => {
                let (at, value) = (random.index(28) * 4, random.next() as u32);
                self.put32(at, value);
            }
        }
    }

    /// Where some entry of the L1 table stands.
    fn l1_place(&self, random: &mut Random) -> Option<usize> {
        let (entries, table) = (u64::from(self.u32(36)), self.u64(40));
        let at = table.checked_add(random.below(entries.min(1 << 16)) * 8)?;
        let at = usize::try_from(at).ok()?;
        (entries > 0 && at.checked_add(8)? <= self.bytes.len()).then_some(at)
    }

    fn l1_entry(&mut self, random: &mut Random) {
        let Some(at) = self.l1_place(random) else {
            return;
        };
        let entry = match random.below(6) {
            0 => 0,
            1 => self.l1_place(random).map_or(0, |other| self.u64(other)),
            2 => self.place(random) | COPIED,
            3 => self.u64(at) ^ 1 << random.below(64),
            4 => self.u64(at).wrapping_add(512),
            _ => self.bytes.len() as u64 + random.below(1 << 20),
        };
        self.put64(at, entry);
    }

    /// Where some entry of some L2 table stands, most often one that maps a byte of the guest's disk.
    fn l2_place(&self, random: &mut Random) -> Option<usize> {
        let table = (0..4).find_map(|_| {
            let at = self.l1_place(random)?;
            usize::try_from(self.u64(at) & OFFSET)
                .ok()
                .filter(|t| *t > 0)
        })?;
        let entries = self.cluster() / self.entry_size();
        let used = usize::try_from(self.u64(24) / self.cluster() as u64 + 1);
        let most = if random.once_in(8) {
            entries
        } else {
            entries.min(used.unwrap_or(entries))
        };
        let at = table.checked_add(random.index(most) * self.entry_size())?;
        (at + self.entry_size() <= self.bytes.len()).then_some(at)
    }

    fn l2_entry(&mut self, random: &mut Random) {
        let Some(at) = self.l2_place(random) else {
            return;
        };
        let old = self.u64(at);
        let entry = match random.below(12) {
            0 => 0,
            1 => 1,
            2 => 1 | self.place(random),
            3 | 4 => self.place(random) | COPIED,
            5 => old ^ 1 << random.below(64),
            // A neighbour's, so that runs of clusters and holes come to be.
            6 => self.u64(at.saturating_sub(self.entry_size())),
            7 => (self.u64(at.saturating_sub(self.entry_size())) & OFFSET) + self.cluster() as u64,
            8 | 9 => self.l2_place(random).map_or(0, |other| self.u64(other)),
            10 => {
                let (host, sectors) = (random.below(self.bytes.len() as u64), random.below(9));
                self.descriptor(host, sectors)
            }
            _ => random.next(),
        };
        self.put64(at, entry);
        if self.is_extended() && random.once_in(2) {
            let bitmap = self.bitmap(random);
            self.put64(at + 8, bitmap);
        }
    }

    /// A bitmap of 32 subclusters: the upper half says zero, the lower one present.
    fn bitmap(&self, random: &mut Random) -> u64 {
        let some = random.next() as u32 & random.next() as u32;
        let (zero, present) = match random.below(8) {
            0 => (0, 0),
            1 => (0, u32::MAX),
            2 => (u32::MAX, 0),
            3 => (0, some),
            4 => (some, 0),
            5 => (some, !some),
            6 => (random.next() as u32 & !some, some),
            _ => (random.next() as u32, some),
        };
        u64::from(zero) << 32 | u64::from(present)
    }

    fn descriptor(&self, host: u64, more_sectors: u64) -> u64 {
        let shift = 62 - (self.cluster_bits() - 8);
        let sectors = more_sectors & ((1 << (self.cluster_bits() - 8)) - 1);
        COMPRESSED | sectors << shift | host & ((1 << shift) - 1)
    }

    /// Bytes as a guest may have written them.
    fn content(&self, length: usize, random: &mut Random) -> Vec<u8> {
        let (kind, start) = (random.below(5), random.next() as u8);
        (0..length)
            .map(|at| match kind {
                0 => start | 1,
                1 => random.next() as u8,
                2 => (at / 512) as u8 ^ start,
                // Blocks of zeros between others.
                3 if at / 4096 % 2 == 0 => 0,
                3 => start | 1,
                _ => b"zeros, text and zeros\0\0\0\0\0\0\0\0\0\0\0"[at % 32],
            })
            .collect()
    }

    fn data_cluster(&mut self, random: &mut Random) {
        let cluster = self.cluster();
        let Some(entry) = self.l2_place(random) else {
            return;
        };
        if cluster > 1 << 17 {
            return;
        }
        let content = self.content(cluster, random);
        let Some(at) = self.append(cluster) else {
            return;
        };
        self.put(at, &content);
        self.put64(entry, at as u64 | COPIED);
        if self.is_extended() {
            let bitmap = self.bitmap(random);
            self.put64(entry + 8, bitmap);
        }
    }

    /// A compressed cluster, or a stream that is nearly one: too long, too short, cut, or followed by another.
    fn stream(&mut self, random: &mut Random) {
        let cluster = self.cluster();
        let Some(entry) = self.l2_place(random) else {
            return;
        };
        let length = match random.below(8) {
            0 => cluster / 2,
            1 => cluster + 1,
            _ => cluster,
        };
        let content = self.content(length, random);
        let is_zstd = self.u64(72) & 8 != 0 && self.bytes[104] == 1;
        let mut packed = if is_zstd != random.once_in(16) {
            zstd_stream(&content, random)
        } else {
            deflate_stream(&content, random)
        };
        if random.once_in(8) {
            packed.truncate(random.index(packed.len()));
        }
        if random.once_in(8) {
            let at = random.index(packed.len());
            if let Some(byte) = packed.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        // Not at a border: streams follow each other.
        let at = match random.below(3) {
            0 => self.bytes.len(),
            _ => self.bytes.len() + random.index(600),
        };
        if at + packed.len() > self.max || packed.is_empty() {
            return;
        }
        self.bytes.resize(at, 0xa5);
        self.bytes.extend_from_slice(&packed);
        let exact = ((at + packed.len() - 1) / 512 - at / 512) as u64;
        let sectors = match random.below(6) {
            0 => exact.saturating_sub(1),
            1 => exact + 1,
            2 => exact + random.below(8),
            _ => exact,
        };
        let descriptor = self.descriptor(at as u64, sectors);
        self.put64(entry, descriptor);
        if self.is_extended() && !random.once_in(4) {
            self.put64(entry + 8, 0);
        }
        if random.once_in(2) {
            let next = entry + self.entry_size();
            self.put64(next, descriptor);
        }
    }

    /// A new L2 table, empty or a copy.
    fn l2_table(&mut self, random: &mut Random) {
        let cluster = self.cluster();
        let Some(place) = self.l1_place(random) else {
            return;
        };
        if cluster > 1 << 16 {
            return;
        }
        let from = usize::try_from(self.u64(place) & OFFSET).unwrap_or(0);
        let copy = self.bytes.get(from..from + cluster).map(<[u8]>::to_vec);
        let Some(at) = self.append(cluster) else {
            return;
        };
        if let Some(copy) = copy.filter(|_| from > 0) {
            self.put(at, &copy);
        }
        self.put64(place, at as u64 | COPIED);
    }

    /// A table of one to three snapshots, with the active L1 table or copies of it.
    fn snapshots(&mut self, random: &mut Random) {
        let (l1_entries, l1_table) = (self.u32(36), self.u64(40));
        let l1_length = l1_entries as usize * 8;
        let count = random.below(3) as u32 + 1;
        let mut table = Vec::new();
        for number in 1..=count {
            let mut own_table = l1_table;
            let from = usize::try_from(l1_table).unwrap_or(usize::MAX);
            let copy = from.checked_add(l1_length);
            let copy = copy.and_then(|end| self.bytes.get(from..end).map(<[u8]>::to_vec));
            if let Some(copy) = copy.filter(|copy| copy.len() <= 1 << 16)
                && random.once_in(2)
                && let Some(at) = self.append(l1_length)
            {
                self.put(at, &copy);
                own_table = at as u64;
            }
            if random.once_in(8) {
                own_table = self.place(random);
            }
            let id = number.to_string();
            let name = random.pick(&["one", "two", "1", ""]);
            let extra = random.pick(&[0_u32, 8, 16, 16, 24, 2000]);
            let entries = if random.once_in(8) {
                random.next() as u32 >> random.below(32)
            } else {
                l1_entries
            };
            table.extend_from_slice(&own_table.to_be_bytes());
            table.extend_from_slice(&entries.to_be_bytes());
            table.extend_from_slice(&(id.len() as u16).to_be_bytes());
            table.extend_from_slice(&(name.len() as u16).to_be_bytes());
            table.extend_from_slice(&[0; 20]);
            table.extend_from_slice(&extra.to_be_bytes());
            let size = if random.once_in(2) {
                self.u64(24)
            } else {
                random.below(9 << 20)
            };
            let extras = [[0; 8], size.to_be_bytes(), [0xff; 8]].concat();
            table.extend_from_slice(&extras[..extras.len().min(extra as usize)]);
            table.extend_from_slice(id.as_bytes());
            table.extend_from_slice(name.as_bytes());
            table.resize(table.len().next_multiple_of(8), 0);
        }
        let Some(at) = self.append(table.len()) else {
            return;
        };
        self.put(at, &table);
        self.put32(60, count);
        self.put64(64, at as u64);
    }

    /// A backing name at the end of the first cluster, with its format or without.
    fn backing(&mut self, random: &mut Random) {
        if random.once_in(4) {
            self.put64(8, 0);
            return;
        }
        let name = random.pick(&NAMES);
        let end = self.cluster().min(self.bytes.len());
        let at = end - name.len();
        self.put(at, name.as_bytes());
        self.put64(8, at as u64);
        self.put32(16, name.len() as u32);
        let after = if self.u32(4) == 3 { self.u32(100) } else { 72 } as usize;
        if let Some(format) = random.pick(&[None, Some("raw"), Some("qcow2"), Some("vmdk")])
            && after >= 72
            && after + 24 <= at
        {
            self.put32(after, 0xe279_2aca);
            self.put32(after + 4, format.len() as u32);
            self.put64(after + 8, 0);
            self.put(after + 8, format.as_bytes());
            self.put64(after + 16, 0);
        }
    }

    fn length(&mut self, random: &mut Random) {
        let length = self.bytes.len();
        let new = match random.below(4) {
            0 => length.next_multiple_of(512),
            1 => length.saturating_sub(random.index(1024)),
            2 => self.place(random) as usize,
            _ => length + random.index(self.cluster()),
        };
        if (112..=self.max).contains(&new) {
            self.bytes.resize(new, 0);
        }
    }
}

/// What one cluster of a built image is.
#[derive(Clone, Debug)]
pub enum Cluster {
    /// Nothing: what lies below.
    Hole,
    /// Zeros.
    Zero,
    /// These bytes, as they are.
    Data(Vec<u8>),
    /// These bytes, deflated.
    Packed(Vec<u8>),
}

/// Builds a sound image of version 3; `cluster` says what each of its clusters is.
pub fn build(
    cluster_bits: u32,
    size: u64,
    backing: Option<&str>,
    cluster: impl Fn(u64) -> Cluster,
) -> Vec<u8> {
    let length = 1_usize << cluster_bits;
    let clusters = size.div_ceil(length as u64);
    let per_table = length as u64 / 8;
    let tables = clusters.div_ceil(per_table) as usize;
    let l1_length = (tables * 8).next_multiple_of(length);
    let mut image = Image {
        bytes: vec![0; length + l1_length + tables * length],
        max: usize::MAX,
    };
    image.put32(0, 0x5146_49fb);
    image.put32(4, 3);
    image.put32(20, cluster_bits);
    image.put64(24, size);
    image.put32(36, tables as u32);
    image.put64(40, length as u64);
    image.put32(96, 4);
    image.put32(100, 104);
    if let Some(name) = backing {
        image.put64(8, 112);
        image.put32(16, name.len() as u32);
        image.put(112, name.as_bytes());
    }
    for table in 0..tables {
        let at = length + l1_length + table * length;
        image.put64(length + table * 8, at as u64 | COPIED);
    }
    for number in 0..clusters {
        let at = length + l1_length + number as usize * 8;
        let end = image.bytes.len();
        let entry = match cluster(number) {
            Cluster::Hole => 0,
            Cluster::Zero => 1,
            Cluster::Data(mut content) => {
                let start = end.next_multiple_of(length);
                content.resize(length, 0);
                image.bytes.resize(start, 0);
                image.bytes.append(&mut content);
                start as u64 | COPIED
            }
            Cluster::Packed(mut content) => {
                content.resize(length, 0);
                let mut packed = deflate_stream(&content, &mut Random::new(0));
                let sectors = (end + packed.len() - 1) / 512 - end / 512;
                image.bytes.append(&mut packed);
                image.descriptor(end as u64, sectors as u64)
            }
        };
        image.put64(at, entry);
    }
    let end = image.bytes.len().next_multiple_of(512);
    image.bytes.resize(end, 0);
    image.bytes
}

fn deflate_stream(content: &[u8], random: &mut Random) -> Vec<u8> {
    let level = flate2::Compression::new(random.pick(&[0, 1, 6]));
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
    // A flush between makes several blocks.
    let half = content.len() / 2;
    let written = encoder
        .write_all(&content[..half])
        .and_then(|()| match random.once_in(2) {
            true => encoder.flush(),
            false => Ok(()),
        })
        .and_then(|()| encoder.write_all(&content[half..]));
    match written {
        Ok(()) => encoder.finish().unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

/// One frame or two, with a checksum or without, with the content's length or without.
fn zstd_stream(content: &[u8], random: &mut Random) -> Vec<u8> {
    let parts = if random.once_in(8) {
        content.split_at(content.len() / 2)
    } else {
        (content, &[][..])
    };
    let mut packed = Vec::new();
    for part in [parts.0, parts.1] {
        if part.is_empty() {
            continue;
        }
        let mut frame = || -> std::io::Result<Vec<u8>> {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
            encoder.include_checksum(random.once_in(2))?;
            if random.once_in(2) {
                encoder.set_pledged_src_size(Some(part.len() as u64))?;
            }
            encoder.write_all(part)?;
            encoder.finish()
        };
        packed.extend(frame().unwrap_or_default());
    }
    packed
}
