//! [`TreeWriter`]: tar archives and layers of container images into a folder.

use std::io::{self, Read, Seek};
use std::path::Path;

use super::archive::Archive;
use super::layer::{self, Whiteouts};
use super::tree::Tree;
use super::{Stream, UnpackError};
use crate::limits::{Cancel, Limits};

/// A folder that tar archives are unpacked to, and that no entry of theirs leaves.
///
/// Links in the archive lead where they would inside the folder, absolute ones too; names that lead out are refused. As
/// root, owners, devices and set-id bits are kept: keep the folder's parent closed to others. After an error the folder
/// holds what was unpacked so far.
///
/// ```no_run
/// use nspawn_image::{Limits, TreeWriter};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut tree = TreeWriter::create("/srv/tree", &Limits::default())?;
/// tree.add_archive(std::fs::File::open("rootfs.tar")?)?;
/// tree.finish()?;
/// # Ok(())
/// # }
/// ```
pub struct TreeWriter {
    tree: Tree,
    limits: Limits,
}

impl std::fmt::Debug for TreeWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeWriter")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

fn explain(source: io::Error) -> UnpackError {
    UnpackError::Damaged {
        format: "tar",
        source,
    }
}

impl TreeWriter {
    /// Makes the folder `path`; `entries` and `unpacked` of the limits hold for all archives together.
    ///
    /// # Errors
    ///
    /// [`UnpackError::Write`] where it cannot be made, or is there already.
    pub fn create(path: impl AsRef<Path>, limits: &Limits) -> Result<Self, UnpackError> {
        Ok(Self {
            tree: Tree::create(path.as_ref(), limits)?,
            limits: limits.clone(),
        })
    }

    /// Unpacks an archive that is not compressed; of two files of one name the later counts.
    ///
    /// # Errors
    ///
    /// See [`UnpackError`]. Never panics, whatever `archive` holds.
    pub fn add_archive(&mut self, archive: impl Read) -> Result<(), UnpackError> {
        let mut archive = Archive::new(archive, explain);
        while let Some(entry) = archive.next()? {
            self.tree.add(&entry, &mut archive)?;
        }
        Ok(())
    }

    /// Applies a layer of a container image that is not compressed: what its whiteouts name is removed first.
    ///
    /// # Errors
    ///
    /// See [`UnpackError`]. Never panics, whatever `layer` holds.
    pub fn add_layer(&mut self, mut layer: impl Read + Seek) -> Result<(), UnpackError> {
        let length = layer.seek(io::SeekFrom::End(0)).map_err(explain)?;
        layer.rewind().map_err(explain)?;
        let cancel = Cancel::default();
        let stream = Stream::of(Box::new(&mut layer), "tar", length, &self.limits, &cancel);
        let meaning = stream.explainer();
        let whiteouts = Whiteouts::scan(stream, meaning, &self.limits)?;
        whiteouts.apply(&mut self.tree)?;
        layer.rewind().map_err(explain)?;
        layer::add_layer(&mut self.tree, &mut layer, explain, || {})
    }

    /// Gives the folders their modes and times, and writes everything to the disk.
    ///
    /// # Errors
    ///
    /// [`UnpackError::Write`].
    pub fn finish(self) -> Result<(), UnpackError> {
        self.tree.finish()
    }
}
