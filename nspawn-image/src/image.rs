//! [`Image`]: what a machine is started from, and the lock that keeps it there meanwhile.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Digest;
use crate::disk::{Architecture, PartitionTable, RootPartition};
use crate::error::{ImageError, PathContext};
use crate::reference::ImageName;

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageKind {
    /// A raw disk image: a file with a partition table or one file system.
    Disk,
    /// A folder that holds an OS tree.
    Tree,
}

/// An image that is there, complete and ready to be started from, read-only.
///
/// Clones share the lock: as long as one lives, the store does not remove the image.
#[derive(Clone, Debug)]
pub struct Image {
    pub(crate) path: PathBuf,
    pub(crate) kind: ImageKind,
    pub(crate) digest: Option<Digest>,
    pub(crate) name: Option<ImageName>,
    pub(crate) lock: Option<ImageLock>,
}

/// A shared lock on an image in the store.
///
/// It is a file description with `flock(LOCK_SH)`: a child process that inherits the descriptor holds the lock
/// too, and the kernel drops it when the last of them is gone, however they end.
#[derive(Clone, Debug)]
pub struct ImageLock(pub(crate) Arc<File>);

impl AsFd for ImageLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Image {
    /// The disk image's file or the OS tree's folder, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Disk or tree.
    pub fn kind(&self) -> ImageKind {
        self.kind
    }

    /// The SHA-256 of the bytes downloaded or imported; `None` for what is used in place and was not checked.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The name in the store; `None` for what is used in place.
    pub fn name(&self) -> Option<&ImageName> {
        self.name.as_ref()
    }

    /// The lock that keeps the store from removing it; `None` for what is used in place.
    pub fn lock(&self) -> Option<ImageLock> {
        self.lock.clone()
    }

    /// Finds the root file system of a disk, by this machine's architecture.
    ///
    /// # Errors
    ///
    /// [`ImageError::Disk`] with what is on the disk instead; [`ImageError::Unsupported`] for a tree.
    pub fn root_partition(&self) -> Result<RootPartition, ImageError> {
        let (table, file) = self.open_table()?;
        table
            .root(&file, Architecture::native())
            .map_err(|source| ImageError::Disk {
                path: self.path.clone(),
                source,
            })
    }

    /// Reads the partition table of a disk.
    ///
    /// # Errors
    ///
    /// As [`root_partition`](Self::root_partition).
    pub fn partition_table(&self) -> Result<PartitionTable, ImageError> {
        self.open_table().map(|(table, _)| table)
    }

    fn open_table(&self) -> Result<(PartitionTable, File), ImageError> {
        if self.kind == ImageKind::Tree {
            let what = self.path.display().to_string();
            return Err(ImageError::Unsupported {
                what,
                found: "a partition in a folder".to_owned(),
            });
        }
        let file = File::open(&self.path).at("open", &self.path)?;
        let table = PartitionTable::read(&file).map_err(|source| ImageError::Disk {
            path: self.path.clone(),
            source,
        })?;
        Ok((table, file))
    }
}
