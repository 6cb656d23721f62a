//! How each kind of reference becomes an image.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Store;
use super::lock::{self, KeyLock};
use super::record::{self, Record};
use crate::digest::{Digest, Digests, Hasher};
use crate::error::{ImageError, PathContext};
use crate::fetch::{self, DownloadError, DownloadReason, Outcome, PartialPaths, Validators};
use crate::format::{self, Format};
use crate::image::{Image, ImageKind};
use crate::options::PullOptions;
use crate::reference::{ImageName, ImageRef, ImageUrl};
use crate::report::{Reporter, Step, StepKind};
use crate::unpack::{self, Imported, WorkPaths};
use crate::verify::{self, Unverified, Verified};

/// What is to be published, and how it is found again.
pub(super) struct Origin {
    pub(super) source: String,
    pub(super) key: String,
    pub(super) validators: Validators,
    pub(super) name: ImageName,
}

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
            return Ok(image);
        }
        let folder = &options.machines_dir;
        for path in [
            folder.join(name.as_str()),
            folder.join(format!("{name}.raw")),
        ] {
            if fs::symlink_metadata(&path).is_ok() {
                return self.pull_path(&path, options, reporter);
            }
        }
        Err(ImageError::UnknownName {
            name: name.clone(),
            store: self.root.clone(),
            machines: folder.clone(),
        })
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
        let file = File::open(&absolute).at("open", path)?;
        // The first look only sorts by magic bytes; everything that parses comes after the checksum.
        if format::detect(&file).at("read", path)? == Format::Raw {
            let mut digest = None;
            if options.checksum.is_some() {
                let verified = hash(file, path, options, reporter)?
                    .check(options.checksum.as_ref(), &shown)?;
                digest = Some(verified.digests.sha256);
            }
            return Ok(in_place(absolute, ImageKind::Disk, digest));
        }
        let changed = metadata.mtime() as i128 * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        let key = format!(
            "file-{}-{}-{}-{changed}",
            metadata.dev(),
            metadata.ino(),
            metadata.len()
        );
        let _lock = KeyLock::wait(&self.lock_path(&key), &options.cancel, reporter)?;
        if let Some(image) = self.reuse(&key, options)? {
            return Ok(image);
        }
        let origin = Origin {
            source: absolute.display().to_string(),
            key,
            validators: Validators::default(),
            name: self.name(
                options,
                &absolute.file_name().unwrap_or_default().to_string_lossy(),
            ),
        };
        let file = hash(file, path, options, reporter)?.check(options.checksum.as_ref(), &shown)?;
        self.publish(file, origin, options, reporter)
    }

    fn pull_url(
        &self,
        url: &ImageUrl,
        options: &PullOptions,
        reporter: &mut dyn Reporter,
    ) -> Result<Image, ImageError> {
        let key = fetch::url_key(url);
        let _lock = KeyLock::wait(&self.lock_path(&key), &options.cancel, reporter)?;
        let stored = self.find(&key)?;
        if (!options.refresh || options.offline)
            && let Some(image) = self.reuse(&key, options)?
        {
            return Ok(image);
        }
        if options.offline {
            let error = DownloadError {
                url: url.clone(),
                reason: DownloadReason::Offline,
            };
            return Err(error.into());
        }
        // Only a version that is here, and is the one wanted, may be kept on the server's word.
        let known = match &stored {
            Some((name, record))
                if self.fits(record, options) && self.stored(name, record)?.is_some() =>
            {
                Some(record.validators.clone())
            }
            _ => None,
        };
        let partial = PartialPaths {
            data: self.partial(&key, "data"),
            record: self.partial(&key, "json"),
        };
        let headers = reqwest::header::HeaderMap::new();
        match fetch::download(url, &headers, known.as_ref(), &partial, options, reporter)? {
            Outcome::NotModified => match self.reuse(&key, options)? {
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
            Outcome::Done { file, validators } => {
                let checked = file.check(options.checksum.as_ref(), url);
                // Wrong bytes are of no use to the next run; right ones are in the store when it comes.
                let result = checked.and_then(|file| {
                    let origin = Origin {
                        source: url.to_string(),
                        key: key.clone(),
                        validators,
                        name: self.name(options, url.file_name()),
                    };
                    self.publish(file, origin, options, reporter)
                });
                if !matches!(result, Err(ImageError::Cancelled)) {
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
    fn find(&self, key: &str) -> Result<Option<(ImageName, Record)>, ImageError> {
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
        if !self.fits(&record, options) {
            return Ok(None);
        }
        let image = self.stored(&name, &record)?;
        if let (Some(wanted), Some(image)) = (&options.name, &image)
            && *wanted != name
        {
            record.write(&self.refs(), wanted)?;
            return Ok(Some(Image {
                name: Some(wanted.clone()),
                ..image.clone()
            }));
        }
        Ok(image)
    }

    /// The image of a record, locked, where its blob is there.
    pub(super) fn stored(
        &self,
        name: &ImageName,
        record: &Record,
    ) -> Result<Option<Image>, ImageError> {
        let Some(digests) = record.digests() else {
            return Ok(None);
        };
        let kind = record.kind.into();
        let path = self.blob(&digests.sha256, kind);
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

    /// Imports a verified file and makes it visible.
    fn publish(
        &self,
        file: Verified,
        origin: Origin,
        options: &PullOptions,
        reporter: &mut dyn Reporter,
    ) -> Result<Image, ImageError> {
        let (digests, source) = (file.digests, origin.source.clone());
        let import = |work: &WorkPaths, reporter: &mut dyn Reporter| {
            unpack::import(file, &source, work, options, reporter)
        };
        self.publish_made(digests, origin, options, reporter, import)
    }

    /// Makes what is not in the store under its digest, and makes it visible: blob first, then the name.
    pub(super) fn publish_made(
        &self,
        digests: Digests,
        mut origin: Origin,
        options: &PullOptions,
        reporter: &mut dyn Reporter,
        make: impl FnOnce(&WorkPaths, &mut dyn Reporter) -> Result<Imported, ImageError>,
    ) -> Result<Image, ImageError> {
        let hex = digests.sha256.hex();
        // Another URL may lead to the same bytes: one process converts them.
        let _lock = KeyLock::wait(&self.lock_path(&hex), &options.cancel, reporter)?;
        // What stands under the digest is complete, whether or not a name led to it so far.
        let mut held = None;
        let mut done = None;
        for kind in [ImageKind::Disk, ImageKind::Tree] {
            let blob = self.blob(&digests.sha256, kind);
            if let Some(lock) = lock::share(&blob)? {
                let length = fs::metadata(&blob).at("read", &blob)?.len();
                held = Some(lock);
                done = Some((kind, if kind == ImageKind::Disk { length } else { 0 }));
                break;
            }
        }
        let (kind, virtual_size) = match done {
            Some(done) => done,
            None => {
                let work = self.work(&hex);
                let imported = make(&work, reporter).and_then(|imported| {
                    self.move_in(&imported, &digests, reporter)
                        .map(|()| imported)
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
            source: origin.source,
            key: origin.key,
            validators: origin.validators,
            sha256: digests.sha256.to_string(),
            sha512: digests.sha512.map(|digest| digest.to_string()),
            kind: kind.into(),
            virtual_size,
            created,
        };
        record.write(&self.refs(), &origin.name)?;
        let image = self.stored(&origin.name, &record)?;
        drop(held);
        image.ok_or_else(|| ImageError::Missing(self.blob(&digests.sha256, kind)))
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
        digests: &Digests,
        reporter: &mut dyn Reporter,
    ) -> Result<(), ImageError> {
        let target = self.blob(&digests.sha256, imported.kind);
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

fn in_place(path: PathBuf, kind: ImageKind, digest: Option<Digest>) -> Image {
    Image {
        path,
        kind,
        digest,
        name: None,
        lock: None,
    }
}

fn comparable(digests: &Digests, expected: Option<&Digest>) -> bool {
    expected.is_none_or(|expected| digests.like(expected).is_some())
}

fn refuse_checksum(options: &PullOptions, what: &str) -> Result<(), ImageError> {
    if options.checksum.is_none() {
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
    let mut hasher = Hasher::new(options.checksum.as_ref());
    hasher
        .consume(&mut file, |count| {
            step.advance(count);
            !options.cancel.is_cancelled()
        })
        .at("read", path)?;
    options.cancel.check()?;
    Ok(Unverified::new(file, hasher.finish()))
}
