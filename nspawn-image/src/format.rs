//! What a file is, by its first bytes: nothing is decided by a name.

use crate::disk::{DiskError, PartitionTable};
use crate::source::ReadAt;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Qcow2,
    /// A partition table or a bare file system; also a table that is damaged, which is told when it is used.
    Raw,
    Tar,
    Compressed(Codec),
    Zip,
    /// Known by name, and not offered.
    Unsupported(&'static str),
    /// Nothing an image could be.
    NoImage(&'static str),
}

/// A compression around another format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
}

impl Codec {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        }
    }
}

/// Bytes that detection looks at, at most; a bare btrfs has its magic bytes at 64 KiB.
pub(crate) const HEAD: usize = 128 << 10;

/// Offset, magic bytes, meaning; the first that fits.
const MAGIC: &[(usize, &[u8], Format)] = &[
    (0, b"QFI\xfb", Format::Qcow2),
    (0, &[0x1f, 0x8b], Format::Compressed(Codec::Gzip)),
    (0, b"\xfd7zXZ\0", Format::Compressed(Codec::Xz)),
    (
        0,
        &[0x28, 0xb5, 0x2f, 0xfd],
        Format::Compressed(Codec::Zstd),
    ),
    (0, b"BZh", Format::Compressed(Codec::Bzip2)),
    (257, b"ustar", Format::Tar),
    (0, b"PK\x03\x04", Format::Zip),
    (
        0,
        b"7z\xbc\xaf\x27\x1c",
        Format::Unsupported("a 7-Zip archive"),
    ),
    (0, b"KDMV", Format::Unsupported("a VMware disk (vmdk)")),
    (
        0,
        b"# Disk DescriptorFile",
        Format::Unsupported("a VMware disk (vmdk)"),
    ),
    (
        64,
        &[0x7f, 0x10, 0xda, 0xbe],
        Format::Unsupported("a VirtualBox disk (vdi)"),
    ),
    (0, b"vhdxfile", Format::Unsupported("a Hyper-V disk (vhdx)")),
    (
        0,
        b"conectix",
        Format::Unsupported("a Virtual PC disk (vhd)"),
    ),
    (0, b"QED\0", Format::Unsupported("a QED disk")),
    (
        0,
        b"WithoutFreeSpace",
        Format::Unsupported("a Parallels disk"),
    ),
    (32769, b"CD001", Format::Unsupported("an ISO 9660 image")),
    (0, b"\x7fELF", Format::NoImage("an executable")),
    (0, b"\x89PNG", Format::NoImage("a picture")),
    (0, b"%PDF", Format::NoImage("a PDF")),
];

/// Tells the format of `source`.
///
/// # Errors
///
/// What the system answers when reading.
pub(crate) fn detect(source: &dyn ReadAt) -> std::io::Result<Format> {
    let mut head = vec![0; HEAD];
    let count = source.read_at(&mut head, 0)?;
    let head = &head[..count];
    if head.is_empty() {
        return Ok(Format::NoImage("an empty file"));
    }
    let hit = MAGIC
        .iter()
        .find(|(at, magic, _)| head.get(*at..at + magic.len()) == Some(*magic));
    if let Some((.., format)) = hit {
        return Ok(*format);
    }
    match PartitionTable::read(source) {
        Ok(_) | Err(DiskError::Damaged(_)) => return Ok(Format::Raw),
        Err(DiskError::Read(error)) => return Err(error),
        Err(_) => {}
    }
    let sample = &head[..head.len().min(1024)];
    let whole = std::str::from_utf8(sample).map_or_else(|error| error.valid_up_to(), str::len);
    let text = whole + 4 > sample.len()
        && !sample
            .iter()
            .any(|byte| matches!(byte, 0..=8 | 14..=31 | 127));
    let start = head.trim_ascii_start().first();
    Ok(Format::NoImage(match (text, start) {
        (true, Some(b'<')) => "a web page",
        (true, _) => "a text file",
        (false, _) if head.iter().all(|byte| *byte == 0) => "a file of zeros",
        (false, _) => "neither a partition table, a file system nor an archive",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_their_first_bytes() {
        let at = |offset: usize, magic: &[u8]| {
            let mut bytes = vec![0; 64 << 10];
            bytes[offset..offset + magic.len()].copy_from_slice(magic);
            bytes
        };
        let table: [(Vec<u8>, Format); 13] = [
            (at(0, b"QFI\xfb"), Format::Qcow2),
            (at(0, b"BZh9"), Format::Compressed(Codec::Bzip2)),
            (at(257, b"ustar\0"), Format::Tar),
            (at(1080, &[0x53, 0xef]), Format::Raw),
            (at(0, b"LUKS\xba\xbe"), Format::Raw),
            (
                at(0, b"vhdxfile"),
                Format::Unsupported("a Hyper-V disk (vhdx)"),
            ),
            (
                at(32769, b"CD001"),
                Format::Unsupported("an ISO 9660 image"),
            ),
            (vec![], Format::NoImage("an empty file")),
            (b"hello\n".to_vec(), Format::NoImage("a text file")),
            (b"  <!DOCTYPE html>".to_vec(), Format::NoImage("a web page")),
            (vec![0; 4096], Format::NoImage("a file of zeros")),
            (
                vec![1; 4096],
                Format::NoImage("neither a partition table, a file system nor an archive"),
            ),
            (b"PK\x03\x04".to_vec(), Format::Zip),
        ];
        for (bytes, format) in table {
            assert_eq!(detect(&bytes).unwrap(), format);
        }
    }
}
