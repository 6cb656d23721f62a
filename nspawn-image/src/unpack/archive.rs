//! The entries of a tar archive, one after the other, from bytes of any origin.
//!
//! Headers are read by the `tar` crate. How they make an entry is decided here, as that crate reads extended headers
//! of any length into memory, ends a pax record at the first line feed in it (capabilities are binary), fills the
//! holes of sparse files with bytes that no limit sees, and does not know the sparse files of the pax format.
//!
//! Source: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Storing Sparse Files".

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::UnpackError;

const BLOCK: u64 = 512;
/// Most bytes of one extended header: a name, attributes of 64 KiB each, a map of a sparse file.
const EXTENDED: u64 = 16 << 20;
/// Most pieces of one sparse file.
const PIECES: usize = 1 << 20;

/// A piece of a file that holds data: where it starts and how long it is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// One entry, without its content.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) kind: EntryType,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) owner: (u64, u64),
    /// Seconds since 1970, and nanoseconds after them.
    pub(super) time: (i64, u32),
    /// Major and minor number of a device.
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The length of the file, holes included, in bytes.
    pub(super) size: u64,
    /// Where the data of the file goes, in order.
    pub(super) pieces: Vec<Piece>,
}

/// What pax records say of one entry, or of all that follow.
#[derive(Clone, Debug, Default)]
struct Pax {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    owner: (Option<u64>, Option<u64>),
    time: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

/// The `GNU.sparse.*` records, whatever their version.
#[derive(Clone, Debug, Default)]
struct Sparse {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    major: Option<u64>,
    minor: Option<u64>,
    offset: Option<u64>,
    pieces: Option<Vec<Piece>>,
}

/// An archive that is read from its start to its end.
pub(super) struct Archive<R, E> {
    input: R,
    /// What an error of `input` means.
    explain: E,
    /// Bytes of the current entry that were not read, and those that fill its last block.
    left: u64,
    padding: u64,
    /// The piece that is being read, and bytes of it that were.
    piece: usize,
    in_piece: u64,
    global: Pax,
}

fn damaged(text: impl Into<String>) -> UnpackError {
    UnpackError::Damaged {
        format: "tar",
        source: io::Error::new(io::ErrorKind::InvalidData, text.into()),
    }
}

fn refused(name: &[u8], reason: &'static str) -> UnpackError {
    UnpackError::Entry {
        name: String::from_utf8_lossy(name).into_owned(),
        reason,
    }
}

impl<R: Read, E: Fn(io::Error) -> UnpackError> Archive<R, E> {
    pub(super) fn new(input: R, explain: E) -> Self {
        Self {
            input,
            explain,
            left: 0,
            padding: 0,
            piece: 0,
            in_piece: 0,
            global: Pax::default(),
        }
    }

    /// The next entry; what is left of the last one's content is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let (mut long_name, mut long_link) = (None, None);
        let mut pax = None;
        loop {
            self.pass_over()?;
            let mut header = Header::new_old();
            if !self.block(header.as_mut_bytes())? || *header.as_bytes() == [0; BLOCK as usize] {
                if long_name.is_some() || long_link.is_some() || pax.is_some() {
                    return Err(damaged("it ends after an extended header"));
                }
                return Ok(None);
            }
            check_sum(&header)?;
            let size = header
                .entry_size()
                .map_err(|error| damaged(error.to_string()))?;
            let kind = header.entry_type();
            let slot = match kind {
                EntryType::GNULongName => &mut long_name,
                EntryType::GNULongLink => &mut long_link,
                EntryType::XHeader => &mut pax,
                EntryType::XGlobalHeader => {
                    let records = self.extended(size)?;
                    let mut global = std::mem::take(&mut self.global);
                    global.read(&records)?;
                    // Attributes and holes are of one file.
                    global.xattrs.clear();
                    global.sparse = Sparse::default();
                    self.global = global;
                    continue;
                }
                _ => {
                    return self
                        .entry(header, size, [long_name, long_link, pax])
                        .map(Some);
                }
            };
            if slot.is_some() {
                return Err(damaged("two extended headers of one kind for one entry"));
            }
            *slot = Some(self.extended(size)?);
        }
    }

    /// Reads content of the current entry into `buffer`: where in the file it stands, and how many bytes; `None` at
    /// the end.
    pub(super) fn read(
        &mut self,
        entry: &Entry,
        buffer: &mut [u8],
    ) -> Result<Option<(u64, usize)>, UnpackError> {
        while let Some(piece) = entry.pieces.get(self.piece) {
            let rest = piece.length - self.in_piece;
            if rest == 0 {
                self.piece += 1;
                self.in_piece = 0;
                continue;
            }
            let want = usize::try_from(rest)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let count = self.fill(&mut buffer[..want])?;
            if count < want {
                return Err(self.cut());
            }
            let at = piece.offset + self.in_piece;
            self.in_piece += count as u64;
            self.left = self.left.saturating_sub(count as u64);
            return Ok(Some((at, count)));
        }
        Ok(None)
    }

    fn entry(
        &mut self,
        header: Header,
        size: u64,
        [long_name, long_link, records]: [Option<Vec<u8>>; 3],
    ) -> Result<Entry, UnpackError> {
        let bad = |error: io::Error| damaged(error.to_string());
        let old = header.as_old();
        let mut pax = self.global.clone();
        if let Some(records) = records {
            pax.read(&records)?;
        }
        let until_nul = |mut bytes: Vec<u8>| {
            if bytes.last() == Some(&0) {
                bytes.pop();
            }
            bytes
        };
        let name = pax
            .sparse
            .name
            .take()
            .or(pax.name)
            .or(long_name.map(until_nul))
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax
            .link
            .or(long_link.map(until_nul))
            .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
            .unwrap_or_default();
        let mut kind = header.entry_type();
        // Before there was a kind for folders, a slash at the end said so.
        if kind == EntryType::Regular && name.ends_with(b"/") {
            kind = EntryType::Directory;
        }
        let packed = pax.size.unwrap_or(size);
        self.begin(packed)?;
        let is_file = matches!(
            kind,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse
        );
        let mut entry = Entry {
            kind,
            link,
            mode: or_zero(&old.mode, header.mode())? & 0o7777,
            owner: (
                match pax.owner.0 {
                    Some(uid) => uid,
                    None => or_zero(&old.uid, header.uid())?,
                },
                match pax.owner.1 {
                    Some(gid) => gid,
                    None => or_zero(&old.gid, header.gid())?,
                },
            ),
            // The binary form of a number is signed, though the crate's type is not.
            time: match pax.time {
                Some(time) => time,
                None => (or_zero(&old.mtime, header.mtime())?.cast_signed(), 0),
            },
            device: (0, 0),
            xattrs: pax.xattrs,
            size: packed,
            pieces: Vec::new(),
            name,
        };
        if matches!(kind, EntryType::Char | EntryType::Block) {
            entry.device = (
                header.device_major().map_err(bad)?.unwrap_or(0),
                header.device_minor().map_err(bad)?.unwrap_or(0),
            );
        }
        if !is_file {
            let known = kind.is_dir()
                || kind.is_symlink()
                || kind.is_hard_link()
                || kind.is_fifo()
                || matches!(kind, EntryType::Char | EntryType::Block);
            // Readers do not agree whether content follows: such an archive is another one to each of them.
            if known && packed != 0 {
                return Err(refused(&entry.name, "has a length and is no file"));
            }
            return Ok(entry);
        }
        if kind == EntryType::GNUSparse {
            (entry.size, entry.pieces) = self.old_sparse(&header)?;
        } else if let Some((size, pieces)) = self.pax_sparse(pax.sparse)? {
            (entry.size, entry.pieces) = (size, pieces);
        } else {
            let length = packed;
            entry.pieces = vec![Piece { offset: 0, length }];
        }
        self.check_pieces(&entry)?;
        Ok(entry)
    }

    /// The pieces must be in order, within the file, and be all the data that there is.
    fn check_pieces(&self, entry: &Entry) -> Result<(), UnpackError> {
        let wrong = || refused(&entry.name, "has a map of its holes that cannot be right");
        let (mut end, mut data) = (0_u64, 0_u64);
        for piece in &entry.pieces {
            // Each starts a block of the archive, so that only the last may have an odd length.
            if piece.offset < end || (piece.length > 0 && !data.is_multiple_of(BLOCK)) {
                return Err(wrong());
            }
            end = piece.offset.checked_add(piece.length).ok_or_else(wrong)?;
            data = data.checked_add(piece.length).ok_or_else(wrong)?;
        }
        if end > entry.size || data != self.left || i64::try_from(entry.size).is_err() {
            return Err(wrong());
        }
        Ok(())
    }

    fn old_sparse(&mut self, header: &Header) -> Result<(u64, Vec<Piece>), UnpackError> {
        let bad = |error: io::Error| damaged(error.to_string());
        let gnu = header
            .as_gnu()
            .ok_or_else(|| damaged("a sparse file without a GNU header"))?;
        let mut pieces = Vec::new();
        let mut add = |blocks: &[tar::GnuSparseHeader]| {
            for block in blocks.iter().filter(|block| !block.is_empty()) {
                if pieces.len() == PIECES {
                    return Err(damaged("a sparse file in too many pieces"));
                }
                pieces.push(Piece {
                    offset: block.offset().map_err(bad)?,
                    length: block.length().map_err(bad)?,
                });
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut next = GnuExtSparseHeader::new();
            let count = fill(&mut self.input, next.as_mut_bytes()).map_err(&self.explain)?;
            if count < BLOCK as usize {
                return Err(damaged("it ends within the map of a sparse file"));
            }
            add(next.sparse())?;
            more = next.is_extended();
        }
        Ok((gnu.real_size().map_err(bad)?, pieces))
    }

    /// Versions 0.0 and 0.1 keep the map in the records, 1.0 before the data.
    fn pax_sparse(&mut self, sparse: Sparse) -> Result<Option<(u64, Vec<Piece>)>, UnpackError> {
        let missing = || damaged("a sparse file without its length");
        match (sparse.major, sparse.minor) {
            (None, _) | (Some(0), _) => match sparse.pieces {
                None if sparse.size.is_none() => Ok(None),
                None => Err(damaged("a sparse file without its map")),
                Some(pieces) => Ok(Some((sparse.size.ok_or_else(missing)?, pieces))),
            },
            (Some(1), Some(0)) => {
                let size = sparse.size.ok_or_else(missing)?;
                Ok(Some((size, self.map_before_data()?)))
            }
            (major, minor) => Err(UnpackError::Unsupported(format!(
                "a sparse file of version {}.{}",
                major.unwrap_or(0),
                minor.unwrap_or(0)
            ))),
        }
    }

    /// Decimal numbers, each with a line feed: how many pieces, then offset and length of each; the rest of the
    /// last block is filled up.
    fn map_before_data(&mut self) -> Result<Vec<Piece>, UnpackError> {
        let mut block = [0; BLOCK as usize];
        let mut at = block.len();
        let mut pieces = Vec::new();
        let mut number = || -> Result<u64, UnpackError> {
            let mut value: Option<u64> = None;
            loop {
                if at == block.len() {
                    if self.left < BLOCK {
                        return Err(damaged("a sparse file with an unfinished map"));
                    }
                    let count = fill(&mut self.input, &mut block).map_err(&self.explain)?;
                    if count < block.len() {
                        return Err(damaged("it ends within the map of a sparse file"));
                    }
                    self.left -= BLOCK;
                    at = 0;
                }
                let byte = block[at];
                at += 1;
                match (byte, value) {
                    (b'0'..=b'9', _) => {
                        let digit = u64::from(byte - b'0');
                        let next = value.unwrap_or(0).checked_mul(10);
                        value = next.and_then(|next| next.checked_add(digit));
                        if value.is_none() {
                            return Err(damaged("a number too large in the map of a sparse file"));
                        }
                    }
                    (b'\n', Some(value)) => return Ok(value),
                    _ => return Err(damaged("a map of a sparse file that is no list of numbers")),
                }
            }
        };
        let count = number()?;
        if count > PIECES as u64 {
            return Err(damaged("a sparse file in too many pieces"));
        }
        for _ in 0..count {
            pieces.push(Piece {
                offset: number()?,
                length: number()?,
            });
        }
        Ok(pieces)
    }

    /// Sets up to read `size` bytes of content.
    fn begin(&mut self, size: u64) -> Result<(), UnpackError> {
        let whole = size
            .checked_next_multiple_of(BLOCK)
            .ok_or_else(|| damaged("an entry longer than any file"))?;
        self.left = size;
        self.padding = whole - size;
        self.piece = 0;
        self.in_piece = 0;
        Ok(())
    }

    fn extended(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        if size > EXTENDED {
            return Err(damaged(format!("an extended header of {size} bytes")));
        }
        self.begin(size)?;
        let mut bytes = vec![0; size as usize];
        let count = self.fill(&mut bytes)?;
        if count < bytes.len() {
            return Err(self.cut());
        }
        self.left = 0;
        Ok(bytes)
    }

    fn pass_over(&mut self) -> Result<(), UnpackError> {
        let rest = self
            .left
            .checked_add(self.padding)
            .ok_or_else(|| damaged("an entry longer than any file"))?;
        (self.left, self.padding) = (0, 0);
        if rest == 0 {
            return Ok(());
        }
        let passed =
            io::copy(&mut (&mut self.input).take(rest), &mut io::sink()).map_err(&self.explain)?;
        if passed < rest {
            return Err(self.cut());
        }
        Ok(())
    }

    /// Fills a header block; `false` at the end of the input.
    fn block(&mut self, block: &mut [u8; BLOCK as usize]) -> Result<bool, UnpackError> {
        match self.fill(block)? {
            0 => Ok(false),
            count if count == block.len() => Ok(true),
            _ => Err(self.cut()),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, UnpackError> {
        fill(&mut self.input, buffer).map_err(&self.explain)
    }

    fn cut(&self) -> UnpackError {
        (self.explain)(io::ErrorKind::UnexpectedEof.into())
    }

    /// Reads what follows the archive's end, so that a digest is of every byte.
    pub(super) fn drain(mut self) -> Result<R, UnpackError> {
        io::copy(&mut self.input, &mut io::sink()).map_err(&self.explain)?;
        Ok(self.input)
    }
}

fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match input.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A number of a header; a field that was left blank is zero, as tar(1) takes it.
fn or_zero<T: Default>(field: &[u8], value: io::Result<T>) -> Result<T, UnpackError> {
    match value {
        Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(T::default()),
        other => other.map_err(|error| damaged(error.to_string())),
    }
}

/// The sum of all bytes of a header, its own field taken for blanks.
fn check_sum(header: &Header) -> Result<(), UnpackError> {
    let bytes = header.as_bytes();
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let expected = sum(&bytes[..148]) + 8 * u32::from(b' ') + sum(&bytes[156..]);
    let found = header.cksum().map_err(|error| damaged(error.to_string()))?;
    if found == expected {
        return Ok(());
    }
    Err(damaged("a header with a wrong checksum"))
}

impl Pax {
    fn read(&mut self, mut records: &[u8]) -> Result<(), UnpackError> {
        while !records.is_empty() {
            let (key, value, rest) =
                record(records).ok_or_else(|| damaged("a pax record that is none"))?;
            records = rest;
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(number(value)?),
                b"uid" => self.owner.0 = Some(number(value)?),
                b"gid" => self.owner.1 = Some(number(value)?),
                b"mtime" => self.time = Some(time(value)?),
                b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
                b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                    self.sparse.size = Some(number(value)?);
                }
                b"GNU.sparse.major" => self.sparse.major = Some(number(value)?),
                b"GNU.sparse.minor" => self.sparse.minor = Some(number(value)?),
                b"GNU.sparse.numblocks" => {
                    self.sparse.pieces.get_or_insert_default();
                }
                b"GNU.sparse.map" => self.sparse.pieces = Some(map(value)?),
                b"GNU.sparse.offset" => self.sparse.offset = Some(number(value)?),
                b"GNU.sparse.numbytes" => {
                    let offset = self.sparse.offset.take();
                    let offset = offset.ok_or_else(|| damaged("a piece without its place"))?;
                    let length = number(value)?;
                    let pieces = self.sparse.pieces.get_or_insert_default();
                    pieces.push(Piece { offset, length });
                }
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.retain(|(known, _)| known != name);
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Splits the first of some records, `LENGTH KEY=VALUE` and a line feed, from the others: the length is that of all.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let digits = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..digits]).ok()?.parse().ok()?;
    let (record, rest) = records.split_at_checked(length)?;
    let record = record.get(digits + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

fn number(text: &[u8]) -> Result<u64, UnpackError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| damaged("a record that is no number"))
}

/// `OFFSET,LENGTH,OFFSET,LENGTH,…`
fn map(text: &[u8]) -> Result<Vec<Piece>, UnpackError> {
    let mut pieces = Vec::new();
    let mut numbers = text.split(|byte| *byte == b',').map(number);
    if text.is_empty() {
        return Ok(pieces);
    }
    while let Some(offset) = numbers.next() {
        let offset = offset?;
        let length = numbers
            .next()
            .ok_or_else(|| damaged("a piece without its length"))??;
        pieces.push(Piece { offset, length });
    }
    Ok(pieces)
}

/// Seconds with a fraction, also before 1970.
fn time(text: &[u8]) -> Result<(i64, u32), UnpackError> {
    let bad = || damaged("a time that is no number");
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let seconds: i64 = whole.parse().map_err(|_| bad())?;
    let nanos: u32 = format!("{fraction:0<9}")[..9].parse().map_err(|_| bad())?;
    if text.starts_with('-') && nanos > 0 {
        // The kernel counts the fraction upwards from the second before.
        return Ok((seconds.saturating_sub(1), 1_000_000_000 - nanos));
    }
    Ok((seconds, nanos))
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
