//! How each kind of reference becomes an image.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::header::HeaderMap;

use super::Store;
use super::beside::{Beside, Plan};
use super::lock::{self, KeyLock};
use super::publish::Origin;
use super::record::{self, Record};
use crate::digest::{Digest, Digests, Hasher};
use crate::error::{ErrorKind, ImageError, PathContext};
use crate::fetch::{
    self, Arriving, DownloadError, DownloadReason, Outcome, PartialPaths, Validators,
};
use crate::format::{self, Format};
use crate::image::{Image, ImageKind};
use crate::options::{PullOptions, Verify};
use crate::qcow2::{OpenOptions, Qcow2};
use crate::reference::{ImageName, ImageRef, ImageUrl};
use crate::report::{Reporter, Step, StepKind};
use crate::unpack;
use crate::verify::lookup::{self, Place};
use crate::verify::{self, Expectation, Unverified, Verification, Verified, VerifyError};

impl Store {
    pub(super) fn pull_any(
        &self,
        reference: &ImageRef,
        options: &PullOptions,
        reporter: &mut dyn Reporter,
    ) -> Result<Image, ImageError> {
        match reference {
            ImageRef::Host => {
                refuse_checksum(options, "host")?;
                Ok(in_place(PathBuf::from("/"), ImageKind::Tree, None))
            }
            ImageRef::Path(path) => self.pull_path(path, options, reporter),
            ImageRef::Url(url) => self.pull_url(url, options, reporter),
            ImageRef::Name(name) => self.pull_name(name, options, reporter),
            ImageRef::Oci(image) => self.pull_oci(image, options, reporter),
        }
    }

    fn pull_name(
        &self,
        name: &ImageName,
        options: &PullOptions,
        reporter: &mut dyn Reporter,
    ) -> Result<Image, ImageError> {
        if let Some(record) = Record::read(&record::path(&self.refs(), name))?
            && let Some(image) = self.stored(name, &record)?
        {
            let digests = record
                .digests()
                .filter(|digests| comparable(digests, options.checksum.as_ref()));
            let Some(digests) = digests else {
                let what = format!("{name} (only its SHA-256 is kept)");
                return Err(ImageError::Unsupported {
                    what,
                    found: "a SHA-512 checksum".to_owned(),
                });
            };
            verify::check(&digests, options.checksum.as_ref(), name)?;
            if !is_verified(&record, options) {
                return Err(too_little(&record, options, name));
            }
            record::touch(&record::path(&self.refs(), name));
            return Ok(image);
        }
        let path = self.in_machines(name, &options.machines_dir)?;
        self.pull_path(&path, options, reporter)
    }

    fn pull_path(
        &self,
        path: &Path,
        options: &PullOptions,
        reporter: &mut dyn Reporter,
    ) -> Result<Image, ImageError> {
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::Missing(path.to_owned()));
            }
            other => other.at("read", path)?,
        };
        let absolute = fs::canonicalize(path).at("read", path)?;
        let shown = path.display().to_string();
        if metadata.is_dir() {
            refuse_checksum(options, &shown)?;
            unpack::check_tree(&absolute).map_err(|missing| ImageError::NoTree {
                path: path.to_owned(),
                missing,
            })?;
            return Ok(in_place(absolute, ImageKind::Tree, None));
        }
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(ImageError::NoImage {
                what: shown,
                found: "neither a file nor a folder".to_owned(),
            });
        }
        let place = Place::File(path.to_owned());
        let file = File::open(&absolute).at("open", path)?;
        // The first look only sorts by magic bytes; everything that parses comes after the checksum.
        if format::detect(&file).at("read", path)? == Format::Raw {
            let expected = lookup::expected(&place, options, reporter)?;
            let mut digest = None;
            if !expected.is_nothing() {
                let verified = hash(file, path, &expected, options, reporter)?.check(
                    &expected,
                    &shown,
                    &options.cancel,
                )?;
                digest = Some(verified.digests.sha256);
            }
            return Ok(in_place(absolute, ImageKind::Disk, digest));
        }
        let metadata = file.metadata().at("read", path)?;
        let variant = variant(&file, path, &absolute, options)?;
        let changed = metadata.mtime() as i128 * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        let key = format!(
            "file-{}-{}-{}-{changed}{}",
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            variant.as_deref().map(key_tail).unwrap_or_default()
        );
        let _lock = KeyLock::wait(&self.lock_path(&key), &options.cancel, reporter)?;
        if let Some(image) = self.reuse(&key, options)? {
            return Ok(image);
        }
        let expected = lookup::expected(&place, options, reporter)?;
        if let Some(image) = self.prove(&key, &expected, options)? {
            return Ok(image);
        }
        let mut beside = Beside::new(Plan {
            what: shown.clone(),
            work: self.work(&key),
            own: None,
            path: Some(absolute.clone()),
            options: options.clone(),
            impatient: false,
        });
        // One opening for both: whatever happens to the name, they see the same file.
        let bytes = file.try_clone().at("open", path)?;
        let source = Arriving::complete(bytes).at("read", path)?;
        let source = Arc::new(source);
        let origin = Origin {
            source: absolute.display().to_string(),
            key,
            validators: Validators::default(),
            name: self.name(
                options,
                &absolute.file_name().unwrap_or_default().to_string_lossy(),
            ),
            variant,
        };
        beside.start(&source);
        let verified = hash(file, path, &expected, options, reporter)?.check(
            &expected,
            &shown,
            &options.cancel,
        )?;
        let imported = beside.finish(&source, reporter);
        let imported = imported.map_err(|error| blame(error, &verified, &shown));
        self.publish(imported, &verified, origin, options, reporter)
    }

    fn pull_url(
        &self,
        url: &ImageUrl,
        options: &PullOptions,
        reporter: &mut dyn Reporter,
    ) -> Result<Image, ImageError> {
        if options.allow_backing.is_some() {
            return Err(ImageError::Unsupported {
                what: url.to_string(),
                found: "a backing file of a downloaded image".to_owned(),
            });
        }
        let variant = options
            .snapshot
            .as_ref()
            .map(|name| format!("snapshot {name}"));
        let mut key = fetch::url_key(url);
        key += &variant.as_deref().map(key_tail).unwrap_or_default();
        let _lock = KeyLock::wait(&self.lock_path(&key), &options.cancel, reporter)?;
        let stored = self.find(&key)?;
        if (!options.refresh || options.offline)
            && let Some(image) = self.reuse(&key, options)?
        {
            return Ok(image);
        }
        if options.offline {
            if let Some((_, record)) = &stored
                && self.fits(record, options)
                && !is_verified(record, options)
            {
                return Err(too_little(record, options, url));
            }
            let error = DownloadError {
                url: url.clone(),
                reason: DownloadReason::Offline,
            };
            return Err(error.into());
        }
        let expected = lookup::expected(&Place::Url(url.clone()), options, reporter)?;
        if !options.refresh
            && let Some(image) = self.prove(&key, &expected, options)?
        {
            return Ok(image);
        }
        let mut options = options.clone();
        options.checksum = expected.hashed_as();
        let options = &options;
        // Only a version that is here, and is the one wanted, may be kept on the server's word.
        let known = match &stored {
            Some((name, record))
                if record.digests().is_some_and(|found| expected.fits(&found))
                    && self.stored(name, record)?.is_some() =>
            {
                Some(record.validators.clone())
            }
            _ => None,
        };
        let partial = PartialPaths {
            data: self.partial(&key, "data"),
            record: self.partial(&key, "json"),
        };
        let mut beside = Beside::new(Plan {
            what: url.to_string(),
            work: self.work(&key),
            own: Some(partial.data.clone()),
            path: None,
            options: options.clone(),
            impatient: expected.is_nothing(),
        });
        let headers = HeaderMap::new();
        let request = (url, &headers, known.as_ref());
        let outcome =
            match fetch::download_followed(request, &partial, options, &mut beside, reporter) {
                Err(error @ ImageError::NoSpace { .. }) => {
                    drop(beside);
                    if !has_room_for(&partial.data) {
                        partial.clear();
                    }
                    return Err(error);
                }
                other => other?,
            };
        match outcome {
            Outcome::NotModified => match self.prove(&key, &expected, options)? {
                Some(image) => Ok(image),
                None => {
                    let reason = DownloadReason::Protocol(
                        "\"not modified\" for a file that is not here".to_owned(),
                    );
                    Err(DownloadError {
                        url: url.clone(),
                        reason,
                    }
                    .into())
                }
            },
            Outcome::Abandoned => {
                let error = beside.failure().unwrap_or(ImageError::Cancelled);
                // Where the disk was full, the bytes that came are good as far as anybody knows.
                if error.kind() != ErrorKind::Host {
                    partial.clear();
                }
                Err(error)
            }
            Outcome::Done { file, validators } => {
                // Wrong bytes are of no use to the next run, and right ones are in the store when it comes, unless
                // this host could not make an image of them.
                let result = file
                    .check(&expected, url, &options.cancel)
                    .and_then(|verified| {
                        let file = verified.file.try_clone().at("open", &partial.data)?;
                        let source = Arriving::complete(file).at("read", &partial.data)?;
                        let origin = Origin {
                            source: url.to_string(),
                            key: key.clone(),
                            validators,
                            name: self.name(options, url.file_name()),
                            variant,
                        };
                        let imported = beside.finish(&source, reporter);
                        let imported = imported.map_err(|error| blame(error, &verified, url));
                        self.publish(imported, &verified, origin, options, reporter)
                    });
                let of_use = |error: &ImageError| {
                    matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::Host)
                };
                if !result.as_ref().is_err_and(of_use) {
                    partial.clear();
                }
                result
            }
        }
    }

    /// Whether a record is of the bytes that are wanted.
    fn fits(&self, record: &Record, options: &PullOptions) -> bool {
        let Some(expected) = &options.checksum else {
            return true;
        };
        record.digests().and_then(|digests| digests.like(expected)) == Some(*expected)
    }

    /// The record with this key, if there is one.
    pub(super) fn find(&self, key: &str) -> Result<Option<(ImageName, Record)>, ImageError> {
        let all = record::all(&self.refs())?;
        Ok(all.into_iter().find_map(|(name, record)| {
            Some((name, record.ok().filter(|record| record.key == key)?))
        }))
    }

    /// What is in the store under this key, where it is the one wanted.
    pub(super) fn reuse(
        &self,
        key: &str,
        options: &PullOptions,
    ) -> Result<Option<Image>, ImageError> {
        let Some((name, record)) = self.find(key)? else {
            return Ok(None);
        };
        if !self.fits(&record, options) || !is_verified(&record, options) {
            return Ok(None);
        }
        self.under_name(name, &record, options)
    }

    /// What is in the store under this key, where its bytes are those expected; the record says from now on how that
    /// is known.
    fn prove(
        &self,
        key: &str,
        expected: &Expectation,
        options: &PullOptions,
    ) -> Result<Option<Image>, ImageError> {
        let Some((name, mut record)) = self.find(key)? else {
            return Ok(None);
        };
        if !record.digests().is_some_and(|found| expected.fits(&found)) {
            return Ok(None);
        }
        let verified = expected.verification();
        // Finding less than the last time takes nothing away: the bytes are the same.
        let proves_more =
            verified.meets(Verify::Checksum) || !record.verified.meets(Verify::Checksum);
        let is_less =
            record.verified.meets(Verify::Signature) && !verified.meets(Verify::Signature);
        if proves_more && !is_less && record.verified != verified {
            record.verified = verified;
            // A name that was removed meanwhile stays removed.
            let _refs = self.lock_refs()?;
            if Record::read(&record::path(&self.refs(), &name))?.is_some() {
                record.write(&self.refs(), &name)?;
            }
        }
        self.under_name(name, &record, options)
    }

    /// The image of a record, under the name that is wanted.
    fn under_name(
        &self,
        name: ImageName,
        record: &Record,
        options: &PullOptions,
    ) -> Result<Option<Image>, ImageError> {
        let image = self.stored(&name, record)?;
        if let (Some(wanted), Some(image)) = (&options.name, &image)
            && *wanted != name
        {
            let _refs = self.lock_refs()?;
            record.write(&self.refs(), wanted)?;
            return Ok(Some(Image {
                name: Some(wanted.clone()),
                ..image.clone()
            }));
        }
        if image.is_some() {
            record::touch(&record::path(&self.refs(), &name));
        }
        Ok(image)
    }

    /// The image of a record, locked, where its blob is there.
    pub(super) fn stored(
        &self,
        name: &ImageName,
        record: &Record,
    ) -> Result<Option<Image>, ImageError> {
        let (Some(digests), Some(blob)) = (record.digests(), record.blob()) else {
            return Ok(None);
        };
        let kind = record.kind.into();
        let path = self.blob(&blob, kind);
        Ok(lock::share(&path)?.map(|lock| Image {
            path,
            kind,
            digest: Some(digests.sha256),
            name: Some(name.clone()),
            lock: Some(lock),
        }))
    }

    /// The name given, or one made of a file's name.
    fn name(&self, options: &PullOptions, file_name: &str) -> ImageName {
        if let Some(name) = &options.name {
            return name.clone();
        }
        let mut stem = file_name;
        let ends = [
            ".qcow2", ".img", ".raw", ".tar", ".gz", ".xz", ".zst", ".bz2", ".tgz", ".txz", ".zip",
        ];
        while let Some(shorter) = ends
            .iter()
            .find_map(|end| stem.strip_suffix(end))
            .filter(|stem| !stem.is_empty())
        {
            stem = shorter;
        }
        ImageName::sanitize(stem)
    }
}

fn in_place(path: PathBuf, kind: ImageKind, digest: Option<Digest>) -> Image {
    Image {
        path,
        kind,
        digest,
        name: None,
        lock: None,
    }
}

/// What beside its bytes makes a local image what it is: the snapshot wanted and the files below it. `None` where its
/// bytes alone do.
fn variant(
    file: &File,
    shown: &Path,
    absolute: &Path,
    options: &PullOptions,
) -> Result<Option<String>, ImageError> {
    let asked = options.snapshot.is_some() || options.allow_backing.is_some();
    if !asked || format::detect(file).at("read", shown)? != Format::Qcow2 {
        return Ok(None);
    }
    let open = OpenOptions {
        limit: options.limits.virtual_size,
        snapshot: options.snapshot.clone(),
        backing: options.allow_backing.clone(),
        path: Some(absolute.to_owned()),
    };
    let image = Qcow2::open_with(file, &open)
        .map_err(|source| unpack::qcow2_error(source, shown, absolute))?;
    if options.snapshot.is_none() && image.chain().is_empty() {
        return Ok(None);
    }
    let snapshot = options.snapshot.as_deref().unwrap_or_default();
    Ok(Some(format!(
        "snapshot {snapshot} below {:?}",
        image.chain()
    )))
}

/// The end of a key that tells a variant from others of the same bytes.
fn key_tail(variant: &str) -> String {
    let mut hasher = Hasher::new(None);
    hasher.update(variant.as_bytes());
    format!("-{}", &hasher.finish().sha256.hex()[..16])
}

fn comparable(digests: &Digests, expected: Option<&Digest>) -> bool {
    expected.is_none_or(|expected| digests.like(expected).is_some())
}

/// Whether what a record says of its bytes is as much as is wanted; the digest that is given was compared before.
fn is_verified(record: &Record, options: &PullOptions) -> bool {
    if options.verify == Verify::No {
        return true;
    }
    let by_given = options.verify == Verify::Checksum && options.checksum.is_some();
    // A checksum file that is named is to be asked, whatever was asked before.
    options.checksum_file.is_none() && (by_given || record.verified.meets(options.verify))
}

fn too_little(record: &Record, options: &PullOptions, what: &dyn ToString) -> ImageError {
    let wanted = match options.verify {
        Verify::Signature => "a signature",
        _ => "a checksum",
    };
    let verified = record.verified.to_string();
    ImageError::Verify {
        what: what.to_string(),
        source: Box::new(VerifyError::Stored { verified, wanted }),
    }
}

/// Whether a file that is to be gone on with may stay on a disk that was full: it takes no more than is free again.
fn has_room_for(path: &Path) -> bool {
    let Ok(found) = fs::metadata(path) else {
        return false;
    };
    let free = rustix::fs::statvfs(path).map_or(0, |disk| disk.f_bavail * disk.f_frsize);
    found.blocks() * 512 <= free
}

/// Tells damage that the publisher made from damage on the way.
fn blame(error: ImageError, verified: &Verified, what: &dyn ToString) -> ImageError {
    if verified.verification == Verification::None || !error.is_damage() {
        return error;
    }
    ImageError::PublishedDamaged {
        what: what.to_string(),
        source: Box::new(error),
    }
}

fn refuse_checksum(options: &PullOptions, what: &str) -> Result<(), ImageError> {
    let wants_none = matches!(options.verify, Verify::Auto | Verify::No);
    if options.checksum.is_none() && wants_none {
        return Ok(());
    }
    Err(ImageError::Unsupported {
        what: what.to_owned(),
        found: "a checksum of a folder".to_owned(),
    })
}

fn hash(
    mut file: File,
    path: &Path,
    expected: &Expectation,
    options: &PullOptions,
    reporter: &mut dyn Reporter,
) -> Result<Unverified, ImageError> {
    let total = file.metadata().at("read", path)?.len();
    let mut step = Step::begin(
        reporter,
        StepKind::Verify,
        &path.display().to_string(),
        Some(total),
    );
    // The look at its format left the position anywhere.
    file.rewind().at("read", path)?;
    let mut hasher = Hasher::new(expected.hashed_as().as_ref());
    hasher
        .consume(&mut file, |count| {
            step.advance(count);
            !options.cancel.is_cancelled()
        })
        .at("read", path)?;
    options.cancel.check()?;
    Ok(Unverified::new(file, hasher.finish()))
}
