//! The one disk image in a zip archive.
//!
//! A zip archive says everything twice: in a header before each file and in the list at its end. Readers differ in which
//! they believe, so that a file of which the two do not agree is refused.

use std::cell::Cell;
use std::fs;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use zip::ZipArchive;
use zip::result::ZipError;

use super::{Import, Imported, Source, Stream, UnpackError};
use crate::error::{ImageError, PathContext};
use crate::format::{self, Format};
use crate::report::{Reporter, Step, StepKind};
use crate::source::Cursor;

/// Most bytes read to learn what an archive holds: its list is kept in memory.
const LIST: u64 = 16 << 20;
/// Most files of an archive; more is no way to publish an image.
const FILES: usize = 1000;

/// The archive's file, of which only so much may be read.
struct Capped<'a> {
    file: BufReader<Cursor<&'a Source>>,
    left: Rc<Cell<u64>>,
}

impl Read for Capped<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        match self.left.get().checked_sub(count as u64) {
            Some(left) => self.left.set(left),
            None => return Err(io::Error::other("its list of files is too long")),
        }
        Ok(count)
    }
}

impl Seek for Capped<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

fn damaged(error: ZipError) -> UnpackError {
    let source = match error {
        ZipError::Io(source) => source,
        ZipError::UnsupportedArchive(what) => return UnpackError::Unsupported(what.to_owned()),
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    };
    UnpackError::Damaged {
        format: "zip",
        source,
    }
}

impl Import<'_> {
    pub(super) fn zip(
        &self,
        source: &Source,
        reporter: &mut dyn Reporter,
    ) -> Result<Imported, ImageError> {
        let left = Rc::new(Cell::new(LIST));
        let capped = Capped {
            file: BufReader::new(Cursor::new(source)),
            left: Rc::clone(&left),
        };
        let failed = |error| self.unpack_error(error);
        let mut archive = ZipArchive::new(capped).map_err(|error| failed(damaged(error)))?;
        left.set(u64::MAX);
        let (index, format) = self.find(&mut archive, source)?;
        let entry = archive
            .by_index(index)
            .map_err(|error| failed(damaged(error)))?;
        let (size, packed) = (entry.size(), entry.compressed_size());
        let options = self.options;
        let mut stream = Stream::of(
            Box::new(entry),
            "zip",
            packed,
            &options.limits,
            &options.cancel,
        );
        let mut head = vec![0; format::HEAD];
        let count = stream
            .fill(&mut head)
            .map_err(|error| failed(stream.explain(error)))?;
        head.truncate(count);
        if format == Format::Qcow2 {
            let spool = self.spool(&head, stream, packed, reporter)?;
            let length = spool.metadata().at("read", &self.work.spool)?.len();
            self.same_length(size, length)?;
            let imported = self.qcow2(&spool, reporter)?;
            let _ = fs::remove_file(&self.work.spool);
            return Ok(imported);
        }
        let mut step = Step::begin(reporter, StepKind::Unpack, self.what, Some(packed));
        let imported = self.write_raw(&head, stream, &mut step)?;
        self.same_length(size, imported.virtual_size)?;
        Ok(imported)
    }

    /// The only disk image, by what the files begin with, and its format.
    fn find(
        &self,
        archive: &mut ZipArchive<Capped<'_>>,
        raw: &Source,
    ) -> Result<(usize, Format), ImageError> {
        let failed = |error| self.unpack_error(error);
        if archive.len() > FILES {
            let limit = FILES as u64;
            return Err(failed(UnpackError::Entries { limit }));
        }
        let mut disks = Vec::new();
        let mut unsupported = None;
        for index in 0..archive.len() {
            let entry = archive
                .by_index_raw(index)
                .map_err(|error| failed(damaged(error)))?;
            let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
            if entry.encrypted() {
                let what = format!("the encrypted file {name:?}");
                return Err(failed(UnpackError::Unsupported(what)));
            }
            if !entry.is_file() || entry.is_symlink() {
                continue;
            }
            let told = Told {
                name: entry.name_raw().to_vec(),
                packed: entry.compressed_size(),
                size: entry.size(),
                crc: entry.crc32(),
            };
            let reason = told.differs(raw, entry.header_start());
            if let Some(reason) = reason.at("read", Path::new(self.what))? {
                return Err(failed(UnpackError::Entry { name, reason }));
            }
            drop(entry);
            let mut entry = archive
                .by_index(index)
                .map_err(|error| failed(damaged(error)))?;
            let mut head = Vec::new();
            (&mut entry)
                .take(format::HEAD as u64)
                .read_to_end(&mut head)
                .map_err(|error| failed(damaged(error.into())))?;
            match format::detect(&head).at("read", Path::new(self.what))? {
                found @ (Format::Raw | Format::Qcow2) => disks.push((index, found, name)),
                Format::NoImage(_) => {}
                Format::Unsupported(found) => unsupported = Some(found),
                Format::Tar => unsupported = Some("a tar archive inside it"),
                Format::Zip => unsupported = Some("a zip archive inside it"),
                Format::Compressed(_) => unsupported = Some("a compressed file inside it"),
            }
        }
        match (&disks[..], unsupported) {
            ([(index, found, _)], _) => Ok((*index, *found)),
            ([], None) => Err(ImageError::NoImage {
                what: self.what.to_owned(),
                found: "a zip archive without a disk image".to_owned(),
            }),
            ([], Some(found)) => Err(failed(UnpackError::Unsupported(found.to_owned()))),
            (several, _) => {
                let names: Vec<String> = several
                    .iter()
                    .map(|(.., name)| format!("{name:?}"))
                    .collect();
                let what = format!("more than one disk image ({})", names.join(", "));
                Err(failed(UnpackError::Unsupported(what)))
            }
        }
    }

    fn same_length(&self, told: u64, found: u64) -> Result<(), ImageError> {
        if told == found {
            return Ok(());
        }
        let text = format!("{found} bytes came of a file said to have {told}");
        Err(self.unpack_error(UnpackError::Damaged {
            format: "zip",
            source: io::Error::new(io::ErrorKind::InvalidData, text),
        }))
    }
}

/// What the list at the archive's end says of a file.
struct Told {
    name: Vec<u8>,
    packed: u64,
    size: u64,
    crc: u32,
}

impl Told {
    /// What differs in the header before the file, if anything does. Source: APPNOTE.TXT 6.3.10, 4.3.7 and 4.5.3.
    fn differs(&self, file: &Source, at: u64) -> io::Result<Option<&'static str>> {
        let mut fixed = [0; 30];
        file.read_exact_at(&mut fixed, at)?;
        let short = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
        let long = |at: usize| {
            u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]])
        };
        if fixed[..4] != *b"PK\x03\x04" {
            return Ok(Some("has no header of its own"));
        }
        let mut name = vec![0; short(26).into()];
        file.read_exact_at(&mut name, at + 30)?;
        if name != self.name {
            return Ok(Some("has another name in its own header"));
        }
        let mut extra = vec![0; short(28).into()];
        file.read_exact_at(&mut extra, at + 30 + name.len() as u64)?;
        // Where the writer could not know before, the numbers follow the data, and here are zeros.
        let later = short(6) & 8 != 0;
        if (long(14), later) != (self.crc, later) && !(later && long(14) == 0) {
            return Ok(Some("has another checksum in its own header"));
        }
        let (packed, size) = sizes(u64::from(long(18)), u64::from(long(22)), &extra);
        let same = |own: u64, told: u64| own == told || (later && own == 0);
        if !same(packed, self.packed) || !same(size, self.size) {
            return Ok(Some("has another length in its own header"));
        }
        Ok(None)
    }
}

/// Packed and unpacked size, which stand in an extra field where 32 bits do not hold them.
fn sizes(packed: u64, size: u64, mut extra: &[u8]) -> (u64, u64) {
    const FULL: u64 = u32::MAX as u64;
    while let [a, b, c, d, rest @ ..] = extra {
        let length = usize::from(u16::from_le_bytes([*c, *d])).min(rest.len());
        let (field, next) = rest.split_at(length);
        extra = next;
        if u16::from_le_bytes([*a, *b]) != 1 {
            continue;
        }
        let mut numbers = field.chunks_exact(8).map(|bytes| {
            bytes
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        });
        let mut wide = |own: u64| {
            if own == FULL {
                numbers.next().unwrap_or(own)
            } else {
                own
            }
        };
        let size = wide(size);
        return (wide(packed), size);
    }
    (packed, size)
}
