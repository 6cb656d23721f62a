//! From an import that is verified to an image that everybody sees: the blob first, then the name.

use std::fs::{self, File};
use std::time::SystemTime;

use super::Store;
use super::lock::{self, KeyLock};
use super::record::{self, Record};
use crate::digest::{Digest, Digests, Hasher};
use crate::error::{ImageError, PathContext};
use crate::fetch::{self, Validators};
use crate::image::{Image, ImageKind};
use crate::options::PullOptions;
use crate::reference::ImageName;
use crate::report::{Reporter, Step, StepKind};
use crate::unpack::{Imported, WorkPaths};
use crate::verify::{Verification, Verified};

/// Where what is to be published came from, and how it is found again.
pub(super) struct Origin {
    pub(super) source: String,
    pub(super) key: String,
    pub(super) validators: Validators,
    pub(super) name: ImageName,
    /// What beside its bytes makes the image what it is.
    pub(super) variant: Option<String>,
}

impl Origin {
    /// What the image is kept under.
    fn blob(&self, digests: &Digests) -> Digest {
        let Some(variant) = &self.variant else {
            return digests.sha256;
        };
        let mut hasher = Hasher::new(None);
        hasher.update(format!("{}\n{variant}", digests.sha256).as_bytes());
        hasher.finish().sha256
    }
}

/// What is known of the bytes of an image.
pub(super) struct Known {
    pub(super) digests: Digests,
    pub(super) verification: Verification,
}

impl Store {
    /// Makes an import of verified bytes visible. Its work is removed, whatever comes.
    pub(super) fn publish(
        &self,
        imported: Result<Imported, ImageError>,
        verified: &Verified,
        origin: Origin,
        options: &PullOptions,
        reporter: &mut dyn Reporter,
    ) -> Result<Image, ImageError> {
        let work = self.work(&origin.key);
        let known = Known {
            digests: verified.digests,
            verification: verified.verification.clone(),
        };
        let result = self.publish_made(known, origin, options, reporter, |_, _| imported);
        work.clear();
        result
    }

    /// Makes what is not in the store under its digest, and makes it visible.
    pub(super) fn publish_made(
        &self,
        known: Known,
        mut origin: Origin,
        options: &PullOptions,
        reporter: &mut dyn Reporter,
        make: impl FnOnce(&WorkPaths, &mut dyn Reporter) -> Result<Imported, ImageError>,
    ) -> Result<Image, ImageError> {
        let digests = &known.digests;
        let blob = origin.blob(digests);
        // Another URL may lead to the same bytes: one process makes them an image.
        let _lock = KeyLock::wait(&self.lock_path(&blob.hex()), &options.cancel, reporter)?;
        // What stands under the digest is complete, whether or not a name led to it so far.
        let mut held = None;
        let mut done = None;
        for kind in [ImageKind::Disk, ImageKind::Tree] {
            let path = self.blob(&blob, kind);
            if let Some(lock) = lock::share(&path)? {
                let length = fs::metadata(&path).at("read", &path)?.len();
                held = Some(lock);
                done = Some((kind, if kind == ImageKind::Disk { length } else { 0 }));
                break;
            }
        }
        let (kind, virtual_size) = match done {
            Some(done) => done,
            None => {
                let work = self.work(&blob.hex());
                let imported = make(&work, reporter).and_then(|imported| {
                    self.move_in(&imported, &blob, reporter).map(|()| imported)
                });
                work.clear();
                let imported = imported?;
                (imported.kind, imported.virtual_size)
            }
        };
        let created = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let _refs = KeyLock::wait(&self.lock_path("refs"), &options.cancel, reporter)?;
        if options.name.is_none() {
            origin.name = self.free_name(&origin)?;
        }
        let record = Record {
            sha256: digests.sha256.to_string(),
            sha512: digests.sha512.map(|digest| digest.to_string()),
            blob: origin.variant.is_some().then(|| blob.to_string()),
            source: origin.source,
            key: origin.key,
            validators: origin.validators,
            kind: kind.into(),
            virtual_size,
            created,
            verified: known.verification,
        };
        record.write(&self.refs(), &origin.name)?;
        let image = self.stored(&origin.name, &record)?;
        drop(held);
        image.ok_or_else(|| ImageError::Missing(self.blob(&blob, kind)))
    }

    /// A derived name never takes the place of another image's.
    fn free_name(&self, origin: &Origin) -> Result<ImageName, ImageError> {
        match Record::read(&record::path(&self.refs(), &origin.name)) {
            Ok(None) => Ok(origin.name.clone()),
            Ok(Some(record)) if record.key == origin.key || record.source == origin.source => {
                Ok(origin.name.clone())
            }
            _ => {
                let tail: String = origin.key.chars().rev().take(8).collect();
                let stem: String = origin
                    .name
                    .as_str()
                    .chars()
                    .take(ImageName::MAX - 9)
                    .collect();
                Ok(ImageName::sanitize(&format!("{stem}-{tail}")))
            }
        }
    }

    fn move_in(
        &self,
        imported: &Imported,
        blob: &Digest,
        reporter: &mut dyn Reporter,
    ) -> Result<(), ImageError> {
        let target = self.blob(blob, imported.kind);
        let _step = Step::begin(
            reporter,
            StepKind::Publish,
            &target.display().to_string(),
            None,
        );
        let path = &imported.path;
        if imported.kind == ImageKind::Disk {
            let file = File::open(path).at("open", path)?;
            let mut permissions = file.metadata().at("read", path)?.permissions();
            permissions.set_readonly(true);
            fs::set_permissions(path, permissions).at("change", path)?;
            file.sync_all().at("sync", path)?;
        }
        fs::rename(path, &target).at("publish", &target)?;
        fetch::sync_folder(&self.blobs())
    }
}
