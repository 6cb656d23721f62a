//! Files of an ext2, ext3 or ext4 inside a disk image: read by the `ext4-view` crate, with no mount and no root.

use std::error::Error as StdError;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use ext4_view::{Ext4, Ext4Error, Ext4Read, Metadata};

use super::files::{MAX_NAMES, OsFiles};
use crate::disk::RootPartition;
use crate::source::ReadAt;

/// The most block groups, for each of which a descriptor is held in memory: 8 TiB in blocks of 1 KiB.
const MAX_GROUPS: u64 = 1 << 20;

/// The longest path and the longest link, in bytes, as in Linux (`PATH_MAX`).
const MAX_PATH: usize = 4096;
/// The most links followed for one path, as in Linux (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// A partition as the crate reads it.
struct Window {
    disk: Arc<dyn ReadAt>,
    offset: u64,
    length: u64,
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        start: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn StdError + Send + Sync + 'static>> {
        let end = start.checked_add(buffer.len() as u64);
        let position = self.offset.checked_add(start);
        match (end, position) {
            (Some(end), Some(position)) if end <= self.length => {
                Ok(self.disk.read_exact_at(buffer, position)?)
            }
            _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }
}

/// The files of one file system.
pub(super) struct Ext4Files(Ext4);

impl Ext4Files {
    /// Reads the superblock, the groups and the journal of what stands in a partition.
    pub(super) fn open(disk: Arc<dyn ReadAt>, root: &RootPartition) -> io::Result<Self> {
        check_size(&*disk, root)?;
        let window = Window {
            disk,
            offset: root.offset,
            length: root.length,
        };
        Ext4::load(Box::new(window)).map(Self).map_err(explained)
    }

    /// Where a path leads, with no link left in it but, where `last_too` is not set, the last part.
    ///
    /// The crate would follow links too, and take memory for as long a target as the image claims.
    fn resolve(&self, path: &str, last_too: bool) -> io::Result<Vec<u8>> {
        let parts = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/')
                .rev()
                .map(<[u8]>::to_vec)
                .collect()
        };
        let mut left = parts(path.as_bytes());
        let mut found = Vec::new();
        let mut links = 0;
        while let Some(part) = left.pop() {
            let parent = found.len();
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    let start = found.iter().rposition(|byte| *byte == b'/');
                    found.truncate(start.unwrap_or(0));
                    continue;
                }
                name => {
                    found.push(b'/');
                    found.extend_from_slice(name);
                }
            }
            if found.len() > MAX_PATH {
                return Err(io::ErrorKind::NotFound.into());
            }
            let metadata = self
                .0
                .symlink_metadata(found.as_slice())
                .map_err(explained)?;
            if !metadata.is_symlink() || (left.is_empty() && !last_too) {
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(io::ErrorKind::NotFound.into());
            }
            let target = self.target(&found, &metadata)?;
            let is_absolute = target.first() == Some(&b'/');
            found.truncate(if is_absolute { 0 } else { parent });
            left.extend(parts(&target));
        }
        if found.is_empty() {
            found.push(b'/');
        }
        Ok(found)
    }

    /// Where a link leads, whose path holds no other.
    fn target(&self, path: &[u8], metadata: &Metadata) -> io::Result<Vec<u8>> {
        // One that the kernel would not follow.
        if metadata.is_symlink() && metadata.len() > MAX_PATH as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let target = self.0.read_link(path).map_err(explained)?;
        Ok(target.as_ref().to_vec())
    }
}

/// Refuses numbers of the superblock that the partition cannot hold, before memory is taken by them.
///
/// Source: Linux Documentation/filesystems/ext4/super.rst.
fn check_size(disk: &dyn ReadAt, root: &RootPartition) -> io::Result<()> {
    let mut block = [0; 1024];
    disk.read_exact_at(&mut block, root.offset.saturating_add(1024))?;
    let u32_at = |at: usize| {
        u64::from(u32::from_le_bytes([
            block[at],
            block[at + 1],
            block[at + 2],
            block[at + 3],
        ]))
    };
    // The crate reads the upper half whether or not the file system is a 64-bit one.
    let blocks = u32_at(4) | u32_at(0x150) << 32;
    let (log_size, per_group) = (u32_at(24), u32_at(32));
    let fits = log_size <= 6
        && per_group > 0
        && blocks.div_ceil(per_group) <= MAX_GROUPS
        && blocks
            .checked_mul(1024 << log_size)
            .is_some_and(|bytes| bytes <= root.length);
    if fits {
        return Ok(());
    }
    let reason = "its superblock promises more than the partition holds";
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
}

fn explained(error: Ext4Error) -> io::Error {
    let kind = match &error {
        Ext4Error::NotFound => io::ErrorKind::NotFound,
        Ext4Error::NotADirectory | Ext4Error::TooManySymlinks => io::ErrorKind::NotFound,
        Ext4Error::NotASymlink | Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => {
            io::ErrorKind::InvalidInput
        }
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error.to_string())
}

impl OsFiles for Ext4Files {
    fn read(&self, path: &str, limit: usize) -> io::Result<Vec<u8>> {
        let mut file = self
            .0
            .open(self.resolve(path, true)?.as_slice())
            .map_err(explained)?;
        // The length is the image's own word: memory is taken as bytes come.
        let mut bytes = Vec::new();
        let mut buffer = vec![0; limit.min(64 << 10)];
        while bytes.len() < limit {
            let wanted = buffer.len().min(limit - bytes.len());
            match file.read_bytes(&mut buffer[..wanted]).map_err(explained)? {
                0 => break,
                count => bytes.extend_from_slice(&buffer[..count]),
            }
        }
        Ok(bytes)
    }

    fn read_link(&self, path: &str) -> io::Result<PathBuf> {
        let path = self.resolve(path, false)?;
        let metadata = self
            .0
            .symlink_metadata(path.as_slice())
            .map_err(explained)?;
        let target = self.target(&path, &metadata)?;
        Ok(PathBuf::from(OsStr::from_bytes(&target)))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let path = self.resolve(path, true)?;
        let entries = self.0.read_dir(path.as_slice()).map_err(explained)?;
        for entry in entries.take(MAX_NAMES) {
            let entry = entry.map_err(explained)?;
            match entry.file_name().as_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) => names.push(name.to_owned()),
            }
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        match self.resolve(path, false) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}
