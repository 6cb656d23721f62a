//! From an import that is verified to an image that everybody sees: the blob first, then the name.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
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
        origin: Origin,
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
                if kind == ImageKind::Disk {
                    // Whoever moved it here may have been killed before.
                    set_readonly(&path, true)?;
                }
                held = Some(lock);
                done = Some((kind, if kind == ImageKind::Disk { length } else { 0 }));
                break;
            }
        }
        if let Some(found) = done {
            let image = self.name_blob(known, origin, &blob, found, options, reporter);
            drop(held);
            return image;
        }
        let work = self.work(&blob.hex());
        let result = make(&work, reporter).and_then(|imported| {
            let found = (imported.kind, imported.virtual_size);
            let named = self
                .move_in(&imported, &blob, reporter)
                .and_then(|()| self.name_blob(known, origin, &blob, found, options, reporter));
            if named.is_err() {
                self.move_out(&imported, &blob);
            }
            named
        });
        work.clear();
        result
    }

    /// Makes a name lead to a blob.
    fn name_blob(
        &self,
        known: Known,
        mut origin: Origin,
        blob: &Digest,
        (kind, virtual_size): (ImageKind, u64),
        options: &PullOptions,
        reporter: &mut dyn Reporter,
    ) -> Result<Image, ImageError> {
        let digests = &known.digests;
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
        image.ok_or_else(|| ImageError::Missing(self.blob(blob, kind)))
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
        // Before the blob: one that is seen has them.
        if let Some(content) = &imported.content {
            content.write(&self.sums(blob))?;
        }
        if imported.kind == ImageKind::Tree {
            fs::rename(path, &target).at("publish", &target)?;
        } else {
            let file = File::open(path).at("open", path)?;
            file.sync_all().at("sync", path)?;
            fs::rename(path, &target).at("publish", &target)?;
            // Not before: a download that is killed here must still be one that the next run can write to.
            set_readonly(&target, true)?;
        }
        fetch::sync_folder(&self.blobs())
    }

    /// Takes back what got no name, so that it takes no room, and the next call can go on with the bytes it was made of.
    fn move_out(&self, imported: &Imported, blob: &Digest) {
        let target = self.blob(blob, imported.kind);
        // A name may lead to it all the same, where only its folder could not be synced.
        let has_name = record::all(&self.refs()).is_ok_and(|all| {
            all.iter()
                .any(|(_, record)| record.as_ref().is_ok_and(|it| it.blob() == Some(*blob)))
        });
        if has_name {
            return;
        }
        if imported.kind == ImageKind::Disk {
            let _ = set_readonly(&target, false);
        }
        let _ = fs::remove_file(self.sums(blob));
        let _ = fs::rename(&target, &imported.path);
    }
}

/// Gives the owner the right to write to a file, or takes it from everybody.
fn set_readonly(path: &Path, readonly: bool) -> Result<(), ImageError> {
    let mode = fs::metadata(path).at("read", path)?.permissions().mode();
    let wanted = if readonly {
        mode & !0o222
    } else {
        mode | 0o200
    };
    if mode == wanted {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(wanted)).at("change", path)
}
