//! Whether an image in the store still is what it was.

use super::Store;
use super::content::{Content, Damage};
use super::lock::{self, KeyLock};
use super::record::{self, Record};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::ImageKind;
use crate::limits::Cancel;
use crate::reference::ImageName;
use crate::report::{Reporter, Step, StepKind};

/// What [`Store::verify`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Soundness {
    /// Nothing changed since its digests were written down.
    Sound,
    /// There were no digests of it yet: there are from now on.
    Recorded,
    /// It is not what it was.
    Damaged(Damage),
}

impl Store {
    /// Compares an image with the digests that were written down of it, and writes them down where none were.
    ///
    /// # Errors
    ///
    /// [`ImageError::NotStored`], [`ImageError::Missing`] where the name is there and the image is not,
    /// [`ImageError::Record`] where the digests themselves are damaged, [`ImageError::Path`], and
    /// [`ImageError::Cancelled`].
    pub fn verify(
        &self,
        name: &ImageName,
        cancel: &Cancel,
        reporter: &mut dyn Reporter,
    ) -> Result<Soundness, ImageError> {
        let Some(record) = Record::read(&record::path(&self.refs(), name))? else {
            return Err(self.unknown(name));
        };
        let Some(blob) = record.blob() else {
            return Err(self.unknown(name));
        };
        let kind = record.kind.into();
        let path = self.blob(&blob, kind);
        let Some(_lock) = lock::share(&path)? else {
            return Err(ImageError::Missing(path));
        };
        let now = self.hash(&blob, kind, name.as_str(), cancel, reporter)?;
        if let Some(was) = Content::read(&self.sums(&blob))? {
            return Ok(match was.compare(&now) {
                None => Soundness::Sound,
                Some(damage) => Soundness::Damaged(damage),
            });
        }
        let _key = KeyLock::wait(&self.lock_path(&blob.hex()), cancel, reporter)?;
        now.write(&self.sums(&blob))?;
        Ok(Soundness::Recorded)
    }

    /// Hashes a blob.
    fn hash(
        &self,
        blob: &Digest,
        kind: ImageKind,
        what: &str,
        cancel: &Cancel,
        reporter: &mut dyn Reporter,
    ) -> Result<Content, ImageError> {
        let path = self.blob(blob, kind);
        let total = super::disk_usage(&path);
        let mut step = Step::begin(reporter, StepKind::Verify, what, Some(total));
        let mut progress = |done: u64| step.at(done.min(total));
        match kind {
            ImageKind::Disk => Content::of_disk(&path, cancel, &mut progress),
            ImageKind::Tree => Content::of_tree(&path, cancel, &mut progress),
        }
    }
}
