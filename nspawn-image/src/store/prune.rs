//! Making room: images that nothing uses, and what interrupted work left.
//!
//! Nothing is judged without its lock. A blob without a name is taken under the lock of its digest, which a pull holds
//! from before it is there until a name leads to it; an image under the lock of the names and the only lock of its blob,
//! which everybody who uses it shares.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::lock::{self, KeyLock};
use super::record::{self, Record};
use super::{Store, StoredImage, disk_usage};
use crate::digest::Digest;
use crate::error::{ImageError, PathContext};
use crate::image::ImageKind;
use crate::limits::Cancel;
use crate::reference::ImageName;
use crate::report::{NoReport, Reporter};

/// How long a download that nobody works on may lie before it counts as given up.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// What [`Store::prune`] may remove. Made by `default()`, then changed field by field.
///
/// An image goes where everything that is asked for says so; with none of `keep`, `older_than` and `max_size`, none goes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PruneOptions {
    /// Keep this many names, those used last.
    pub keep: Option<usize>,
    /// Remove what was not used for so long.
    pub older_than: Option<Duration>,
    /// Remove, the longest unused first, until the images take no more than this, in bytes.
    pub max_size: Option<u64>,
    /// Remove every unfinished download that nobody works on, not only those older than a day.
    pub partial: bool,
    /// Spare what was used within this time: whoever pulled it may be about to start it. Default one minute.
    pub spare: Duration,
    /// Paths of images that are in use in a way that no lock shows.
    pub in_use: Vec<PathBuf>,
    /// Remove nothing, and say what would be.
    pub dry_run: bool,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            keep: None,
            older_than: None,
            max_size: None,
            partial: false,
            spare: Duration::from_secs(60),
            in_use: Vec::new(),
            dry_run: false,
        }
    }
}

/// Something that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// What it was.
    pub kind: PrunedKind,
    /// An image's name, or the name of a file of the store.
    pub name: String,
    /// Bytes that became free, or would.
    pub bytes: u64,
}

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrunedKind {
    /// A name, and the image behind it where no other name has it.
    Image,
    /// An image that no name led to.
    Unnamed,
    /// A name that led to nothing.
    Name,
    /// An unfinished download.
    Partial,
    /// Digests, locks and new files that belonged to nothing.
    Leftover,
}

impl PrunedKind {
    /// What people call it, such as `image`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Unnamed => "unnamed image",
            Self::Name => "name without an image",
            Self::Partial => "unfinished download",
            Self::Leftover => "leftover",
        }
    }
}

/// What [`Store::prune`] did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct PruneReport {
    /// What was removed, or would be.
    pub removed: Vec<Pruned>,
    /// The images that stay and that nothing uses, the longest unused first.
    pub unused: Vec<StoredImage>,
}

impl PruneReport {
    /// Bytes that became free, or would.
    pub fn freed(&self) -> u64 {
        self.removed.iter().map(|removed| removed.bytes).sum()
    }

    fn add(&mut self, kind: PrunedKind, name: impl Into<String>, bytes: u64) {
        self.removed.push(Pruned {
            kind,
            name: name.into(),
            bytes,
        });
    }
}

impl Store {
    /// Removes what interrupted work left, images that no name leads to, and of the others what `options` ask for.
    /// What is in use stays, and nothing waits for it.
    ///
    /// # Errors
    ///
    /// [`ImageError::Path`]; what was removed by then is gone.
    pub fn prune(
        &self,
        options: &PruneOptions,
        reporter: &mut dyn Reporter,
    ) -> Result<PruneReport, ImageError> {
        let mut report = PruneReport::default();
        self.prune_images(options, reporter, &mut report)?;
        self.prune_unnamed(options, reporter, &mut report)?;
        self.prune_partials(options, &mut report)?;
        if !options.dry_run {
            self.prune_locks()?;
        }
        Ok(report)
    }

    fn prune_images(
        &self,
        options: &PruneOptions,
        reporter: &mut dyn Reporter,
        report: &mut PruneReport,
    ) -> Result<(), ImageError> {
        let mut images = Vec::new();
        for (name, record) in record::all(&self.refs())? {
            match record.and_then(|record| self.describe(name, &record)) {
                Ok(image) => images.push(image),
                // It may be the name of any image: it stays until somebody has looked at it.
                Err(error) => reporter.notice(&format!("{error}: left as it is")),
            }
        }
        images.sort_by_key(|image| image.last_used);
        let mut names: BTreeMap<PathBuf, usize> = BTreeMap::new();
        for image in &images {
            *names.entry(image.path.clone()).or_default() += 1;
        }
        let sizes: BTreeMap<&Path, u64> = images
            .iter()
            .map(|image| (image.path.as_path(), image.disk_usage))
            .collect();
        let mut total: u64 = sizes.values().sum();
        let kept_from = images.len().saturating_sub(options.keep.unwrap_or(0));
        let asked =
            options.keep.is_some() || options.older_than.is_some() || options.max_size.is_some();
        let now = SystemTime::now();
        let idle = |image: &StoredImage| now.duration_since(image.last_used).unwrap_or_default();
        for (index, image) in images.iter().enumerate() {
            if !fs::exists(&image.path).unwrap_or(true) {
                if options.dry_run || self.remove_dead_name(&image.name)? {
                    report.add(PrunedKind::Name, image.name.as_str(), 0);
                }
                continue;
            }
            if image.in_use || options.in_use.contains(&image.path) {
                continue;
            }
            let goes = asked
                && index < kept_from
                && options.older_than.is_none_or(|age| idle(image) > age)
                && options.max_size.is_none_or(|size| total > size)
                && idle(image) >= options.spare;
            let left = names.get_mut(&image.path);
            let is_last = left.as_ref().is_none_or(|left| **left == 1);
            if !goes || !self.prune_image(image, options)? {
                report.unused.push(image.clone());
                continue;
            }
            if let Some(left) = left {
                *left -= 1;
            }
            let bytes = if is_last { image.disk_usage } else { 0 };
            total = total.saturating_sub(bytes);
            report.add(PrunedKind::Image, image.name.as_str(), bytes);
        }
        Ok(())
    }

    /// Removes an image; not where somebody began to use it, or to remove it, since it was looked at.
    fn prune_image(&self, image: &StoredImage, options: &PruneOptions) -> Result<bool, ImageError> {
        if options.dry_run {
            return Ok(true);
        }
        let unused = |record: &Record, path: &Path| {
            record::last_used(path, record) == image.last_used
                && record.digests().map(|found| found.sha256) == Some(image.digest)
        };
        match self.remove_if(&image.name, &unused) {
            Ok(removed) => Ok(removed),
            Err(ImageError::InUse { .. } | ImageError::NotStored { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a name whose image is gone.
    fn remove_dead_name(&self, name: &ImageName) -> Result<bool, ImageError> {
        let _refs = self.lock_refs()?;
        let path = record::path(&self.refs(), name);
        let Some(record) = Record::read(&path)? else {
            return Ok(false);
        };
        let blob = record.blob();
        let blob = blob.map(|digest| self.blob(&digest, record.kind.into()));
        if blob.is_some_and(|blob| fs::exists(blob).unwrap_or(true)) {
            return Ok(false);
        }
        fs::remove_file(&path).at("remove", &path)?;
        Ok(true)
    }

    /// Blobs, and checksums of blobs, that nothing leads to.
    fn prune_unnamed(
        &self,
        options: &PruneOptions,
        reporter: &mut dyn Reporter,
        report: &mut PruneReport,
    ) -> Result<(), ImageError> {
        let mut unreadable = false;
        for name in names(&self.blobs())? {
            let path = self.blobs().join(&name);
            let (stem, end) = name.split_once('.').unwrap_or((&name, ""));
            let Ok(digest) = format!("sha256:{stem}").parse::<Digest>() else {
                // Checksums that were being written when their process was killed; it held the blob's lock.
                let key = name
                    .strip_prefix('.')
                    .and_then(|rest| rest.split('.').next());
                if let Some(key) = key
                    && let Some(_key) = KeyLock::try_take(&self.lock_path(key))
                {
                    self.leftover(&path, options, report)?;
                }
                continue;
            };
            let kind = match end {
                "raw" => ImageKind::Disk,
                "" => ImageKind::Tree,
                "sums" => {
                    let blobs =
                        [ImageKind::Disk, ImageKind::Tree].map(|kind| self.blob(&digest, kind));
                    let has_blob = || blobs.iter().any(|blob| fs::exists(blob).unwrap_or(true));
                    // Whoever publishes the blob writes them before it, and holds this until it is there.
                    if !has_blob()
                        && let Some(_key) = KeyLock::try_take(&self.lock_path(&digest.hex()))
                        && !has_blob()
                    {
                        self.leftover(&path, options, report)?;
                    }
                    continue;
                }
                _ => continue,
            };
            // Whoever publishes it holds this until a name leads to it.
            let Some(_key) = KeyLock::try_take(&self.lock_path(&digest.hex())) else {
                continue;
            };
            let _refs = self.lock_refs()?;
            let mut named = false;
            for (_, record) in record::all(&self.refs())? {
                match record {
                    Ok(record) => named |= record.blob() == Some(digest),
                    Err(_) => {
                        // It may be the name of this one.
                        named = true;
                        unreadable = true;
                    }
                }
            }
            if named || options.in_use.contains(&path) {
                continue;
            }
            let Some(_lock) = lock::exclude(&path) else {
                continue;
            };
            let bytes = disk_usage(&path);
            if !options.dry_run {
                self.remove_blob(&digest, kind)?;
            }
            report.add(PrunedKind::Unnamed, name, bytes);
        }
        if unreadable {
            reporter.notice("images without a name stay, as a name cannot be read");
        }
        // Whoever writes a record holds the lock of the names.
        let _refs = self.lock_refs()?;
        for name in names(&self.refs())? {
            if name.starts_with('.') {
                self.leftover(&self.refs().join(&name), options, report)?;
            }
        }
        Ok(())
    }

    fn leftover(
        &self,
        path: &Path,
        options: &PruneOptions,
        report: &mut PruneReport,
    ) -> Result<(), ImageError> {
        let Ok(found) = fs::symlink_metadata(path) else {
            return Ok(());
        };
        let bytes = found.blocks() * 512;
        if !options.dry_run {
            gone(fs::remove_file(path)).at("remove", path)?;
        }
        let name = path.file_name().unwrap_or_default().display().to_string();
        report.add(PrunedKind::Leftover, name, bytes);
        Ok(())
    }

    /// Downloads that nobody works on.
    fn prune_partials(
        &self,
        options: &PruneOptions,
        report: &mut PruneReport,
    ) -> Result<(), ImageError> {
        let all = names(&self.partials())?;
        let keys: BTreeSet<&str> = all
            .iter()
            .filter_map(|name| name.strip_suffix(".data").or(name.strip_suffix(".json")))
            .collect();
        for key in keys {
            let paths = [self.partial(key, "data"), self.partial(key, "json")];
            let Some(_lock) = KeyLock::try_take(&self.lock_path(key)) else {
                continue;
            };
            // A layer belongs to its manifest, whose lock whoever pulls it holds.
            let manifest = key.split_once('-').map(|(manifest, _)| manifest);
            let manifest = manifest
                .filter(|hex| hex.len() == 64)
                .map(|hex| self.lock_path(hex));
            let _manifest = match manifest.as_deref().map(KeyLock::try_take) {
                Some(None) => continue,
                other => other,
            };
            if !options.partial && !paths.iter().all(|path| is_stale(path)) {
                continue;
            }
            let bytes = paths.iter().map(|path| disk_usage(path)).sum();
            for path in paths.iter().filter(|_| !options.dry_run) {
                gone(fs::remove_file(path)).at("remove", path)?;
            }
            report.add(PrunedKind::Partial, key, bytes);
        }
        Ok(())
    }

    /// Lock files that nobody holds and that guard nothing; whoever waits for one finds that it is gone.
    fn prune_locks(&self) -> Result<(), ImageError> {
        let all = names(&self.partials())?;
        for name in &all {
            let Some(key) = name.strip_suffix(".lock") else {
                continue;
            };
            let guards = |other: &String| {
                other
                    .strip_prefix(key)
                    .is_some_and(|end| end.starts_with('.') && end != ".lock")
            };
            if key == "refs" || all.iter().any(guards) {
                continue;
            }
            let path = self.lock_path(key);
            if let Some(lock) = KeyLock::try_take(&path) {
                lock.remove(&path)?;
            }
        }
        Ok(())
    }

    pub(super) fn lock_refs(&self) -> Result<KeyLock, ImageError> {
        KeyLock::wait(&self.lock_path("refs"), &Cancel::default(), &mut NoReport)
    }
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>, ImageError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).at("read", folder)? {
        let name = entry.at("read", folder)?.file_name();
        names.extend(OsStr::to_str(&name).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Whether a file is older than a day, or not there.
fn is_stale(path: &Path) -> bool {
    let changed = fs::symlink_metadata(path).and_then(|found| found.modified());
    changed.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > STALE))
        || !fs::exists(path).unwrap_or(true)
}

/// What another process removed meanwhile is as good as removed.
fn gone(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
