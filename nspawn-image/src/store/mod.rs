//! The image store: one folder of published images, shared by every process on the host.
//!
//! ```text
//! blobs/<sha256>.raw | <sha256>/     complete, read-only, never changed; flock(LOCK_SH) by whoever uses one
//! blobs/<sha256>.sums                checksums of what a blob holds, by which damage to it is found
//! refs/<name>.json                   a name: where it came from, digest, size, when; its time is that of the last use
//! partial/<key>.data, .json          a download that can go on; <key>.lock: one process per key
//! ```
//!
//! Blobs and what is under way are open to the store's owner alone: a tree holds what its maker put there, programs
//! that run as root and devices among them, and must not be within reach of other users of the host.
//!
//! An image is either absent or complete: it is written under `partial/` while its bytes come, and renamed when they
//! were found to be the right ones and it was synced. The lock of a key is held from the first look at the store to the
//! rename, so that of two processes that want one image the second waits and then finds it.

mod beside;
mod lock;
mod machines;
mod oci;
mod prune;
mod publish;
mod pull;
mod record;
mod verify;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lock::KeyLock;
pub use prune::{PruneOptions, PruneReport, Pruned, PrunedKind};
use record::Record;
pub use verify::Soundness;

use crate::digest::Digest;
use crate::error::{ImageError, PathContext};
use crate::fetch;
use crate::image::{Image, ImageKind, ImageLock};
use crate::limits::Cancel;
use crate::options::PullOptions;
use crate::reference::{ImageName, ImageRef};
use crate::report::{NoReport, Reporter};
use crate::unpack::{WorkPaths, remove_tree};

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
    /// When it was last pulled, or asked for by whoever started it.
    pub last_used: SystemTime,
    /// Whether a machine or another process uses it now.
    pub in_use: bool,
    /// How its bytes were verified: `none`, `checksum given`, `checksum by FILE` or `signature by KEY in FILE`.
    pub verified: String,
}

impl Store {
    /// Opens a store, and makes its folders where they are missing.
    ///
    /// # Errors
    ///
    /// [`ImageError::Path`] where the folders cannot be made.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, ImageError> {
        let store = Self {
            root: root.as_ref().to_owned(),
        };
        for folder in [store.blobs(), store.refs(), store.partials()] {
            fs::create_dir_all(&folder).at("create", &folder)?;
        }
        for folder in [store.blobs(), store.partials()] {
            let mode = fs::metadata(&folder).at("read", &folder)?.mode();
            if mode & 0o077 != 0 {
                let private = fs::Permissions::from_mode(0o700);
                fs::set_permissions(&folder, private).at("change", &folder)?;
            }
        }
        store.sweep();
        Ok(store)
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
        self.pull_any(reference, options, reporter)
    }

    /// Where an image lies that is here already: a path, a name in the store or in `machines`, or what was pulled from
    /// a URL or registry before. The lock keeps the store from removing it. `None` where it was not pulled.
    ///
    /// # Errors
    ///
    /// [`ImageError::UnknownName`], [`ImageError::Path`] and [`ImageError::Record`].
    pub fn locate(
        &self,
        reference: &ImageRef,
        machines: &Path,
    ) -> Result<Option<(PathBuf, Option<ImageLock>)>, ImageError> {
        let found = match reference {
            ImageRef::Host => return Ok(Some((PathBuf::from("/"), None))),
            ImageRef::Path(path) => return Ok(Some((path.clone(), None))),
            ImageRef::Url(url) => self.find(&fetch::url_key(url))?,
            ImageRef::Oci(image) => self.find(&oci::key(&format!("oci:{image}")))?,
            ImageRef::Name(name) => Record::read(&record::path(&self.refs(), name))?
                .map(|record| (name.clone(), record)),
        };
        if let Some((name, record)) = &found
            && let Some(image) = self.stored(name, record)?
        {
            return Ok(Some((image.path, image.lock)));
        }
        let ImageRef::Name(name) = reference else {
            return Ok(None);
        };
        let path = self.in_machines(name, machines)?;
        Ok(Some((path, None)))
    }

    /// What machined's images have under a name that the store does not know.
    fn in_machines(&self, name: &ImageName, machines: &Path) -> Result<PathBuf, ImageError> {
        let paths = [
            machines.join(name.as_str()),
            machines.join(format!("{name}.raw")),
        ];
        let found = paths
            .into_iter()
            .find(|path| fs::symlink_metadata(path).is_ok());
        found.ok_or_else(|| ImageError::UnknownName {
            name: name.clone(),
            store: self.root.clone(),
            machines: machines.to_owned(),
        })
    }

    /// All names, sorted.
    ///
    /// # Errors
    ///
    /// [`ImageError::Path`] and [`ImageError::Record`].
    pub fn list(&self) -> Result<Vec<StoredImage>, ImageError> {
        record::all(&self.refs())?
            .into_iter()
            .map(|(name, record)| self.describe(name, &record?))
            .collect()
    }

    /// Removes a name, and the image behind it where no other name has it.
    ///
    /// # Errors
    ///
    /// [`ImageError::NotStored`], and [`ImageError::InUse`] where a machine uses it.
    pub fn remove(&self, name: &ImageName) -> Result<(), ImageError> {
        self.remove_if(name, &|_, _| true).map(drop)
    }

    /// As [`remove`](Self::remove), where the record, which lies at the path given, is one that may go.
    fn remove_if(
        &self,
        name: &ImageName,
        may_go: &dyn Fn(&Record, &Path) -> bool,
    ) -> Result<bool, ImageError> {
        let _refs = self.lock_refs()?;
        let path = record::path(&self.refs(), name);
        let Some(record) = Record::read(&path)? else {
            return Err(self.unknown(name));
        };
        if !may_go(&record, &path) {
            return Ok(false);
        }
        let shared = record::all(&self.refs())?
            .into_iter()
            .any(|(other, found)| {
                other != *name && found.is_ok_and(|found| found.blob() == record.blob())
            });
        let kind = record.kind.into();
        let blob = record
            .blob()
            .map(|digest| (self.blob(&digest, kind), digest));
        let blob = blob.filter(|(blob, _)| !shared && fs::symlink_metadata(blob).is_ok());
        let Some((blob, digest)) = blob else {
            return fs::remove_file(&path).at("remove", &path).map(|()| true);
        };
        let Some(_lock) = lock::exclude_patiently(&blob) else {
            return Err(ImageError::InUse { name: name.clone() });
        };
        fs::remove_file(&path).at("remove", &path)?;
        self.remove_blob(&digest, kind).map(|()| true)
    }

    /// Removes a blob and its checksums; the caller holds the lock of the names and the only lock of the blob.
    fn remove_blob(&self, digest: &Digest, kind: ImageKind) -> Result<(), ImageError> {
        let blob = self.blob(digest, kind);
        let sums = self.sums(digest);
        match fs::remove_file(&sums) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ImageError::io("remove", &sums, error));
            }
            _ => {}
        }
        match kind {
            ImageKind::Disk => fs::remove_file(&blob).at("remove", &blob),
            // In one step out of sight, then at leisure: a killed removal leaves what the next sweep takes.
            ImageKind::Tree => {
                let key = format!("removed-{}", digest.hex());
                let lock = self.lock_path(&key);
                let held = KeyLock::wait(&lock, &Cancel::default(), &mut NoReport)?;
                let work = self.work(&key);
                work.clear();
                fs::rename(&blob, &work.tree).at("remove", &blob)?;
                remove_tree(&work.tree).at("remove", &work.tree)?;
                held.remove(&lock)
            }
        }
    }

    fn unknown(&self, name: &ImageName) -> ImageError {
        ImageError::NotStored {
            name: name.clone(),
            store: self.root.clone(),
        }
    }

    fn describe(&self, name: ImageName, record: &Record) -> Result<StoredImage, ImageError> {
        let record_path = record::path(&self.refs(), &name);
        let (Some(digests), Some(blob)) = (record.digests(), record.blob()) else {
            return Err(ImageError::Record {
                path: record_path,
                reason: "it holds no SHA-256".to_owned(),
            });
        };
        let digest = digests.sha256;
        let kind = record.kind.into();
        let path = self.blob(&blob, kind);
        Ok(StoredImage {
            name,
            source: record.source.clone(),
            digest,
            kind,
            virtual_size: record.virtual_size,
            disk_usage: disk_usage(&path),
            created: record.created(),
            last_used: record::last_used(&record_path, record),
            verified: record.verified.to_string(),
            in_use: path.exists() && lock::is_used(&path),
            path,
        })
    }

    /// Removes what killed imports left: files of keys that nobody holds the lock of. Partial downloads stay.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.partials()) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let left = path
                .extension()
                .is_some_and(|end| ["raw", "tree", "spool"].iter().any(|kind| end == *kind));
            let Some(key) = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .filter(|_| left)
            else {
                continue;
            };
            if let Some(_lock) = KeyLock::try_take(&self.lock_path(key)) {
                self.work(key).clear();
            }
        }
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn refs(&self) -> PathBuf {
        self.root.join("refs")
    }

    fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    fn partial(&self, key: &str, kind: &str) -> PathBuf {
        self.partials().join(format!("{key}.{kind}"))
    }

    fn lock_path(&self, key: &str) -> PathBuf {
        self.partial(key, "lock")
    }

    fn work(&self, key: &str) -> WorkPaths {
        let path = |kind| self.partial(key, kind);
        WorkPaths {
            raw: path("raw"),
            tree: path("tree"),
            spool: path("spool"),
            nameless: None,
        }
    }

    fn sums(&self, sha256: &Digest) -> PathBuf {
        self.blobs().join(format!("{}.sums", sha256.hex()))
    }

    fn blob(&self, sha256: &Digest, kind: ImageKind) -> PathBuf {
        let hex = sha256.hex();
        match kind {
            ImageKind::Disk => self.blobs().join(format!("{hex}.raw")),
            ImageKind::Tree => self.blobs().join(hex),
        }
    }
}

/// Bytes allocated to a file, or to all that is in a folder.
fn disk_usage(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| disk_usage(&entry.path())).sum::<u64>()
}
