//! Which file system a partition holds, by its magic bytes.

use std::fmt;
use std::io;

use crate::source::ReadAt;

/// A file system a machine can be started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileSystem {
    /// ext2, ext3 or ext4: one driver mounts them all.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// SquashFS.
    Squashfs,
    /// EROFS.
    Erofs,
}

impl FileSystem {
    /// The type that mount(2) takes.
    pub fn mount_type(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.mount_type())
    }
}

/// What stands in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    FileSystem(FileSystem),
    /// Known by name, and not mounted here.
    Refused(&'static str),
}

/// Offset in bytes, magic bytes, meaning. Source: libblkid's probes, and each file system's own headers.
const MAGIC: &[(u64, &[u8], Content)] = &[
    (0, b"LUKS\xba\xbe", Content::Refused("encrypted (LUKS)")),
    (0, b"verity\0\0", Content::Refused("dm-verity data")),
    (
        0x218,
        b"LVM2 001",
        Content::Refused("an LVM physical volume"),
    ),
    (0, b"XFSB", Content::FileSystem(FileSystem::Xfs)),
    (0, b"hsqs", Content::FileSystem(FileSystem::Squashfs)),
    (
        1024,
        &[0xe2, 0xe1, 0xf5, 0xe0],
        Content::FileSystem(FileSystem::Erofs),
    ),
    (
        1024 + 56,
        &[0x53, 0xef],
        Content::FileSystem(FileSystem::Ext4),
    ),
    (0x10040, b"_BHRfS_M", Content::FileSystem(FileSystem::Btrfs)),
    (
        0x1018,
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca],
        Content::Refused("bcachefs"),
    ),
    (0x400, &[0x10, 0x20, 0xf5, 0xf2], Content::Refused("f2fs")),
    (4086, b"SWAPSPACE2", Content::Refused("swap space")),
    (0x36, b"FAT1", Content::Refused("FAT")),
    (0x52, b"FAT32", Content::Refused("FAT")),
    (3, b"NTFS    ", Content::Refused("NTFS")),
];

/// Looks at the first bytes of the partition at `offset`, both numbers in bytes.
pub(crate) fn probe(
    disk: &(impl ReadAt + ?Sized),
    offset: u64,
    length: u64,
) -> io::Result<Option<Content>> {
    for (at, magic, content) in MAGIC {
        let end = at + magic.len() as u64;
        if end > length {
            continue;
        }
        let mut found = [0; 16];
        let found = &mut found[..magic.len()];
        let Some(position) = offset.checked_add(*at) else {
            continue;
        };
        if disk.read_at(found, position)? == magic.len() && found == *magic {
            return Ok(Some(*content));
        }
    }
    Ok(None)
}
