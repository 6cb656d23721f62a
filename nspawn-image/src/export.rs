//! A disk image to a raw file anywhere: no store, no root, nothing kept.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{ImageError, PathContext};
use crate::fetch::sync_folder;
use crate::image::ImageKind;
use crate::limits::{Cancel, Limits};
use crate::options::PullOptions;
use crate::place;
use crate::report::{Reporter, Step, StepKind};
use crate::unpack::{self, Paths, WorkPaths};

/// How an image is converted. Made by `default()`, then changed field by field.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// The number or name of the internal snapshot of a qcow2 image; `None` for its active state.
    pub snapshot: Option<String>,
    /// The folder in which the files below a qcow2 overlay may be opened; `None` refuses overlays.
    pub allow_backing: Option<PathBuf>,
    /// Replace a file that stands at the target.
    pub replace: bool,
    /// Caps on what the image may hold.
    pub limits: Limits,
    /// Ends the call early.
    pub cancel: Cancel,
}

/// Converts a disk image to a sparse raw file, and returns its length in bytes.
///
/// `source` is a raw or qcow2 image, or either inside gzip, xz, zstd, bzip2, tar or zip. The result is written beside
/// `target`, synced and renamed, so that `target` is absent, or as it was, or complete. Its mode is what the umask leaves.
///
/// ```no_run
/// use std::path::Path;
/// use nspawn_image::{ConvertOptions, NoReport, convert_file};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (from, to) = (Path::new("debian.qcow2"), Path::new("debian.raw"));
/// convert_file(from, to, &ConvertOptions::default(), &mut NoReport)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`ImageError::Exists`], [`ImageError::Output`] for a target that is no file or is the image itself,
/// [`ImageError::NotADisk`] for an archive of an OS tree; else as [`Store::pull`](crate::Store::pull).
pub fn convert_file(
    source: &Path,
    target: &Path,
    options: &ConvertOptions,
    reporter: &mut dyn Reporter,
) -> Result<u64, ImageError> {
    // Before it is opened: a pipe would keep the call waiting.
    let read = match fs::metadata(source) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ImageError::Missing(source.to_owned()));
        }
        other => other.at("read", source)?,
    };
    if !read.is_file() && !read.file_type().is_block_device() {
        return Err(ImageError::NotADisk {
            what: source.display().to_string(),
        });
    }
    let file = File::open(source).at("open", source)?;
    let target = free_target(target, (read.dev(), read.ino()), options.replace)?;
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if let Err(error) = fs::read_dir(folder) {
        return Err(ImageError::io("write to", folder, error));
    }
    let work = WorkPaths {
        raw: place::beside(&target, "raw"),
        tree: place::beside(&target, "tree"),
        spool: place::beside(&target, "spool"),
    };
    let absolute = fs::canonicalize(source).at("read", source)?;
    let pull = PullOptions {
        snapshot: options.snapshot.clone(),
        allow_backing: options.allow_backing.clone(),
        limits: options.limits.clone(),
        cancel: options.cancel.clone(),
        ..PullOptions::default()
    };
    let paths = Paths {
        work: &work,
        own: None,
        image: Some(&absolute),
    };
    let what = source.display().to_string();
    let imported = unpack::import(&file, &what, paths, &pull, reporter);
    let result = imported.and_then(|imported| {
        if imported.kind != ImageKind::Disk {
            return Err(ImageError::NotADisk { what });
        }
        let _step = Step::begin(
            reporter,
            StepKind::Publish,
            &target.display().to_string(),
            None,
        );
        let made = File::open(&imported.path).at("open", &imported.path)?;
        made.sync_all().at("sync", &imported.path)?;
        options.cancel.check()?;
        place::put(&imported.path, &target, options.replace)?;
        sync_folder(folder)?;
        Ok(imported.virtual_size)
    });
    work.clear();
    result
}

/// The target as a file that is written to; `source` is the image's identity.
fn free_target(target: &Path, source: (u64, u64), replace: bool) -> Result<PathBuf, ImageError> {
    let refused = |found| ImageError::Output {
        path: target.to_owned(),
        found,
    };
    let ends_in_name = target.file_name().is_some();
    let found = match fs::metadata(target) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound && ends_in_name => {
            if fs::symlink_metadata(target).is_ok() {
                return Err(refused("a link that leads nowhere"));
            }
            return Ok(target.to_owned());
        }
        Err(error) => return Err(ImageError::io("read", target, error)),
    };
    let kind = found.file_type();
    if (found.dev(), found.ino()) == source {
        return Err(refused("the image itself"));
    }
    if kind.is_dir() {
        return Err(refused("a folder"));
    }
    if kind.is_block_device() || kind.is_char_device() {
        return Err(refused("a device"));
    }
    if !kind.is_file() {
        return Err(refused("no regular file"));
    }
    if !replace {
        return Err(ImageError::Exists(target.to_owned()));
    }
    // A link stays, and leads to the new file.
    fs::canonicalize(target).at("read", target)
}
