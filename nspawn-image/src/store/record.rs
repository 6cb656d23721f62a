//! One small JSON file for each name. It never holds a secret: a URL is kept redacted, and found by its hash.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Digests};
use crate::error::{ImageError, PathContext};
use crate::fetch::{Validators, sync_folder};
use crate::image::ImageKind;
use crate::place;
use crate::reference::ImageName;
use crate::verify::Verification;

/// What a name stands for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// Where it came from, for people.
    pub(super) source: String,
    /// What it is found by: the hash of the URL, or a file's identity.
    pub(super) key: String,
    #[serde(flatten)]
    pub(super) validators: Validators,
    /// `sha256:…` of the bytes downloaded or imported.
    pub(super) sha256: String,
    /// `sha512:…`, where it was asked for once.
    pub(super) sha512: Option<String>,
    /// `sha256:…` that the image is kept under, where the bytes alone do not tell: a snapshot in them is wanted, or
    /// files below an overlay are part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) blob: Option<String>,
    pub(super) kind: Kind,
    /// Bytes a machine sees of a disk; 0 for a tree.
    pub(super) virtual_size: u64,
    /// When it was published, in seconds since 1970.
    pub(super) created: u64,
    /// How its bytes were verified; records of older versions do not say.
    #[serde(default)]
    pub(super) verified: Verification,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Disk,
    Tree,
}

impl From<ImageKind> for Kind {
    fn from(kind: ImageKind) -> Self {
        match kind {
            ImageKind::Disk => Self::Disk,
            ImageKind::Tree => Self::Tree,
        }
    }
}

impl From<Kind> for ImageKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Disk => Self::Disk,
            Kind::Tree => Self::Tree,
        }
    }
}

impl Record {
    /// The digests as they were computed, where the record holds them in full.
    pub(super) fn digests(&self) -> Option<Digests> {
        let sha256 = self
            .sha256
            .parse()
            .ok()
            .filter(|digest| matches!(digest, Digest::Sha256(_)))?;
        Some(Digests {
            sha256,
            sha512: self.sha512.as_deref().and_then(|text| text.parse().ok()),
        })
    }

    /// What the image is kept under.
    pub(super) fn blob(&self) -> Option<Digest> {
        match &self.blob {
            Some(text) => text
                .parse()
                .ok()
                .filter(|digest| matches!(digest, Digest::Sha256(_))),
            None => self.digests().map(|digests| digests.sha256),
        }
    }

    pub(super) fn created(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(self.created))
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }

    pub(super) fn read(path: &Path) -> Result<Option<Self>, ImageError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ImageError::io("read", path, error)),
        };
        let damaged = |reason: String| ImageError::Record {
            path: path.to_owned(),
            reason,
        };
        let record: Self =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if record.digests().is_none() || record.blob().is_none() {
            return Err(damaged("it holds no SHA-256".to_owned()));
        }
        Ok(Some(record))
    }

    /// Replaces the record in one step: a reader sees the old or the new one.
    pub(super) fn write(&self, folder: &Path, name: &ImageName) -> Result<(), ImageError> {
        let path = path(folder, name);
        let temporary = folder.join(format!(".{name}.new"));
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| ImageError::Record {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        place::write_aside(&temporary, &path, |file| file.write_all(&bytes))?;
        sync_folder(folder)
    }
}

pub(super) fn path(folder: &Path, name: &ImageName) -> PathBuf {
    folder.join(format!("{name}.json"))
}

/// When the image of a record was last used: the time of its file.
pub(super) fn last_used(path: &Path, record: &Record) -> SystemTime {
    let changed = fs::symlink_metadata(path).and_then(|found| found.modified());
    changed.map_or(record.created(), |time| time.max(record.created()))
}

/// Notes that an image is used now. Where that cannot be noted it is used all the same.
pub(super) fn touch(path: &Path) {
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// A name, and what its record says where it can be read.
pub(super) type Found = (ImageName, Result<Record, ImageError>);

/// All records, sorted by name. What cannot be read is left out of a search and an error in a listing.
pub(super) fn all(folder: &Path) -> Result<Vec<Found>, ImageError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).at("read", folder)? {
        let path = entry.at("read", folder)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".json"));
        let Some(Ok(name)) = name.map(str::parse::<ImageName>) else {
            continue;
        };
        match Record::read(&path) {
            Ok(Some(record)) => found.push((name, Ok(record))),
            Ok(None) => {}
            Err(error) => found.push((name, Err(error))),
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}
