//! Whether an image in the store still is what it was.

use std::fs::File;

use super::Store;
use super::lock::{self, KeyLock};
use super::record::{self, Record};
use crate::content::{Content, Damage};
use crate::convert::DiskSums;
use crate::digest::Digest;
use crate::error::{ImageError, PathContext};
use crate::image::ImageKind;
use crate::limits::Cancel;
use crate::reference::ImageName;
use crate::report::{Reporter, Step, StepKind};
use crate::source::ReadAt;
use crate::unpack;

/// What [`Store::verify`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Soundness {
    /// Nothing changed since it was made.
    Sound,
    /// There were no checksums of it, as an older version made it or a removal was killed: there are from now on.
    Recorded,
    /// It is not what it was.
    Damaged(Damage),
}

impl Store {
    /// Compares an image with the checksums that were taken of it when it was made. They find damage, wherever it is, and
    /// no intent: who may change the image may change them too.
    ///
    /// # Errors
    ///
    /// [`ImageError::NotStored`], [`ImageError::Missing`] where the name is there and the image is not,
    /// [`ImageError::Record`] where the checksums themselves are damaged, [`ImageError::Path`], and
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
        let now = self.content(&blob, kind, name.as_str(), cancel, reporter)?;
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

    /// What a blob holds now.
    fn content(
        &self,
        blob: &Digest,
        kind: ImageKind,
        what: &str,
        cancel: &Cancel,
        reporter: &mut dyn Reporter,
    ) -> Result<Content, ImageError> {
        let path = self.blob(blob, kind);
        if kind == ImageKind::Tree {
            let total = super::disk_usage(&path);
            let mut step = Step::begin(reporter, StepKind::Verify, what, Some(total));
            return Content::of_tree(&path, cancel, &mut |done| step.at(done.min(total)));
        }
        let disk = File::open(&path).at("open", &path)?;
        let total = disk.size().at("read", &path)?;
        let mut step = Step::begin(reporter, StepKind::Verify, what, Some(total));
        let sums = DiskSums::of(disk, cancel, &mut |done| step.at(done))
            .map_err(|source| unpack::qcow2_error(source, &path, &path))?;
        Ok(Content::Disk(sums))
    }
}
